"""Crews of workers, and a fit in several processes of this machine."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import click.testing
import psutil
import pytest
import torch
from engines import Pictures, be_unreachable, close, fail, fill_memory, kill, marks
from models import tiny_images, tiny_model, tiny_tokenizer
from scale import PATIENCE
from test_attack import NeverLions

from secondlens.applications.adversarial.attacks import attack_pairs, attacker
from secondlens.commands.group import main
from secondlens.data.vocabularies import vocabulary, world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.engine import pool
from secondlens.engine.local import Local
from secondlens.engine.pool import Incomplete, Pool, perform
from secondlens.engine.ray import Ray
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import Unfinished, fit
from secondlens.lens.lens import Lens
from secondlens.lens.nodes import FAN_IN, levels
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.processes.server import IMPORTED
from secondlens.storage.remote import Unreachable
from secondlens.words.describing import describe


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 23)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(pool, "PAUSE", 0.01)


OPTIONS = {"layers": [1, 2], "top": 5, "batch_size": 3, "shard_size": 6, "store": "never"}


class Threads:
    """Workers that are threads of this process; `lost` says when one of them dies."""

    def __init__(self, work, lost=lambda task: False, starts=lambda number: True):
        self.work, self.lost, self.starts = work, lost, starts
        self.hired, self.stopped = [], []

    def __call__(self):
        self.hired.append(_Thread(self, len(self.hired)))
        return self.hired[-1]


class _Thread:
    def __init__(self, threads, number):
        self.threads, self.number = threads, number
        self.executor, self.tasks = ThreadPoolExecutor(1), []

    def ready(self):
        future = Future()
        if self.threads.starts(self.number):
            future.set_result(None)
        else:
            future.set_exception(RuntimeError("no such module"))
        return future

    def submit(self, task, pause):
        self.tasks.append(task)
        if self.threads.lost(task):
            future = Future()
            future.set_exception(RuntimeError("it died"))
            return future
        return self.executor.submit(perform, self.threads.work, task, pause)

    def stop(self):
        self.threads.stopped.append(self.number)
        self.executor.shutdown()


def test_each_task_is_done_once_by_several_workers():
    together, barrier = [], threading.Barrier(3, timeout=PATIENCE)

    def work(task):
        if task < 3:
            barrier.wait()  # passes only if three workers are at work at a time
        together.append(task)
        return task**2

    threads = Threads(work)
    with Pool(threads, 3, retries=0) as workers:
        assert dict(workers.map(range(20))) == {n: n**2 for n in range(20)}
        assert dict(workers.map([])) == {}
        assert dict(workers.map([7])) == {7: 49}
    assert sorted(together) == sorted([*range(20), 7])
    assert sorted(threads.stopped) == [0, 1, 2]


def test_no_more_workers_than_tasks():
    threads = Threads(lambda task: task)
    with Pool(threads, 50, retries=0) as workers:
        list(workers.map([1, 2]))
    assert len(threads.hired) == 2


def test_a_failed_task_is_tried_again_and_then_reported():
    tries = []

    def work(task):
        tries.append(task)
        if task == 2 or (task == 4 and tries.count(4) < 3):
            raise KeyError(task)
        return task

    with Pool(Threads(work), 2, retries=2) as workers, pytest.raises(Incomplete) as raised:
        list(workers.map(range(6)))
    assert raised.value.failures == {2: "KeyError: 2 (3 times)"}
    assert [tries.count(n) for n in range(6)] == [1, 1, 3, 1, 3, 1]


def test_all_others_are_done_before_a_failure_is_reported():
    def work(task):
        if task == 0:
            raise KeyError(task)
        return task

    with Pool(Threads(work), 1, retries=1) as workers:
        results = workers.map(range(5))
        assert [next(results)[0] for _ in range(4)] == [1, 2, 3, 4]
        with pytest.raises(Incomplete):
            next(results)


def test_pauses_grow():
    assert [pool._Attempt("task", n).pause for n in range(4)] == [0, 0.01, 0.02, 0.04]
    assert pool._Attempt("task", 100).pause == pool.LONGEST_PAUSE


def test_a_lost_worker_is_replaced():
    lost = []

    def dies(task):
        if task == 1 and len(lost) < 2:
            lost.append(task)
            return True
        return False

    threads = Threads(lambda task: task, dies)
    with Pool(threads, 1, retries=2) as workers:
        assert sorted(dict(workers.map(range(6)))) == list(range(6))
    assert len(threads.hired) == 3
    always = Threads(lambda task: task, lambda task: task == 1)
    with (
        Pool(always, 2, retries=1) as workers,
        pytest.raises(Incomplete, match="was lost: Runtime"),
    ):
        list(workers.map(range(6)))


def test_a_mistake_is_not_tried_again():
    tries = []

    def work(task):
        tries.append(task)
        raise SecondLensError("there is no such layer")

    with (
        Pool(Threads(work), 1, retries=5) as workers,
        pytest.raises(SecondLensError, match="layer"),
    ):
        list(workers.map([1, 2, 3]))
    assert tries == [1]


def test_what_is_unreachable_is_tried_again():
    tries = []

    def work(task):
        tries.append(task)
        if len(tries) < 3:
            raise Unreachable("the store does not answer")

    with Pool(Threads(work), 1, retries=5) as workers:
        list(workers.map([1]))
    assert tries == [1, 1, 1]


def test_workers_that_never_start():
    never = Threads(lambda task: task, starts=lambda number: False)
    with (
        Pool(never, 2, retries=2) as workers,
        pytest.raises(SecondLensError, match=r"no worker can be started: .* no such module"),
    ):
        list(workers.map([1]))
    later = Threads(lambda task: task, starts=lambda number: number > 1)
    with Pool(later, 2, retries=2) as workers:
        assert dict(workers.map([1, 2])) == {1: 1, 2: 2}


def test_what_processes_import_beforehand_exists():
    assert all(find_spec(f"secondlens.{name}") for name in IMPORTED)


@pytest.mark.parametrize(
    ("engine", "settings", "message"),
    [
        (Local, {"workers": -1}, "workers must be 0 or more, and they are -1"),
        (Local, {"retries": -1}, "retries must be 0 or more, and they are -1"),
        (Ray, {"workers": 0}, "workers must be 1 or more, and they are 0"),
        (Ray, {"retries": -2}, "retries must be 0 or more, and they are -2"),
        (Ray, {"cpus": 0.0}, "a worker needs a CPU or a GPU"),
        (Ray, {"cpus": -1.0, "gpus": 2.0}, "a worker needs a CPU or a GPU"),
    ],
)
def test_settings_of_engines_are_checked(engine, settings, message):
    with pytest.raises(SecondLensError, match=message):
        engine(**settings)


def test_ray_that_is_missing_or_not_there(monkeypatch):
    def nowhere(*_, **__):
        raise ConnectionError("no answer")

    absent = ModuleType("ray")
    absent.is_initialized, absent.init = (lambda: False), nowhere
    monkeypatch.setitem(sys.modules, "ray", absent)
    with (
        pytest.raises(SecondLensError, match="no Ray cluster at head:6379: start one with"),
        Ray(address="head:6379").start(print),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(SecondLensError, match=r"needs Ray: pip install 'secondlens\[ray\]'"),
        Ray().start(print),
    ):
        pass


def test_levels_of_a_tree():
    assert levels(1) == [1]
    assert levels(FAN_IN) == [FAN_IN, 1]
    assert levels(FAN_IN + 1) == [FAN_IN + 1, 2, 1]
    assert levels(10_000) == [10_000, 625, 40, 3, 1]


@pytest.mark.parametrize("store", ["never", "float32"])
def test_processes_give_the_same_lens(clip, images, tmp_path, store):
    options = OPTIONS | {"store": store}
    alone = fit(clip, Pictures(images, tmp_path), **options)
    together = fit(clip, Pictures(images, tmp_path), engine=Local(workers=2), **options)
    close(together, alone)


def test_a_tree_of_several_levels(clip, tmp_path):
    """33 shards make two nodes of 16, one of 1, and a root; one shard makes none."""
    images = tiny_images(clip, 33)
    options = {"layers": [2], "top": 5, "batch_size": 1, "store": "never"}
    deep = fit(clip, images, shard_size=1, out=tmp_path / "deep", **options)
    flat = fit(clip, images, shard_size=33, **options)
    close(deep, flat)
    assert deep[2].top_norms.allclose(flat[2].top_norms, rtol=1e-5)


@pytest.mark.parametrize("trouble", [kill, fill_memory, fail, be_unreachable])
def test_trouble_in_a_shard_changes_nothing(clip, images, tmp_path, trouble):
    pictures = Pictures(images, tmp_path, at=10, trouble=trouble, times=2)
    lens = fit(clip, pictures, engine=Local(workers=2), out=tmp_path / "lens", **OPTIONS)
    assert marks(tmp_path, "trouble") == 2
    close(lens, fit(clip, Pictures(images, tmp_path), **OPTIONS))
    assert not (tmp_path / "lens.unfinished").exists()


def test_a_shard_that_always_fails_is_reported(clip, images, tmp_path):
    pictures = Pictures(images, tmp_path, at=10, trouble=kill, times=10**9)
    out = tmp_path / "lens"
    with pytest.raises(Unfinished, match="means of shard 1: its worker was lost") as raised:
        fit(clip, pictures, engine=Local(workers=2, retries=1), out=out, **OPTIONS)
    assert [node.number for node in raised.value.failures] == [1]
    assert "no lens yet" in str(raised.value) and "lens.unfinished" in str(raised.value)
    assert not out.exists()
    before = marks(tmp_path, "read")
    mended = fit(clip, Pictures(images, tmp_path), engine=Local(workers=1), out=out, **OPTIONS)
    assert marks(tmp_path, "read") - before == 6 + 23, "one shard, and the second pass"
    close(mended, fit(clip, Pictures(images, tmp_path), **OPTIONS))


def test_mistakes_of_the_user_come_from_workers_as_they_are(clip, images, tmp_path):
    class Words:
        ids = ("a", "b", "c")

        def load(self, index):
            return "no picture"

    with pytest.raises(SecondLensError, match="is of the type str"):
        fit(clip, Words(), [1], top=2, engine=Local(workers=1), out=tmp_path / "lens")


@pytest.mark.long
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = """
import sys
from pathlib import Path
from engines import Pictures
from models import tiny_images, tiny_model
from secondlens.models.open_clip.views import from_open_clip
from secondlens.engine.local import Local
from secondlens.lens.fitting import fit

if __name__ == "__main__":
    clip = from_open_clip(tiny_model(layers=4), name="tiny")
    folder = Path(sys.argv[1])
    pictures = Pictures(tiny_images(clip, 23), folder, seconds=30)
    fit(clip, pictures, [2], top=5, engine=Local(workers=1), out=folder / "lens")
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, file, str(tmp_path)], env=environment) as process:
        while not marks(tmp_path, "read"):
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert gone and not alive


def test_torch_threads_are_shared_out(clip):
    class Threads:
        def __call__(self, task):
            return torch.get_num_threads()

    with Local(workers=2).start(Threads()) as workers:
        (_, threads), *_ = workers.map([1])
    assert threads == max(1, torch.get_num_threads() // 2)


def test_neurons_are_described_by_several_processes(clip, images):
    lens = fit(clip, images, [1, 2], top=5)
    words = vocabulary(["ship", "car", "dog", "whale", "sea", "red", "one two", "zebra", "tree"])
    alone = describe(clip, lens, words, 4)
    together = describe(clip, lens, words, 4, engine=Local(workers=2))
    for layer in lens.layers:
        assert torch.equal(together.indices[layer], alone.indices[layer])
        assert torch.equal(together.coefficients[layer], alone.coefficients[layer])
        assert torch.equal(together.cosine[layer], alone.cosine[layer])
    assert torch.equal(together.control, alone.control)


def test_pairs_are_attacked_by_several_processes(tmp_path):
    demo = load("demo")
    lens = fit(demo, Scenes(World(), 31, 60), [4, 5])
    describe(demo, lens, world_vocabulary(), 12)
    made = attacker(demo, lens, images=1, captions=1)
    stubborn = replace(made, steps=replace(made.steps, captioner=NeverLions()))
    names = ["cow", "lion", "owl"]
    alone, left_out = attack_pairs(stubborn, names, tmp_path / "alone")
    engine = Local(workers=2)
    together, also_left_out = attack_pairs(stubborn, names, tmp_path / "two", engine=engine)
    assert [r.as_json() for r in together] == [r.as_json() for r in alone]
    assert also_left_out == left_out and len(left_out) == 2
    assert (tmp_path / "two" / "index.html").is_file()


def test_the_command(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Scenes(World(), 31, 8).load(number).save(tmp_path / "photos" / f"{number}.png")
    arguments = ["fit", str(tmp_path / "photos"), "--layers", "5", "--top", "3", "--out"]
    engine = ["--engine", "local", "--workers", "2", "--batch-size", "2", "--shard-size", "4"]
    run = click.testing.CliRunner().invoke
    said = run(main, [*arguments, str(tmp_path / "lens"), *engine])
    assert said.exit_code == 0, said.output
    said = run(main, [*arguments, str(tmp_path / "alone"), "--batch-size", "2"])
    assert said.exit_code == 0, said.output
    close(Lens.load(tmp_path / "lens"), Lens.load(tmp_path / "alone"))
    said = run(main, [*arguments, str(tmp_path / "other"), "--address", "auto"])
    assert said.exit_code == 2 and "add --engine ray" in said.output
