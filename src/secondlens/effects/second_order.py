"""Effects of single neurons on the normalised image embedding, for images at hand.

Direct and second-order effects as section 3 of arXiv 2406.04341 defines them, each divided by the
norm of the representation r: they are parts of the unit embedding that similarities with texts are
computed from. `paths` explains the two conventions; `indirect` measures the whole network.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import Capture, Pooled, norm_statistics
from ..clip.view import Clip, Images, class_token, hooked
from .paths import (
    NEURONS_PER_CHUNK,
    carry,
    chunks,
    extended_coefficients,
    image_scale,
    output_map,
    path_factors,
)


def second_order(
    clip: Clip, images: Images, layer: int, convention: str = "exact"
) -> Float[Tensor, "images neurons dim"]:
    """Second-order effects of all neurons of an MLP layer (Eq. 5), materialised for a few images.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        MLP layer, 0 to `clip.last_effect_layer`.
    convention
        `"exact"`, or `"official"` to compare with published numbers.

    Returns
    -------
    Parts of the unit embedding, in its units (times 100 when official).

    Raises
    ------
    SecondLensError
        No such convention, a layer without second-order effects, or images that `Clip.prepare`
        refuses.
    """
    factors = path_factors(clip, layer, convention)
    with Capture(clip, [layer]) as capture:
        pooled = capture.pool(clip.encode_image(images))
    scale = image_scale(pooled, convention)
    coefficients = extended_coefficients(pooled, layer, convention) * scale[:, None, None]
    effects = coefficients.new_empty(len(coefficients), clip.neurons, clip.dim)
    for chunk in chunks(clip.neurons, NEURONS_PER_CHUNK):
        by_neuron = coefficients[:, :, chunk].permute(2, 0, 1)
        effects[:, chunk] = torch.bmm(by_neuron, factors.rows(chunk)).transpose(0, 1)
    return effects


def bias_effect(clip: Clip, pooled: Pooled, layer: int) -> Float[Tensor, "images dim"]:
    """Second-order effect of the MLP's own output bias, `exact`.

    With it, the effects of all neurons add up to that of the whole MLP layer.
    """
    bias = clip.blocks[layer].mlp_bias.to(pooled.scale.dtype)
    inner, outer = carry(clip, layer, bias[None], centred=True)
    paths = torch.bmm(inner, outer)[:, 0]
    return pooled.scale[:, None] * (pooled.path_scales[layer] @ paths)


@torch.no_grad()
def direct(clip: Clip, images: Images, layer: int) -> Float[Tensor, "images neurons dim"]:
    """Direct (first-order) effects, the logit lens: scale * (g_post * C(p[b,0,n] w_n)) P.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        Any MLP layer; the last one too has direct effects.

    Raises
    ------
    SecondLensError
        No such layer, or images that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    block, dtype = clip.blocks[layer], clip.compute_dtype
    seen: dict[str, Tensor] = {}

    def see_activation(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen["activation"] = clip.batch_major(output)[:, 0].to(dtype)

    def see_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen["class token"] = class_token(inputs[0]).to(dtype)

    with hooked([(block.activation, see_activation), (clip.ln_post, see_output)]):
        representation = clip.encode_image(images).to(dtype)
    _, sigma = norm_statistics(seen["class token"], clip.post_eps)
    activation = seen["activation"] / (sigma * representation.norm(dim=-1))[:, None]
    rows = block.neuron_rows.to(dtype) @ output_map(clip, dtype, centred=True)
    effects: Tensor = activation[:, :, None] * rows
    return effects
