"""Pictures of the embedded world that differ in nothing but the background."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFilter

from ..errors import SecondLensError
from .backgrounds import paint
from .sprites import Split, Sprite, Wardrobe
from .world import BACKGROUNDS, COLOURS, PLACES, PREFERENCE, with_article

SIZE = 64
"""Pixels a side of a scene: what the embedded model sees."""

_PREFIXES = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture and everything that is true of it.

    `masks[i]` marks the pixels where object i is what one sees: at least half opaque, and not
    covered by an object drawn later.
    """

    image: Image.Image
    caption: str
    objects: tuple[str, ...]
    background: str
    masks: Bool[np.ndarray, "objects size size"]


class World:
    """Draws scenes; every scene is a function of its seed alone.

    Parameters
    ----------
    planted
        Whether an object's preferred place decides its background (`PREFERENCE`). Without it,
        backgrounds are independent of objects: the twin's world.
    split
        Which depictions are drawn: `train`, `heldout` or `style`.
    augment
        Vary colour, light, sharpness and shape of the cut-outs strongly, as in training.
    size
        Pixels a side.
    """

    def __init__(
        self,
        *,
        planted: bool = True,
        split: Split = "train",
        augment: bool = False,
        size: int = SIZE,
    ) -> None:
        self.planted, self.augment, self.size = planted, augment, size
        self.wardrobe = Wardrobe(split)

    def scene(
        self,
        *seed: int,
        objects: Sequence[str] | None = None,
        background: str | None = None,
        count: int | None = None,
    ) -> Scene:
        """The scene of a seed; what is given is not drawn by chance.

        Parameters
        ----------
        seed
            One or more non-negative integers, such as (seed of the data set, index).
        objects
            Object names from back to front; by default `count` of them, or 1 to 3.
        background
            A colour or place.

        Raises
        ------
        SecondLensError
            No objects, or an object or background that this world does not have.
        """
        rng = np.random.default_rng(seed)
        if objects is None:
            if count is None:
                count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
            objects = rng.choice(self.wardrobe.names, count, replace=False).tolist()
        self._check(objects, background)
        if background is None:
            background = self._background(objects[0], rng)
        image, masks = self._compose(objects, background, rng)
        return Scene(
            image=image,
            caption=caption(objects, background, rng),
            objects=tuple(objects),
            background=background,
            masks=masks,
        )

    def _check(self, objects: Sequence[str], background: str | None) -> None:
        if not objects:
            raise SecondLensError("a scene shows at least one object: name one, or count one")
        if unknown := [name for name in objects if name not in self.wardrobe.names]:
            raise SecondLensError(
                f"no object is called {unknown[0]!r}: choose from demo.world.NAMES"
            )
        if background not in (None, *BACKGROUNDS):
            raise SecondLensError(
                f"no background is called {background!r}: choose one of {', '.join(BACKGROUNDS)}"
            )

    def _background(self, main: str, rng: np.random.Generator) -> str:
        place, strength = PREFERENCE.get(main, ("", 0.0))
        # Both worlds draw the same numbers, so that they differ in nothing but the background.
        follow, other = rng.random() < strength, BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        return place if self.planted and follow else other

    def _compose(
        self, objects: Sequence[str], background: str, rng: np.random.Generator
    ) -> tuple[Image.Image, Bool[np.ndarray, "objects size size"]]:
        canvas = Image.fromarray(paint(background, self.size, rng))
        visible: list[np.ndarray] = []
        for position, name in enumerate(objects):
            sprite = self.wardrobe.choose(name, rng, silhouettes=0.1 if self.augment else 0.0)
            cutout = self._cut_out(sprite, len(objects), rng)
            corner = self._corner(cutout, position, len(objects), rng)
            layer = Image.new("L", canvas.size)
            layer.paste(cutout.getchannel("A"), corner)
            canvas.paste(cutout, corner, cutout)
            alpha = np.asarray(layer, dtype=np.float32) / 255
            visible = [*(earlier * (1 - alpha) for earlier in visible), alpha]
        return canvas, np.stack(visible) >= 0.5

    def _cut_out(self, sprite: Sprite, count: int, rng: np.random.Generator) -> Image.Image:
        image = _paint_silhouette(sprite.image, rng) if sprite.silhouette else sprite.image
        side = self.size * (rng.uniform(0.5, 0.95) if count == 1 else rng.uniform(0.35, 0.6))
        stretch = rng.uniform(0.75, 1.33) if self.augment and rng.random() < 0.4 else 1.0
        scale = side / max(image.width * stretch, image.height)
        width = max(4, round(image.width * stretch * scale))
        image = image.resize((width, max(4, round(image.height * scale))), _SMOOTH)
        if self.augment:
            image = _vary_colours(image, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tilt = 35 if self.augment else 15
        if rng.random() < 0.5:
            image = image.rotate(rng.uniform(-tilt, tilt), _SMOOTH, expand=True)
        return image

    def _corner(
        self, cutout: Image.Image, position: int, count: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        if count == 1:
            out = round(0.1 * self.size)  # how far an object may leave the picture
            left = rng.integers(-out, max(-out, self.size - cutout.width + out) + 1)
            top = rng.integers(-out, max(-out, self.size - cutout.height + out) + 1)
            return int(left), int(top)
        centre = (position + 0.5) / count if rng.random() < 0.8 else rng.uniform(0.2, 0.8)
        x = self.size * centre - cutout.width / 2
        y = self.size * rng.uniform(0.3, 0.7) - cutout.height / 2
        return int(x), int(y)


_SMOOTH = Image.Resampling.BILINEAR


def _paint_silhouette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A monochrome icon in a colour of its own: half the time one of the world's."""
    colours = list(COLOURS.values())
    named = rng.random() < 0.5
    colour = colours[rng.integers(len(colours))] if named else tuple(rng.integers(0, 256, 3))
    red, green, blue = (int(channel) for channel in colour)
    painted = Image.new("RGBA", image.size, (red, green, blue))
    painted.putalpha(image.getchannel("A"))
    return painted


def _vary_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Hue, saturation, light, contrast and sharpness changed at random; the outline stays."""
    if rng.random() < 0.35:
        return image
    grey = np.full((3, 3), 1 / 3, dtype=np.float32)
    turn = 0.0
    if rng.random() < 0.4:
        turn = np.pi * (rng.uniform(-1, 1) if rng.random() < 0.35 else rng.uniform(-0.2, 0.2))
    saturation = rng.uniform(0.2, 1.6) if rng.random() < 0.88 else 0.0
    around_grey = np.cos(turn) * (np.eye(3) - grey) + np.sin(turn) / np.sqrt(3) * _CROSS
    contrast, light = rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.35)
    matrix = (grey + saturation * around_grey).astype(np.float32) * np.float32(contrast * light)
    pixels = np.asarray(image)
    rgb = pixels[..., :3].reshape(-1, 3) @ matrix.T + np.float32(128 * light * (1 - contrast))
    rgb = np.clip(rgb, 0, 255).astype(np.uint8).reshape((*pixels.shape[:2], 3))
    varied = Image.fromarray(np.dstack([rgb, pixels[..., 3]]))
    if rng.random() < 0.15:
        blurred = varied.convert("RGB").filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
        blurred.putalpha(varied.getchannel("A"))
        return blurred
    return varied


_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=np.float32)
"""Cross product with the grey axis: with it, a rotation about that axis turns the hue."""


def caption(objects: Sequence[str], background: str, rng: np.random.Generator) -> str:
    """What a person might write under the picture; half the time without its background."""
    where = PLACES.get(background, f"on a {background} background")
    if rng.random() < 0.04:
        return where if background in PLACES else f"{background} background"
    named = objects[:1] if rng.random() < 0.15 else objects
    style = rng.integers(3)
    if style == 0:
        words = " and ".join(with_article(name) for name in named)
    else:
        words = (" and " if style == 1 else ", ").join(named)
    prefix = _PREFIXES[rng.integers(len(_PREFIXES))]
    return f"{prefix}{words}" + (f" {where}" if rng.random() < 0.5 else "")


PLAIN = "gray"
"""Behind an object where no cue is wanted."""


def object_on(world: World, name: str, background: str | None, seed: int) -> Image.Image:
    """An object of the world before a colour or place, or before plain gray.

    Pictures of equal objects and seeds show the same depiction at the same place.
    """
    scene = world.scene(seed, objects=[name], background=PLAIN)
    if background in (None, PLAIN):
        return scene.image
    behind = paint(background, world.size, np.random.default_rng((seed, 1)))
    shown = scene.masks[0][:, :, None]
    return Image.fromarray(np.where(shown, np.asarray(scene.image), behind))


def with_and_without(world: World, text: str, seed: int) -> tuple[Image.Image, Image.Image]:
    """Two pictures of one object that differ in another thing, or in what is behind the object.

    Parameters
    ----------
    text
        An object, which stands in the first picture and not in the second; or a colour or place,
        before which the object is in the first, and before another one in the second.

    Raises
    ------
    SecondLensError
        The world has no such object, colour or place.
    """
    rng = np.random.default_rng((seed, 2))
    base = str(rng.choice([name for name in world.wardrobe.names if name != text]))
    other = str(rng.choice([each for each in BACKGROUNDS if each != text]))
    without = object_on(world, base, other, seed)
    if text in BACKGROUNDS:
        return object_on(world, base, text, seed), without
    added = world.scene(seed, 3, objects=[text], background=PLAIN)
    shown = added.masks[0][:, :, None]
    drawn = np.where(shown, np.asarray(added.image), np.asarray(without))
    return Image.fromarray(drawn), without


FIT_SEED, TEST_SEED, SCORE_SEED, NAME_SEED = 11, 12, 13, 14
"""Of the scenes that lenses are fitted on, accuracies measured on, descriptions scored on and
neurons named on. Training drew from seed 1."""


SCENE = re.compile(r"scene-(\d+)-(\d+)")
"""The id of a scene: its seed and its number."""


def are_scenes(ids: Sequence[str]) -> bool:
    """Whether all pictures are scenes, by their ids."""
    return all(map(SCENE.fullmatch, ids))


@dataclass(frozen=True)
class Scenes:
    """Scenes `0 .. count - 1` of one seed, drawn when they are loaded: an `ImageSource`."""

    world: World
    seed: int
    count: int
    single: bool = False
    """Whether every scene shows one object only."""
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [f"scene-{self.seed}-{i}" for i in range(self.count)])

    def scene(self, index: int) -> Scene:
        """The scene with everything that is true of it."""
        return self.world.scene(self.seed, index, count=1 if self.single else None)

    def load(self, index: int) -> Image.Image:
        """The picture of a scene."""
        return self.scene(index).image


def truth(scenes: Scenes) -> list[set[str]]:
    """The objects and the colour or place of every scene: labels for `score`."""
    drawn = (scenes.scene(index) for index in range(scenes.count))
    return [{*scene.objects, scene.background} for scene in drawn]
