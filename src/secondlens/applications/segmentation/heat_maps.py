"""Heat-maps: at the patches, in [0, 1] at any size, as label maps, and as pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ...errors import SecondLensError
from ...storage.files import whole_folder


def on_grid(
    values: Float[Tensor, "*batch patches"], grid: tuple[int, int]
) -> Float[Tensor, "*batch rows columns"]:
    """What patches hold, where the patches are."""
    return values.reshape(*values.shape[:-1], *grid)


def standardise(
    maps: Float[Tensor, "*batch rows columns"], size: tuple[int, int], *, positive: bool = False
) -> Float[Tensor, "*batch height width"]:
    """Heat-maps bilinearly resized to `size` (height, width), each then scaled to [0, 1].

    With `positive`, what is below 0 after resizing becomes 0 before scaling. A map that is the same
    everywhere becomes 0.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False).flatten(1)
    if positive:
        resized = resized.clamp(min=0)
    low, high = resized.aminmax(dim=1, keepdim=True)
    span = high - low
    # rounding makes a constant map differ from itself a little after resizing
    constant = span <= 1e-6 * high.abs().maximum(low.abs())
    heat = (resized - low) / span.masked_fill(constant, torch.inf)
    return heat.reshape(*maps.shape[:-2], *size)


def label_map(
    heat: Float[Tensor, "texts height width"], threshold: float = 0.5
) -> Int[Tensor, "height width"]:
    """For each pixel, 1 + the text with the largest heat, or 0 if none reaches the threshold."""
    strongest, text = heat.max(dim=0)
    return torch.where(strongest >= threshold, text + 1, 0)


PALETTE = ((0, 0, 0), (230, 80, 40), (40, 110, 220), (50, 160, 70), (230, 190, 40), (150, 70, 180))
"""Colours of labels: nothing, then one for each text; further texts start again at the second."""


def grey(values: Float[Tensor, "height width"]) -> Image.Image:
    """Values in [0, 1] as a picture of 8 bits."""
    return Image.fromarray((255 * values).round().byte().cpu().numpy())


def overlay(image: Image.Image, heat: Float[Tensor, "height width"]) -> Image.Image:
    """The picture in grey, the redder the hotter; `heat` in [0, 1] at the picture's resolution.

    Raises
    ------
    SecondLensError
        `heat` has another size than the picture.
    """
    if (image.height, image.width) != tuple(heat.shape):
        raise SecondLensError(
            f"the heat-map is {heat.shape[1]} x {heat.shape[0]} pixels and the picture "
            f"{image.width} x {image.height}: resize one of them"
        )
    red = Image.new("RGB", image.size, (255, 32, 0))
    base = image.convert("L").convert("RGB")
    return Image.composite(red, base, grey(0.75 * heat))


def label_picture(labels: Int[Tensor, "height width"]) -> Image.Image:
    """A label map as a picture with a palette; its pixel values are the labels.

    Raises
    ------
    SecondLensError
        There are more labels than a palette has room for.
    """
    if int(labels.max()) > 255:
        raise SecondLensError("a label map holds at most 255 texts: give fewer")
    picture = Image.fromarray(labels.cpu().numpy().astype(np.uint8))
    nothing, *colours = PALETTE
    picture.putpalette([c for rgb in (nothing, *(colours * 51)) for c in rgb])
    return picture


def save_all(pictures: Mapping[str, Image.Image], out: Path) -> None:
    """Write pictures as `<name>.png` into the folder `out`, which is whole then, or absent."""
    with whole_folder(out) as folder:
        for name, picture in pictures.items():
            picture.save(folder / f"{name}.png")
