"""Does the view of a model tell the truth? Rebuild what the model computes, and compare."""

import torch
from torch import Tensor, nn

from .errors import UnsupportedModel
from .view import Block, Clip, class_token, hooked

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_parity(clip: Clip, tolerance: float | None = None) -> float:
    """Rebuild what every block adds to the class token from folded weights, and compare.

    Two random images run through the model. Attention: the folded attention row, W_V, W_O and
    biases (Eq. 4); MLP: activations times neuron rows; output: `ln_post`, then the projection.

    Parameters
    ----------
    clip
        The model.
    tolerance
        On the largest error over the largest value; by default one for the model's dtype.

    Returns
    -------
    The largest such error.

    Raises
    ------
    UnsupportedModel
        The error is above the tolerance.
    """
    if tolerance is None:
        tolerance = TOLERANCES[clip.dtype]
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen[module] = output.to(clip.compute_dtype)

    read = [(b.ln_1, b.activation, b.attention_end, b.mlp_end) for b in clip.blocks]
    images = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    with hooked((module, see) for modules in [*read, (clip.ln_post,)] for module in modules):
        representation = clip.encode_image(images)
    projected = class_token(seen[clip.ln_post]) @ clip.projection.to(clip.compute_dtype)
    errors = {"the embedding": _relative_error(projected, representation)}
    for j, (block, modules) in enumerate(zip(clip.blocks, read, strict=True)):
        normalised, activation, attention, mlp = (clip.batch_major(seen[m]) for m in modules)
        rebuilt = _attention_output(block, normalised)
        errors[f"the attention output of block {j}"] = _relative_error(rebuilt, attention[:, 0])
        rebuilt = activation[:, 0] @ block.neuron_rows.to(activation.dtype) + block.mlp_bias
        errors[f"the MLP output of block {j}"] = _relative_error(rebuilt, mlp[:, 0])
    worst = max(errors, key=lambda where: errors[where])
    if errors[worst] > tolerance:
        raise UnsupportedModel(
            f"{clip.name} cannot be explained: {worst} differs from the one rebuilt from the "
            f"weights by {errors[worst]:.1e} of its size, and {tolerance:.0e} is allowed"
        )
    return errors[worst]


def _attention_output(block: Block, normalised: Tensor) -> Tensor:
    """[images, width]: what attention adds to the class token (Eq. 4), biases included."""
    dtype = normalised.dtype
    mixed = torch.bmm(block.class_attention(normalised), normalised)
    heads = torch.einsum("bhw,hew->bhe", mixed, block.value.to(dtype)) + block.value_bias
    return torch.einsum("bhe,hew->bw", heads, block.output.to(dtype)) + block.output_bias


def _relative_error(rebuilt: Tensor, real: Tensor) -> float:
    error = (rebuilt - real).abs().max() / real.abs().max()
    return float(error.nan_to_num(nan=torch.inf))
