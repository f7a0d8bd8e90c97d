"""Batches of a source for a model, decoded in this process or in others."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from ..devices import free_memory, smaller
from ..errors import SecondLensError, SecondLensWarning
from ..models.halves import Halves, looked_up
from ..models.view import Clip
from .decoders import Decode, Decoders, Skipped
from .sources import FileSource, ImageSource

IMAGES_ON_CPU, MOST_IMAGES = 32, 256
"""In a batch when nobody says: on a CPU, and at most elsewhere."""
SHARE_OF_BATCH = 0.25
"""Of a device's free memory, that a batch may take by default."""


def default_batch(clip: Clip) -> int:
    """Images in a forward pass when nobody says: 32 on a CPU, else by the memory that is free.

    Counted is what a pass keeps of every layer when all are read, in the precision of effects.
    """
    if clip.device.type in ("cpu", "meta"):
        return IMAGES_ON_CPU
    number = torch.finfo(clip.compute_dtype).bits // 8
    image = clip.layers * clip.tokens * (clip.neurons + 4 * clip.width) * number
    room = int(SHARE_OF_BATCH * free_memory(clip.device)) // image
    # a power of two, so that a little more or less memory changes nothing
    return min(MOST_IMAGES, 1 << max(0, room.bit_length() - 1))


FEW_IMAGES = 16
"""Images a batch where something is kept of every token or pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some pictures of a source: their positions and the image tower's input for them."""

    positions: list[int]
    stored: Num[Tensor, "images *picture"]
    """The input, or 8-bit pixels that `table` makes it of; of a text tower, ids of tokens."""
    table: Float[Tensor, "3 256"] | None = None
    """See `Halves`."""

    @cached_property
    def pixels(self) -> Num[Tensor, "images *picture"]:
        """The input, on the CPU."""
        return self.stored if self.table is None else looked_up(self.stored, self.table)

    def on(self, device: torch.device) -> Num[Tensor, "images *picture"]:
        """The input on a device: the same numbers, of which 8-bit pixels travel where it can be."""
        if device.type == "cpu":
            return self.pixels
        stored = self.stored
        if device.type == "cuda":
            # from pinned memory, and nobody waits for the copy
            stored = stored.pin_memory()
        stored = stored.to(device, non_blocking=True)
        return stored if self.table is None else looked_up(stored, self.table.to(device))

    def part(self, places: slice | list[int]) -> "Batch":
        """Return some of the pictures."""
        positions = np.array(self.positions)[places].tolist()
        return replace(self, positions=positions, stored=self.stored[places])

    def split(self, size: int) -> "list[Batch]":
        """Return the same pictures in batches of at most so many."""
        return [self.part(slice(i, i + size)) for i in range(0, len(self.positions), size)]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads a source in batches for a model, as often as asked, skipping what cannot be read.

    Batches come in the order of `positions`, whatever the number of workers.

    Raises
    ------
    SecondLensError
        Batches without images, or fewer than no workers. While reading: the model came without
        preprocessing and pictures need it, a source gives something else than pictures, or
        preprocessing gives pictures of different shapes.
    """

    source: ImageSource
    clip: Clip
    batch_size: int | None = None
    """By default `default_batch`."""
    workers: int = 0
    """Processes that decode, with one torch thread each; 0 decodes in this one."""
    positions: Sequence[int] | None = None
    """Of the pictures to read, such as a range of them; by default all."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of the pictures that could not be read so far, and of a source's damaged
    files."""
    kept: Decoders | None = None
    """Decoders that stay when all is read, see `decoders`; by default they end."""
    following: Sequence[int] = ()
    """Positions that another reader with the same `kept` asks for next."""
    digests: dict[int, str] = field(default_factory=dict)
    """Position -> `digest`, of the pictures that were read so far."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise SecondLensError(f"a batch needs at least 1 image, and it has {self.batch_size}")
        if self.workers < 0:
            raise SecondLensError(f"workers must be 0 or more, and they are {self.workers}")
        if isinstance(self.source, FileSource):
            self.skipped.update(self.source.damaged)

    def __iter__(self) -> Iterator[Batch]:
        if self.kept is not None:
            yield from self._read(self.kept)
            return
        with closing(self.decoders()) as decoders:
            yield from self._read(decoders)

    def decoders(self) -> Decoders:
        """Start what decodes, for this reader and others of the same source and model."""
        height, width = self.clip.image_size
        halves = self.clip.halves
        return Decoders(
            Decode(self.source, self.clip.preprocess, halves),
            workers=min(self.workers, len(self._chosen)),
            ahead=2 * self.images_per_batch,
            room=3 * height * width * (1 if halves else 4),
        )

    @property
    def images_per_batch(self) -> int:
        """As asked, or by default."""
        return default_batch(self.clip) if self.batch_size is None else self.batch_size

    def check_read(self) -> None:
        """Raise `SecondLensError` if one of the pictures had to be skipped."""
        ids = set(self.source.ids)
        for unreadable, reason in self.skipped.items():
            if unreadable not in ids:
                continue  # beside the pictures
            raise SecondLensError(f"the picture {unreadable!r} cannot be read: {reason}")

    def __len__(self) -> int:
        """Batches, at most."""
        return -(-len(self._chosen) // self.images_per_batch)

    @property
    def _chosen(self) -> Sequence[int]:
        return range(len(self.source.ids)) if self.positions is None else self.positions

    def _read(self, decoders: Decoders) -> Iterator[Batch]:
        chosen, size = self._chosen, self.images_per_batch
        with closing(decoders.read(chosen, self.following)) as outcomes:
            for start in range(0, len(chosen), size):
                chunk, decoded = chosen[start : start + size], _Decoded()
                for position in chunk:
                    outcome = next(outcomes)
                    if isinstance(outcome, Skipped):
                        self.skipped[self.source.ids[position]] = outcome.reason
                    else:
                        decoded.add(position, outcome.pixels, len(chunk))
                        self.digests[position] = outcome.digest
                if decoded.positions:
                    yield decoded.batch(self.clip.halves)
            # so that decoding knows that all was asked for
            next(outcomes, None)


class _Decoded:
    """The pictures of one batch, gathered."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self._tensors: list[Tensor] = []
        self._whole: Tensor | None = None

    def add(self, position: int, picture: Tensor, most: int) -> None:
        """Copy a picture, one of at most so many."""
        if self._whole is None:
            self._whole = picture.new_empty(most, *picture.shape)
        row = self._whole[len(self._tensors)]
        alike = (picture.shape, picture.dtype) == (row.shape, row.dtype)
        self._tensors.append(row.copy_(picture) if alike else picture.clone())
        self.positions.append(position)

    def batch(self, halves: Halves | None) -> Batch:
        """Return them; where some are 8-bit and others are not, as what the model takes."""
        if len(shapes := {tuple(each.shape) for each in self._tensors}) > 1:
            raise SecondLensError(
                f"preprocessed pictures have the different shapes {sorted(shapes)}: preprocessing "
                "must give all of them the model's size"
            )
        assert self._whole is not None
        whole = self._whole[: len(self._tensors)]
        dtypes = {each.dtype for each in self._tensors}
        if halves is None or torch.uint8 not in dtypes:
            stored = whole if len(dtypes) == 1 else torch.stack(self._tensors)
            return Batch(positions=self.positions, stored=stored)
        if dtypes == {torch.uint8}:
            return Batch(positions=self.positions, stored=whole, table=halves.table)
        mixed = [
            looked_up(each[None], halves.table)[0] if each.dtype == torch.uint8 else each
            for each in self._tensors
        ]
        return Batch(positions=self.positions, stored=torch.stack(mixed))


Done = TypeVar("Done")


def in_parts(
    batches: Iterable[Batch], clip: Clip, work: Callable[[Batch], Done]
) -> Iterator[tuple[Batch, Done]]:
    """Do some work with each batch; where memory runs out, with halves of batches from there on.

    What comes out is told batch by batch as it was done. One warning says that batches are smaller.

    Raises
    ------
    SecondLensError
        Memory runs out with a single picture.
    """
    most: int | None = None
    told = False
    for batch in batches:
        waiting = batch.split(most or len(batch.positions))
        while waiting:
            done = _attempt(work, waiting[0])
            if done is None:
                most = smaller(len(waiting[0].positions), clip.device)
                waiting = [part for each in waiting for part in each.split(most)]
                continue
            if most is not None and not told:
                warn_of_batches(clip, most)
                told = True
            yield waiting.pop(0), done[0]


def warn_of_batches(clip: Clip, size: int) -> None:
    """Say that memory ran out, and how many images a batch has from there on."""
    images = "1 image" if size == 1 else f"{size} images"
    message = f"memory ran out on {clip.device}: a batch has {images} from here on"
    warnings.warn(message, SecondLensWarning, stacklevel=4)


def _attempt(work: Callable[[Batch], Done], batch: Batch) -> tuple[Done] | None:
    """What comes of the work, or None: the error would keep what filled the memory."""
    try:
        return (work(batch),)
    except torch.OutOfMemoryError:
        return None
