"""The cut-outs that scenes are composed of, read from the zip beside this package."""

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Final, Literal

from PIL import Image, ImageFilter

DATA: Final = Path(__file__).parent / "data"

Split = Literal["train", "heldout", "style", "older"]
"""`train`: seen in training. `heldout`: of every object, one artist's depictions that were not.
`style`: a whole style that was not. `older`: what the first world held out, not seen here
either."""


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One depiction of an object: its colours, and an outline of the same size.

    `colours` [H, W] in RGB go on beyond the outline, so that no edge darkens when it is resized;
    `outline` [H, W] is the opacity, 0 to 255.
    """

    name: str
    style: str
    split: Split
    silhouette: bool
    encoded: bytes = field(repr=False)
    """The picture as a file with an alpha channel."""

    @cached_property
    def image(self) -> Image.Image:
        """The picture with its alpha channel, in RGBA."""
        return Image.open(io.BytesIO(self.encoded)).convert("RGBA")

    @cached_property
    def outline(self) -> Image.Image:
        """The opacity alone."""
        return self.image.getchannel("A")

    @cached_property
    def colours(self) -> Image.Image:
        """The colours alone."""
        around = self.image.convert("RGBa").filter(ImageFilter.BoxBlur(5)).convert("RGBA")
        colours = around.convert("RGB")
        colours.paste(self.image.convert("RGB"), mask=self.outline.point(_VISIBLE))
        return colours


_VISIBLE: Final = [255 * (opacity > 128) for opacity in range(256)]


@cache
def all_sprites() -> tuple[Sprite, ...]:
    """Every sprite; each is decoded when it is first drawn."""
    with zipfile.ZipFile(DATA / "sprites.zip") as archive:
        return tuple(
            Sprite(
                name=entry["name"],
                style=entry["style"],
                split=entry["split"],
                silhouette=entry["silhouette"],
                encoded=archive.read(entry["file"]),
            )
            for entry in json.loads(archive.read("sprites.json"))
        )


class Wardrobe:
    """The depictions of one split, by object and style.

    Choosing draws a style first, so that a style with many drawings of an object does not
    outweigh the others.
    """

    def __init__(self, split: Split, sprites: Iterable[Sprite] | None = None) -> None:
        self.split = split
        self._styles: dict[tuple[str, bool], dict[str, list[Sprite]]] = {}
        for sprite in all_sprites() if sprites is None else sprites:
            if sprite.split == split:
                styles = self._styles.setdefault((sprite.name, sprite.silhouette), {})
                styles.setdefault(sprite.style, []).append(sprite)
        self.names = tuple(sorted({name for name, _ in self._styles}))

    def depictions(self, name: str) -> list[Sprite]:
        """All depictions of an object in this split."""
        kinds = (self._styles.get((name, silhouette), {}) for silhouette in (False, True))
        return [s for styles in kinds for drawings in styles.values() for s in drawings]

    def choose(self, name: str, rng: Random, silhouettes: float = 0.0) -> Sprite:
        """A depiction of `name`; KeyError where the split has none.

        `silhouettes` is the probability of a monochrome icon; where an object has depictions of
        only one kind, they are taken.
        """
        coloured, outlined = ((name, kind) in self._styles for kind in (False, True))
        use_silhouette = outlined and (not coloured or rng.random() < silhouettes)
        styles = self._styles[name, use_silhouette]
        return rng.choice(styles[rng.choice(list(styles))])
