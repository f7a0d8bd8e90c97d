"""Whether this version is right about a model: parity, activation function and effects, by dtype.

Effects are compared with a second implementation that shares nothing with `capture` and
`value_paths`: the sums of Eq. 5 (arXiv 2406.04341) as they are written, a block, a head and a
neuron at a time.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .devices import has_float64
from .effects.value_paths import CONVENTIONS, OFFICIAL_SCALE, has_official, second_order
from .errors import SecondLensError
from .models.blocks import Attention, Block
from .models.checks import (
    FUNCTIONS,
    TOLERANCE,
    TOLERANCES,
    activation_error,
    parity_errors,
    relative_error,
)
from .models.readers import ClassToken, MeanOfPatches, OneToken, Pool, normalises
from .models.view import Clip, hooked

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

EFFECT_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.bfloat16: 0.3,
    torch.float16: 0.1,
}
"""Half precision rounds weights and forward pass, and effects are compared with float64."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number of the table."""

    subject: str
    dtype: str
    """Of the model's weights and its forward pass: a key of `DTYPES`."""
    error: float
    """Largest absolute error over the largest absolute value; for the activation function, the
    largest absolute error."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def verify(clip: Clip, trained_with: str | None = None) -> Iterator[Check]:
    """Check a model on random images, in float64, float32, bfloat16 and float16.

    For each dtype, what attention and the MLP of every block add to the class token is rebuilt
    from the view's weights, and second-order effects, in both conventions, of a few neurons of the
    first, a middle and the last layer that has them, are compared with `literal_second_order` of
    the float64 model. A copy of the model is made for each dtype in turn.

    Parameters
    ----------
    clip
        A float32 or float64 model. Where its device has no float64, the CPU computes that.
    trained_with
        The activation function that the weights were trained with, a key of `FUNCTIONS`; by
        default, the one that the first block computes, which is not checked if it has no name.

    Yields
    ------
    One `Check` after another, dtype by dtype.

    Raises
    ------
    SecondLensError
        The model was loaded in half precision, or no activation function has that name.
    """
    if clip.dtype not in (torch.float32, torch.float64):
        raise SecondLensError(
            f"{clip.name} was loaded as {clip.dtype}: load it in fp32, and verify converts it"
        )
    if trained_with is not None and trained_with not in FUNCTIONS:
        raise SecondLensError(
            f"no activation function {trained_with!r}: choose one of {', '.join(FUNCTIONS)}"
        )
    trained_with = trained_with or clip.activation
    if trained_with in FUNCTIONS:
        error = activation_error(clip, trained_with)
        yield Check(
            subject=f"activation is {trained_with}", dtype="fp64", error=error, tolerance=TOLERANCE
        )
    exact = _converted(clip, torch.float64)
    image = clip.noise(1, torch.float64)
    run = LiteralPass.of(exact, image)
    last = clip.last_effect_layer
    layers = sorted({0, last // 2, last}) if last >= 0 else []
    neurons = sorted({0, clip.neurons // 2, clip.neurons - 1})
    conventions = CONVENTIONS if has_official(clip) else CONVENTIONS[:1]
    expected = {
        (convention, layer): torch.stack(
            [literal_second_order(exact, run, layer, n, convention) for n in neurons], dim=1
        )
        for convention in conventions
        for layer in layers
    }
    del exact, run
    for name, dtype in DTYPES.items():
        converted = _converted(clip, dtype)
        tolerance = TOLERANCES[dtype]
        for subject, error in parity_errors(converted).items():
            yield Check(subject=subject, dtype=name, error=error, tolerance=tolerance)
        for (convention, layer), effects in expected.items():
            found = second_order(converted, image, layer, convention)[:, neurons]
            yield Check(
                subject=f"{convention} effects of layer {layer}",
                dtype=name,
                error=relative_error(found.cpu(), effects.cpu()),
                tolerance=EFFECT_TOLERANCES[dtype],
            )


def _converted(clip: Clip, dtype: torch.dtype) -> Clip:
    """The view of a copy of the model, all of it in `dtype`; on the CPU if its device has none."""
    model = copy.deepcopy(clip.model)
    if dtype is torch.float64 and not has_float64(clip.device):
        model = model.cpu()
    model = model.to(dtype)
    return clip.view_of(model)


@dataclass(frozen=True, kw_only=True, eq=False)
class LiteralPass:
    """What one forward pass computed: all that effects are made of, with nothing derived."""

    streams: dict[int, Float[Tensor, "images tokens width"]]
    """The residual stream that `ln_1` reads, by block; a pool is the block after the last."""
    normalised: dict[int, Float[Tensor, "images tokens width"]]
    """What `ln_1` returned."""
    activations: list[Float[Tensor, "images tokens neurons"]]
    post: Float[Tensor, "images *_"]
    """What `ln_post` read."""
    representation: Float[Tensor, "images dim"]
    place: Int[Tensor, " images"] | None
    """Which token is read, where the input says so."""

    @classmethod
    def of(cls, clip: Clip, images: Tensor) -> "LiteralPass":
        """Run what `Clip.prepare` returned through the model."""
        streams: dict[int, Tensor] = {}
        normalised: dict[int, Tensor] = {}
        activations: list[Tensor] = []
        place: list[Tensor | None] = []
        post: list[Tensor] = []
        blocks = {j: block for j, block in enumerate(clip.blocks) if block.heads}
        attentions = {**blocks, **clip.attentions(0)}

        def see_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            place.append(clip.reader.place(inputs[0]))

        def see(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            streams[j] = clip.batch_major(inputs[0])
            normalised[j] = clip.batch_major(attentions[j].read_from(inputs, output))

        def see_post(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            post.append(inputs[0])

        def see_neurons(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            activations.append(clip.batch_major(inputs[0]))

        hooks = [(attention.ln_1, partial(see, j)) for j, attention in attentions.items()]
        before = [(block.mlp_output, see_neurons) for block in clip.blocks]
        before.append((clip.patches, see_input))
        with hooked([*hooks, (clip.ln_post, see_post)], before):
            representation = clip.encode_image(images)
        return cls(
            streams=streams,
            normalised=normalised,
            activations=activations,
            post=post[0],
            representation=representation,
            place=place[0],
        )


def literal_second_order(
    clip: Clip, run: LiteralPass, layer: int, neuron: int | None, convention: str = "exact"
) -> Float[Tensor, "images dim"]:
    """The second-order effect of one neuron as Eq. 5 and appendix A.6 write it, slowly; without a
    neuron, that of all of the layer together, `exact`.

    `exact`: each LayerNorm subtracts the neuron's own mean, and no bias is the neuron's.
    `official`: the neuron takes an equal part, as the published code counts parts, of every
    LayerNorm's mean and of every bias on its way.
    """
    official = convention == "official"
    chosen = slice(None) if neuron is None else slice(neuron, neuron + 1)
    write = run.activations[layer][:, :, chosen] @ clip.blocks[layer].neuron_rows[chosen]
    if official:
        write = write + clip.blocks[layer].mlp_bias / clip.neurons
    total: Tensor = torch.zeros_like(run.representation)
    for j, attention in clip.attentions(layer).items():
        part = 1 / ((1 + 2 * j) * clip.neurons) if official else 0.0
        head_part = part / attention.heads
        post_part = head_part / (1 + 2 * clip.layers)
        normed = write
        if normalises(attention.ln_1):
            gain, bias, eps = attention.gain, attention.bias, attention.eps
            normed = _normed(write, run.streams[j], gain, bias, eps, part)
        for h in range(attention.heads):
            rows = _literal_rows(clip, run, attention, run.normalised[j], h)
            values = normed @ attention.value[h].T + part * attention.value_bias[h]
            head = rows @ values @ attention.output[h] + head_part * attention.output_bias
            total = total + _literal_output(clip, run, head, post_part) @ clip.projection
    scale = OFFICIAL_SCALE if official else 1.0
    length: Tensor = run.representation.norm(dim=-1, keepdim=True)
    return scale * total / length


def _literal_rows(
    clip: Clip, run: LiteralPass, attention: Attention, normalised: Tensor, head: int
) -> Float[Tensor, "images read tokens"]:
    """Attention of every token that is read (the pool's query, or the class token, or all patches)
    in one head, over the scale of `inner_norm` where there is one."""
    if isinstance(attention, Pool):
        return attention.row(normalised, normalised.dtype)[:, head, None]
    assert isinstance(attention, Block)
    rows = _literal_attention(clip, attention, normalised, head)
    if attention.inner_norm is not None:
        read = [
            _literal_attention(clip, attention, normalised, h)
            @ (normalised @ attention.value[h].T + attention.value_bias[h])
            for h in range(attention.heads)
        ]
        variance = torch.cat(read, dim=-1).var(-1, correction=0, keepdim=True)
        rows = rows / (variance + attention.inner_norm.eps).sqrt()
    if isinstance(clip.reader, OneToken):
        assert run.place is not None
        return rows[torch.arange(len(rows)), run.place, None]
    return rows[:, :1] if isinstance(clip.reader, ClassToken) else _read(clip, rows)


def _literal_attention(
    clip: Clip, block: Block, normalised: Tensor, head: int
) -> Float[Tensor, "images tokens tokens"]:
    """Attention of every token to every token in one head."""
    if block.plain_scores:
        query = normalised @ block.query[head].T + block.query_bias[head]
        keys = normalised @ block.key[head].T + block.key_bias[head]
        scores = query @ keys.mT / query.shape[-1] ** 0.5
    else:
        queries, keys = block.queries_and_keys(normalised)
        scores = queries[:, head] @ keys[:, head].mT
    if isinstance(clip.reader, OneToken) and clip.reader.causal:
        count = scores.shape[-1]
        scores = scores + torch.full((count, count), -torch.inf).to(scores).triu(1)
    attention: Tensor = scores.softmax(dim=-1)
    return attention


def _read(clip: Clip, states: Float[Tensor, "images tokens _"]) -> Tensor:
    """Those of the tokens whose mean is the output."""
    assert isinstance(clip.reader, MeanOfPatches)
    return states[:, clip.reader.prefix :]


def _literal_output(
    clip: Clip, run: LiteralPass, head: Float[Tensor, "images read width"], part: float
) -> Float[Tensor, "images width"]:
    """What reaches the projection of what a head wrote to the tokens that are read."""
    if not clip.normalises:
        return head.mean(1)
    if clip.reader.waits:
        seen = _read(clip, run.post)
    else:
        head, seen = head.mean(1, keepdim=True), clip.reader.pooled(run.post, run.place)[:, None]
    output = _normed(head, seen, clip.post_gain, clip.post_bias, clip.post_eps, part)
    return output.mean(1)


def _normed(
    states: Tensor, seen: Tensor, gain: Tensor, bias: Tensor, eps: float, part: float
) -> Tensor:
    """`states` through a LayerNorm that saw the sum `seen`, whose scale is kept.

    The mean is that of `states`, or, where there is a `part`, this part of that of `seen`, and
    this part of the bias.
    """
    mean = part * seen.mean(-1, keepdim=True) if part else states.mean(-1, keepdim=True)
    sigma = (seen.var(-1, correction=0, keepdim=True) + eps).sqrt()
    normed: Tensor = (states - mean) / sigma * gain + part * bias
    return normed
