"""Drawn backgrounds: plain colours and nine places, as uint8 [size, size, 3].

Inside, a picture is float32 [3, size, size]: planes are faster than pixels.
"""

from collections.abc import Callable
from functools import cache
from math import cos, pi, sin
from random import Random
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from secondlens.demo.world import COLOURS

Rgb = tuple[float, float, float]
Plane = Float32[np.ndarray, "..."]

_TILE = 256
"""Pixels a side of a noise texture; scenes take a window of it."""
_CELLS: Final = (3, 6, 12, 24, 48, _TILE)
"""Coarse to fine: features of a texture along its side."""
_EACH = 4


@cache
def _textures() -> Float32[np.ndarray, "scales each tile tile"]:
    """Smooth noise from -1 to 1, the same in every process."""
    rng = np.random.default_rng(2)
    tiles = []
    for cells in _CELLS:
        for _ in range(_EACH):
            grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
            smooth = grid.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
            tiles.append(np.asarray(smooth, dtype=np.float32) / 127.5 - 1)
    return np.stack(tiles).reshape(len(_CELLS), _EACH, _TILE, _TILE)


@cache
def _axis(size: int) -> Float32[np.ndarray, "size"]:
    return np.linspace(0, 1, size, dtype=np.float32)


class _Canvas:
    """What the painters share: coordinates, noise, colours and a horizon."""

    def __init__(self, size: int, rng: Random) -> None:
        self.size, self.rng = size, rng
        self.y, self.x = _axis(size)[:, None], _axis(size)[None, :]
        self.horizon = rng.uniform(0.3, 0.7)

    def noise(self, scale: int) -> Plane:
        """A window of a texture, [size, size]; 0 is the coarsest scale, 5 single pixels."""
        rng, room = self.rng, max(0, _TILE - self.size)
        tile = _textures()[scale, rng.randrange(_EACH)]
        if self.size > _TILE:
            tile = np.tile(tile, (-(-self.size // _TILE),) * 2)
        top, left = rng.randint(0, room), rng.randint(0, room)
        window = tile[top : top + self.size, left : left + self.size]
        return window[:: rng.choice((1, -1)), :: rng.choice((1, -1))]

    def clouds(self) -> Plane:
        """Noise at three scales, [size, size]."""
        return self.noise(1) * 0.55 + self.noise(2) * 0.3 + self.noise(3) * 0.15

    def shade(self, colour: Rgb, spread: float = 12.0) -> Plane:
        """About this colour, [3, 1, 1]."""
        varied = [channel + self.rng.uniform(-spread, spread) for channel in colour]
        return np.array(varied, dtype=np.float32)[:, None, None]

    def gradient(self, top: Rgb, bottom: Rgb) -> Plane:
        """From one colour down to another, [3, size, 1]."""
        first = self.shade(top)
        return first + (self.shade(bottom) - first) * self.y

    def split(self, above: Plane, below: Plane, edge: float | Plane | None = None) -> Plane:
        """One picture above the horizon, or above an edge [size], and another below."""
        return np.where(self.y < (self.horizon if edge is None else edge), above, below)

    def hills(self, height: float, roughness: int = 1) -> Plane:
        """A bumpy edge about the horizon, [size]."""
        return self.horizon + self.noise(roughness)[0] * height

    def sky(self) -> Plane:
        """Daylight of some kind: clear, cloudy, pale or golden."""
        top, bottom = self.rng.choice(_SKIES)
        air = self.gradient(top, bottom)
        if self.rng.random() < 0.5:
            return air + np.clip(self.clouds() - 0.05, 0, 1) * 150
        return air


_SKIES: Final = (
    ((110, 170, 240), (205, 228, 250)),
    ((150, 195, 235), (235, 240, 245)),
    ((185, 200, 215), (225, 230, 235)),
    ((120, 150, 210), (250, 205, 160)),
)


def _sea(c: _Canvas) -> Plane:
    deep, shallow = c.rng.choice((((18, 70, 130), (40, 120, 180)), ((10, 90, 110), (50, 160, 170))))
    if c.rng.random() < 0.25:  # under water
        rays = np.sin((c.x + c.y * 0.4) * c.rng.uniform(18, 30) + c.noise(0)) * (1 - c.y) * 16
        return c.gradient(shallow, deep) + rays + c.clouds() * 14
    depth = np.clip((c.y - c.horizon) / (1 - c.horizon), 0, 1)
    waves = np.sin(np.sqrt(depth) * c.rng.uniform(60, 120) + c.noise(1) * 4 + c.noise(2) * 2)
    foam = np.clip(waves * c.noise(3) - 0.35, 0, 1) * 120
    return c.split(c.sky(), c.gradient(shallow, deep) + waves * 12 + foam)


def _sky(c: _Canvas) -> Plane:
    top, bottom = c.rng.choice(
        (((60, 130, 225), (180, 215, 250)), ((90, 160, 240), (215, 235, 252)))
    )
    if c.rng.random() < 0.15:
        top, bottom = (90, 100, 190), (250, 170, 130)
    puffs = np.clip(c.clouds() - c.rng.uniform(-0.1, 0.15), 0, 0.5) * 1.8
    air = c.gradient(top, bottom)
    return air + (255 - air) * puffs


def _grass(c: _Canvas) -> Plane:
    blades = c.noise(5) * 16 + c.noise(4) * 18 + c.noise(2) * 10
    meadow = c.gradient((110, 175, 70), (55, 125, 40)) + blades
    if c.rng.random() < 0.5:
        dots = (c.noise(4) > 0.72) & (c.noise(5) > 0.1)
        flower = c.shade(c.rng.choice(((250, 240, 120), (250, 250, 250), (230, 120, 190))))
        meadow = np.where(dots, flower, meadow)
    if c.rng.random() < 0.35:
        return meadow
    return c.split(c.sky(), meadow, c.hills(0.06))


def _desert(c: _Canvas) -> Plane:
    ripples = np.sin(c.y * c.rng.uniform(70, 130) + c.noise(1) * 5) * 9
    sand = c.gradient((232, 190, 120), (200, 145, 85)) + ripples + c.noise(5) * 7
    ridge = c.hills(0.12, 0)[None, :] + 0.12
    far = np.where(c.y < ridge, c.shade((215, 165, 100)) + c.noise(2) * 8, sand)
    heat = c.gradient(*c.rng.choice((((120, 180, 235), (245, 225, 190)), _SKIES[3])))
    return c.split(heat, far, c.hills(0.05))


def _snow(c: _Canvas) -> Plane:
    ground = c.gradient((244, 248, 253), (214, 224, 240)) + c.clouds() * 14 + c.noise(5) * 3
    air = c.gradient((168, 188, 212), (222, 230, 240))
    if c.rng.random() < 0.5:  # mountains
        peaks = c.hills(0.2, 2) - 0.08
        air = np.where(c.y > peaks, c.shade((150, 165, 190)) + c.noise(3) * 14, air)
    scene = c.split(air, ground, c.hills(0.04))
    return scene + ((c.noise(5) > 0.9) & (c.noise(4) > 0.0)) * 70


def _night(c: _Canvas) -> Plane:
    bottom = c.rng.choice(((25, 25, 75), (45, 25, 70), (15, 35, 60)))
    stars = ((c.noise(5) > 0.965) & (c.noise(3) > -0.3)) * c.rng.uniform(120, 220)
    sky = c.gradient((6, 6, 28), bottom) + stars + np.clip(c.clouds(), 0, 1) * 18
    if c.rng.random() < 0.4:
        return sky
    return c.split(sky, c.shade((10, 12, 20), 5) + c.noise(4) * 4, c.hills(0.08, 2) + 0.2)


def _road(c: _Canvas) -> Plane:
    asphalt = c.gradient((105, 105, 110), (70, 70, 76)) + c.noise(5) * 12 + c.noise(2) * 6
    line = c.shade(c.rng.choice(((235, 235, 225), (240, 205, 70))))
    if c.rng.random() < 0.3:  # from above
        along = c.x if c.rng.random() < 0.5 else c.y
        across = c.y if along is c.x else c.x
        middle, dash = c.rng.uniform(0.3, 0.7), c.rng.uniform(12, 22)
        marked = (np.abs(across - middle) < 0.025) & (np.sin(along * dash) > -0.2)
        return np.where(marked, line, asphalt)
    depth = np.clip((c.y - c.horizon) / (1 - c.horizon), 1e-3, 1)
    off = np.abs(c.x - c.rng.uniform(0.4, 0.6))
    verge = c.shade(c.rng.choice(((90, 140, 70), (170, 150, 110), (140, 140, 145))), 15)
    ground = np.where(off < 0.08 + 0.75 * depth, asphalt, verge + c.noise(4) * 18)
    dashes = (off < 0.012 + 0.035 * depth) & (np.sin(7 / (depth + 0.25)) > -0.1)
    return c.split(c.sky(), np.where(dashes, line, ground))


_WALLS: Final = (
    *((228, 210, 185), (205, 215, 205), (200, 210, 225), (235, 225, 205)),
    *((215, 190, 180), (190, 185, 175)),
)


def _indoors(c: _Canvas) -> Plane:
    wall = c.shade(c.rng.choice(_WALLS)) * (1.04 - 0.12 * c.y) + c.noise(3) * 3
    kind = c.rng.random()
    if kind < 0.3:
        wall = wall + (np.sin(c.x * c.rng.uniform(40, 90)) > 0.2) * c.rng.uniform(-14, 10)
    elif kind < 0.5:
        step = c.rng.uniform(35, 60)
        wall = wall + (np.sin(c.x * step) * np.sin(c.y * step) > 0.7) * -18
    floor = c.shade(c.rng.choice(((150, 100, 60), (180, 140, 95), (110, 75, 55), (165, 160, 155))))
    edge = c.rng.uniform(0.62, 0.85)
    depth = np.clip((c.y - edge) / (1 - edge), 0, 1)
    planks = np.abs(np.sin((c.x - 0.5) / (0.35 + depth) * 14)) < 0.12
    floor = floor - planks * 28 + c.noise(2) * 9 + depth * 12
    if c.rng.random() < 0.5:
        left, top, width = c.rng.uniform(0.02, 0.65), c.rng.uniform(0.04, 0.25), 0.3
        inside = (np.abs(c.x - left - width / 2) < width / 2) & (np.abs(c.y - top - 0.14) < 0.14)
        pane = (np.abs(c.x - left - width / 2) < width / 2 - 0.02) & (
            np.abs(c.y - top - 0.14) < 0.12
        )
        glass = c.shade(c.rng.choice(((170, 205, 235), (90, 110, 90), (200, 170, 120))), 25)
        wall = np.where(inside, np.where(pane, glass + c.noise(2) * 18, 120), wall)
    skirting = np.abs(c.y - edge) < 0.012
    return np.where(skirting, c.shade((240, 235, 228)), c.split(wall, floor, edge))


def _forest(c: _Canvas) -> Plane:
    green = c.rng.choice(((38, 85, 42), (60, 100, 45), (90, 95, 40), (25, 70, 55)))
    leaves = c.gradient(green, (22, 52, 24)) + c.noise(4) * 20 + c.noise(3) * 18 + c.noise(2) * 12
    light = np.clip(c.noise(3) + c.noise(4) - 0.9, 0, 1) * 160 * (1 - c.y)
    trees = leaves + light
    for _ in range(c.rng.randint(2, 6)):
        middle, width = c.rng.random(), c.rng.uniform(0.012, 0.05)
        lean = c.rng.uniform(-0.06, 0.06)
        off = (c.x - middle - lean * c.y) / width
        trunk = c.shade((92, 66, 46), 18) * (1 - 0.3 * off) + c.noise(4) * 14
        trees = np.where(np.abs(off) < 1, trunk, trees)
    earth = c.gradient((80, 75, 45), (60, 55, 30)) + c.noise(4) * 16 + c.noise(5) * 10
    return c.split(trees, earth, c.hills(0.05) * 0.3 + 0.62)


_PAINTERS: Final[dict[str, Callable[[_Canvas], Plane]]] = {
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


def _plain(c: _Canvas, colour: Rgb) -> Plane:
    """A surface of one colour: even, mottled, shaded or with a faint pattern."""
    base = c.shade(colour, 10)
    kind = c.rng.random()
    if kind < 0.35:
        return base + c.clouds() * c.rng.uniform(0, 34) + c.noise(5) * c.rng.uniform(0, 10)
    if kind < 0.6:
        tilt = c.rng.uniform(-30, 30) * c.x + c.rng.uniform(-30, 30) * c.y
        return base + (tilt - tilt.mean()) + c.noise(5) * c.rng.uniform(0, 6)
    step, turn = c.rng.uniform(20, 60), c.rng.uniform(0, pi)
    along = (c.x * cos(turn) + c.y * sin(turn)) * step
    across = (c.y * cos(turn) - c.x * sin(turn)) * step
    waves = np.sin(along) if kind < 0.8 else np.sin(along) * np.sin(across)
    return base + (waves > 0) * c.rng.uniform(-18, 18) + c.noise(2) * 5


def paint(background: str, size: int, rng: Random) -> UInt8[np.ndarray, "size size 3"]:
    """A picture of a colour or place of the world, a little different for every draw of `rng`."""
    canvas = _Canvas(size, rng)
    if background in COLOURS:
        planes = _plain(canvas, COLOURS[background])
    else:
        planes = _PAINTERS[background](canvas)
    light = rng.uniform(0.85, 1.12)
    tint = [light + rng.uniform(-0.05, 0.05) for _ in range(3)]
    lit = planes * np.array(tint, dtype=np.float32)[:, None, None]
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    pixels[...] = np.clip(lit, 0, 255, out=lit).transpose(1, 2, 0)
    return pixels
