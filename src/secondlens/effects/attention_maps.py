"""Where each token looks: attention of every block and head."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..models.view import Clip
from .block_inputs import attention_of, block_inputs, queries_and_keys
from .linearised import LinearNorm


@checked
@undisturbed
@torch.no_grad()
def attention(clip: Clip, images: Any) -> Float[Tensor, "images layers heads tokens tokens"]:
    """Attention of every block and head, on the model's device.

    Patches are the last tokens, row by row, see `Clip.grid`. Before them, in a model that has them,
    are the class token and registers, `Clip.prefix` tokens. So `attention(clip, images)[:, layer,
    head, 0, clip.prefix:]` is what a head's class token takes from each patch. A pool that reads
    all tokens at the end is not a block, and its attention is not here.

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
        A network without attention blocks, or images that `Clip.prepare` refuses.
    """
    before = block_inputs(clip, images, range(clip.layers)).before
    found = []
    for number, block in enumerate(clip.blocks):
        norm = LinearNorm.at(before.pop(number), block.ln_1, clip.compute_dtype)
        found.append(attention_of(clip, *queries_and_keys(block, norm)))
    return torch.stack(found, dim=1)
