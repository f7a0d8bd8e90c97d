"""Objects in places of others, to see what the planted cues cost, and objects as they usually are.

Planted places say what a picture is drawn with, and nothing about any model.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..classify import Labelled
from ..demo.painter import object_on
from ..demo.pictures import Scenes
from ..demo.scenes import World
from ..demo.world import NAMES, PREFERENCE
from ..texts.world import object_names

USUAL_SEED, MISLED_SEED = 93, 94


@dataclass(frozen=True)
class OffPlace:
    """Single objects, each before the place that a rival object prefers: an `ImageSource`."""

    world: World
    seed: int
    count: int
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [f"misled-{self.seed}-{i}" for i in range(self.count)])

    def pair(self, index: int) -> tuple[str, str]:
        """The object shown, and the rival whose place it is in."""
        rng = np.random.default_rng((self.seed, index))
        shown, rival = rng.choice(list(PREFERENCE), 2)
        while PREFERENCE[shown][0] == PREFERENCE[rival][0]:
            shown, rival = rng.choice(list(PREFERENCE), 2)
        return str(shown), str(rival)

    def load(self, index: int) -> Image.Image:
        """The picture of a pair."""
        shown, rival = self.pair(index)
        return object_on(self.world, shown, PREFERENCE[rival][0], 10_000 * self.seed + index)


def misled(count: int, seed: int = MISLED_SEED) -> tuple[Labelled, list[int]]:
    """Objects in the places of rivals, and the rivals."""
    source = OffPlace(World(), seed, count)
    shown, rivals = zip(*(source.pair(i) for i in range(count)), strict=True)
    labels = tuple(NAMES.index(name) for name in shown)
    pictures = Labelled(name="misled", source=source, labels=labels, classes=object_names())
    return pictures, [NAMES.index(name) for name in rivals]


def natural(count: int, seed: int = USUAL_SEED) -> Labelled:
    """Single-object scenes of the planted world."""
    scenes = Scenes(World(), seed, count, single=True)
    labels = tuple(NAMES.index(scenes.scene(i).objects[0]) for i in range(count))
    return Labelled(name="usual", source=scenes, labels=labels, classes=object_names())
