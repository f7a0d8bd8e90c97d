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

    def resized(self, image: Image.Image) -> Image.Image:
        """The picture as the model sees it, before its values are changed."""

    def normalised(self, image: Image.Image) -> Tensor:
        """The image tower's input for such a picture, from each pixel alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Halves:
    """The halves of a model's preprocessing."""

    resized: Callable[[Image.Image], Image.Image]
    table: Float[Tensor, "3 256"]
    """What each value of each channel becomes."""

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "3 height width"] | None:
        """The first half; None if what comes out is not RGB."""
        small = self.resized(image)
        if not isinstance(small, Image.Image) or small.mode != "RGB":
            return None
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def halves(preprocess: Callable[[Image.Image], Tensor] | None) -> Halves | None:
    """Return the halves of a preprocessing, or None where it has none that are known.

    Known are a `Compose` of torchvision that ends with `ToTensor` and `Normalize`, as open_clip's,
    and what is `Halved`. On a picture of noise, both halves must give what the whole gives, bit by
    bit.
    """
    if isinstance(preprocess, Halved):
        first, second = preprocess.resized, preprocess.normalised
    elif isinstance(preprocess, Compose) and _ends_as_known(preprocess.transforms):
        first = Compose(preprocess.transforms[:-2])
        second = Compose(preprocess.transforms[-2:])
    else:
        return None
    every = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    table = second(Image.fromarray(every))
    if table.shape != (3, 1, 256) or not table.is_floating_point():
        return None
    found = Halves(resized=first, table=table[:, 0].contiguous())
    noise = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    pixels, whole = found.pixels(Image.fromarray(noise)), preprocess(Image.fromarray(noise))
    same = pixels is not None and torch.equal(looked_up(pixels[None], found.table)[0], whole)
    return found if same else None


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
    channel = torch.arange(0, 768, 256, dtype=torch.int32, device=pixels.device)
    places = pixels.int() + channel[:, None, None]
    return table.flatten().index_select(0, places.flatten()).view(pixels.shape)
