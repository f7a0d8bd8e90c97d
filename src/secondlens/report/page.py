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
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..formatting import counted, fixed, number
from ..models.open_clip.texts import TextClip
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


TEXT_SIDE, TEXT_SIZE = 192, 20
"""Pixels of the picture of a text, and of its letters."""


def _written(clip: TextClip, ids: Int[Tensor, " tokens"]) -> Image.Image:
    """A text as the tower reads it, to its end, on a square; what has no room is left out."""
    page = Image.new("RGB", (TEXT_SIDE, TEXT_SIDE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_SIZE)
    lines = [""]
    for word in clip.words_of(ids).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > TEXT_SIDE - 16:
            lines.append(word)
        else:
            lines[-1] = longer
    draw.multiline_text((8, 8), "\n".join(lines), fill="black", font=font, spacing=4)
    return page


def heat_map(activation: Float[Tensor, "rows columns"], scale: float) -> Image.Image:
    """One pixel a patch, whose opacity goes from 0 where the neuron is at or below zero to full
    where it reaches `scale`."""
    shares = (activation / scale).clamp(0, 1) if scale > 0 else torch.zeros_like(activation)
    opacity = Image.fromarray((shares * 255).round().byte().numpy())
    return Image.merge("LA", (Image.new("L", opacity.size), opacity))
