"""Drawn pictures whose every patch is known: marks and tints on a grid, exact in 8 bits.

A picture is a grid of patches. A patch is a sum of basis pictures with known amounts: at most one
mark (a texture or a shape, in lightness), at most one tint, and the lightness of the whole picture.
The basis is linearly independent, so a linear map reads every amount off the pixels without error,
and amounts are such that every pixel is a whole number.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ..errors import SecondLensError

SIDE = 8
"""Pixels of a patch's side."""
GRID = 4
"""Patches of a picture's side."""
PATCHES = GRID * GRID
GREY, STEP = 128, 32
"""The value of a pixel of nothing, and what one unit of a basis picture adds to it."""
AMOUNTS = (0.75, 1.0, 1.25)
"""Of a mark or tint in a patch, each as likely as the others."""
LIGHTNESS = (-0.5, 0.0, 0.5)
"""Of a whole picture."""

_SHAPES = {
    "ring": "........ ..####.. .#....#. .#....#. .#....#. .#....#. ..####.. ........",
    "cross": "#......# .#....#. ..#..#.. ...##... ...##... ..#..#.. .#....#. #......#",
    "disc": "........ ...##... ..####.. .######. .######. ..####.. ...##... ........",
    "triangle": "........ #....... ##...... ###..... ####.... #####... ######.. #######.",
    "frame": "######## #......# #......# #......# #......# #......# #......# ########",
    "plus": "...##... ...##... ...##... ######## ######## ...##... ...##... ...##...",
    "arrow": "....#... ....##.. ######## ######## ....##.. ....#... ........ ........",
    "corner": "##...... ##...... ##...... ##...... ##...... ##...... ######## ########",
    "hook": "..####.. ..#..#.. .....#.. .....#.. .....#.. .#...#.. .#####.. ........",
    "star": "...#...# .#.#.#.. ..###... #######. ..###... .#.#.#.. ...#.... ........",
}


def _textures() -> dict[str, np.ndarray]:
    row, column = np.mgrid[:SIDE, :SIDE]
    return {
        "horizontal stripes": np.where(row // 2 % 2, 1, -1),
        "vertical stripes": np.where(column // 2 % 2, 1, -1),
        "diagonal stripes": np.where((row + column) // 2 % 2, 1, -1),
        "checkerboard": np.where((row // 2 + column // 2) % 2, 1, -1),
        "fine checkerboard": np.where((row + column) % 2, 1, -1),
        "lines": np.where(row % 2, 1, -1),
        "dots": np.where((row % 4 == 1) & (column % 4 == 1), 1, 0),
        "grid": np.where((row % 4 == 0) | (column % 4 == 0), 1, 0),
    }


@cache
def marks() -> dict[str, np.ndarray]:
    """Textures and shapes by name, as whole numbers [side, side]."""
    shapes = {
        name: np.array([[letter == "#" for letter in line] for line in drawn.split()], dtype=int)
        for name, drawn in _SHAPES.items()
    }
    return {**_textures(), **shapes}


TINTS = {
    "red": ("red or green", 1),
    "green": ("red or green", -1),
    "yellow": ("yellow or blue", 1),
    "blue": ("yellow or blue", -1),
}
"""Opposite colours are the two signs of one basis picture."""
_AXES = {"red or green": (1, -1, 0), "yellow or blue": (0.5, 0.5, -1)}


@cache
def basis() -> dict[str, Float[Tensor, "3 side side"]]:
    """All basis pictures by name, in units of `STEP`."""
    found = {name: np.stack([drawn] * 3) for name, drawn in marks().items()}
    for name, axis in _AXES.items():
        found[name] = np.ones((3, SIDE, SIDE)) * np.array(axis)[:, None, None]
    found["lightness"] = np.ones((3, SIDE, SIDE))
    return {name: torch.from_numpy(each.astype(float)) for name, each in found.items()}


@cache
def filters() -> dict[str, Float[Tensor, "3 side side"]]:
    """What reads the amount of each basis picture off a patch, whatever else is in it."""
    drawn = basis()
    rows = torch.stack([each.flatten() for each in drawn.values()])
    read = torch.linalg.pinv(rows).T
    return {name: row.reshape(3, SIDE, SIDE) for name, row in zip(drawn, read, strict=True)}


def reads(feature: str) -> tuple[str, int]:
    """The basis picture of a feature and its sign in it."""
    return TINTS.get(feature, (feature, 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Drawn pictures with labels, and a source of images for whatever takes one."""

    name: str
    amounts: dict[str, Float[Tensor, "images patches"]]
    """Of each basis picture in each patch, row by row."""
    features: tuple[str, ...]
    """What labels are of."""

    def __len__(self) -> int:
        return len(next(iter(self.amounts.values())))

    @cached_property
    def ids(self) -> list[str]:
        """Of all pictures."""
        return [f"{self.name}-{number:04}" for number in range(len(self))]

    @cached_property
    def values(self) -> Float[Tensor, "images 3 height width"]:
        """Pixels in units of `STEP` around grey, which is what the networks see."""
        drawn = basis()
        patches = torch.zeros(len(self), PATCHES, 3, SIDE, SIDE, dtype=torch.float64)
        for name, amount in self.amounts.items():
            patches += amount[:, :, None, None, None] * drawn[name]
        rows: Tensor = patches.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5)
        return rows.reshape(len(self), 3, GRID * SIDE, GRID * SIDE)

    def part(self, name: str, places: slice) -> "Pictures":
        """Some of the pictures, as a set of their own."""
        some = {each: amounts[places] for each, amounts in self.amounts.items()}
        return Pictures(name=name, amounts=some, features=self.features)

    def load(self, index: int) -> Image.Image:
        """Picture `index`."""
        pixels = (GREY + STEP * self.values[index]).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def has(self, feature: str) -> Bool[Tensor, "images patches"]:
        """Where a feature is."""
        name, sign = reads(feature)
        if name not in self.amounts:
            return torch.zeros(len(self), PATCHES, dtype=torch.bool)
        there: Tensor = self.amounts[name] * sign > 0
        return there

    @cached_property
    def held(self) -> Bool[Tensor, "images features"]:
        """Which features each picture holds anywhere."""
        return torch.stack([self.has(each).any(1) for each in self.features], dim=1)

    @cached_property
    def labels(self) -> list[list[str]]:
        """The features of each picture."""
        return [
            [name for name, there in zip(self.features, row, strict=True) if there]
            for row in self.held.tolist()
        ]


def preprocess(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Pixels in units of `STEP` around grey: exact, for these are small whole numbers."""
    array = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy((array - GREY) / STEP).permute(2, 0, 1)


def draw(
    features: tuple[str, ...],
    count: int,
    seed: int,
    *,
    marked: int | float,
    tinted: int | float,
) -> Pictures:
    """Draw pictures whose patches are independent of one another; no two are equal.

    Parameters
    ----------
    features
        Marks and tints that labels are of; every picture also has marks that are none of them.
    count, seed
        The same seed gives the same pictures.
    marked, tinted
        Share of patches with a mark, and with a tint where there are tints among the features.

    Raises
    ------
    SecondLensError
        Shares so small that there are not so many different pictures.
    """
    random = np.random.default_rng(seed)
    found: dict[bytes, dict[str, np.ndarray]] = {}
    for _ in range(MOST_ROUNDS):
        drawn = _drawn(features, count, random, marked, tinted)
        for number, row in enumerate(np.concatenate(list(drawn.values()), axis=1)):
            found.setdefault(row.tobytes(), {name: each[number] for name, each in drawn.items()})
        if len(found) >= count:
            break
    else:
        raise SecondLensError(
            f"there are no {count} different pictures of so few marks: let more patches have one"
        )
    rows = list(found.values())[:count]
    amounts = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return Pictures(name="drawn", amounts=amounts, features=features)


MOST_ROUNDS = 20
"""In which pictures are drawn until enough of them differ."""
STRANGERS = 2
"""Marks in the pictures that no network knows, so that not everything has a name."""


def _drawn(
    features: tuple[str, ...],
    count: int,
    random: np.random.Generator,
    marked: int | float,
    tinted: int | float,
) -> dict[str, np.ndarray]:
    """Amounts [count, patches] of each basis picture."""
    known = [each for each in features if each not in TINTS]
    tints = [each for each in features if each in TINTS]
    others = [each for each in marks() if each not in known][:STRANGERS]
    amounts = {each: np.zeros((count, PATCHES)) for each in (*known, *others)}
    amounts |= {reads(each)[0]: np.zeros((count, PATCHES)) for each in tints}
    for kinds, share in ((known + others, marked), (tints, tinted)):
        if not kinds:
            continue
        there = random.random((count, PATCHES)) < share
        which = random.integers(len(kinds), size=(count, PATCHES))
        amount = random.choice(AMOUNTS, (count, PATCHES)) * there
        for number, each in enumerate(kinds):
            place, sign = reads(each)
            amounts[place] += sign * amount * (which == number)
    amounts["lightness"] = random.choice(LIGHTNESS, (count, 1)) * np.ones((1, PATCHES))
    return amounts
