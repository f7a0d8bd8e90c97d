"""Does the view of a model tell the truth? Rebuild what the model computes, and compare."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SecondLensError, UnsupportedModel
from .block import Block
from .view import Clip, class_token, hooked

# float64: transformers' eager attention takes its softmax in float32 whatever the model's dtype
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_parity(clip: Clip, tolerance: float | None = None) -> float:
    """Rebuild what every block adds to the class token from the view's weights, and compare.

    Parameters
    ----------
    clip
        The model.
    tolerance
        On the largest of `parity_errors`; by default one for the model's dtype.

    Returns
    -------
    The largest of `parity_errors`.

    Raises
    ------
    SecondLensError
        A weight of the model is NaN or infinite.
    UnsupportedModel
        The error is above the tolerance.
    """
    check_weights(clip)
    if tolerance is None:
        tolerance = TOLERANCES[clip.dtype]
    errors = parity_errors(clip)
    worst = max(errors, key=lambda where: errors[where])
    if errors[worst] > tolerance:
        raise UnsupportedModel(
            f"{clip.name} cannot be explained: the {worst} differs from the one rebuilt from the "
            f"weights by {errors[worst]:.1e} of its size, and {tolerance:.0e} is allowed"
        )
    return errors[worst]


def check_weights(clip: Clip) -> None:
    """Raise `SecondLensError` if a weight of either tower is NaN or infinite, and name it."""
    for name, weight in clip.model.named_parameters():
        # a sum is faster than looking at every weight, and shows any NaN or infinity
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise SecondLensError(
                f"{clip.name} has NaN or infinity in {name}: get the checkpoint again, or use a "
                "wider precision"
            )


def parity_errors(clip: Clip) -> dict[str, float]:
    """Errors of what is rebuilt from the view's weights, by name.

    Two random images run through the model. Attention: the folded attention row, W_V, W_O and
    biases (Eq. 4); MLP: activations times neuron rows; embedding: `ln_post`, then the projection.
    Each error is the largest absolute one over the largest absolute value.
    """
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[module] = output.to(clip.compute_dtype)

    read = [(b.ln_1, b.activation, b.attention_end, b.mlp_end) for b in clip.blocks]
    images = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    with hooked((module, see) for modules in [*read, (clip.ln_post,)] for module in modules):
        representation = clip.encode_image(images)
    projected = class_token(seen[clip.ln_post]) @ clip.projection.to(clip.compute_dtype)
    errors = {"embedding": relative_error(projected, representation)}
    for j, (block, modules) in enumerate(zip(clip.blocks, read, strict=True)):
        normalised, activation, attention, mlp = (clip.batch_major(seen[m]) for m in modules)
        rebuilt = _attention_output(block, normalised)
        errors[f"attention output of block {j}"] = relative_error(rebuilt, attention[:, 0])
        rebuilt = activation[:, 0] @ block.neuron_rows.to(activation.dtype) + block.mlp_bias
        errors[f"MLP output of block {j}"] = relative_error(rebuilt, mlp[:, 0])
    return errors


def _attention_output(block: Block, normalised: Tensor) -> Tensor:
    """[images, width]: what attention adds to the class token (Eq. 4), biases included."""
    dtype = normalised.dtype
    mixed = torch.bmm(block.class_attention(normalised), normalised)
    heads = torch.einsum("bhw,hew->bhe", mixed, block.value.to(dtype)) + block.value_bias
    return torch.einsum("bhe,hew->bw", heads, block.output.to(dtype)) + block.output_bias


def relative_error(rebuilt: Tensor, real: Tensor) -> float:
    """Largest absolute error over the largest absolute value; infinite where either has NaN."""
    error = (rebuilt - real).abs().max() / real.abs().max()
    return float(error.nan_to_num(nan=torch.inf))
