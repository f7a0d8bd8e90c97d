"""Drawn pictures that show what a cue does: with it and without it, usual places and others.

Planted places say what a picture is drawn with, and nothing about any model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...data.labelled import Labelled
from ...data.vocabularies import Vocabulary, object_names
from ...demo.scenes import Scenes, World, object_on
from ...demo.world import NAMES, PREFERENCE
from ...models.view import Clip
from ...progress import tracked
from .audits import margins

Painter = Callable[[str, str | None, int], Image.Image]
"""Draws a class with a cue, or with none, from a seed; all else equal for equal seeds."""


@torch.no_grad()
def drawn(
    clip: Clip,
    classes: Vocabulary,
    cues: Vocabulary,
    painter: Painter,
    *,
    seeds: Sequence[int],
    progress: bool = False,
) -> Float[Tensor, "classes cues seeds"]:
    """How much further ahead a class is when a cue is added to an otherwise equal picture."""
    rows = margins(classes.embed(clip))
    gained = rows.new_empty(len(classes), len(cues), len(seeds))
    names = list(enumerate(classes.labels))
    for row, name in tracked(names, "drawn pictures", progress):
        pictures = [painter(name, cue, seed) for seed in seeds for cue in (None, *cues.labels)]
        embedding = F.normalize(clip.encode_image(pictures).to(rows), dim=-1)
        ahead = (embedding @ rows[row]).unflatten(0, (len(seeds), -1))
        gained[row] = (ahead[:, 1:] - ahead[:, :1]).T
    return gained


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


def counterfactual(count: int, seed: int = MISLED_SEED) -> tuple[Labelled, list[int]]:
    """Objects in the places of rivals, and the rivals."""
    source = OffPlace(World(), seed, count)
    shown, rivals = zip(*(source.pair(i) for i in range(count)), strict=True)
    labels = tuple(NAMES.index(name) for name in shown)
    places = {"place": tuple(PREFERENCE[rival][0] for rival in rivals)}
    pictures = Labelled(
        name="misled", source=source, labels=labels, classes=object_names(), attributes=places
    )
    return pictures, [NAMES.index(name) for name in rivals]


def natural(count: int, seed: int = USUAL_SEED) -> Labelled:
    """Single-object scenes of the planted world."""
    scenes = Scenes(World(), seed, count, single=True)
    shown = [(scene.objects[0], scene.background) for scene in map(scenes.scene, range(count))]
    names, places = zip(*shown, strict=True)
    return Labelled(
        name="usual",
        source=scenes,
        labels=tuple(map(NAMES.index, names)),
        classes=object_names(),
        attributes={"place": places},
    )
