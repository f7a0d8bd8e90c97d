"""Batches of a source for a model, decoded in this process or in others."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cloudpickle
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..devices import free_memory, smaller
from ..errors import SecondLensError, SecondLensWarning
from ..models.view import Clip
from ..processes.watching import end_with_parent
from .decoding import Unreadable, digest, upright_rgb
from .sources import UNREADABLE, FileSource, ImageSource

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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some pictures of a source: their positions and the image tower's input for them."""

    positions: list[int]
    pixels: Float[Tensor, "images 3 height width"]

    def split(self, size: int) -> "list[Batch]":
        """Return the same pictures in batches of at most so many."""
        return [
            Batch(positions=self.positions[i : i + size], pixels=self.pixels[i : i + size])
            for i in range(0, len(self.positions), size)
        ]


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
        decoder = _Decoder(self.source, self.clip.preprocess, self._chunks())
        loader = DataLoader(
            decoder,
            batch_size=None,
            num_workers=min(self.workers, len(decoder)),
            collate_fn=_unchanged,
            worker_init_fn=end_with_parent,
        )
        for decoded in loader:
            if isinstance(decoded, SecondLensError):
                raise decoded
            self.skipped.update(decoded.skipped)
            self.digests.update(decoded.digests)
            if decoded.batch is not None:
                yield decoded.batch

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
        return len(self._chunks())

    def _chunks(self) -> list[Sequence[int]]:
        chosen = range(len(self.source.ids)) if self.positions is None else self.positions
        size = self.images_per_batch
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]


@dataclass(frozen=True)
class _Decoded:
    batch: Batch | None
    skipped: dict[str, str]
    digests: dict[int, str]


class _Decoder(Dataset["_Decoded | SecondLensError"]):
    """Whole batches: one tensor travels from a worker, not one for each picture."""

    def __init__(
        self,
        source: ImageSource,
        preprocess: Callable[[Image.Image], Tensor] | None,
        chunks: list[Sequence[int]],
    ) -> None:
        self.source, self.preprocess, self.chunks = source, preprocess, chunks

    def __reduce__(self) -> tuple[Any, ...]:
        # plain pickle cannot send a lambda to a worker that is spawned
        return _decoder, (cloudpickle.dumps((self.source, self.preprocess, self.chunks)),)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> _Decoded | SecondLensError:
        try:
            return self._decode(self.chunks[number])
        except SecondLensError as error:
            # as a value: raised in a worker, its sentence would arrive inside a traceback
            return error

    def _decode(self, chunk: Sequence[int]) -> _Decoded:
        pixels: dict[int, Tensor] = {}
        skipped: dict[str, str] = {}
        digests: dict[int, str] = {}
        for position in chunk:
            try:
                picture = self._load(position)
            except UNREADABLE as error:
                skipped[self.source.ids[position]] = _reason(error)
            else:
                pixels[position] = self._preprocessed(picture)
                digests[position] = digest(picture)
                if isinstance(picture, Tensor) and not bool(picture.isfinite().all()):
                    skipped[self.source.ids[position]] = "its pixels hold NaN or infinity"
                    del pixels[position]
        if not pixels:
            return _Decoded(None, skipped, digests)
        if len(shapes := {tuple(each.shape) for each in pixels.values()}) > 1:
            raise SecondLensError(
                f"preprocessed pictures have the different shapes {sorted(shapes)}: preprocessing "
                "must give all of them the model's size"
            )
        return _Decoded(
            Batch(positions=list(pixels), pixels=torch.stack(list(pixels.values()))),
            skipped,
            digests,
        )

    def _load(self, position: int) -> Image.Image | Tensor:
        picture: Any = self.source.load(position)
        if isinstance(picture, Image.Image):
            return upright_rgb(picture)
        if isinstance(picture, Tensor):
            return picture
        raise SecondLensError(
            f"picture {self.source.ids[position]!r} is of the type {type(picture).__name__}: give "
            "PIL images, or float tensors of preprocessed ones"
        )

    def _preprocessed(self, picture: Image.Image | Tensor) -> Tensor:
        if isinstance(picture, Tensor):
            return picture
        if self.preprocess is None:
            raise SecondLensError(
                "the model came without preprocessing: pass preprocess= when wrapping the model, "
                "or give a float tensor of preprocessed images"
            )
        return self.preprocess(picture)


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


def _decoder(pickled: bytes) -> _Decoder:
    return _Decoder(*cloudpickle.loads(pickled))


def _reason(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def _unchanged(decoded: Any) -> Any:
    return decoded
