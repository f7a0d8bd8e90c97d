"""Shards, plans, stored coordinates, interruption and resumption of a fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import tiny_images, tiny_model
from safetensors.torch import save_file
from test_fit import same

from secondlens.errors import SecondLensError
from secondlens.lens import plan as planning
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.lens.plan import make_plan
from secondlens.models.open_clip.views import from_open_clip


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4), name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 23)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(planning, "IMAGES_PER_SHARD", 6)


class Interrupted(Exception):
    """What a test raises in the middle of a fit."""


class Fragile:
    """Rows of a tensor, until a number of them were read."""

    def __init__(self, images, limit=10**9):
        self.images, self.left = images, limit
        self.ids = [f"image-{i}" for i in range(len(images))]

    def load(self, index):
        if self.left == 0:
            raise Interrupted
        self.left -= 1
        return self.images[index]


@pytest.mark.parametrize("store", ["never", "float32", "float16"])
@pytest.mark.parametrize("limit", [0, 5, 11, 17, 23, 30, 45])
def test_a_resumed_fit_equals_one_that_was_not_interrupted(clip, images, tmp_path, store, limit):
    options = {"top": 5, "batch_size": 3, "store": store}
    whole = fit(clip, Fragile(images), out=tmp_path / "whole", **options)
    out = tmp_path / "lens"
    if store == "never" or limit < 23:
        with pytest.raises(Interrupted):
            fit(clip, Fragile(images, limit), out=out, **options)
        assert not out.exists()
    source = Fragile(images)
    resumed = fit(clip, source, out=out, **options)
    same(whole, resumed)
    same(whole, Lens.load(out))
    assert not Path(f"{out}.unfinished").exists()
    passes = 2 if store == "never" else 1
    done = limit // 6 * 6 if limit < 23 else 23 + (limit - 23) // 6 * 6 if passes == 2 else 0
    assert 10**9 - source.left == passes * 23 - done, "finished shards are not read again"


def test_killed_and_resumed(clip, images, tmp_path):
    """SIGKILL in the middle of the second shard, then the same call."""
    script = """
import os, signal, sys
from secondlens.lens import plan
from models import tiny_images, tiny_model
from secondlens.models.open_clip.views import from_open_clip
from secondlens.lens.fitting import fit
from test_resume import Fragile

class Deadly(Fragile):
    def load(self, index):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)

plan.IMAGES_PER_SHARD = 6
clip = from_open_clip(tiny_model(layers=4), name="tiny")
limit = int(sys.argv[2])
fit(clip, Deadly(tiny_images(clip, 23), limit), out=sys.argv[1], top=5, batch_size=3)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "lens")]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, "9"], env=environment, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "lens.unfinished").is_dir() and not (tmp_path / "lens").exists()
    subprocess.run([*command, "17"], env=environment, check=True)
    torch.set_num_threads(1)
    whole = fit(clip, Fragile(images), top=5, batch_size=3)
    same(whole, Lens.load(tmp_path / "lens"))


def test_one_pass_from_stored_coordinates_equals_two(clip, images):
    options = {"top": 5, "batch_size": 3}
    twice = fit(clip, images, store="never", **options)
    once = fit(clip, images, store="float32", **options)
    for layer in twice.layers:
        assert torch.equal(twice[layer].top_images, once[layer].top_images)
        assert torch.equal(twice[layer].directions, once[layer].directions)
        assert torch.equal(twice[layer].histogram, once[layer].histogram)


def test_float16_coordinates_are_close(clip, images):
    exact = fit(clip, images, top=5, store="float32")
    half = fit(clip, images, top=5, store="float16")
    for layer in exact.layers:
        error = (exact[layer].top_norms - half[layer].top_norms).abs()
        assert (error <= 1e-3 * exact[layer].top_norms).all()
        assert (exact[layer].directions * half[layer].directions).sum(1).min() > 1 - 1e-4


def test_layer_groups_give_the_same_lens(clip, images):
    together = fit(clip, images, top=5, store="never")
    plans = []
    for _ in range(2):
        need = make_plan(clip, 23, [0, 1, 2], top=5, store="never", memory=10**12).memory
        apart = fit(
            clip, images, top=5, store="never", memory=int(need / 1.3), announce=plans.append
        )
    assert len(plans[0].groups) > 1
    assert plans[0].passes == 2 * len(plans[0].groups)
    same(together, apart)


def test_unfinished_work_with_other_settings_is_refused(clip, images, tmp_path):
    out = tmp_path / "lens"
    with pytest.raises(Interrupted):
        fit(clip, Fragile(images, 8), out=out, top=5, batch_size=3)
    with pytest.raises(SecondLensError, match=r"work with top 5 and not 6: finish"):
        fit(clip, Fragile(images), out=out, top=6, batch_size=3)
    with pytest.raises(
        SecondLensError, match=r"work with images [0-9a-f]{8}… and not [0-9a-f]{8}…: finish"
    ):
        fit(clip, Fragile(images[:20]), out=out, top=5, batch_size=3)
    several = r"layers \[0, 1, 2\] and not \[1\], top 5 and not 6, batch size 3 and not 4: finish"
    with pytest.raises(SecondLensError, match=several):
        fit(clip, Fragile(images), [1], out=out, top=6, batch_size=4)
    other = from_open_clip(tiny_model(layers=4, seed=1), name="other")
    of_model = r"work with model name tiny and not other, model weights \w{8}… and not \w{8}…: fin"
    with pytest.raises(SecondLensError, match=of_model):
        fit(other, Fragile(images), out=out, top=5, batch_size=3)
    record = Path(f"{out}.unfinished") / "work.json"
    whole = json.loads(record.read_text())
    for damaged in ("{", "[1, 2]", '{"work": 3}', json.dumps(whole | {"plan": {}})):
        record.write_text(damaged)
        with pytest.raises(SecondLensError, match=r"work\.json is damaged: remove .*unfinished"):
            fit(clip, Fragile(images), out=out, top=5, batch_size=3)
    record.unlink()
    with pytest.raises(SecondLensError, match="holds other files"):
        fit(clip, Fragile(images), out=out, top=5, batch_size=3)


@pytest.mark.parametrize(
    ("begun_by", "said"), [(None, "an earlier version"), ("0.0.9", "version 0.0")]
)
def test_work_of_another_version(clip, images, tmp_path, begun_by, said):
    """It goes on where its form is the same, and else says who began it and what to do."""
    out, options = tmp_path / "lens", {"top": 5, "batch_size": 3, "store": "float32"}
    whole = fit(clip, Fragile(images), **options)
    with pytest.raises(Interrupted):
        fit(clip, Fragile(images, 17), out=out, **options)
    folder = Path(f"{out}.unfinished")
    record = json.loads((folder / "work.json").read_text())
    assert record.pop("version")
    record |= {} if begun_by is None else {"version": begun_by}
    parts = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    message = rf"unfinished was begun by {said}.* of secondlens, whose parts .*: finish it with"

    def refused(work):
        (folder / "work.json").write_text(json.dumps(work))
        with pytest.raises(SecondLensError, match=message):
            fit(clip, Fragile(images), out=out, **options)

    refused(record | {"plan": {"shards": []}})
    refused(record | {"work": {"top": 5}})
    for path in parts:
        save_file({"another": torch.zeros(1)}, path)
    refused(record)
    for path, content in parts.items():
        path.write_bytes(content)
    same(fit(clip, Fragile(images, 6), out=out, **options), whole)


def test_pictures_that_change_between_the_passes(clip, images):
    class Changing(Fragile):
        def load(self, index):
            if self.left < 10**9 - 25 and index == 4:
                raise OSError("gone")
            return super().load(index)

    with pytest.raises(SecondLensError, match="they changed"):
        fit(clip, Changing(images), top=5, store="never")


def test_plan(clip):
    plan = make_plan(clip, 5000, [0, 1, 2], top=100, store="auto", memory=2**30, disk=2**40)
    assert plan.store == "float32" and plan.passes == 1
    assert [shard.start for shard in plan.shards[1:]] == [s.stop for s in plan.shards[:-1]]
    assert plan.shards[0].start == 0 and plan.shards[-1].stop == 5000
    assert str(plan).startswith("3 layers, 5,000 images in")
    assert make_plan(clip, 5000, [0], top=100, memory=2**30, disk=2**10).passes == 2
    assert make_plan(clip, 10_000, [0], top=100, memory=2**30, disk=2**10).passes == 1
    one, ten = (
        make_plan(clip, n, [1], top=100, memory=2**30, store="never") for n in (10_000, 100_000)
    )
    assert one.memory == ten.memory
    with pytest.raises(SecondLensError, match=r"layer 2 needs .* of memory"):
        make_plan(clip, 10, [2], top=5, memory=1000)
    with pytest.raises(SecondLensError, match="no way to store 'tape'"):
        make_plan(clip, 10, [2], top=5, store="tape")


def test_coordinates_take_what_the_plan_says(clip, images):
    announced = []
    for keep in (False, True):
        settings = {"top": 5, "store": "float32", "keep_coordinates": keep, "memory": 2**30}
        lens = fit(clip, images, [1, 2], announce=announced.append, **settings)
    without, plan = announced
    assert lens.coordinates is not None
    for layer in (1, 2):
        assert lens.coordinates.z[layer][0].nbytes == plan.coordinates_per_image[layer]
    kept = [*lens.coordinates.z.values(), *lens.coordinates.basis.values()]
    assert plan.memory - without.memory == sum(tensor.nbytes for tensor in kept)


def test_the_last_block_for_the_class_token_only(clip, images):
    whole = clip.encode_image(images)
    with clip.class_token_only():
        short = clip.encode_image(images)
        assert "forward" in vars(clip.blocks[-1].module)
    torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(clip.blocks[-1].module)
    assert torch.equal(clip.encode_image(images), whole)
