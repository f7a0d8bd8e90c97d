"""TextSpan: the direct effect of every head at every patch (Gandelsman et al. 2024)."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....effects.capture import norm_statistics
from ....effects.value_paths import output_map
from ....models.view import Clip, Images, hooked
from ..heat_maps import on_grid
from .tower import first_of_last


@torch.no_grad()
def textspan(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    layers: int | None = None,
) -> Float[Tensor, "images *texts rows columns"]:
    """What attention to each patch adds to <image, text>, straight to the output.

    Summed over heads and over the last `layers` blocks, by default all of them. It is a part of
    the cosine similarity: each patch answers for its own share of the final LayerNorm's mean, and
    biases of values belong to the patches that the attention reads.
    """
    clip.check_class_token("TextSpan's map")
    dtype = clip.compute_dtype
    first = 0 if layers is None else first_of_last(clip, layers)
    normalised: dict[int, Tensor] = {}
    post: list[Tensor] = []

    def see(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        normalised[j] = clip.batch_major(output).to(dtype)

    def see_post(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        post.append(clip.reader.pooled(inputs[0]).to(dtype))

    hooks = [(clip.blocks[j].ln_1, partial(see, j)) for j in range(first, clip.layers)]
    with hooked([*hooks, (clip.ln_post, see_post)]):
        length = clip.encode_image(images).to(dtype).norm(dim=-1)
    _, sigma = norm_statistics(post[0], clip.post_eps)
    rows = texts.to(dtype).flatten(1, -2) if texts.dim() > 2 else texts.to(dtype)[:, None]
    target = (rows @ output_map(clip, dtype, centred=True).T) / (sigma * length)[:, None, None]
    total = torch.zeros(*rows.shape[:2], clip.tokens, dtype=dtype, device=clip.device)
    for j, states in normalised.items():
        block = clip.blocks[j]
        # the text carried back to each head's values, so that no value is ever computed
        to_value = torch.einsum("hew,bmw->bmhe", block.output.to(dtype), target)
        to_state = torch.einsum("bmhe,hew->bmhw", to_value, block.value.to(dtype))
        added = torch.bmm(to_state.flatten(1, 2), states.mT).unflatten(1, to_state.shape[1:3])
        added = added + (to_value * block.value_bias.to(dtype)).sum(-1)[..., None]
        total += (block.class_rows(states)[:, None] * added).sum(2)
    maps = total[..., clip.prefix :].reshape(*texts.shape[:-1], -1)
    return on_grid(maps, clip.grid)
