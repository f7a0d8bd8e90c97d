"""Workers end with their parent, and two processes never write one output."""

import os
import subprocess
import sys
import time

import pytest
from families import Family
from models import tiny_images, tiny_model
from scale import PATIENCE

from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.storage.locks import locked

FITTING = """
import sys, time, torch
from models import tiny_images, tiny_model
from secondlens.engine import Local, Ray
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip

out, kind, seconds = sys.argv[1:]

class Slow:
    def __init__(self, images):
        self.images, self.ids = images, [str(i) for i in range(len(images))]

    def load(self, index):
        time.sleep(float(seconds))
        return self.images[index]

if __name__ == "__main__":
    engine = {"engine": Local(workers=3), "both": Local(workers=2)}.get(kind)
    if kind == "ray":
        engine = Ray(workers=1)
    clip = from_open_clip(tiny_model(layers=4), name="tiny")
    print("ready", flush=True)
    try:
        fit(clip, Slow(tiny_images(clip, 24)), [1, 2], top=5, batch_size=2, shard_size=4,
            store="never", out=out, engine=engine,
            workers=2 if kind in ("decoders", "both") else 0)
    except SecondLensError as error:
        print(error)
        sys.exit(2)
"""


class Fitting(Family):
    """A process that fits."""

    def __init__(self, folder, kind="alone", seconds=0.3):
        script = folder / "fitting.py"
        script.write_text(FITTING)
        super().__init__([script, folder / "lens", kind, str(seconds)])

    def wait_for(self, members):
        deadline = time.monotonic() + PATIENCE
        while len(self.members()) < members and time.monotonic() < deadline:
            assert self.process.poll() is None
            time.sleep(0.05)
        assert len(self.members()) >= members


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        pytest.param("engine", 0.2, marks=pytest.mark.long),
        ("engine", 2.5),
        pytest.param("engine", 6.0, marks=pytest.mark.long),
        ("decoders", 2.5),
        pytest.param("both", 6.0, marks=pytest.mark.long),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, kind, after):
    """Killed while workers start, import, read, and wait."""
    fitting = Fitting(tmp_path, kind, seconds=3)
    fitting.wait_for(2)
    time.sleep(after)
    assert len(fitting.members()) > 1
    fitting.kill()
    assert fitting.orphans(PATIENCE) == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["engine", "decoders", "both"])
def test_workers_are_gone_five_seconds_after_their_parent(tmp_path, kind):
    """Killed at moments that differ; the machine must be idle."""
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        fitting = Fitting(tmp_path / str(number), kind)
        fitting.wait_for(2)
        time.sleep(0.7 * number)
        fitting.kill()
        assert fitting.orphans(5) == []


@pytest.mark.long
def test_no_actor_outlives_its_driver(tmp_path):
    fitting = Fitting(tmp_path, "ray", seconds=3)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if any("_Holder.perform" in " ".join(each.cmdline()) for each in fitting.members()):
            break
        time.sleep(0.2)
    else:
        pytest.fail("no actor began to work")
    fitting.kill()
    assert fitting.orphans(PATIENCE) == []


@pytest.mark.long
def test_of_two_fits_one_is_refused(tmp_path):
    first = Fitting(tmp_path, seconds=5)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "lens.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = Fitting(tmp_path, seconds=0)
    said, errors = second.end()
    assert second.process.returncode == 2
    assert f"lens is being written by process {first.process.pid}: wait until" in said
    assert "Traceback" not in errors
    first.kill()
    third = Fitting(tmp_path, seconds=0)
    said, errors = third.end()
    assert third.process.returncode == 0, said + errors
    assert Lens.load(tmp_path / "lens").layers == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitting.py", "lens"]


@pytest.mark.long
def test_a_killed_fit_holds_nothing(tmp_path):
    """And its decoders, which were forked from it, do not hold it either."""
    fitting = Fitting(tmp_path, "decoders", seconds=0.2)
    fitting.wait_for(3)
    fitting.kill()
    again = Fitting(tmp_path, "alone", seconds=0)
    said, errors = again.end()
    assert again.process.returncode == 0, said + errors
    assert not (tmp_path / "lens.lock").exists()


# -- the lock ----------------------------------------------------------------------------------


def test_threads_of_one_process(tmp_path):
    out = tmp_path / "new" / "lens"
    with locked(out):
        assert out.with_name("lens.lock").read_text() == f"process {os.getpid()}"
        with pytest.raises(SecondLensError, match="is being written by process"), locked(out):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(out):
        pass
    assert list(out.parent.iterdir()) == []


HOLDING = """
import random, sys, time
from pathlib import Path
from secondlens.errors import SecondLensError
from secondlens.storage.locks import locked
out, inside = Path(sys.argv[1]), Path(sys.argv[2])
done = 0
while done < 150:
    try:
        with locked(out):
            inside.touch(exist_ok=False)  # fails if another one is inside
            time.sleep(random.random() / 1000)
            inside.unlink()
            done += 1
    except SecondLensError:
        time.sleep(random.random() / 1000)
"""


def test_never_two_at_a_time(tmp_path):
    """Also while the file is removed and made again."""
    command = [sys.executable, "-c", HOLDING, tmp_path / "out", tmp_path / "inside"]
    several = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for each in several:
        _, errors = each.communicate()
        assert each.returncode == 0, errors
    assert list(tmp_path.iterdir()) == []


def test_where_none_can_be_held(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SecondLensError, match="cannot be written to"), locked(tmp_path / "file/a"):
        pass


def test_stores_have_no_locks():
    with locked("memory://bucket/lens"), locked("memory://bucket/lens"):
        pass


def test_a_fit_that_came_second_finds_what_the_first_has_written(tmp_path, monkeypatch):
    """It looked before the first was done, and held the output after."""
    clip = from_open_clip(tiny_model(layers=3), name="tiny")
    out = tmp_path / "lens"
    looks = []

    def check(place):
        looks.append(place)
        if len(looks) == 2:
            raise SecondLensError("exists already")

    monkeypatch.setattr("secondlens.lens.fitting.check_resumable", check)
    with pytest.raises(SecondLensError, match="exists already"):
        fit(clip, tiny_images(clip, 6), out=out)
    assert list(tmp_path.iterdir()) == []
