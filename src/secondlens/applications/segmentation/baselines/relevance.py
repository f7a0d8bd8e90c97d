"""Layer-wise relevance propagation of the similarity's numerator <representation, text>.

Relevance through linear layers is that of Bach et al. 2015, with Binder et al. 2016; LayerNorm
scales and attention maps are constants, after Ali et al. 2022, see `tower.run`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ....models.view import Clip, Images
from ..heat_maps import on_grid
from .tower import Pass, Rule, gradients, run


def lrp(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, rule: Rule = "plus"
) -> Float[Tensor, "images rows columns"]:
    """LRP down to the patches as block 0 sees them, summed over channels."""
    seen = run(clip, images, relevance=rule)
    slope = gradients(_score(seen, texts), [seen.tokens])[0]
    return on_grid((slope * seen.tokens).detach().sum(-1)[:, clip.prefix :], clip.grid)


def partial_lrp(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, rule: Rule = "plus"
) -> Float[Tensor, "images rows columns"]:
    """LRP down to the last block's attention only (after Voita et al. 2019).

    The positive relevance of the class token's row, averaged over heads.
    """
    last = attention_relevance(clip, images, texts, rule)[-1]
    return on_grid(last[:, :, 0, clip.prefix :].clamp(min=0).mean(1), clip.grid)


def attention_relevance(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], rule: Rule
) -> list[Float[Tensor, "images heads tokens tokens"]]:
    """What passes each entry of each block's attention maps, by block."""
    seen = run(clip, images, relevance=rule)
    slopes = gradients(_score(seen, texts), seen.attention)
    return [(slope * maps).detach() for slope, maps in zip(slopes, seen.attention, strict=True)]


def _score(seen: Pass, texts: Tensor) -> Float[Tensor, " images"]:
    return torch.einsum("bd,bd->b", seen.representation, texts.to(seen.representation.dtype))
