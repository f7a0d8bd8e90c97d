"""Effects of single neurons on the normalised image embedding, for images at hand.

Direct, indirect and second-order effects as section 3 of arXiv 2406.04341 defines them, each
divided by the norm of the representation r: they are parts of the unit embedding that similarities
with texts are computed from. `paths` explains the two conventions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .capture import Capture, Pooled, norm_statistics
from .errors import SecondLensError
from .paths import (
    NEURONS_PER_CHUNK,
    Isometry,
    PathFactors,
    carry,
    chunks,
    extended_coefficients,
    image_scale,
    isometry,
    output_map,
    path_factors,
    value_paths,
)
from .view import Clip, Images, class_token, hooked

__all__ = [
    "Isometry",
    "PathFactors",
    "bias_effect",
    "direct",
    "extended_coefficients",
    "image_scale",
    "indirect",
    "isometry",
    "path_factors",
    "second_order",
    "value_paths",
]

IMAGES_PER_PASS = 64


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

    def see_activation(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen["activation"] = clip.batch_major(output)[:, 0].to(dtype)

    def see_output(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen["class token"] = class_token(inputs[0]).to(dtype)

    with hooked([(block.activation, see_activation), (clip.ln_post, see_output)]):
        representation = clip.encode_image(images).to(dtype)
    _, sigma = norm_statistics(seen["class token"], clip.post_eps)
    activation = seen["activation"] / (sigma * representation.norm(dim=-1))[:, None]
    rows = block.neuron_rows.to(dtype) @ output_map(clip, dtype, centred=True)
    return activation[:, :, None] * rows


@torch.no_grad()
def indirect(
    clip: Clip,
    images: Images,
    layer: int,
    neurons: Sequence[int],
    mean: Float[Tensor, "tokens neurons"],
) -> Float[Tensor, "images chosen dim"]:
    """Indirect effects: (r - r with the neuron at its mean at every token) / norm of r.

    The network runs once more for each image and neuron, from `layer` on, a bounded number of
    them at a time.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        Any MLP layer.
    neurons
        Which ones of the layer, in the order of the result.
    mean
        The activation to put in place of each neuron's own, by token and neuron.

    Raises
    ------
    SecondLensError
        No such layer or neuron, a mean of another shape, or images that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    if bad := [n for n in neurons if not 0 <= n < clip.neurons]:
        raise SecondLensError(f"layer {layer} has no neuron {bad[0]}: it has {clip.neurons}")
    if mean.shape != (clip.tokens, clip.neurons):
        raise SecondLensError(
            f"mean needs a row for each token and a column for each neuron, "
            f"[{clip.tokens}, {clip.neurons}], and it is {list(mean.shape)}"
        )
    images = clip.prepare(images)
    effects = images.new_empty(len(images), len(neurons), clip.dim, dtype=clip.compute_dtype)
    for some in chunks(len(images), IMAGES_PER_PASS):
        original = clip.encode_image(images[some]).to(clip.compute_dtype)
        for chunk in chunks(len(neurons), IMAGES_PER_PASS // len(original)):
            ablated = _ablated(clip, images[some], layer, neurons[chunk], mean)
            effects[some, chunk] = original[:, None] - ablated.to(clip.compute_dtype)
        effects[some] /= original.norm(dim=-1)[:, None, None]
    return effects


def _ablated(
    clip: Clip, images: Tensor, layer: int, neurons: Sequence[int], mean: Tensor
) -> Float[Tensor, "images chosen dim"]:
    """Representations with each of the neurons at its mean: one copy of an image for each."""
    block = clip.blocks[layer]
    copies, index = len(neurons), torch.tensor(neurons, device=clip.device)

    def repeat(module: nn.Module, inputs: tuple) -> tuple:
        batch = 0 if clip.batch_first else 1
        return (inputs[0].repeat_interleave(copies, dim=batch), *inputs[1:])

    def ablate(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        states = clip.batch_major(output).unflatten(0, (-1, copies)).clone()
        # indexed so, the result is [copies, images, tokens]
        states[:, range(copies), :, index] = mean.to(states)[:, index].T[:, None]
        return clip.batch_major(states.flatten(0, 1))

    with hooked([(block.activation, ablate)], before=[(block.module, repeat)]):
        return clip.encode_image(images).unflatten(0, (-1, copies))
