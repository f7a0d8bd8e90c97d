"""Pictures of the embedded world, with everything that is true of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import cos, pi, radians, sin, sqrt
from random import Random
from typing import Final

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageChops, ImageFilter

from secondlens.demo.world import BACKGROUNDS, COLOURS, PREFERENCE
from secondlens.errors import SecondLensError

from .backgrounds import paint
from .captions import caption
from .letters import WRITTEN, Fonts, FontSplit, Sign, draw_sign
from .sprites import Split, Sprite, Wardrobe

SIZE: Final = 128
"""Pixels a side of a scene: what the embedded model sees."""

WORDS: Final = 1 / 6
"""Share of pictures with a written word."""
ALONE: Final = 0.4
"""Share of these that show nothing else."""
THERE: Final = 0.4
"""Share of words beside objects that name one of them."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A word in a picture. `letters` marks where ink is what one sees, at least half opaque;
    `sign` the same for all that came with the word, a board or the rim of its letters."""

    word: str
    font: str
    colour: str
    letters: Bool[np.ndarray, "size size"]
    sign: Bool[np.ndarray, "size size"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture and everything that is true of it.

    `masks[i]` marks the pixels where object i is what one sees: at least half opaque, and not
    covered by an object drawn later or by a sign.
    """

    image: Image.Image
    caption: str
    objects: tuple[str, ...]
    background: str
    masks: Bool[np.ndarray, "objects size size"]
    written: Written | None


class World:
    """Draws scenes; every scene is a function of its seed alone.

    Parameters
    ----------
    planted
        Whether an object's preferred place decides its background (`PREFERENCE`). Without it,
        backgrounds are independent of objects: the twin's world.
    split
        Which depictions are drawn: `train`, `heldout`, `style` or `older`.
    fonts
        Which fonts words are written in: `train` or `heldout`.
    words
        Share of pictures with a written word.
    augment
        Share of cut-outs whose colour, light, sharpness, shape and style are varied strongly, as
        in training.
    size
        Pixels a side.
    """

    def __init__(
        self,
        *,
        planted: bool = True,
        split: Split = "train",
        fonts: FontSplit = "train",
        words: float = WORDS,
        augment: float = 0.0,
        size: int = SIZE,
    ) -> None:
        self.planted, self.words, self.augment, self.size = planted, words, augment, size
        self.wardrobe, self.fonts = Wardrobe(split), Fonts(fonts)

    def scene(
        self,
        *seed: int,
        objects: Sequence[str] | None = None,
        background: str | None = None,
        count: int | None = None,
        word: str | None = None,
    ) -> Scene:
        """The scene of a seed; what is given is not drawn by chance.

        Parameters
        ----------
        seed
            One or more non-negative integers, such as (seed of the data set, index).
        objects
            Object names from back to front; by default `count` of them, or 1 to 3. None at all
            where a word stands alone.
        background
            A colour or place.
        word
            What is written: small letters a to z. By default chance decides whether anything is.

        Raises
        ------
        SecondLensError
            Neither objects nor a word, or an object, background or letter that this world does
            not have.
        """
        # What is drawn by chance comes from streams of its own, so that two scenes of a seed
        # which differ in one respect agree in all others.
        chance, cuts, ground, sign_chance, telling = (
            Random(f"{seed} {stream}") for stream in ("what", "cuts", "ground", "sign", "caption")
        )
        written, alone = chance.random() < self.words, chance.random() < ALONE
        if objects is None:
            if count is None:
                count = chance.choices((1, 2, 3), (0.5, 0.35, 0.15))[0]
                count = 0 if written and alone and word is None else count
            objects = chance.sample(self.wardrobe.names, count)
        if word is None and written:
            told = bool(objects) and sign_chance.random() < THERE
            there = [name for name in objects if name in WRITTEN] if told else []
            word = sign_chance.choice(there or WRITTEN)
        self._check(objects, background, word)
        place, strength = PREFERENCE.get(objects[0] if objects else "", ("", 0.0))
        follow, other = chance.random() < strength, chance.choice(BACKGROUNDS)
        if background is None:
            background = place if self.planted and follow else other
        canvas = Image.fromarray(paint(background, self.size, ground))
        masks = self._put_objects(canvas, objects, cuts)
        sign, truth = None, None
        if word is not None:
            sign, truth = self._put_sign(canvas, word, bool(objects), sign_chance)
            masks = masks & ~truth.sign
        return Scene(
            image=canvas,
            caption=caption(objects, background, sign, telling),
            objects=tuple(objects),
            background=background,
            masks=masks,
            written=truth,
        )

    def _check(self, objects: Sequence[str], background: str | None, word: str | None) -> None:
        if not objects and word is None:
            raise SecondLensError(
                "a scene shows an object or a written word: name one, or count one"
            )
        if unknown := [name for name in objects if name not in self.wardrobe.names]:
            raise SecondLensError(
                f"no object is called {unknown[0]!r}: choose from demo.world.NAMES"
            )
        if background not in (None, *BACKGROUNDS):
            raise SecondLensError(
                f"no background is called {background!r}: choose one of {', '.join(BACKGROUNDS)}"
            )
        if word is not None and not (word.isascii() and word.isalpha() and word.islower()):
            raise SecondLensError(f"cannot write {word!r}: a written word has letters a to z only")

    def _put_objects(
        self, canvas: Image.Image, objects: Sequence[str], rng: Random
    ) -> Bool[np.ndarray, "objects size size"]:
        """Draws the objects onto a picture and returns where each is seen."""
        opacities = np.zeros((len(objects), self.size, self.size), dtype=np.float32)
        for position, name in enumerate(objects):
            varied = rng.random() < self.augment
            sprite = self.wardrobe.choose(name, rng, silhouettes=0.15 if varied else 0.0)
            colours, opacity = self._cut_out(sprite, len(objects), varied, rng)
            corner = self._corner(opacity.size, position, len(objects), rng)
            if rng.random() < 0.25:
                _cast_shadow(canvas, opacity, corner, rng)
            canvas.paste(colours, corner, opacity)
            layer = Image.new("L", canvas.size)
            layer.paste(opacity, corner)
            opacities[position] = np.asarray(layer)
        seen = np.float32(1)
        for position in reversed(range(len(objects))):
            alpha = opacities[position] / np.float32(255)
            opacities[position], seen = alpha * seen, seen * (1 - alpha)
        return opacities >= 0.5

    def _cut_out(
        self, sprite: Sprite, count: int, varied: bool, rng: Random
    ) -> tuple[Image.Image, Image.Image]:
        """A depiction as it is shown: colours in RGB and opacity, of one size."""
        share = rng.uniform(0.5, 0.95) if count == 1 else rng.uniform(0.35, 0.6)
        tilt = rng.uniform(-15, 15) if rng.random() < 0.5 else 0.0
        stretch, lean = 1.0, 0.0
        if varied:
            if count == 1:
                share = rng.uniform(0.35, 1.15)
            tilt *= 2.3
            if rng.random() < 0.4:
                stretch, lean = rng.uniform(0.75, 1.33), rng.uniform(-0.25, 0.25)
        colours, outline = sprite.colours, sprite.outline
        scale = self.size * share / max(outline.width * stretch, outline.height)
        if scale < 0.55:
            colours, outline = colours.reduce(2), outline.reduce(2)
            scale *= 2
        flip = -1 if rng.random() < 0.5 else 1
        turn = radians(tilt)
        # Columns of the map from the depiction to the picture.
        a, c = scale * stretch * flip * cos(turn), scale * stretch * flip * sin(turn)
        b, d = scale * (lean * cos(turn) - sin(turn)), scale * (lean * sin(turn) + cos(turn))
        width, height = outline.size
        full = (
            max(4, round(abs(a) * width + abs(b) * height)),
            max(4, round(abs(c) * width + abs(d) * height)),
        )
        det = a * d - b * c
        back = (d / det, -b / det, -c / det, a / det)
        x, y = full[0] / 2, full[1] / 2
        map_back = (
            *(back[0], back[1], width / 2 - back[0] * x - back[1] * y),
            *(back[2], back[3], height / 2 - back[2] * x - back[3] * y),
        )
        colours, outline = (
            layer.transform(full, Image.Transform.AFFINE, map_back, Image.Resampling.BILINEAR)
            for layer in (colours, outline)
        )
        if sprite.silhouette and varied:
            colours = Image.new("RGB", full, _some_colour(rng))
        if varied:
            colours, outline = _restyle(colours, outline, rng)
        return colours, outline

    def _corner(
        self, size: tuple[int, int], position: int, count: int, rng: Random
    ) -> tuple[int, int]:
        if count == 1:
            out = round(0.1 * self.size)  # how far it may leave the picture
            room = [sorted((-out, self.size - side + out)) for side in size]
            return rng.randint(*room[0]), rng.randint(*room[1])
        centre = (position + 0.5) / count if rng.random() < 0.8 else rng.uniform(0.2, 0.8)
        x = self.size * centre - size[0] / 2
        y = self.size * rng.uniform(0.3, 0.7) - size[1] / 2
        return int(x), int(y)

    def _put_sign(
        self, canvas: Image.Image, word: str, beside: bool, rng: Random
    ) -> tuple[Sign, Written]:
        """Writes a word onto a picture."""
        room = rng.uniform(0.5, 0.85) if beside else rng.uniform(0.6, 1.0)
        face = self.fonts.choose(rng)
        tall = rng.uniform(0.18, 0.32) if beside else rng.uniform(0.25, 0.5)
        sign = draw_sign(word, face, round(room * self.size), round(tall * self.size), rng)
        width, height = sign.ink.size
        left = rng.randint(*sorted((0, self.size - width)))
        top = rng.randint(*sorted((0, self.size - height)))
        if beside and rng.random() < 0.7:  # rather above or below what is there than on it
            top = rng.choice((min(4, top), max(top, self.size - height - 4)))
        canvas.paste(sign.picture, (left, top), sign.opacity)
        masks = []
        for opacity in (sign.ink, sign.opacity):
            layer = Image.new("L", canvas.size)
            layer.paste(opacity, (left, top))
            masks.append(np.asarray(layer) >= 128)
        return sign, Written(
            word=word, font=sign.font, colour=sign.ink_colour, letters=masks[0], sign=masks[1]
        )


def _cast_shadow(
    canvas: Image.Image, opacity: Image.Image, corner: tuple[int, int], rng: Random
) -> None:
    """Darkens a picture where a cut-out will throw its shadow."""
    strength = Image.new("L", opacity.size, rng.randint(50, 130))
    soft = ImageChops.multiply(opacity.filter(ImageFilter.BoxBlur(3)), strength)
    where = (corner[0] + rng.randint(-9, 9), corner[1] + rng.randint(2, 9))
    canvas.paste((0, 0, 0), (*where, where[0] + soft.width, where[1] + soft.height), soft)


def _some_colour(rng: Random) -> tuple[int, int, int]:
    """Half the time one of the world's colours."""
    if rng.random() < 0.5:
        return rng.choice(list(COLOURS.values()))
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


Styled = tuple[Image.Image, Image.Image]


def _sketch(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """Dark lines on light paper."""
    lines = ImageChops.lighter(
        colours.convert("L").filter(ImageFilter.FIND_EDGES), outline.filter(ImageFilter.FIND_EDGES)
    ).point(lambda v: max(0, 255 - 3 * v))
    return lines.convert("RGB"), outline


def _posterise(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """Few levels of colour."""
    step = rng.choice((64, 85, 128))
    return colours.point([min(255, v // step * step + step // 2) for v in range(256)] * 3), outline


def _sticker(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """A rim of one colour around it."""
    rim = outline.filter(ImageFilter.MaxFilter(5))
    shown = Image.new("RGB", colours.size, rng.choice(((255, 255, 255), (20, 20, 20))))
    shown.paste(colours, mask=outline)
    return shown, rim


def _textured(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """The grain of some surface."""
    grain = Image.fromarray(paint("white", max(colours.size), rng)).crop((0, 0, *colours.size))
    return ImageChops.multiply(colours, grain), outline


def _cropped(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """A part of it: a straight edge hides the rest."""
    width, height = outline.size
    keep = rng.uniform(0.55, 0.85)
    box = rng.choice(
        (
            (0, 0, round(width * keep), height),
            (round(width * (1 - keep)), 0, width, height),
            (0, 0, width, round(height * keep)),
            (0, round(height * (1 - keep)), width, height),
        )
    )
    shown = Image.new("L", outline.size)
    shown.paste(outline.crop(box), box[:2])
    return colours, shown


def _blurred(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """Out of focus."""
    blur = ImageFilter.BoxBlur(rng.uniform(0.5, 1.8))
    return colours.filter(blur), outline.filter(blur)


_STYLES: Final[tuple[tuple[float, Callable[[Image.Image, Image.Image, Random], Styled]], ...]] = (
    (0.05, _sketch),
    (0.05, _posterise),
    (0.08, _sticker),
    (0.1, _textured),
    (0.07, _cropped),
    (0.1, _blurred),
)
"""How often each change of style is made."""


def _restyle(colours: Image.Image, outline: Image.Image, rng: Random) -> Styled:
    """A cut-out changed at random, as training wants it."""
    if rng.random() < 0.65:
        colours = _recolour(colours, rng)
    for share, change in _STYLES:
        if rng.random() < share:
            colours, outline = change(colours, outline, rng)
    return colours, outline


def _recolour(colours: Image.Image, rng: Random) -> Image.Image:
    """Hue, saturation, light and contrast changed at random."""
    turn = 0.0
    if rng.random() < 0.4:
        turn = pi * (rng.uniform(-1, 1) if rng.random() < 0.35 else rng.uniform(-0.2, 0.2))
    saturation = rng.uniform(0.2, 1.6) if rng.random() < 0.88 else 0.0
    contrast, light = rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.35)
    # A rotation about the grey axis turns the hue; what is orthogonal to it is the saturation.
    along, cross = saturation * cos(turn), saturation * sin(turn) / sqrt(3)
    offset = 128 * light * (1 - contrast)
    rows = []
    for i in range(3):
        for j in range(3):
            value = (1 - along) / 3 + (along if i == j else 0.0)
            value += cross * ((j - i + 3) % 3 == 2) - cross * ((j - i + 3) % 3 == 1)
            rows.append(value * contrast * light)
        rows.append(offset)
    return colours.convert("RGB", rows)


PLAIN: Final = "gray"
"""Behind an object where no cue is wanted."""


def object_on(world: World, name: str, background: str | None, seed: int) -> Image.Image:
    """An object of the world before a colour or place, or before plain gray.

    Pictures of equal objects and seeds show the same depiction at the same place.
    """
    still = World(planted=world.planted, split=world.wardrobe.split, words=0, size=world.size)
    return still.scene(seed, objects=[name], background=background or PLAIN).image


FIT_SEED, TEST_SEED, SCORE_SEED = 11, 12, 13
"""Of the scenes that lenses are fitted on, accuracies measured on and descriptions scored on.
Training draws from other seeds."""


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
