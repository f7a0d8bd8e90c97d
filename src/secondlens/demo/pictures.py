"""The embedded pictures: sets of scenes as image sources, and the world's vocabulary."""

from dataclasses import dataclass, field

from PIL import Image

from ..texts import Vocabulary
from .scenes import Scene, World
from .world import BACKGROUNDS, COLOURS, NAMES, PLACES, with_article

FIT_SEED, TEST_SEED, SCORE_SEED = 11, 12, 13
"""Of the scenes that lenses are fitted on, accuracies measured on and descriptions scored on.
Training drew from seed 1."""

TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}", "an image of {}")


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


def prompts(name: str) -> tuple[str, ...]:
    """The texts for an object, a colour or a place."""
    if name in PLACES:
        return (PLACES[name], f"a picture {PLACES[name]}")
    if name in COLOURS:
        return (f"{name} background", f"on a {name} background")
    return tuple(template.format(with_article(name)) for template in TEMPLATES)


def world_vocabulary() -> Vocabulary:
    """Every object, colour and place of the world."""
    labels = (*NAMES, *BACKGROUNDS)
    return Vocabulary(name="world", labels=labels, prompts=tuple(map(prompts, labels)))


def object_names() -> Vocabulary:
    """Every object: the classes of zero-shot experiments."""
    return Vocabulary(name="objects", labels=NAMES, prompts=tuple(map(prompts, NAMES)))


def backgrounds() -> Vocabulary:
    """Every colour and place: what may lead a classifier of objects astray."""
    return Vocabulary(
        name="backgrounds", labels=BACKGROUNDS, prompts=tuple(map(prompts, BACKGROUNDS))
    )
