"""Step 3: pictures of captions.

An `ImageGenerator` makes a picture a function of its caption and seed. The same seed gives the same
layout, as far as the generator has one, so that a caption and its plain form differ in the words
alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image, PngImagePlugin

from ...storage.files import save_picture
from ...storage.validation import DAMAGED, convert

METADATA = "secondlens"
"""Key of a PNG file's text."""


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """A picture, and what is true of it where the generator knows."""

    image: Image.Image
    shows: tuple[str, ...] | None = None
    """What can be seen in it; None if only looking tells."""


@runtime_checkable
class ImageGenerator(Protocol):
    """A way to draw captions."""

    name: str
    knows: Sequence[str] | None
    """Words that it can draw; None if there is no list."""

    def draw(self, caption: str, subject: str, seed: int) -> GeneratedImage:
        """The picture of a caption whose main object is `subject`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is written into the file of a picture."""

    caption: str
    subject: str
    seed: int
    image_generator: str
    shows: tuple[str, ...] | None = None


def picture(
    generator: ImageGenerator, caption: str, subject: str, seed: int, path: Path
) -> GeneratedImage:
    """The picture in a PNG file if it is there and of this caption, seed and generator.

    Else it is drawn anew and written there.
    """
    wanted = Facts(caption=caption, subject=subject, seed=seed, image_generator=generator.name)
    if (known := _read(path, wanted)) is not None:
        return known
    generated = generator.draw(caption, subject, seed)
    _write(path, generated, wanted)
    return generated


def _read(path: Path, wanted: Facts) -> GeneratedImage | None:
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with Image.open(path, formats=["PNG"]) as file:
            text = json.loads(file.info[METADATA])
            if "drawer" in text:  # as version 0.1 called it
                text["image_generator"] = text.pop("drawer")
            found = convert(text, Facts, path.name)
            if replace(found, shows=None) != wanted:
                return None
            return GeneratedImage(image=file.convert("RGB"), shows=found.shows)
    except (*DAMAGED, SyntaxError, Image.DecompressionBombError):
        return None


def _write(path: Path, generated: GeneratedImage, facts: Facts) -> None:
    text = PngImagePlugin.PngInfo()
    shown = asdict(facts) | {"shows": generated.shows}
    text.add_itxt(METADATA, json.dumps(shown, ensure_ascii=False))
    save_picture(path, generated.image, pnginfo=text)
