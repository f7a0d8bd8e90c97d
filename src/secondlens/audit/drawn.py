"""Pairs of pictures that differ in a cue alone, where pictures can be drawn."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from torch import Tensor

from ..clip.view import Clip
from ..texts import Vocabulary
from .clearest import margins

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
    for row, name in track(names, "drawn pictures") if progress else names:
        pictures = [painter(name, cue, seed) for seed in seeds for cue in (None, *cues.labels)]
        embedding = F.normalize(clip.encode_image(pictures).to(rows), dim=-1)
        ahead = (embedding @ rows[row]).unflatten(0, (len(seeds), -1))
        gained[row] = (ahead[:, 1:] - ahead[:, :1]).T
    return gained
