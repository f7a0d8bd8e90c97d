"""CLIP Surgery (Li et al. 2023): a second path through the late blocks on which values look at
values and MLPs are left out."""

import torch
from jaxtyping import Float
from torch import Tensor

from ....models.view import Clip, Images
from .last_block import Inside, inside
from .similarity import compared
from .tower import first_of_last


@torch.no_grad()
def clip_surgery(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    blocks: int | None = None,
) -> Float[Tensor, "images *texts rows columns"]:
    """Patches of the second path compared with texts.

    The path starts from the stream before the last `blocks` blocks, by default half of all, and
    adds what each of their attentions would write of the tower's own stream with weights
    softmax(v v'). The paper takes the mean over classes off ("feature surgery").
    """
    count = max(1, clip.layers // 2) if blocks is None else blocks
    seen = inside(clip, images, list(range(first_of_last(clip, count), clip.layers)))
    states = seen[0].stream + sum(_by_values(each) for each in seen)
    return compared(clip, states[:, clip.prefix :], texts)


def _by_values(seen: Inside) -> Float[Tensor, "images tokens width"]:
    weights = (seen.scale * (seen.values @ seen.values.mT)).softmax(-1)
    return seen.written(weights @ seen.values)
