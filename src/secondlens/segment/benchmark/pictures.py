"""Heat-maps as pictures: grey, overlaid, labelled, and all methods side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from ...errors import SecondLensError
from ...storage.files import whole_folder
from .batches import Batch
from .methods import Method
from .protocol import Choice, heat_of

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


def comparison_grid(
    methods: Sequence[Method], choices: Mapping[str, Choice], batch: Batch, side: int = 112
) -> Image.Image:
    """Every method's heat-map over the same pictures, one picture a row; `side` in pixels."""
    pictures = [_visible(pixels).resize((side, side), _SMOOTH) for pixels in batch.pixels.cpu()]
    masks = [grey((mask == 1).float()).resize((side, side)) for mask in batch.masks]
    columns = {"picture": pictures, "mask": masks}
    for method in methods:
        choice = choices[method.name]
        grid = method.grids(batch, choice.form, [choice.variant])[choice.variant]
        heat = heat_of(grid.cpu(), (side, side), choice.positive).float()
        columns[method.name] = [overlay(p, h) for p, h in zip(pictures, heat, strict=True)]
    header, step = 16, side + 4
    sheet = Image.new("RGB", (len(columns) * step, header + len(pictures) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, column) in enumerate(columns.items()):
        draw.text((x * step + 2, 2), name, fill="black")
        for y, tile in enumerate(column):
            sheet.paste(tile, (x * step, header + y * step))
    return sheet


_SMOOTH = Image.Resampling.BICUBIC


def _visible(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """A preprocessed image with its values stretched to what a picture can show."""
    spread = (pixels.max() - pixels.min()).clamp(min=torch.finfo(pixels.dtype).eps)
    channels = (255 * (pixels - pixels.min()) / spread).round().byte()
    return Image.fromarray(channels.permute(1, 2, 0).numpy())
