"""Methods that follow the gradient of the similarity (Eq. 1) to the attention maps."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....models.view import Clip, Images
from ..heat_maps import on_grid
from .attention import class_row
from .relevance import attention_relevance
from .similarity import at_output
from .tower import Pass, Rule, first_of_last, gradients, run


def grad_cam(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, layer: int = -1
) -> Float[Tensor, "images rows columns"]:
    """Grad-CAM (Selvaraju et al. 2017) with the heads' attention of the class token as channels.

    ReLU(sum over heads of the map times its gradient's mean over patches), in one block; negative
    numbers count from the last.
    """
    layer = clip.check_layer(layer + clip.layers if layer < 0 else layer, last=True)
    seen = run(clip, images)
    gradient = gradients(_similarity(seen, texts), [seen.attention[layer]])[0][
        :, :, 0, clip.prefix :
    ]
    maps = seen.attention[layer].detach()[:, :, 0, clip.prefix :]
    summed = (gradient.mean(-1, keepdim=True) * maps).sum(1)
    return on_grid(summed.clamp(min=0), clip.grid)


def chefer(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images dim"],
    *,
    rule: Rule = "plus",
    first: int = 0,
) -> Float[Tensor, "images rows columns"]:
    """Chefer, Gur & Wolf 2021 (CVPR): a rollout of I + mean over heads of (gradient * relevance)^+.

    Blocks before `first` are left out.
    """
    first = clip.check_layer(first, last=True)
    seen = run(clip, images)
    slopes = gradients(_similarity(seen, texts), seen.attention)
    relevances = attention_relevance(clip, images, texts, rule)
    maps = []
    for slope, relevance in zip(slopes[first:], relevances[first:], strict=True):
        product = (slope * relevance).clamp(min=0).mean(1)
        identity = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
        maps.append(product + identity)
    return on_grid(class_row(clip, maps), clip.grid)


def legrad(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, layers: int = 2
) -> Float[Tensor, "images rows columns"]:
    """LeGrad (Bousselham et al. 2024): how each patch would be looked at more, in each block.

    In each of the last `layers` blocks, the mean of its tokens is read as if it were the output.
    The gradient of its similarity with the text with respect to the block's own attention maps is
    cut at 0, and averaged over heads and over the tokens that look; blocks add up.
    """
    first = first_of_last(clip, layers)
    seen = run(clip, images)
    projection = clip.projection
    maps = []
    for attention, states in zip(seen.attention[first:], seen.streams[first:], strict=True):
        read = at_output(clip, states.mean(1)) @ projection.to(states)
        score = (F.normalize(read, dim=-1) * texts.to(states)).sum(-1)
        slope = gradients(score, [attention], again=True)[0]
        maps.append(slope.clamp(min=0).mean((1, 2))[:, clip.prefix :])
    return on_grid(torch.stack(maps).sum(0), clip.grid)


def _similarity(seen: Pass, texts: Tensor) -> Float[Tensor, " images"]:
    unit = F.normalize(seen.representation, dim=-1)
    return (unit * texts.to(unit.dtype)).sum(-1)
