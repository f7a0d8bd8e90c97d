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
    clip: Clip, images: Images, texts: Float[Tensor, "images dim"]
) -> Float[Tensor, "images rows columns"]:
    """Cosine between the text and each patch token after `ln_post` and the projection."""
    dtype = clip.compute_dtype
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # some blocks return a tuple
        states = output[0] if isinstance(output, tuple) else output
        seen.append(clip.batch_major(states)[:, clip.prefix :].to(dtype))

    with hooked([(clip.blocks[-1].module, see)]):
        clip.encode_image(images)
    gain, bias = clip.post_gain.to(dtype), clip.post_bias.to(dtype)
    normalised = F.layer_norm(seen[0], seen[0].shape[-1:], gain, bias, clip.post_eps)
    patches = F.normalize(normalised @ clip.projection.to(dtype), dim=-1)
    cosines = torch.einsum("bpd,bd->bp", patches, texts.to(dtype))
    return on_grid(cosines, clip.grid)
