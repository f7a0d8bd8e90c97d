"""A model for larger pictures than it was trained on: more patches of the same size."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError
from .halves import eight_bits
from .view import Clip

MOST_PATCHES = 2**14
"""Attention looks at every pair of them."""

DARK, LIGHT = 51, 204
"""Grey levels that tell how a model normalises pixels."""


@checked
@undisturbed
def resized(clip: Clip, height: int, width: int | None = None) -> Clip:
    """The same model for pictures of another size, its position embedding interpolated.

    Weights and their hash stay the same, so lenses of the model still fit it. Pictures are squeezed
    to the new size whatever their shape, and normalised as the model's own preprocessing does.

    Parameters
    ----------
    clip
        Any model that `load` returns.
    height, width
        Pixels; a square if only one is given.

    Raises
    ------
    SecondLensError
        A side that is no multiple of the model's patch, or more than `MOST_PATCHES` patches.
    """
    size = (height, height if width is None else width)
    patch = tuple(pixels // cells for pixels, cells in zip(clip.image_size, clip.grid, strict=True))
    for pixels, side in zip(size, patch, strict=True):
        if pixels < side or pixels % side:
            raise SecondLensError(
                f"{clip.name} cuts pictures into patches of {side} pixels, and {pixels} is no "
                "multiple of that"
            )
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    if rows * columns > MOST_PATCHES:
        raise SecondLensError(
            f"{size[0]} x {size[1]} pixels are {rows * columns:,} patches: take a size of at most "
            f"{MOST_PATCHES:,}"
        )
    preprocess = None if clip.preprocess is None else _preprocess(clip.preprocess, clip, size)
    grid = rows, columns
    blocks = tuple(block.at_grid(grid) for block in clip.blocks)
    return replace(clip, image_size=size, grid=grid, blocks=blocks, preprocess=preprocess)


def interpolated(
    positions: Float[Tensor, "tokens width"],
    grid: tuple[int, int],
    wanted: tuple[int, int],
    prefix: int = 1,
) -> Float[Tensor, "wanted_tokens width"]:
    """Rows for another grid of patches: bicubic between the patches, the prefix's as they are."""
    if tuple(grid) == tuple(wanted):
        return positions
    before, patches = positions[:prefix], positions[prefix:]
    square = patches.T.reshape(1, -1, *grid)
    square = square.to(torch.promote_types(square.dtype, torch.float32))
    larger = F.interpolate(square, wanted, mode="bicubic", align_corners=False)
    return torch.cat([before, larger.flatten(2)[0].T.to(positions)])


def _preprocess(
    own: Callable[[Image.Image], Tensor], clip: Clip, size: tuple[int, int]
) -> "_Squeeze":
    """Squeeze to `size`, and normalise as `own` does: it is affine in each channel."""
    dark, light = (
        own(Image.new("RGB", clip.image_size[::-1], (grey,) * 3)).mean((1, 2), keepdim=True)
        for grey in (DARK, LIGHT)
    )
    return _Squeeze(size=size, dark=dark, gain=(light - dark) / (LIGHT - DARK))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Squeeze:
    """One picture squeezed and normalised; a class, so that worker processes can have it."""

    size: tuple[int, int]
    dark: Float[Tensor, "3 1 1"]
    """What `DARK` becomes."""
    gain: Float[Tensor, "3 1 1"]
    """For one grey level more."""

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalised(self._resized(image))

    def eight_bits(self, image: Image.Image) -> Tensor:
        """See `Halved`."""
        return eight_bits(self._resized(image))

    def normalised(self, image: Image.Image) -> Tensor:
        """See `Halved`."""
        return self.dark + self.gain * (eight_bits(image).to(self.dark) - DARK)

    def _resized(self, image: Image.Image) -> Image.Image:
        return image.convert("RGB").resize(self.size[::-1], Image.Resampling.BICUBIC)
