"""Workers kept busy: one task each, lost workers replaced, failed tasks tried again."""

import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import cloudpickle
import torch

from ..errors import SecondLensError
from ..storage.remote import Unreachable

Task = TypeVar("Task")


@runtime_checkable
class Work(Protocol):
    """What workers do: it is copied to each of them once, and called with one task at a time.

    A task is small, and so is what comes back. Larger results are written where all can read them,
    whole or not at all: the same task may be done twice, after a worker was lost.
    """

    def __call__(self, task: Any, /) -> Any:
        """Do one task."""


@runtime_checkable
class Placed(Protocol):
    """A `Work` whose model or tensors are on a device, and can go to another one."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def to(self, device: torch.device) -> None:
        """Move them."""


@runtime_checkable
class Foreseeing(Protocol):
    """A `Work` that can prepare for the task after the one that it does."""

    def expect(self, task: Any, /) -> None:
        """Hear which task comes after the next one, or None after the last."""


@runtime_checkable
class Workers(Protocol):
    """Workers that hold a `Work`."""

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Do tasks, and give each with what came of it, in the order in which they end.

        Raises
        ------
        SecondLensError
            At once: a task says that something must be changed before it can be done.
        Incomplete
            When all others are done: tasks that failed each time they were tried.
        """


@runtime_checkable
class Engine(Protocol):
    """A place where work runs."""

    @property
    def shared(self) -> str:
        """Who must be able to read what a task writes: "nobody" else, "processes" of this machine,
        or "machines"."""

    def start(self, work: Work) -> AbstractContextManager[Workers]:
        """Workers, for as long as the `with` lasts."""


def pack(work: Any, file: Path | io.BytesIO) -> None:
    """Write an object, with functions and classes of scripts and weights of models, to a file.

    Tensors that share memory go on doing so: a model's weights and the views of them count once.
    """
    torch.save(work, file, pickle_module=cloudpickle)


def unpack(file: str | io.BytesIO, device: str | None = None) -> Any:
    """What was packed, by this very library and version; its tensors on `device` if one is named.

    Of a file on disk only those parts take memory that are used, and processes share them.
    """
    return torch.load(file, map_location=device, weights_only=False, mmap=isinstance(file, str))


def unpack_on(source: str | io.BytesIO, device: str) -> Any:
    """What was packed of a `Placed` work, which goes to a device; all else stays on the CPU."""
    work = unpack(source, "cpu")
    work.to(torch.device(device))
    return work


PAUSE = 0.5
"""Seconds before a task is tried a second time; each later pause is twice as long."""
LONGEST_PAUSE = 30.0


class Incomplete(SecondLensError):
    """Some tasks failed each time they were tried; all others are done."""

    def __init__(self, failures: Mapping[Any, str]) -> None:
        self.failures = dict(failures)
        task, reason = next(iter(self.failures.items()))
        more = f", and {len(self.failures) - 1} more" if len(self.failures) > 1 else ""
        super().__init__(f"{task} could not be done{more}: {reason}")

    def __reduce__(self) -> Any:
        return type(self), (self.failures,)


def check_least(name: str, value: int, least: int) -> None:
    """Raise `SecondLensError` unless there are at least so many workers or retries."""
    if value < least:
        raise SecondLensError(f"{name} must be {least} or more, and they are {value}")


@dataclass(frozen=True)
class Failed:
    """What a worker says of a task that it could not do."""

    reason: str
    mistake: SecondLensError | None = None
    """Why trying again would not help."""


def perform(work: Callable[[Any], Any], task: Any, pause: float) -> Any:
    """What a worker does with a task: its result, or `Failed`.

    Raises
    ------
    MemoryError, torch.OutOfMemoryError
        And the worker has to be replaced: what filled its memory is still there.
    """
    time.sleep(pause)
    try:
        return work(task)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Unreachable as error:
        return Failed(str(error))
    except SecondLensError as error:
        return Failed(str(error), error)
    except Exception as error:  # as text, because not every exception can travel
        return Failed(f"{type(error).__name__}: {error}")


@runtime_checkable
class Worker(Protocol):
    """One process somewhere. If a future of it raises, the process is gone."""

    def ready(self) -> "Future[Any]":
        """Done when it holds the work."""

    def submit(self, task: Any, pause: float) -> "Future[Any]":
        """What `perform` returns there."""

    def stop(self) -> None:
        """End it, whatever it does."""


@dataclass(frozen=True)
class _Attempt:
    task: Any
    number: int = 0

    @property
    def pause(self) -> float:
        return min(LONGEST_PAUSE, PAUSE * 2 ** (self.number - 1)) if self.number else 0.0


class Pool:
    """Up to `size` workers.

    Parameters
    ----------
    hire
        Starts a worker.
    size
        Workers at a time.
    retries
        How often a task that failed is tried again, and how often in a row workers may be lost
        before they held the work.
    """

    def __init__(self, hire: Callable[[], Worker], size: int, retries: int) -> None:
        self.hire, self.size, self.retries = hire, size, retries
        self._idle: deque[Worker] = deque()
        self._starting: dict[Future[Any], Worker] = {}
        self._running: dict[Future[Any], tuple[Worker, _Attempt]] = {}
        self._lost_starts = 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: Any) -> None:
        busy = [worker for worker, _ in self._running.values()]
        for worker in (*self._idle, *self._starting.values(), *busy):
            worker.stop()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """See `Workers.map`."""
        waiting = deque(map(_Attempt, tasks))
        failures: dict[Any, str] = {}
        while waiting or self._running:
            self._hand_out(waiting)
            for done, result in self._finished():
                if not isinstance(result, Failed):
                    yield done.task, result
                elif result.mistake is not None:
                    raise result.mistake
                elif done.number < self.retries:
                    waiting.append(_Attempt(done.task, done.number + 1))
                else:
                    failures[done.task] = f"{result.reason} ({done.number + 1} times)"
        if failures:
            raise Incomplete(failures)

    def _hand_out(self, waiting: deque[_Attempt]) -> None:
        """Give idle workers what waits, and hire others while there is more."""
        while waiting and self._idle:
            worker, attempt = self._idle.popleft(), waiting.popleft()
            self._running[worker.submit(attempt.task, attempt.pause)] = worker, attempt
        for _ in range(min(len(waiting), self.size - len(self._running)) - len(self._starting)):
            worker = self.hire()
            self._starting[worker.ready()] = worker

    def _finished(self) -> Iterator[tuple[_Attempt, Any]]:
        """Wait until something ends; the attempts that did, with their results."""
        done, _ = wait([*self._starting, *self._running], return_when=FIRST_COMPLETED)
        for future in done:
            lost = future.exception()
            if future in self._starting:
                self._started(self._starting.pop(future), lost)
                continue
            worker, attempt = self._running.pop(future)
            if lost is None:
                self._idle.append(worker)
                yield attempt, future.result()
            else:
                worker.stop()
                yield attempt, Failed(f"its worker was lost: {_first_line(lost)}")

    def _started(self, worker: Worker, lost: BaseException | None) -> None:
        if lost is None:
            self._idle.append(worker)
            self._lost_starts = 0
            return
        worker.stop()
        self._lost_starts += 1
        if self._lost_starts > self.retries:
            raise SecondLensError(f"no worker can be started: {_first_line(lost)}") from lost


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
