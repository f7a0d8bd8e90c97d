"""Preprocessing in two halves: from a picture to 8-bit pixels, and what becomes of each value.

The second half is the same for every pixel of a channel, so that a table of 256 values a channel
holds all of it. Pixels can then travel as bytes, and are looked up where the model is: the numbers
are those of the model's own preprocessing on every device, bit by bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor


@runtime_checkable
class Halved(Protocol):
    """A preprocessing that knows its halves."""

    def eight_bits(self, image: Image.Image) -> Tensor:
        """The first half: what the model sees of a picture, uint8 [3, height, width]."""

    def normalised(self, image: Image.Image) -> Tensor:
        """The second half, of an RGB picture of any size: floats [3, height, width]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Halves:
    """The halves of a model's preprocessing."""

    eight_bits: Callable[[Image.Image], Tensor]
    """See `Halved`."""
    table: Float[Tensor, "3 256"]
    """What each value of each channel becomes."""


def halves(preprocess: Callable[[Image.Image], Tensor] | None) -> Halves | None:
    """Return the halves of a preprocessing, or None where it has none that are known.

    Known are a `Compose` of torchvision that ends with `ToTensor` and `Normalize`, as open_clip's,
    and what is `Halved`. On a picture of noise, both halves must give what the whole gives, bit by
    bit.
    """
    if preprocess is None or (known := _halved(preprocess)) is None:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    every = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    try:
        table = known.normalised(Image.fromarray(every))[:, 0].contiguous()
        pixels = known.eight_bits(Image.fromarray(noise))
        same = torch.equal(looked_up(pixels[None], table)[0], preprocess(Image.fromarray(noise)))
    except Exception:  # of parts that others made: the whole is what must work
        return None
    return Halves(eight_bits=known.eight_bits, table=table) if same else None


def _halved(preprocess: Callable[[Image.Image], Tensor]) -> Halved | None:
    if isinstance(preprocess, Halved):
        return preprocess
    if isinstance(preprocess, Compose) and _ends_as_known(preprocess.transforms):
        return _Transforms(Compose(preprocess.transforms[:-2]), Compose(preprocess.transforms[-2:]))
    return None


@dataclass(frozen=True)
class _Transforms:
    """Transforms of torchvision."""

    resize: Callable[[Image.Image], Image.Image]
    normalise: Callable[[Image.Image], Tensor]

    def eight_bits(self, image: Image.Image) -> Tensor:
        return eight_bits(self.resize(image))

    def normalised(self, image: Image.Image) -> Tensor:
        return self.normalise(image)


def eight_bits(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """The pixels of a picture that is RGB."""
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))


def _ends_as_known(transforms: list[object]) -> bool:
    return (
        len(transforms) > 1
        and isinstance(transforms[-2], ToTensor)
        and isinstance(transforms[-1], Normalize)
    )


def looked_up(
    pixels: UInt8[Tensor, "images 3 height width"], table: Float[Tensor, "3 256"]
) -> Float[Tensor, "images 3 height width"]:
    """The second half, where the pixels are; the table must be there too."""
    start = torch.arange(0, 768, 256, dtype=torch.int32, device=pixels.device)[:, None, None]
    values = table.flatten()
    if pixels.device.type != "cpu":
        return values.index_select(0, (pixels.int() + start).flatten()).view(pixels.shape)
    found = torch.empty(pixels.shape, dtype=table.dtype)
    for each, row in zip(pixels, found, strict=True):  # which stay in the processor's cache
        torch.index_select(values, 0, (each.int() + start).flatten(), out=row.view(-1))
    return found
