"""Checks at load: whether a view tells the truth of its model, and which activation it has.

What the model computes is rebuilt from the view and compared.

OpenAI's weights, and some others, were trained with QuickGELU. Run with plain GELU they work, and
every activation and every text embedding is slightly wrong: so an activation function that is not
known, or about which two sources disagree, is refused.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SecondLensError, UnsupportedModel
from .blocks import Block
from .open_clip.stages import Stage
from .readers import AttentionPool, ClassToken, OneToken
from .recognition import published_files
from .view import Clip, hooked

# float64: transformers' eager attention takes its softmax in float32 whatever the model's dtype
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_parity(clip: Clip, tolerance: float | None = None) -> float:
    """Rebuild what every block adds to its tokens from the view's weights, and compare.

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

    Two random images run through the model. Attention: the attention row, W_V, W_O and biases
    (Eq. 4), of the class token, or of all tokens together where all are read; MLP: activations
    times neuron rows; pool: its own row; embedding: `ln_post`, then the projection. Each error is
    the largest absolute one over the largest absolute value.
    """
    seen: dict[nn.Module, Tensor] = {}
    neurons: dict[int, Tensor] = {}
    place: list[Tensor | None] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first: Tensor = output[0] if isinstance(output, tuple) else output  # torch's attention
        seen[module] = first.to(clip.compute_dtype)

    def see_pool(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert pool is not None
        read.append(pool.read_from(inputs, output).to(clip.compute_dtype))

    def see_neurons(j: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        neurons[j] = clip.batch_major(inputs[0]).to(clip.compute_dtype)

    def see_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        place.append(clip.reader.place(inputs[0]))

    ends = [each for b in clip.blocks for each in (b.ln_1, b.attention_end) if b.heads]
    ends += [block.mlp_end for block in clip.blocks]
    pool = clip.reader.pool if isinstance(clip.reader, AttentionPool) else None
    read: list[Tensor] = []
    of_pool = [] if pool is None else [(pool.ln_1, see_pool), (pool.attention_end, see)]
    before: list[tuple[nn.Module, Callable[..., Any]]] = [(clip.patches, see_input)]
    before += [(b.mlp_output, partial(see_neurons, j)) for j, b in enumerate(clip.blocks)]
    hooks = [(module, see) for module in {*ends, clip.ln_post}]
    with hooked([*hooks, *of_pool], before):
        representation = clip.encode_image(clip.noise(2)).to(clip.compute_dtype)
    projected = clip.reader.pooled(seen[clip.ln_post], place[0]) @ clip.projection.to(
        clip.compute_dtype
    )
    if clip.read_offset is not None:
        projected = projected + clip.read_offset()
    if clip.head is not None:
        projected = clip.head(projected)
    errors = {"embedding": relative_error(projected, representation)}
    for j, block in enumerate(clip.blocks):
        if block.heads:
            errors[f"attention output of block {j}"] = _attention_error(
                clip,
                block,
                clip.batch_major(seen[block.ln_1]),
                clip.batch_major(seen[block.attention_end]),
                place[0],
            )
        mlp = clip.batch_major(seen[block.mlp_end])
        rebuilt = neurons[j][:, 0] @ block.neuron_rows.to(mlp.dtype) + block.mlp_bias
        errors[f"MLP output of block {j}"] = relative_error(rebuilt, mlp[:, 0])
    if pool is not None:
        normalised = clip.batch_major(read[0])
        rebuilt = pool.attended(pool.row(normalised, normalised.dtype), normalised)
        given = clip.reader.pooled(seen[pool.attention_end])
        errors["output of the attention pool"] = relative_error(rebuilt, given)
    return errors


def _attention_error(
    clip: Clip, block: Block, normalised: Tensor, attention: Tensor, place: Tensor | None
) -> float:
    if isinstance(clip.reader, OneToken):
        rows = clip.reader.rows(block, normalised, normalised.dtype, place=place)
        given = clip.reader.direct(attention, place=place)
        return relative_error(block.attended(rows, normalised), given)
    if isinstance(clip.reader, ClassToken):
        rebuilt = block.attended(block.class_rows(normalised), normalised)
        return relative_error(rebuilt, attention[:, 0])
    # of tokens with weights that no two share, so that none is hidden by another
    count = normalised.shape[1]
    weights = torch.linspace(0.5, 1.5, count, dtype=normalised.dtype, device=normalised.device)
    weights = (weights / weights.sum()).expand(len(normalised), -1)
    rebuilt = block.attended(block.weighted_attention(normalised, weights), normalised)
    return relative_error(rebuilt, torch.bmm(weights[:, None], attention)[:, 0])


def relative_error(rebuilt: Tensor, real: Tensor) -> float:
    """Largest absolute error over the largest absolute value; infinite where either has NaN."""
    error = (rebuilt - real).abs().max() / real.abs().max()
    return float(error.nan_to_num(nan=torch.inf))


Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
STATABLE = ("gelu", "quick_gelu")
"""What open_clip can be told to build."""
TOLERANCE = 1e-6
"""Functions of one name agree to rounding; GELU and its tanh form differ by 5e-4."""


@torch.no_grad()
def difference(one: Function, other: Function) -> float:
    """Largest absolute difference of two functions between -8 and 8; outside, both are linear."""
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    return float((one(grid) - other(grid)).abs().max())


def activation_name(activation: nn.Module) -> str:
    """The key of `FUNCTIONS` that a module computes, whatever its class, or else its class name."""
    if next(activation.parameters(), None) is None:
        for name, function in FUNCTIONS.items():
            if difference(activation, function) <= TOLERANCE:
                return name
    return type(activation).__name__


def chosen_activations(clip: Clip) -> list[nn.Module]:
    """The functions that open_clip's choice between GELU and QuickGELU reaches.

    They are those of all blocks; or, for a convolutional tower, which has none of them, those of
    the text tower.
    """
    if not isinstance(clip.blocks[0], Stage):
        return [block.activation for block in clip.blocks]
    text: Any = getattr(clip.model, "text", clip.model)
    return [block.mlp.gelu for block in text.transformer.resblocks]


def activation_error(clip: Clip, trained_with: str) -> float:
    """Largest absolute difference of any chosen activation from the function of that name."""
    function = FUNCTIONS[trained_with]
    return max(difference(each, function) for each in chosen_activations(clip))


def check_activation(clip: Clip, trained_with: str) -> None:
    """Raise `UnsupportedModel` unless all blocks compute what the weights were trained with."""
    error = activation_error(clip, trained_with)
    if error > TOLERANCE:
        raise UnsupportedModel(
            f"{clip.name} computes {activation_name(chosen_activations(clip)[0])}, and its weights "
            f"are said to be trained with {trained_with}: an activation differs by up to "
            f"{error:.1e}, and {TOLERANCE:.0e} is allowed"
        )


def trained_activation(
    name: str, pretrained: str | None, stated: str | None = None, check: bool = True
) -> str | None:
    """The function that open_clip weights were trained with, or None if nothing says it.

    Three sources are heard, in this order: what the caller states; open_clip's own record, found
    by the tag or, for a file, by a published SHA-256; and a model name that stands for QuickGELU.
    `hf-hub:` and `local-dir:` models, image towers of timm, and all that are not open_clip's, come
    with a configuration that builds them, so only a statement is heard.

    Parameters
    ----------
    name, pretrained
        As `load` takes them.
    stated
        "gelu" or "quick_gelu".
    check
        Whether to raise.

    Raises
    ------
    SecondLensError
        The sources disagree, or no source knows the function of a checkpoint file.
    """
    config = open_clip.get_model_config(name.replace("/", "-")) if ":" not in name else None
    if config is None or "timm_model_name" in config["vision_cfg"]:
        return stated
    record = None
    if pretrained is not None and open_clip.is_pretrained_cfg(name.replace("/", "-"), pretrained):
        record = _recorded(name.replace("/", "-"), pretrained)
    elif pretrained is not None:
        record = _published(Path(pretrained))
    by_source = {
        "activation": stated,
        f"open_clip's record of {pretrained}": record,
        f"the name {name}": "quick_gelu" if config.get("quick_gelu") else None,
    }
    known = {source: function for source, function in by_source.items() if function is not None}
    if check and len(set(known.values())) > 1:
        says = " and ".join(f"{source} says {function}" for source, function in known.items())
        error = difference(FUNCTIONS["gelu"], FUNCTIONS["quick_gelu"])
        raise SecondLensError(
            f"{says}, which differ by up to {error:.1e}: give what the weights were trained with"
        )
    if check and pretrained is not None and not known:
        raise SecondLensError(
            f"{pretrained} does not say which activation function it was trained with: state "
            "activation gelu or quick_gelu (weights that OpenAI trained need quick_gelu)"
        )
    return next(iter(known.values()), None)


def _recorded(model: str, tag: str) -> str:
    """What a tag was trained with: QuickGELU is recorded either with the tag or with the model."""
    configs = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
    return "quick_gelu" if any(config.get("quick_gelu") for config in configs) else "gelu"


def _published(checkpoint: Path) -> str | None:
    """What a published file was trained with, known by its hash."""
    return next((_recorded(*each) for each in published_files(checkpoint)), None)
