"""What an engine is, what it runs, and how the work travels to other processes."""

import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import cloudpickle
import torch

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
