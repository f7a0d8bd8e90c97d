"""Pages that hold everything they show: one HTML file from a template of this package."""

import base64
import io
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from ..formatting import counted, fixed, number
from ..models.text_towers import TextClip
from ..models.view import Clip
from ..storage.files import save_text


def write_page(path: str | Path, template: str, **content: Any) -> None:
    """Fill a template and write it; a file that exists is replaced once the new one is complete."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secondlens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "fixed": fixed, "counted": counted}
    page = environment.get_template(template).render(**content, version=version("secondlens"))
    save_text(path, page)


def data_uri(image: Image.Image, form: str, **options: int) -> str:
    """A picture as an address that holds it; `form` and `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def model_view(clip: Clip) -> Callable[[Float[Tensor, "3 height width"]], Image.Image]:
    """What turns the image tower's input back into a picture: exactly the view the model had.

    It undoes the normalisation, which it learns from what the preprocessing makes of black and of
    white, so that cropping, squashing or padding show as they were and heat maps lie where they
    belong. It takes for granted that normalisation acts on each pixel alone and is affine. Without
    preprocessing, or where black and white come out alike, values are stretched over their range.
    """
    if isinstance(clip, TextClip):
        return partial(_written, clip)
    black = white = torch.zeros(())
    if clip.preprocess is not None:
        size = clip.image_size[::-1]
        black, white = (clip.preprocess(Image.new("RGB", size, c)) for c in ("black", "white"))
    known = bool((white != black).all())

    def view(pixels: Tensor) -> Image.Image:
        pixels = pixels.float().cpu()
        low, high = (black, white) if known else (pixels.amin(), pixels.amax())
        shares = ((pixels - low) / (high - low)).nan_to_num().clamp(0, 1)
        return Image.fromarray((shares * 255).round().byte().permute(1, 2, 0).numpy())

    return view


CELL = (72, 18)
"""Pixels of a token, across and down."""
LETTERS = 11
"""That fit into a cell."""


def _written(clip: TextClip, ids: Int[Tensor, " tokens"]) -> Image.Image:
    """Tokens of a text, each in the cell of the grid where heat-maps show it."""
    rows, columns = clip.grid
    page = Image.new("RGB", (columns * CELL[0], rows * CELL[1]), "white")
    draw = ImageDraw.Draw(page)
    for place, piece in enumerate(clip.pieces(ids)):
        row, column = divmod(place, columns)
        draw.text((column * CELL[0] + 3, row * CELL[1] + 3), piece[:LETTERS], fill="black")
    return page


def heat_map(activation: Float[Tensor, "rows columns"], scale: float) -> Image.Image:
    """One pixel a patch, whose opacity goes from 0 where the neuron is at or below zero to full
    where it reaches `scale`."""
    shares = (activation / scale).clamp(0, 1) if scale > 0 else torch.zeros_like(activation)
    opacity = Image.fromarray((shares * 255).round().byte().numpy())
    return Image.merge("LA", (Image.new("L", opacity.size), opacity))
