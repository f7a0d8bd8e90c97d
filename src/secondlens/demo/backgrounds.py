"""Drawn backgrounds: plain colours and nine places, as uint8 [size, size, 3]."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from .world import COLOURS

Rgb = tuple[int, int, int]


class _Canvas:
    """What the painters share: coordinates, coarse and fine noise, and a horizon."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        line = np.linspace(0, 1, size, dtype=np.float32)
        self.y, self.x = line[:, None, None], line[None, :, None]
        self.coarse = self._noise(int(rng.integers(3, 9)))
        self.fine = self._noise(size)
        self.horizon = rng.uniform(0.25, 0.75)

    def _noise(self, cells: int) -> np.ndarray:
        grid = self.rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        size = (self.size, self.size)
        smooth = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(smooth, dtype=np.float32)[..., None] / 255

    def gradient(self, top: Rgb, bottom: Rgb) -> np.ndarray:
        top_row, bottom_row = np.array([top, bottom], dtype=np.float32)
        column = top_row + (bottom_row - top_row) * self.y
        return np.broadcast_to(column, (self.size, self.size, 3))

    def split(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.where(self.y < self.horizon, above, below)


def _sea(c: _Canvas) -> np.ndarray:
    waves = np.sin(c.y * c.rng.uniform(60, 120) + c.coarse * 8) * 18
    water = c.gradient((30, 90, 160), (10, 50, 110)) + waves
    return c.split(c.gradient((150, 200, 240), (210, 230, 250)), water)


def _sky(c: _Canvas) -> np.ndarray:
    return c.gradient((80, 150, 235), (200, 225, 250)) + np.clip(c.coarse - 0.55, 0, 1) * 350


def _grass(c: _Canvas) -> np.ndarray:
    blades = c.gradient((90, 160, 60), (50, 120, 35)) + (c.fine - 0.5) * 60
    return c.split(c.gradient((130, 190, 240), (220, 235, 250)), blades)


def _desert(c: _Canvas) -> np.ndarray:
    dunes = c.gradient((220, 180, 110), (190, 140, 80)) + (c.coarse - 0.5) * 40
    return c.split(c.gradient((250, 200, 130), (255, 230, 180)), dunes)


def _snow(c: _Canvas) -> np.ndarray:
    ground = c.gradient((245, 248, 252), (220, 228, 240)) + (c.fine - 0.5) * 10
    flakes = (c.fine > 0.97) * 60
    return c.split(c.gradient((170, 190, 212), (215, 226, 236)) + flakes, ground)


def _night(c: _Canvas) -> np.ndarray:
    sky: np.ndarray = c.gradient((8, 8, 35), (25, 25, 70)) + (c.fine > 0.985) * 220
    return sky


def _road(c: _Canvas) -> np.ndarray:
    asphalt = c.gradient((95, 95, 100), (60, 60, 65)) + (c.fine - 0.5) * 20
    depth = (c.y - c.horizon) / (1 - c.horizon)
    stripe = (np.abs(c.x - 0.5) < 0.02 + 0.05 * depth) & (np.sin(depth * 14) > 0)
    return c.split(c.gradient((150, 180, 210), (200, 210, 220)), asphalt + stripe * 130)


def _indoors(c: _Canvas) -> np.ndarray:
    stripes = (np.floor(c.x * 8) % 2) * 8
    wall = c.gradient((225, 205, 180), (215, 195, 165)) + stripes
    floor = c.gradient((150, 100, 60), (120, 75, 40)) + (c.coarse - 0.5) * 30
    return np.where(c.y < 0.7, wall, floor)


def _forest(c: _Canvas) -> np.ndarray:
    trunks = (np.sin(c.x * c.size * c.rng.uniform(0.3, 0.7)) > 0.6) * -25
    leaves = (c.coarse - 0.5) * 60 + (c.fine - 0.5) * 30
    trees: np.ndarray = c.gradient((40, 90, 45), (25, 60, 25)) + trunks + leaves
    return trees


_PAINTERS: dict[str, Callable[[_Canvas], np.ndarray]] = {
    "sea": _sea,
    "sky": _sky,
    "grass": _grass,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "road": _road,
    "indoors": _indoors,
    "forest": _forest,
}


def _plain(c: _Canvas, colour: Rgb) -> np.ndarray:
    mottled = (c.coarse - 0.5) * c.rng.uniform(0, 50) + (c.fine - 0.5) * c.rng.uniform(0, 20)
    return np.array(colour, dtype=np.float32) + mottled


def paint(background: str, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """A picture of a colour or place of the world, a little different for every draw of `rng`."""
    canvas = _Canvas(size, rng)
    if background in COLOURS:
        pixels = _plain(canvas, COLOURS[background])
    else:
        pixels = _PAINTERS[background](canvas)
    light = (rng.uniform(0.8, 1.15) + rng.uniform(-0.06, 0.06, 3)).astype(np.float32)
    return np.clip(pixels * light, 0, 255).astype(np.uint8)
