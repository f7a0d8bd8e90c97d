"""Pages that hold everything they show: one HTML file from a template of this package."""

import base64
import io
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

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


def number(value: float | int | str) -> str:
    """As people read it: whole numbers in full, others with two significant digits, of which a
    zero after the point is left out; a real minus sign, and none before zero."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "–"
    size = math.floor(math.log10(abs(float(f"{value:.1e}")))) if value else 0
    return fixed(value, max(0, 1 - size)).removesuffix(".0")


def counted(count: int, noun: str) -> str:
    """Such as "1 picture" and "2,304 pictures"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def fixed(value: float, places: int) -> str:
    """With so many digits after the point; a real minus sign, and none before zero."""
    text = f"{value:,.{places}f}".replace("-", "−")
    return text.removeprefix("−") if not text.strip("−0.") else text
