"""Pictures decoded one by one, in the order in which they are asked for, here or in processes.

A process gets one picture at a time, and writes its pixels into memory that all share. Processes
stay from one shard of a fit to the next, and go on with the pictures that come after it.
"""

import gc
import math
import os
import pickle
import signal
import struct
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch
from PIL import Image
from torch import Tensor, multiprocessing

from ..errors import SecondLensError
from ..models.halves import Halves
from ..models.open_clip.texts import Tokenized
from ..processes.watching import end_with_parent
from .decoding import Unreadable, digest, upright_rgb
from .sources import UNREADABLE, ImageSource

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as _Connection

MOST_AHEAD = 1024
"""Pictures that are decoded before they are asked for: what names them must fit into a pipe."""
MOST_SHARED = 48 * 2**20
"""Bytes of shared memory: many containers have no more than 64 MiB."""
ALIGNED = 16
"""Bytes of which every picture's place is a multiple, so that it may hold any kind of number."""


@dataclass(frozen=True)
class Skipped:
    """Why a picture cannot be read."""

    reason: str


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded."""

    pixels: Tensor
    """8-bit or preprocessed, see `Decode`."""
    digest: str
    """Of what it shows, see `decoding.digest`."""


class Decode:
    """Work on one picture of a source: 8-bit pixels, preprocessed ones, or why there are none.

    Pixels are 8-bit, [3, height, width], where the preprocessing has `Halves`.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocess: Callable[[Image.Image], Tensor] | None,
        halves: Halves | None,
    ) -> None:
        self.source, self.preprocess, self.halves = source, preprocess, halves

    def __reduce__(self) -> tuple[Any, ...]:
        # plain pickle cannot send a lambda to a process that is spawned
        return _unpacked, (cloudpickle.dumps((self.source, self.preprocess, self.halves)),)

    def __call__(self, position: int) -> Picture | Skipped:
        """Decode one picture.

        Raises
        ------
        SecondLensError
            It needs preprocessing and there is none, or it is not a picture.
        """
        try:
            picture = self._load(position)
        except UNREADABLE as error:
            return Skipped(_reason(error))
        if isinstance(picture, Tensor):
            finite = bool(picture.isfinite().all())
            if not finite:
                return Skipped("its pixels hold NaN or infinity")
            return Picture(picture, digest(picture))
        if self.halves is not None:
            return Picture(self.halves.eight_bits(picture), digest(picture))
        if self.preprocess is None:
            raise SecondLensError(
                "the model came without preprocessing: pass preprocess= when wrapping the model, "
                "or give a float tensor of preprocessed images"
            )
        return Picture(self.preprocess(picture), digest(picture))

    def _load(self, position: int) -> Image.Image | Tensor:
        picture: Any = self.source.load(position)
        if isinstance(picture, str) and isinstance(self.preprocess, Tokenized):
            return self.preprocess(picture)
        if isinstance(picture, Image.Image):
            return upright_rgb(picture)
        if isinstance(picture, Tensor) and picture.is_floating_point():
            return picture
        kind = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
        raise SecondLensError(
            f"picture {self.source.ids[position]!r} is of the type {kind}: give "
            "PIL images, or float tensors of preprocessed ones"
        )


def _unpacked(packed: bytes) -> Decode:
    return Decode(*cloudpickle.loads(packed))


def _reason(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


class Decoders:
    """Processes that decode, with one torch thread each, until they are closed or forgotten.

    Parameters
    ----------
    decode
        What they do.
    workers
        How many there are; with 0 of them, pictures are decoded in this process.
    ahead
        Pictures that may be decoded before they are asked for.
    room
        Bytes of a picture in the memory that is shared; one that takes more comes through a pipe.
    """

    def __init__(self, decode: Decode, workers: int, ahead: int, room: int) -> None:
        self._decode = decode
        self._tickets = count()
        self._reading: object = None
        self._coming: Iterator[int] = iter(())
        self._given: deque[tuple[int, int]] = deque()
        """Ticket and position of what is decoded or under way, in the order of delivery."""
        self._done: dict[int, tuple[int, _Outcome]] = {}
        """Slot and outcome of tickets."""
        self._lent: int | None = None
        """The slot of what was given last."""
        self._processes: list[_Process] = []
        self._end = weakref.finalize(self, _stop, self._processes, os.getpid())
        if workers:
            room = -(-room // ALIGNED) * ALIGNED
            # a process has another picture to go on with while one is taken from it
            slots = max(2 * workers, min(ahead, MOST_AHEAD, MOST_SHARED // room))
            storage = torch.UntypedStorage._new_shared(slots * room)
            self._memory = torch.empty(0, dtype=torch.uint8).set_(storage).view(slots, room)
            self._free = list(range(slots))
            for _ in range(workers):
                self._processes.append(_Process(decode, self._memory))

    def read(
        self, positions: Sequence[int], following: Sequence[int] = ()
    ) -> Generator[Picture | Skipped, None, None]:
        """Decode pictures, and give what comes of them in their order.

        The pixels hold until the next one is asked for.

        Parameters
        ----------
        positions
            Of the pictures.
        following
            Positions that will be read next, so that decoding goes on with them.

        Raises
        ------
        SecondLensError
            What `Decode` raises.
        RuntimeError
            A process has ended, such as one that was killed; or another reading by these processes
            has begun meanwhile.
        """
        if not self._processes:
            yield from map(self._decode, positions)
            return
        reading = self._reading = object()
        ahead = [position for _, position in self._given]
        if ahead != list(islice(chain(positions, following), len(ahead))):
            self._forget()
        self._coming = islice(chain(positions, following), len(self._given), None)
        try:
            for _ in positions:
                if reading is not self._reading:
                    raise RuntimeError("another reading by the same decoders has begun meanwhile")
                yield self._next()
        except BaseException:
            # what is under way is not what comes next; another reading may have begun meanwhile
            if reading is self._reading:
                self._forget()
            raise

    def close(self) -> None:
        """End the processes."""
        self._end()

    def _next(self) -> Picture | Skipped:
        self._take_back()
        self._hand_out()
        ticket, _ = self._given[0]
        while ticket not in self._done:
            self._collect()
        self._given.popleft()
        slot, outcome = self._done.pop(ticket)
        self._lent = slot
        if isinstance(outcome, Exception):
            raise outcome
        return outcome.picture(self._memory[slot]) if isinstance(outcome, _Pixels) else outcome

    def _take_back(self) -> None:
        if self._lent is not None:
            self._free.append(self._lent)
            self._lent = None

    def _hand_out(self) -> None:
        """Give pictures to processes for as long as there is room for their pixels."""
        while self._free and (position := next(self._coming, None)) is not None:
            ticket, slot = next(self._tickets), self._free.pop()
            min(self._processes, key=lambda each: each.given).give(ticket, position, slot)
            self._given.append((ticket, position))

    def _collect(self) -> None:
        """Wait until something is decoded."""
        by_results = {each.results: each for each in self._processes}
        for connection in wait(list(by_results)):
            ticket, slot, outcome = by_results[connection].take()  # type: ignore[index]
            if ticket >= self._given[0][0]:
                self._done[ticket] = slot, outcome
            else:
                self._free.append(slot)  # nobody asks for it any more

    def _forget(self) -> None:
        """Drop what is decoded or under way."""
        self._take_back()
        self._free += [slot for slot, _ in self._done.values()]
        self._coming = iter(())
        self._given.clear()
        self._done.clear()


@dataclass(frozen=True)
class _Pixels:
    """What a process says of pixels that it wrote into its slot, or sends, if they do not fit."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    sent: bytes | None
    digest: str

    @classmethod
    def of(cls, picture: Picture, slot: Tensor) -> "_Pixels":
        """Write them if they fit."""
        pixels = picture.pixels
        own = slot[: pixels.numel() * pixels.element_size()]
        fit = len(own) == pixels.numel() * pixels.element_size()
        if fit:
            own.view(pixels.dtype).view(pixels.shape).copy_(pixels)
        sent = None if fit else pixels.flatten().view(torch.uint8).cpu().numpy().tobytes()
        return cls(pixels.dtype, tuple(pixels.shape), sent, picture.digest)

    def picture(self, slot: Tensor) -> Picture:
        """The picture, as long as the slot is not given to another one."""
        return Picture(self._tensor(slot), self.digest)

    def _tensor(self, slot: Tensor) -> Tensor:
        if self.sent is not None:
            return torch.frombuffer(bytearray(self.sent), dtype=self.dtype).view(self.shape)
        size = self.dtype.itemsize * math.prod(self.shape)
        return slot[:size].view(self.dtype).view(self.shape)


_Outcome = _Pixels | Skipped | Exception
_TASK = struct.Struct("qqq")


class _Process:
    """A process that decodes, and the pipes to it."""

    def __init__(self, decode: Decode, memory: Tensor) -> None:
        self.given = 0
        """Pictures that it has not told of yet."""
        theirs, self.tasks = multiprocessing.Pipe(duplex=False)
        self.results, their_results = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(
            target=_work, args=(decode, memory, theirs, their_results), daemon=True
        )
        self.process.start()
        # as nobody else holds these ends, the pipes tell when the process has ended
        theirs.close()
        their_results.close()

    def give(self, ticket: int, position: int, slot: int) -> None:
        """Ask for a picture."""
        try:
            self.tasks.send_bytes(_TASK.pack(ticket, position, slot))
        except BrokenPipeError as error:
            raise self._lost() from error
        self.given += 1

    def take(self) -> tuple[int, int, _Outcome]:
        """Ticket, slot and outcome of the next picture."""
        try:
            found: tuple[int, int, _Outcome] = self.results.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._lost() from error
        self.given -= 1
        return found

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.tasks.close()
        self.results.close()

    def _lost(self) -> RuntimeError:
        self.process.join()
        return RuntimeError(
            f"a process that decodes pictures has ended, with the exit code {self.process.exitcode}"
        )


def _work(decode: Decode, memory: Tensor, tasks: "_Connection", results: "_Connection") -> None:
    """What a process does: Ctrl-C, which reaches all of a terminal, is for the one that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    gc.freeze()  # a look at all that this process was forked with would copy it
    while True:
        try:
            ticket, position, slot = _TASK.unpack(tasks.recv_bytes())
        except EOFError:
            return
        results.send((ticket, slot, _outcome(decode, position, memory[slot])))


def _outcome(decode: Decode, position: int, slot: Tensor) -> _Outcome:
    try:
        found = decode(position)
        return found if isinstance(found, Skipped) else _Pixels.of(found, slot)
    except Exception as error:
        if not isinstance(error, SecondLensError):
            error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a class that cannot travel
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error


def _stop(processes: "list[_Process]", owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked holds copies
        for each in processes:
            each.stop()
        processes.clear()
