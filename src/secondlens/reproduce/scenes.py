"""Labelled scenes of the embedded world that nothing else is made from."""

from ..classify import Labelled
from ..demo.pictures import Scenes
from ..demo.scenes import World
from ..demo.world import NAMES
from ..texts.world import object_names

TEST_SEED, LAYER_SEED, SHIFTED_SEED = 41, 42, 43
"""Of scenes to test on, to choose a layer by, and in another style."""


def scenes(seed: int, count: int, *, planted: bool, style: bool = False) -> Labelled:
    """Single-object scenes of the embedded world, labelled with the object."""
    world = World(planted=planted, split="style" if style else "train")
    source = Scenes(world, seed, count, single=True)
    labels = tuple(NAMES.index(source.scene(i).objects[0]) for i in range(count))
    name = "unseen scenes in a held-out style" if style else "unseen scenes"
    return Labelled(name=name, source=source, labels=labels, classes=object_names())
