"""Written words: faces of letters, and the signs that carry a word into a picture."""

import io
import json
import string
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from random import Random
from typing import Final, Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from secondlens.demo.world import COLOURS, NAMES

from .sprites import DATA

FontSplit = Literal["train", "heldout"]

HELD_FONTS: Final = 5
"""One font in N is held out, by hash; all faces of it together."""
HELD_WORDS: Final = 10
"""One name in so many is never written in training, by hash."""


def _held(kind: str, value: str, one_in: int) -> bool:
    digest = sha256(f"secondlens {kind} {value}".encode()).digest()
    return int.from_bytes(digest[:8]) % one_in == 0


UNWRITTEN: Final[tuple[str, ...]] = tuple(n for n in NAMES if _held("word", n, HELD_WORDS))
"""Objects whose names training shows as captions only, never as letters in a picture."""

WRITTEN: Final[tuple[str, ...]] = tuple(name for name in NAMES if name not in UNWRITTEN)
"""Objects whose names training also shows in letters."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """The letters of one font in one weight.

    A cell is (left, width, bearing, advance) of a letter in the strip, in pixels.
    """

    font: str
    weight: int
    encoded: bytes = field(repr=False)
    cells: dict[str, tuple[int, int, int, int]] = field(repr=False)

    @property
    def split(self) -> FontSplit:
        """Whether training shows this font."""
        return "heldout" if _held("font", self.font, HELD_FONTS) else "train"

    @cached_property
    def strip(self) -> Image.Image:
        """All letters beside one another, as opacity."""
        return Image.open(io.BytesIO(self.encoded)).convert("L")

    def write(self, word: str) -> Image.Image:
        """The opacity of a word of letters a to z and A to Z, cropped to its ink."""
        cells = [self.cells[letter] for letter in word]
        width = sum(advance for *_, advance in cells) + 80
        line = Image.new("L", (width, self.strip.height))
        x = 40
        for left, wide, bearing, advance in cells:
            letter = self.strip.crop((left, 0, left + wide, self.strip.height))
            corner = (x + bearing, 0)
            beneath = line.crop((*corner, corner[0] + wide, self.strip.height))
            line.paste(ImageChops.lighter(beneath, letter), corner)
            x += advance
        return line.crop(line.getbbox())


@cache
def all_faces() -> tuple[Face, ...]:
    """Every face of letters; each is decoded when it is first used."""
    with zipfile.ZipFile(DATA / "letters.zip") as archive:
        return tuple(
            Face(
                font=entry["font"],
                weight=entry["weight"],
                encoded=archive.read(entry["file"]),
                cells={
                    letter: tuple(cell)
                    for letter, cell in zip(string.ascii_letters, entry["cells"], strict=True)
                },
            )
            for entry in json.loads(archive.read("letters.json"))
        )


class Fonts:
    """The faces of one split, by font: choosing draws a font first."""

    def __init__(self, split: FontSplit, faces: Iterable[Face] | None = None) -> None:
        self.split = split
        self._faces: dict[str, list[Face]] = {}
        for face in all_faces() if faces is None else faces:
            if face.split == split:
                self._faces.setdefault(face.font, []).append(face)
        self.names = tuple(sorted(self._faces))

    def choose(self, rng: Random) -> Face:
        """A face."""
        return rng.choice(self._faces[rng.choice(self.names)])


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A word as it is put into a picture: `picture` in RGB, `opacity` and `ink` of its size."""

    word: str
    font: str
    ink_colour: str
    """A colour of the world."""
    board: bool
    """Whether the letters stand on a board rather than on the picture itself."""
    picture: Image.Image = field(repr=False)
    opacity: Image.Image = field(repr=False)
    ink: Image.Image = field(repr=False)
    """Opacity of the letters alone."""


def _luminance(colour: tuple[int, int, int]) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


_CONTRAST: Final = 80
"""The least difference in luminance between letters and what is right behind them, of 255."""


_STRONGER: Final = [min(255, opacity * 3 // 2) for opacity in range(256)]
"""Thin strokes that are drawn small would fade."""


def _against(colour: tuple[int, int, int], rng: Random) -> str:
    """A colour's name that can be read on another colour."""
    behind = _luminance(colour)
    seen = [n for n, c in COLOURS.items() if abs(_luminance(c) - behind) > _CONTRAST]
    return rng.choice(seen)


def draw_sign(word: str, face: Face, width: int, height: int, rng: Random) -> Sign:
    """A word in a face on a board, or bare with a rim; at most `width` by `height` before a tilt.

    The word is in small letters, capitals, or both.
    """
    shown = rng.choice((word, word, word.capitalize(), word.upper()))
    text = face.write(shown)
    board = rng.random() < 0.65
    pad = rng.randint(3, 6) if board else 2
    round_ends = board and rng.random() < 0.25
    beside = pad + (height // 5 if round_ends else 0)
    scale = min((width - 2 * beside) / text.width, (height - 2 * pad) / text.height)
    size = (max(4, round(text.width * scale)), max(4, round(text.height * scale)))
    text = text.resize(size, Image.Resampling.BOX if scale < 0.7 else Image.Resampling.BICUBIC)
    text = text.point(_STRONGER)
    full = (text.width + 2 * beside, text.height + 2 * pad)
    ink = Image.new("L", full)
    ink.paste(text, (beside, pad))
    if board:
        surface = rng.choice(list(COLOURS.values()))
        picture = Image.new("RGB", full, surface)
        opacity = Image.new("L", full)
        rim = (0, 0, full[0] - 1, full[1] - 1)
        radius = min(full) // 2 if round_ends else rng.choice((0, 0, 4))
        ImageDraw.Draw(opacity).rounded_rectangle(rim, radius, fill=255)
        ink = ImageChops.darker(ink, opacity)
        colour = _against(surface, rng)
        if rng.random() < 0.4:
            ImageDraw.Draw(picture).rounded_rectangle(rim, radius, outline=COLOURS[colour], width=2)
    else:
        colour = rng.choice(list(COLOURS))
        picture = Image.new("RGB", full, COLOURS[_against(COLOURS[colour], rng)])
        opacity = ink.filter(ImageFilter.MaxFilter(3))
    picture.paste(COLOURS[colour], mask=ink)
    if rng.random() < 0.5:
        angle = rng.uniform(-18, 18)
        picture, opacity, ink = (
            layer.rotate(angle, Image.Resampling.BILINEAR, expand=True)
            for layer in (picture, opacity, ink)
        )
    return Sign(
        word=word,
        font=face.font,
        ink_colour=colour,
        board=board,
        picture=picture,
        opacity=opacity,
        ink=ink,
    )
