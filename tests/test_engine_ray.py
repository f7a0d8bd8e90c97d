"""A fit on a Ray cluster: a real one, on this machine, for all tests of this file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Pictures, close, fill_memory, kill, marks
from models import tiny_images, tiny_model
from stores import put_pictures, s3

from secondlens.engine import pool
from secondlens.engine.ray import Ray
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import Unfinished, fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip

OPTIONS = {"layers": [1, 2], "top": 5, "batch_size": 3, "shard_size": 6, "store": "never"}


@pytest.fixture(scope="module")
def server():
    with s3() as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    """Of a cluster with two processors, whose workers know the S3 server and do not insist."""
    # short, because the names of sockets are
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        once = {"config_kwargs": {"retries": {"total_max_attempts": 1, "mode": "standard"}}}
        patch.setenv("FSSPEC_S3", json.dumps(once))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes into the home folder
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        ray.init(
            num_cpus=2,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4), name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 23)


@pytest.fixture(scope="module")
def expected(clip, images, tmp_path_factory):
    return fit(clip, Pictures(images, tmp_path_factory.mktemp("alone")), **OPTIONS)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(pool, "PAUSE", 0.01)


def test_ray_gives_the_same_lens(address, clip, images, expected, tmp_path):
    lens = fit(clip, Pictures(images, tmp_path), engine=Ray(workers=2), **OPTIONS)
    close(lens, expected)
    assert marks(tmp_path, "read") == 2 * 23


class Fatal(Pictures):
    """One worker is killed in the middle of a shard, and another runs out of memory."""

    def load(self, index):
        self.trouble = kill if index == 10 else fill_memory
        self.at = index if index in (10, 16) else None
        self.times = {10: 1, 16: 2}.get(index, 0)
        return super().load(index)


@pytest.mark.long
def test_workers_that_are_killed_or_out_of_memory(address, clip, images, expected, tmp_path):
    out = tmp_path / "lens"
    lens = fit(clip, Fatal(images, tmp_path), engine=Ray(workers=1), out=out, **OPTIONS)
    assert marks(tmp_path, "trouble") == 2
    close(lens, expected)


@pytest.mark.long
def test_a_shard_that_always_fails_is_reported(address, clip, images, expected, tmp_path):
    pictures = Pictures(images, tmp_path, at=10, trouble=kill, times=10**9)
    out = tmp_path / "lens"
    with pytest.raises(Unfinished, match="means of shard 1: its worker was lost") as raised:
        fit(clip, pictures, engine=Ray(workers=1, retries=1), out=out, **OPTIONS)
    assert [node.number for node in raised.value.failures] == [1]
    assert not out.exists()
    before = marks(tmp_path, "read")
    close(fit(clip, Pictures(images, tmp_path), out=out, **OPTIONS), expected)
    assert marks(tmp_path, "read") - before == 6 + 23, "one shard, and the second pass"


@pytest.mark.long
def test_a_driver_that_is_killed_and_started_again(address, clip, images, expected, tmp_path):
    script = """
import sys
from pathlib import Path
from engines import Pictures
from models import tiny_images, tiny_model
from stores import put_pictures, s3
from secondlens.models.open_clip.views import from_open_clip
from secondlens.engine.ray import Ray
from secondlens.lens.fitting import fit

clip = from_open_clip(tiny_model(layers=4), name="tiny")
folder = Path(sys.argv[2])
pictures = Pictures(tiny_images(clip, 23), folder, seconds=0.1)
engine = Ray(address=sys.argv[1], workers=1)
settings = dict(layers=[1, 2], top=5, batch_size=3, shard_size=6, store="never")
fit(clip, pictures, engine=engine, out=folder / "lens", **settings)
"""
    command = [sys.executable, "-c", script, address, str(tmp_path)]
    finished = tmp_path / "lens.unfinished" / "group-00-means-0-00001.json"
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as driver:
        while not finished.exists():
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    time.sleep(1)  # for Ray to end what the driver left behind
    read = marks(tmp_path, "read")
    assert 12 <= read < 23
    assert not (tmp_path / "lens").exists()
    whole = len(list((tmp_path / "lens.unfinished").glob("*-means-0-*.json")))
    engine = Ray(workers=1)
    lens = fit(clip, Pictures(images, tmp_path), engine=engine, out=tmp_path / "lens", **OPTIONS)
    close(lens, expected)
    assert marks(tmp_path, "read") - read == 23 - 6 * whole + 23


@pytest.mark.long
def test_a_store_that_fails_for_a_while(address, server, tmp_path):
    """Workers read from it and write to it; it is down for longer than its library insists."""
    clip = from_open_clip(tiny_model(layers=4), preprocess=pixels_of, name="tiny")
    pictures = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    for number, content in enumerate(put_pictures("s3://lab/photos", pictures)):
        (tmp_path / f"{number:02}.png").write_bytes(content)
    server.fail(12, after=lambda method, path: path.endswith("05.png"))
    settings = OPTIONS | {"shard_size": 3}
    lens = fit(clip, "s3://lab/photos", engine=Ray(workers=1), out="s3://lab/lens", **settings)
    assert server.after is None and server.failing == 0
    assert sum(path.endswith("03.png") for _, path in server.requests) > 1 + 2, "tried again"
    close(lens, fit(clip, tmp_path, **settings))
    close(Lens.load("s3://lab/lens"), lens)
    assert not lens.skipped


def pixels_of(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_what_a_cluster_cannot_give(address, clip, images, tmp_path):
    with pytest.raises(SecondLensError, match="no room for a worker with 1 CPU and 1 GPU"):
        fit(clip, images, engine=Ray(gpus=1.0), **OPTIONS)
    with pytest.raises(SecondLensError, match="give out"):
        fit(clip, images, engine=Ray(address=address), **OPTIONS)
