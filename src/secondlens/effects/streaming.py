"""The one loop over images: read a batch, encode it, pool what second-order effects need of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from ..data.reader import Batch, Reader, in_parts
from ..data.texts import source_for
from ..models.view import Clip
from ..progress import tracked
from .capture import Capture, NotFinite, Pass, Pooled


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A batch of images after the image tower."""

    batch: Batch
    representation: Float[Tensor, "images dim"]
    """What `Clip.encode_image` gives, not normalised."""
    pooled: Pooled

    @property
    def positions(self) -> list[int]:
        """Of the images, in the source."""
        return self.batch.positions

    @property
    def pixels(self) -> Num[Tensor, "images *picture"]:
        """What was encoded, on the CPU."""
        return self.batch.pixels

    @property
    def embedding(self) -> Float[Tensor, "images dim"]:
        """Unit rows, in the precision of effects."""
        return F.normalize(self.representation.to(self.pooled.scale.dtype), dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A batch of images after the image tower, before anything is pooled."""

    positions: list[int]
    """Of the images, in the source."""
    seen: Pass
    finite_part: Callable[[], "Seen | None"]
    """Where not all of `Pass.sound` holds: makes the pass again, without the images on which it is
    not finite. They are listed as skipped, and None says that there were no others."""


Done = TypeVar("Done")


def stream(
    clip: Clip,
    images: Any,
    layers: Iterable[int],
    *,
    batch_size: int | None = None,
    workers: int = 0,
    keep_activations: bool = False,
    class_token_only: bool = False,
    in_halves: bool = True,
    what: str = "images",
    progress: bool = False,
) -> Iterator[Encoded]:
    """Encode images batch by batch and read all wanted layers in the same pass.

    Parameters
    ----------
    clip
        The model. Until the loop ends, its hooks are in place: run it on nothing else inside.
    images
        What `fit` takes, or a `Reader`, which also knows what could not be read.
    layers
        MLP layers to read.
    batch_size, workers
        Of the reader that is made of images.
    keep_activations
        Whether activations of every token and attention are kept, see `Pooled`.
    class_token_only
        Whether the last block skips what no effect needs, see `Clip.class_token_only`.
    in_halves
        Whether a batch for which memory is short is read in parts, see `in_parts`.
    what
        Title of the progress bar.

    Raises
    ------
    SecondLensError
        No layers, one that `Clip.check_layer` refuses, or what `Reader` or `Capture.pool` raise.
    """
    reader = images
    if not isinstance(reader, Reader):
        reader = Reader(
            source=source_for(clip, images), clip=clip, batch_size=batch_size, workers=workers
        )
    with ExitStack() as stack:
        if class_token_only:
            stack.enter_context(clip.class_token_only())
        capture = stack.enter_context(Capture(clip, layers, keep_activations))
        encoded = partial(of_finite, reader, partial(_encode, clip, capture))
        batches = tracked(reader, what, progress)
        found: Iterator[Encoded | None] = map(encoded, batches)
        if in_halves:
            found = (done for _, done in in_parts(batches, clip, encoded))
        yield from (each for each in found if each is not None)


def stream_passes(clip: Clip, reader: Reader, layers: Iterable[int]) -> Iterator[Seen]:
    """Encode images batch by batch and let the caller pool, and say when to wait for the device.

    Inside the loop, the last block is computed as `Clip.class_token_only` says.

    Raises
    ------
    SecondLensError
        What `stream` raises, as far as the caller asks for `Seen.finite_part`.
    """
    with clip.class_token_only(), Capture(clip, layers) as capture:

        def see(batch: Batch, *, check: bool) -> Seen:
            seen = capture.read(clip.encode_image(batch.on(clip.device)), check=check)
            again = partial(see, check=True)
            return Seen(
                positions=batch.positions,
                seen=seen,
                finite_part=partial(of_finite, reader, again, batch),
            )

        for batch in reader:
            yield see(batch, check=False)


def _encode(clip: Clip, capture: Capture, batch: Batch) -> Encoded:
    representation = clip.encode_image(batch.on(clip.device))
    return Encoded(
        batch=batch,
        representation=representation,
        pooled=capture.pool(representation),
    )


def of_finite(reader: Reader, work: Callable[[Batch], Done], batch: Batch) -> Done | None:
    """What comes of the work on the images of a batch that are finite; None if there are none."""
    try:
        return work(batch)
    except NotFinite as error:
        if len(batch.positions) > 1 and not any(error.finite):
            raise  # of the model or its precision, and of no image
        rest = _finite_part(reader, batch, error)
        return work(rest) if rest.positions else None


def _finite_part(reader: Reader, batch: Batch, error: NotFinite) -> Batch:
    """The images of a batch on which all is well; the reader lists the others as skipped."""
    for position, finite in zip(batch.positions, error.finite, strict=True):
        if not finite:
            reader.skipped[reader.source.ids[position]] = str(error)
    kept = [place for place, finite in enumerate(error.finite) if finite]
    return batch.part(kept)
