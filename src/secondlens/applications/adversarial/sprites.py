"""The image generator of the embedded world: cut-outs on a background, and exact truth about them.

Which words are too close to a class, families say: those of a picture dictionary. Two members of a
family could be taken for each other by a person who glances at a 64-pixel drawing, or one could be
said to be the other; words of the wrong class's family would make an attack cheap, so they are
removed for every method.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from ...demo.backgrounds import paint
from ...demo.scenes import SIZE
from ...demo.sprites import Split, Sprite, Wardrobe
from ...demo.world import BACKGROUNDS, COLOURS, NAMES, PLACES
from .generation import GeneratedImage
from .selection import NothingLeft, lemma, lemmas

CENTRES = ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))
"""Of the places of objects, in shares of the picture; which one is the subject's is chance."""

SIDES = (0.42, 0.55)
"""Longest side of an object, in shares of the picture."""

VISIBLE = 0.5
"""An object can be seen if so much of its opaque area is neither covered nor outside."""

_NAME = {lemma(name): name for name in NAMES}
_GROUND = {lemma(name): name for name in BACKGROUNDS}


class SpriteGenerator:
    """Draws the objects and the background that a caption mentions; the subject comes out on top.

    Everything about an object follows from the seed and from its place: without the others, the
    subject is the same depiction in the same place, and so is the background where the caption
    names none.
    """

    knows: Sequence[str] | None = (*NAMES, *BACKGROUNDS)

    def __init__(self, split: Split = "train", size: int = SIZE) -> None:
        self.name, self.size = f"sprites:{split}", size
        self._wardrobe = Wardrobe(split)

    def draw(self, caption: str, subject: str, seed: int) -> GeneratedImage:
        """The picture of a caption; objects beyond the fourth find no place.

        Raises
        ------
        NothingLeft
            The subject is no object of the embedded world.
        """
        if subject not in NAMES:
            raise NothingLeft(
                f"the image generator of the embedded world cannot draw {subject!r}: choose one of "
                "its objects"
            )
        others, ground = _mentioned(caption, subject)
        ground = ground or BACKGROUNDS[np.random.default_rng((seed, 0)).integers(len(BACKGROUNDS))]
        canvas = Image.fromarray(paint(ground, self.size, np.random.default_rng((seed, 1))))
        centres = np.random.default_rng((seed, 2)).permutation(CENTRES)
        # the subject has the first place and is drawn last
        objects = list(enumerate([subject, *others][: len(CENTRES)]))
        alphas: list[tuple[str, float, np.ndarray]] = []
        for place, name in [*objects[1:], objects[0]]:
            rng = np.random.default_rng((seed, 3, place))
            cutout = self._cut_out(self._wardrobe.choose(name, rng), rng)
            middle = self.size * (centres[place] + rng.uniform(-0.05, 0.05, 2))
            corner = (round(middle[0] - cutout.width / 2), round(middle[1] - cutout.height / 2))
            layer = Image.new("L", canvas.size)
            layer.paste(cutout.getchannel("A"), corner)
            canvas.paste(cutout, corner, cutout)
            alpha = np.asarray(layer, dtype=np.float32) / 255
            area = float(np.asarray(cutout.getchannel("A"), dtype=np.float32).sum()) / 255
            alphas = [*((n, a, left * (1 - alpha)) for n, a, left in alphas), (name, area, alpha)]
        shown = [name for name, area, left in alphas if left.sum() >= VISIBLE * area]
        return GeneratedImage(image=canvas, shows=(*shown, ground))

    def _cut_out(self, sprite: Sprite, rng: np.random.Generator) -> Image.Image:
        side = self.size * rng.uniform(*SIDES)
        scale = side / max(sprite.image.size)
        size = tuple(max(4, round(length * scale)) for length in sprite.image.size)
        image = sprite.image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def sprites(chosen: str, **_: Any) -> SpriteGenerator:
    """The member "sprites" of `image_generators`."""
    return SpriteGenerator()


def _mentioned(caption: str, subject: str) -> tuple[list[str], str | None]:
    """The objects of a caption besides its subject, and its first background, if any.

    A colour is a background only before the word "background": "a red apple on a blue background".
    """
    said = lemmas(caption)
    found = dict.fromkeys(_NAME[word] for word in said if word in _NAME)
    grounds = [
        _GROUND[word]
        for word, after in zip(said, (*said[1:], ""), strict=True)
        if word in PLACES or (word in COLOURS and after == "background")
    ]
    return [name for name in found if name != subject], next(iter(grounds), None)


FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "hoofed animals": (
        *("boar", "camel", "cow", "deer", "donkey", "elephant", "goat", "horse", "pig"),
        *("rhinoceros", "sheep", "unicorn"),
    ),
    "dogs, cats and bears": (
        *("bear", "cat", "dog", "fox", "koala", "leopard", "lion", "panda", "tiger", "wolf"),
    ),
    "small furry animals": (
        *("bat", "beaver", "chipmunk", "hamster", "hedgehog", "kangaroo", "mouse", "rabbit"),
        *("raccoon", "sloth"),
    ),
    "apes": ("gorilla", "monkey"),
    "birds": (
        *("bird", "chicken", "duck", "eagle", "flamingo", "owl", "parrot", "penguin", "swan"),
        "turkey",
    ),
    "sea animals": (
        *("crab", "dolphin", "fish", "jellyfish", "octopus", "seal", "shark", "shell", "shrimp"),
        *("squid", "whale"),
    ),
    "reptiles and frogs": ("crocodile", "dragon", "frog", "lizard", "snake", "turtle"),
    "insects and worms": (
        *("ant", "bee", "butterfly", "mosquito", "scorpion", "snail", "spider", "worm"),
    ),
    "road vehicles": (
        *("ambulance", "automobile", "bicycle", "bus", "motorcycle", "skateboard", "taxi"),
        *("tractor", "train", "truck"),
    ),
    "aircraft": ("airplane", "balloon", "helicopter", "kite", "parachute", "rocket", "satellite"),
    "ships": ("anchor", "boat", "ship"),
    "snow things": ("skis", "snowflake", "snowman"),
    "night things": ("ghost", "moon", "skull"),
    "plants": (*("bouquet", "cactus", "mushroom", "rose", "sunflower", "tree", "tulip"),),
    "fruit": (
        *("apple", "avocado", "banana", "cherries", "grapes", "lemon", "melon", "peach", "pear"),
        *("pineapple", "strawberry", "watermelon"),
    ),
    "vegetables and nuts": (
        *("broccoli", "carrot", "chestnut", "corn", "cucumber", "eggplant", "garlic", "peanuts"),
        *("pepper", "potato", "pumpkin", "tomato"),
    ),
    "meals": (
        *("bacon", "bread", "burger", "burrito", "butter", "cheese", "croissant", "egg", "fries"),
        *("pizza", "sandwich", "spaghetti", "sushi", "taco"),
    ),
    "sweets": (
        *("cake", "candy", "chocolate", "cookie", "cupcake", "doughnut", "lollipop", "pancakes"),
        *("popcorn", "pretzel"),
    ),
    "drinks": ("beer", "coffee"),
    "clothes": (
        *("bikini", "boot", "coat", "dress", "gloves", "hat", "jeans", "scarf", "shirt", "shoe"),
        *("shorts", "socks", "tie"),
    ),
    "things one wears": (
        *("crown", "glasses", "headphone", "ribbon", "ring", "sunglasses", "watch"),
    ),
    "bags and boxes": (
        *("backpack", "basket", "briefcase", "bucket", "coffin", "envelope", "gift", "handbag"),
        *("jar", "luggage"),
    ),
    "instruments": ("bell", "drum", "flute", "guitar", "piano", "saxophone", "trumpet", "violin"),
    "tools": (
        *("axe", "broom", "dagger", "hammer", "key", "ladder", "magnet", "scissors"),
        *("screwdriver", "shield", "shovel", "spoon", "wrench"),
    ),
    "weapons": ("bomb", "boomerang"),
    "furniture": (
        *("bathtub", "bed", "chair", "clock", "door", "lamp", "mirror", "sofa", "teapot", "toilet"),
    ),
    "devices": (
        *("battery", "camera", "flashlight", "keyboard", "laptop", "microphone", "microscope"),
        *("printer", "telephone", "telescope", "television", "thermometer"),
    ),
    "desk things": ("books", "calendar", "crayon", "newspaper", "pen", "pencil"),
    "care": ("lipstick", "pill", "syringe", "toothbrush"),
    "games and sports": (
        *("baseball", "basketball", "dice", "tennis", "trophy", "volleyball", "yarn"),
    ),
    "fire": ("candle", "cigarette", "fire", "volcano"),
    "buildings": ("castle", "church", "fountain", "house", "tent"),
    "umbrella": ("umbrella",),
}
"""Each object of the world in one family."""

_FAMILY = {name: family for family, names in FAMILIES.items() for name in names}


class Taxonomy:
    """Words of the wrong class's family are too close; colours and places never are."""

    name = "taxonomy"

    def too_close(self, words: Sequence[str], to: str) -> list[bool]:
        """For each word, whether it is `to` or belongs to the same family."""
        family = FAMILIES.get(_FAMILY.get(to, ""), ())
        return [word == to or word in family for word in words]
