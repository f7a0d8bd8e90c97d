"""Work on this machine: in this process, or in some of its own."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, set_forkserver_preload
from pathlib import Path
from typing import Any

import psutil
import torch

from ..devices import check_device, every
from ..processes.watching import end_with_parent
from .pool import (
    Foreseeing,
    Placed,
    Pool,
    Task,
    Work,
    Workers,
    check_least,
    pack,
    perform,
    unpack,
    unpack_on,
)

START_METHOD = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"


@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes of this machine.

    Parameters
    ----------
    workers
        Processes, which share the machine's threads; 0 works in this process, where whatever a
        task raises is raised at once.
    retries
        How often a task that failed is tried again.
    device
        Where the workers' models run: each on one of the devices that the name stands for, as many
        on each, such as on all GPUs of this machine for "cuda". By default where the model is.

    Raises
    ------
    SecondLensError
        Fewer than none, or there is no such device.
    """

    workers: int = 0
    retries: int = 3
    device: str | None = None

    def __post_init__(self) -> None:
        check_least("workers", self.workers, 0)
        check_least("retries", self.retries, 0)
        if self.device is not None:
            check_device(self.device)

    @property
    def shared(self) -> str:
        """See `Engine`."""
        return "processes" if self.workers else "nobody"

    @contextmanager
    def start(self, work: Work) -> Iterator[Workers]:
        """See `Engine`."""
        if not self.workers:
            yield _Here(work)
            return
        # where there is one, a server that has imported everything once; forked from this process,
        # a worker would inherit locks that its threads hold
        set_forkserver_preload(["secondlens.processes.server"])
        threads = max(1, torch.get_num_threads() // self.workers)
        with tempfile.TemporaryDirectory(prefix="secondlens-") as folder:
            file = Path(folder) / "work"
            pack(work, file)
            places = _Places([]) if not isinstance(work, Placed) else self._places(work.device)
            with Pool(lambda: _Process(file, threads, places), self.workers, self.retries) as pool:
                yield pool

    def _places(self, own: torch.device) -> "_Places":
        return _Places([own] if self.device is None else every(self.device))


class _Places:
    """Devices, and how many workers are on each."""

    def __init__(self, devices: list[torch.device]) -> None:
        self.used = dict.fromkeys(map(str, devices), 0)

    def take(self) -> str | None:
        """The one that has fewest; None if work stays where it is."""
        if not self.used:
            return None
        place = min(self.used, key=lambda each: self.used[each])
        self.used[place] += 1
        return place

    def give_back(self, place: str | None) -> None:
        """A worker there has ended."""
        if place is not None:
            self.used[place] -= 1


class _Here:
    def __init__(self, work: Work) -> None:
        self.work = work

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        every = list(tasks)
        for task, following in zip(every, [*every, None][1:], strict=True):
            if isinstance(self.work, Foreseeing):
                self.work.expect(following)
            yield task, self.work(task)


class _Process:
    """An executor with one process: if that dies, it is known which task it had."""

    def __init__(self, file: Path, threads: int, places: _Places) -> None:
        self.places, self.place = places, places.take()
        self.executor = ProcessPoolExecutor(1, get_context(START_METHOD), initializer=_begin)
        environment = dict(os.environ)
        self.opened = self.executor.submit(_open, str(file), threads, environment, self.place)

    def ready(self) -> "Future[Any]":
        return self.opened

    def submit(self, task: Any, pause: float) -> "Future[Any]":
        try:
            return self.executor.submit(_perform, task, pause)
        except BrokenProcessPool as error:  # it died while it had nothing to do
            lost: Future[Any] = Future()
            lost.set_exception(error)
            return lost

    def stop(self) -> None:
        if self.opened.done() and self.opened.exception() is None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self.opened.result()).kill()
        self.executor.shutdown(cancel_futures=True)
        self.places.give_back(self.place)


_work: Callable[[Any], Any]


def _begin() -> None:
    """Ctrl-C reaches every process of a terminal: the one that gave the work ends its workers. If
    it is killed, they end by themselves, also before they have any work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _open(file: str, threads: int, environment: dict[str, str], place: str | None) -> int:
    """Take up the work; the number of this process."""
    global _work
    os.environ.update(environment)  # the server has that of the time when it was started
    torch.set_num_threads(threads)
    _work = unpack(file) if place is None else unpack_on(file, place)
    return os.getpid()


def _perform(task: Any, pause: float) -> Any:
    return perform(_work, task, pause)
