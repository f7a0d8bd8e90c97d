"""Methods that follow the gradient of the similarity (Eq. 1) to the attention maps."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....models.view import Clip, Images
from ..heat_maps import on_grid
from .attention import class_row
from .relevance import attention_relevance
from .tower import Pass, Rule, gradients, run


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


def _similarity(seen: Pass, texts: Tensor) -> Float[Tensor, " images"]:
    unit = F.normalize(seen.representation, dim=-1)
    return (unit * texts.to(unit.dtype)).sum(-1)
