"""Pages that hold everything they show: one HTML file from a template of this package."""

import base64
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ..numerals import counted, fixed, number
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
