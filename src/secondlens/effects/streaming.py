"""The one loop over images: read a batch, encode it, pool what second-order effects need of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.reader import Batch, Reader
from ..data.sources import as_source
from ..models.view import Clip
from ..progress import tracked
from .capture import Capture, Pass, Pooled


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A batch of images after the image tower."""

    positions: list[int]
    """Of the images, in the source."""
    pixels: Float[Tensor, "images 3 height width"]
    representation: Float[Tensor, "images dim"]
    """What `Clip.encode_image` gives, not normalised."""
    pooled: Pooled

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
    check: Callable[[bool], None]
    """Takes whether all of `Pass.sound` holds, and raises what `Capture.read` raises if not."""


def stream(
    clip: Clip,
    images: Any,
    layers: Iterable[int],
    *,
    batch_size: int = 32,
    workers: int = 0,
    keep_activations: bool = False,
    class_token_only: bool = False,
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
    what
        Title of the progress bar.

    Raises
    ------
    SecondLensError
        No layers, one that `Clip.check_layer` refuses, or what `Reader` or `Capture.pool` raise.
    """
    reader = images
    if not isinstance(reader, Reader):
        reader = Reader(source=as_source(images), clip=clip, batch_size=batch_size, workers=workers)
    with ExitStack() as stack:
        if class_token_only:
            stack.enter_context(clip.class_token_only())
        capture = stack.enter_context(Capture(clip, layers, keep_activations))
        for batch in tracked(reader, what, progress):
            representation = clip.encode_image(batch.pixels)
            yield Encoded(
                positions=batch.positions,
                pixels=batch.pixels,
                representation=representation,
                pooled=capture.pool(representation),
            )


def stream_passes(clip: Clip, reader: Reader, layers: Iterable[int]) -> Iterator[Seen]:
    """Encode images batch by batch and let the caller pool, and say when to wait for the device.

    Inside the loop, the last block is computed as `Clip.class_token_only` says.

    Raises
    ------
    SecondLensError
        What `stream` raises, as far as the caller checks.
    """
    with clip.class_token_only(), Capture(clip, layers) as capture:
        for batch in reader:
            seen = capture.read(clip.encode_image(batch.pixels), check=False)
            check = partial(_check, clip, capture, batch)
            yield Seen(positions=batch.positions, seen=seen, check=check)


def _check(clip: Clip, capture: Capture, batch: Batch, sound: bool) -> None:
    if not sound:
        # what the pass showed is gone, so it is made once more
        capture.read(clip.encode_image(batch.pixels))
