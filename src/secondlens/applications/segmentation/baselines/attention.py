"""Where the class token looks, whatever the text: raw attention and attention rollout."""

import torch
from jaxtyping import Float
from torch import Tensor

from ....models.view import Clip, Images
from ..heat_maps import on_grid
from .tower import first_of_last, run


@torch.no_grad()
def raw_attention(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, layers: int = 1
) -> Float[Tensor, "images rows columns"]:
    """Attention of the class token in the last `layers` blocks, averaged over heads and blocks."""
    first = first_of_last(clip, layers)
    maps = [each[:, :, 0, clip.prefix :].mean(1) for each in run(clip, images).attention[first:]]
    return on_grid(torch.stack(maps).mean(0), clip.grid)


@torch.no_grad()
def rollout(
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"], *, first: int = 0
) -> Float[Tensor, "images rows columns"]:
    """Attention rollout (Abnar & Zuidema 2020): the product, last block first, of (A + I) / 2.

    A is the mean over heads; blocks before `first` are left out.
    """
    first = clip.check_layer(first, last=True)
    mean = [each.mean(1) for each in run(clip, images).attention[first:]]
    identity = torch.eye(mean[0].shape[-1], dtype=mean[0].dtype, device=mean[0].device)
    return on_grid(class_row(clip, [(each + identity) / 2 for each in mean]), clip.grid)


def class_row(
    clip: Clip,
    maps: list[Float[Tensor, "images tokens tokens"]],
) -> Float[Tensor, "images patches"]:
    """The class token's row of the product of maps, the last block's first, at the patches."""
    row = maps[-1][:, :1]
    for each in reversed(maps[:-1]):
        row = row @ each
    return row[:, 0, clip.prefix :]
