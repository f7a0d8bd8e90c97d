"""Work on a Ray cluster: an actor for each worker."""

import io
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import SecondLensError
from .pool import Placed, Pool, Work, Workers, check_least, pack, perform, unpack, unpack_on


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Actors of a Ray cluster, on machines with the same version of this library.

    Parameters
    ----------
    address
        What `ray.init` takes, such as "auto" for the cluster this machine belongs to; by default a
        cluster on this machine that ends with the work.
    workers
        Actors; by default as many as the cluster has room for when the work begins.
    cpus, gpus
        Of each actor. With a GPU, or a part of one, the model moves there.
    retries
        How often a task that failed, or lost its actor, is tried again.

    Raises
    ------
    SecondLensError
        No workers, fewer than no retries, or actors with neither a CPU nor a GPU.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_least("workers", self.workers, 1)
        check_least("retries", self.retries, 0)
        if min(self.cpus, self.gpus) < 0 or self.cpus == self.gpus == 0:
            raise SecondLensError(
                f"a worker needs a CPU or a GPU, and it has {self.cpus:g} and {self.gpus:g}: give "
                "one of them"
            )

    @property
    def shared(self) -> str:
        """See `Engine`."""
        return "machines" if self.address else "processes"

    @contextmanager
    def start(self, work: Work) -> Iterator[Workers]:
        """See `Engine`."""
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            self._connect(ray)
        try:
            room = self._room(ray)
            packed = io.BytesIO()
            pack(work, packed)
            content = ray.put(packed.getvalue())
            device = "cuda" if self.gpus else None
            # a lost actor is replaced by the pool, which knows what it was doing
            actor = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(_Holder)

            def hire() -> _Actor:
                return _Actor(actor.remote(content, device, isinstance(work, Placed)))

            with Pool(hire, self.workers or room, self.retries) as pool:
                yield pool
        finally:
            if own:
                ray.shutdown()

    def _connect(self, ray: ModuleType) -> None:
        options = {} if self.address else {"include_dashboard": False}
        try:
            ray.init(self.address, log_to_driver=False, logging_level="error", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SecondLensError(
                f"there is no Ray cluster at {self.address}: start one with 'ray start --head', or "
                "leave out the address"
            ) from error

    def _room(self, ray: ModuleType) -> int:
        """Actors that the cluster has resources for."""
        there = ray.cluster_resources()
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        room = min(int(there.get(name, 0) / each) for name, each in wanted.items() if each)
        if room < 1:
            raise SecondLensError(
                f"the Ray cluster has no room for a worker with {self.cpus:g} CPU and "
                f"{self.gpus:g} GPU: it has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )
        return room


class _Holder:
    """What runs in an actor."""

    def __init__(self, packed: bytes, device: str | None, placed: bool) -> None:
        source = io.BytesIO(packed)
        both = placed and device is not None
        self.work = unpack_on(source, str(device)) if both else unpack(source, device)

    def ready(self) -> None:
        """Return when the work is there."""

    def perform(self, task: Any, pause: float) -> Any:
        """Do one task."""
        return perform(self.work, task, pause)


class _Actor:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def ready(self) -> "Future[Any]":
        opened: Future[Any] = self.handle.ready.remote().future()
        return opened

    def submit(self, task: Any, pause: float) -> "Future[Any]":
        done: Future[Any] = self.handle.perform.remote(task, pause).future()
        return done

    def stop(self) -> None:
        _ray().kill(self.handle)


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise SecondLensError("this engine needs Ray: pip install 'secondlens[ray]'") from None
    return ray
