"""Where each token looks: attention of every block and head."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..models.view import Clip
from .linearised import linearise


@checked
@undisturbed
@torch.no_grad()
def attention(clip: Clip, images: Any) -> Float[Tensor, "images layers heads tokens tokens"]:
    """Attention of every block and head, on the model's device.

    Token 0 is the class token and the others are the patches row by row, see `Clip.grid`. So
    `attention(clip, images)[:, layer, head, 0, 1:]` is what a head's class token takes from each
    patch.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes, all in one pass: the result takes memory for each pair of tokens.

    Returns
    -------
    What each token (row) takes from each token (column): rows add up to 1.

    Raises
    ------
    SecondLensError
        A model of a kind that `linearise` refuses, or images that `Clip.prepare` refuses.
    """
    blocks = linearise(clip, images).blocks
    return torch.stack([blocks[layer].attention for layer in range(clip.layers)], dim=1)
