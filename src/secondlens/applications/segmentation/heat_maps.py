"""Heat-maps: at the patches, in [0, 1] at any size, as label maps, and as pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
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
    if maps.shape[-2:] != size:
        flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    resized = flat.flatten(1)
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


PALETTE = (
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)),
    *((213, 94, 0), (204, 121, 167), (120, 94, 240), (166, 216, 84), (140, 86, 75)),
)
"""Colours of labels: nothing, then one for each text, told apart with any kind of colour vision as
far as that goes; further texts start again at the second."""


def colour_of(text: int) -> tuple[int, int, int]:
    """Of a text, counted from 0."""
    return PALETTE[1:][text % (len(PALETTE) - 1)]


def grey(values: Float[Tensor, "height width"]) -> Image.Image:
    """Values in [0, 1] as a picture of 8 bits."""
    return Image.fromarray((255 * values).round().byte().cpu().numpy())


def overlay(image: Image.Image, heat: Float[Tensor, "height width"]) -> Image.Image:
    """The picture at full light under colours that are the more opaque the hotter: from violet to
    yellow, equal steps of heat in equal steps of colour.

    Parameters
    ----------
    heat
        In [0, 1], at the picture's resolution.

    Raises
    ------
    SecondLensError
        `heat` has another size than the picture.
    """
    _check_size(image, heat)
    shares = (255 * heat).round().byte().cpu().numpy()
    colours = Image.fromarray(_heat_colours()[shares])
    return Image.composite(
        colours, image.convert("RGB"), Image.fromarray((shares * 0.75).astype(np.uint8))
    )


@cache
def _heat_colours() -> UInt8[np.ndarray, "256 3"]:
    """Colours for heat from 0 to 1."""
    import matplotlib as mpl

    levels = mpl.colormaps["plasma"](np.linspace(0, 1, 256))[:, :3]
    return np.asarray((255 * levels).round(), dtype=np.uint8)


def outlined(image: Image.Image, labels: Int[Tensor, "height width"]) -> Image.Image:
    """The picture at full light, each label's part outlined in its colour and lightly tinted.

    Raises
    ------
    SecondLensError
        `labels` have another size than the picture.
    """
    _check_size(image, labels)
    width = max(1, round(min(image.size) / 150))
    found = labels[None].float()
    most = F.max_pool2d(found, 2 * width + 1, 1, width)[0]
    least = -F.max_pool2d(-found, 2 * width + 1, 1, width)[0]
    edge = (most != labels) | (least != labels)
    opacity = torch.where(edge, 1.0, TINT) * (labels > 0)
    colours = torch.tensor([PALETTE[0], *(colour_of(text) for text in range(int(labels.max())))])
    mask = Image.fromarray((255 * opacity).byte().cpu().numpy())
    drawn = Image.fromarray(colours.byte()[labels.cpu()].numpy())
    return Image.composite(drawn, image.convert("RGB"), mask)


TINT = 0.3
"""Opacity inside of an outline."""

LEGEND = 22
"""Pixels of a line of a legend."""


def with_scale(picture: Image.Image, text: str) -> Image.Image:
    """A picture of `overlay` above a line that tells the text and what its colours mean."""
    page, draw, font = _above(picture, 1)
    scale = Image.fromarray(_heat_colours()[None]).resize((80, LEGEND - 10))
    left = max(0, page.width - 80 - 28)
    page.paste(scale, (left, picture.height + 5))
    draw.text((left - 12, picture.height + 4), "0", fill="black", font=font)
    draw.text((left + 86, picture.height + 4), "1", fill="black", font=font)
    draw.text(
        (6, picture.height + 4), _fitting(text, left - 24, draw, font), fill="black", font=font
    )
    return page


def with_names(picture: Image.Image, texts: Sequence[str]) -> Image.Image:
    """A picture of `outlined` above a line for each text, with its colour."""
    page, draw, font = _above(picture, len(texts))
    for number, text in enumerate(texts):
        top = picture.height + number * LEGEND
        draw.rectangle((6, top + 5, 18, top + LEGEND - 5), fill=colour_of(number))
        said = _fitting(text, page.width - 32, draw, font)
        draw.text((26, top + 4), said, fill="black", font=font)
    return page


def _above(picture: Image.Image, lines: int) -> tuple[Image.Image, Any, Any]:
    width = max(picture.width, 2 * 128)
    page = Image.new("RGB", (width, picture.height + lines * LEGEND), "white")
    page.paste(picture)
    return page, ImageDraw.Draw(page), ImageFont.load_default(13)


def _fitting(text: str, width: int, draw: Any, font: Any) -> str:
    """A text, cut where it has no room."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def _check_size(image: Image.Image, values: Tensor) -> None:
    if (image.height, image.width) != tuple(values.shape):
        raise SecondLensError(
            f"the heat-map is {values.shape[1]} x {values.shape[0]} pixels and the picture "
            f"{image.width} x {image.height}: resize one of them"
        )


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
    colours = [PALETTE[0], *(colour_of(text) for text in range(255))]
    picture.putpalette([c for rgb in colours for c in rgb])
    return picture


def save_all(pictures: Mapping[str, Image.Image], out: Path) -> None:
    """Write pictures as `<name>.png` into the folder `out`, which is whole then, or absent."""
    with whole_folder(out) as folder:
        for name, picture in pictures.items():
            picture.save(folder / f"{name}.png")
