"""Patch tokens read as if they were the class token."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ....models.view import Clip, Images, hooked
from ..heat_maps import on_grid


@torch.no_grad()
def patch_similarity(
    clip: Clip, images: Images, texts: Float[Tensor, "images *texts dim"]
) -> Float[Tensor, "images *texts rows columns"]:
    """Cosine between the text and each patch token after `ln_post` and the projection."""
    return compared(clip, last_states(clip, images)[:, clip.prefix :], texts)


@torch.no_grad()
def last_states(clip: Clip, images: Images) -> Float[Tensor, "images tokens width"]:
    """All tokens after the last block."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # some blocks return a tuple
        states = output[0] if isinstance(output, tuple) else output
        seen.append(clip.batch_major(states).to(clip.compute_dtype))

    with hooked([(clip.blocks[-1].module, see)]):
        clip.encode_image(images)
    return seen[0]


def at_output(clip: Clip, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """States after `ln_post`."""
    gain, bias = clip.post_gain.to(states), clip.post_bias.to(states)
    return F.layer_norm(states, states.shape[-1:], gain, bias, clip.post_eps)


def compared(
    clip: Clip,
    states: Float[Tensor, "images patches width"],
    texts: Float[Tensor, "images *texts dim"],
    grid: tuple[int, int] | None = None,
) -> Float[Tensor, "images *texts rows columns"]:
    """Cosines of states at the patches, after `ln_post` and the projection, with texts.

    `grid` is that of the patches, if it is not the model's.
    """
    embedded = F.normalize(at_output(clip, states) @ clip.projection.to(states), dim=-1)
    return on_grid(torch.einsum("bpd,b...d->b...p", embedded, texts.to(states)), grid or clip.grid)
