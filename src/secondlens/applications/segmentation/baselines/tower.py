"""The image tower run with its attention spelt out, so that attention maps and their gradients can
be read. Hooks put equal values in place of what modules return; the model itself is not changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....errors import SecondLensError, UnsupportedModel
from ....models.blocks import Block
from ....models.view import Clip, Images, check_eval, hooked

Rule = Literal["plus", "zero"]
"""How relevance passes a linear layer. `plus`: in proportion to positive contributions only (the
rule of Bach et al. 2015 with alpha 1 and beta 0). `zero`: in proportion to all contributions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """One forward pass whose graph is kept."""

    tokens: Float[Tensor, "images tokens width"]
    """What block 0 saw."""
    attention: list[Float[Tensor, "images heads tokens tokens"]]
    """By block; rows attend to columns."""
    streams: list[Float[Tensor, "images tokens width"]]
    """After each block."""
    representation: Float[Tensor, "images dim"]


def run(clip: Clip, images: Images, *, relevance: Rule | None = None) -> Pass:
    """Run the tower; gradients of the result can be taken with respect to all it holds.

    With `relevance`, the values are the same but the gradients are those of a network made linear
    in which LayerNorm scales, attention maps and the ratios of activations to their inputs are
    constants (Ali et al. 2022). An input times its gradient is then its relevance (Bach et al.
    2015), and relevance is passed on through linear layers by the rule.
    """
    check_eval(clip.model)
    clip.check_class_token("attention's relevance")
    for number, block in enumerate(clip.blocks):
        if block.inner_norm is not None or (block.gated and relevance is not None):
            what = "gates its neurons" if block.inner_norm is None else "has a norm in attention"
            raise UnsupportedModel(
                f"attention's relevance of {clip.name} cannot be told: block {number} {what}"
            )
    prepared = clip.prepare(images)
    normalised: dict[int, Tensor] = {}
    attention: list[Tensor] = []
    tokens: list[Tensor] = []
    streams: list[Tensor] = []

    def start(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens.append(clip.batch_major(inputs[0]).detach().requires_grad_())
        return (clip.as_module(tokens[0]), *inputs[1:])

    def see(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        normalised[j] = clip.batch_major(output)

    def see_end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # some blocks return a tuple
        states = output[0] if isinstance(output, tuple) else output
        streams.append(clip.batch_major(states))

    def attend(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        block = clip.blocks[j]
        maps = attention_maps(block, normalised[j])
        if relevance is not None:
            maps = maps.detach().requires_grad_()
        attention.append(maps)
        return clip.as_module(_mix(block, normalised[j], maps, relevance))

    hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
    if relevance is not None:
        hooks += _linearising_hooks(clip, relevance)
    hooks += [(block.ln_1, partial(see, j)) for j, block in enumerate(clip.blocks)]
    hooks += [(block.attention_end, partial(attend, j)) for j, block in enumerate(clip.blocks)]
    hooks += [(block.module, see_end) for block in clip.blocks]
    with torch.enable_grad(), hooked(hooks, before=[(clip.blocks[0].module, start)]):
        representation = clip.image_tower(prepared)
    return Pass(
        tokens=tokens[0], attention=attention, streams=streams, representation=representation
    )


def first_of_last(clip: Clip, count: int) -> int:
    """The block that the last `count` blocks begin with.

    Raises
    ------
    SecondLensError
        There are not so many, or none are asked for.
    """
    if not 1 <= count <= clip.layers:
        raise SecondLensError(f"{count} blocks cannot be read: give from 1 to {clip.layers}")
    return clip.layers - count


def gradients(
    of: Float[Tensor, " images"], to: list[Tensor], *, again: bool = False
) -> list[Tensor]:
    """Of each image's score; images do not depend on one another, so their sum will do.

    With `again`, the graph is kept for other gradients.
    """
    return list(torch.autograd.grad(of.sum(), to, retain_graph=again or None))


def attention_maps(
    block: Block, normalised: Float[Tensor, "images tokens width"]
) -> Float[Tensor, "images heads tokens tokens"]:
    """softmax(query . key / sqrt(head width)), from the output of `ln_1`."""
    query, key = block.queries_and_keys(normalised)
    return (query @ key.mT).softmax(dim=-1)


def _mix(block: Block, normalised: Tensor, maps: Tensor, rule: Rule | None) -> Tensor:
    """[images, tokens, width]: what attention adds to the stream (Eq. 4), biases included."""
    value = _linear(normalised, block.value.flatten(0, 1), block.value_bias.flatten(), rule)
    heads = value.unflatten(-1, block.value.shape[:2]).transpose(1, 2)
    mixed = (maps @ heads).transpose(1, 2).flatten(2)
    return _linear(mixed, block.output.flatten(0, 1).T, block.output_bias, rule)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, rule: Rule | None) -> Tensor:
    output = nn.functional.linear(x, weight, bias)
    return _pass_plus(x, weight, output) if rule == "plus" else output


def _pass_plus(x: Tensor, weight: Tensor, output: Tensor) -> Tensor:
    """`output` by value; relevance reaches `x` in proportion to the positive products x * w."""
    linear = nn.functional.linear
    positive: Tensor = linear(x.clamp(min=0), weight.clamp(min=0))
    positive = positive + linear(x.clamp(max=0), weight.clamp(max=0))
    return positive * (output / positive.clamp(min=torch.finfo(x.dtype).eps)).detach()


def _linearising_hooks(clip: Clip, rule: Rule) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Make every block and `ln_post` linear where they are, attention excepted."""
    active: dict[int, Tensor] = {}

    def freeze_norm(module: nn.LayerNorm, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        centred = x - x.mean(dim=-1, keepdim=True)
        sigma = (centred.square().mean(dim=-1, keepdim=True) + module.eps).sqrt().detach()
        normed: Tensor = centred / sigma * module.weight + module.bias
        return normed

    def freeze_activation(
        j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        x = inputs[0]
        # at 0, the ratio of a smooth activation is its slope there, which is 1/2 for GELUs
        ratio = torch.where(x == 0, 0.5, output / torch.where(x == 0, 1.0, x))
        active[j] = x * ratio.detach()
        return active[j]

    def write(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        block = clip.blocks[j]
        return _linear(active[j], block.neuron_rows.T, block.mlp_bias, rule)

    def pass_plus(module: nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return _pass_plus(inputs[0], module.weight, output)

    yield clip.ln_post, freeze_norm
    for j, block in enumerate(clip.blocks):
        for module in block.module.modules():
            if isinstance(module, nn.LayerNorm):
                yield module, freeze_norm
            elif isinstance(module, nn.Linear) and rule == "plus":
                yield module, pass_plus
        yield block.activation, partial(freeze_activation, j)
        # layer scale is part of the weights, here as in attention
        yield block.mlp_end, partial(write, j)
