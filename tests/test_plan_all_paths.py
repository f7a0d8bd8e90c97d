"""What a plan of a fit over all paths foretells, against what a fit takes and writes."""

import json
import weakref

import pytest
import torch
from click.testing import CliRunner
from models import tiny_images, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import secondlens as sl
from secondlens.commands.group import main
from secondlens.lens.plan import make_plan, together
from secondlens.lens.rehearsal import Pace, seconds_for_axes
from secondlens.models.open_clip.views import from_open_clip
from secondlens.storage.checkpoints import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:the .* axes leave out")
IMAGES, AXES = 32, 12


class Peak(TorchDispatchMode):
    """Counts bytes of tensors that live at the same time, of those that are made inside it."""

    def __init__(self):
        super().__init__()
        self.used, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage):
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.used += storage.nbytes()
            self.peak = max(self.peak, self.used)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key):
        self.used -= self.alive.pop(key)


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4, dim=48, width=48))


def written(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("axes", [AXES, 48])
def test_memory_disk_and_lens_are_what_a_fit_takes(clip, tmp_path, monkeypatch, axes):
    work, plans, out = [], [], tmp_path / "lens"
    drop = Checkpoints.drop

    def weighed(parts):
        work.append(written(tmp_path / "lens.unfinished"))
        drop(parts)

    monkeypatch.setattr(Checkpoints, "drop", weighed)
    images = tiny_images(clip, IMAGES)
    with Peak() as taken:
        sl.fit(
            *(clip, images),
            batch_size=8,
            top=8,
            paths="all",
            axes=axes,
            out=out,
            announce=plans.append,
        )
    need = together(plans)
    assert [plan.axes for plan in plans] == [None, axes]
    assert taken.peak == pytest.approx(need.memory, rel=0.1)
    assert work == [pytest.approx(need.disk, rel=0.03)]
    assert written(out) == pytest.approx(need.lens, rel=0.1)
    assert need.lens > 1.9 * plans[0].lens and need.disk > plans[0].disk + axes * 48 * 4


def test_the_search_for_axes_is_part_of_the_time(clip):
    plan = make_plan(clip, 1000, [0, 1, 2], top=5, batch_size=8, axes=AXES)
    value, total = Pace(per_image=1.0, fixed=3.0), Pace(per_image=1.0 + 2 * AXES, fixed=5.0)
    # 2 seconds an axis: 32 images with 48 of them, 32 others with 12 and 16
    assert seconds_for_axes(clip, plan, value, total) == 32 * 97 + 32 * 57
    assert total.seconds(plan) == 5 + plan.passes * 1000 * 25
    sampled = make_plan(clip, 1000, [0], top=5, batch_size=8, axes=AXES, sample=100, store="never")
    assert total.seconds(sampled) == 5 + (1000 + 100) * 25


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_the_command_foretells_both():
    settings = ("--layers", 6, "--batch-size", 2, "--paths", "all", "--axes", 2)
    found = json.loads(run(20, *settings, "--json").stdout)
    total, both = found["all_paths"], found["together"]
    assert found["axes"] is None and total["axes"] == 2
    assert both["disk"] == found["disk"] + total["disk"]
    assert both["lens"] == found["lens"] + total["lens"]
    assert both["memory"] == max(found["memory"], total["memory"] + found["lens"])
    assert both["seconds"] == pytest.approx(found["seconds"] + total["seconds"])
    assert 0 < total["seconds_for_axes"] < total["seconds"]
    said = " ".join(run(20, *settings).output.split())
    for each in ("all paths along 2 axes", "for the axes", "together about", "value paths: about"):
        assert each in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--axes", 2), "add paths all"),
        (("--paths", "all", "--axes", 4000), "axes must lie between 1 and"),
        (("--paths", "all", "--convention", "official"), "over all paths are exact"),
        (("--paths", "all", "--gpus", 2), "leave out --gpus or --paths all"),
        (("--paths", "some"), "--paths"),
    ],
)
def test_what_cannot_be_planned_is_told(settings, message):
    assert message in " ".join(run(20, "--layers", 5, *settings, code=2).stderr.split())
