"""Pictures of the embedded world that differ in nothing but the background."""

import numpy as np
from PIL import Image

from .backgrounds import paint
from .scenes import World

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
