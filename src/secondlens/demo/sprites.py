"""The cut-outs that scenes are composed of, read from the zip that ships with the package."""

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["train", "heldout", "style"]
"""`train`: seen in training. `heldout`: of every object, one artist's depictions that were not.
`style`: a whole style (Twemoji) that was not."""


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One depiction of an object, with an alpha channel."""

    name: str
    style: str
    split: Split
    silhouette: bool
    image: Image.Image

    def __repr__(self) -> str:
        return f"Sprite({self.name!r}, {self.style!r}, {self.split!r})"


@cache
def all_sprites() -> tuple[Sprite, ...]:
    """Every sprite of the package; decoded once in a process (about 2 s, 100 MB)."""
    data = (files("secondlens.demo") / "data" / "sprites.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple(
            Sprite(
                name=entry["name"],
                style=entry["style"],
                split=entry["split"],
                silhouette=entry["silhouette"],
                image=Image.open(io.BytesIO(archive.read(entry["file"]))).convert("RGBA"),
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

    def choose(self, name: str, rng: np.random.Generator, silhouettes: float = 0.0) -> Sprite:
        """A depiction of `name`; KeyError where the split has none.

        `silhouettes` is the probability of a monochrome icon; where an object has depictions of
        only one kind, they are taken.
        """
        coloured, outlined = ((name, kind) in self._styles for kind in (False, True))
        use_silhouette = outlined and (not coloured or rng.random() < silhouettes)
        styles = self._styles[name, use_silhouette]
        drawings = styles[list(styles)[rng.integers(len(styles))]]
        return drawings[rng.integers(len(drawings))]
