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

from ..processes.watching import end_with_parent
from .pool import Pool, Task, Work, Workers, check_least, pack, perform, unpack

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

    Raises
    ------
    SecondLensError
        Fewer than none.
    """

    workers: int = 0
    retries: int = 3

    def __post_init__(self) -> None:
        check_least("workers", self.workers, 0)
        check_least("retries", self.retries, 0)

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
            with Pool(lambda: _Process(file, threads), self.workers, self.retries) as pool:
                yield pool


class _Here:
    def __init__(self, work: Work) -> None:
        self.work = work

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            yield task, self.work(task)


class _Process:
    """An executor with one process: if that dies, it is known which task it had."""

    def __init__(self, file: Path, threads: int) -> None:
        self.executor = ProcessPoolExecutor(1, get_context(START_METHOD), initializer=_begin)
        self.opened = self.executor.submit(_open, str(file), threads, dict(os.environ))

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


_work: Callable[[Any], Any]


def _begin() -> None:
    """Ctrl-C reaches every process of a terminal: the one that gave the work ends its workers. If
    it is killed, they end by themselves, also before they have any work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _open(file: str, threads: int, environment: dict[str, str]) -> int:
    """Take up the work; the number of this process."""
    global _work
    os.environ.update(environment)  # the server has that of the time when it was started
    torch.set_num_threads(threads)
    _work = unpack(file)
    return os.getpid()


def _perform(task: Any, pause: float) -> Any:
    return perform(_work, task, pause)
