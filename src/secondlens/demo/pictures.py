"""The embedded pictures: sets of scenes as image sources."""

from dataclasses import dataclass, field

from PIL import Image

from .scenes import Scene, World

FIT_SEED, TEST_SEED, SCORE_SEED = 11, 12, 13
"""Of the scenes that lenses are fitted on, accuracies measured on and descriptions scored on.
Training drew from seed 1."""


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
