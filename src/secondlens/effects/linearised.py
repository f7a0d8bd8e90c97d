"""The image tower linearised at a batch of images: every edge of its derivative, both ways.

An edge is a linear map between two places of the residual stream. Each block has the edges *value*,
*query* and *key* of its attention, and its *MLP*. What reaches them passes a LayerNorm, whose
derivative is again two edges: with its scale frozen, and through the *norm*'s scale,

    linear(x) = g * C(x) / sigma        through_scale(x) = -g * c * mean(c * x) / sigma^3

with c the centred input, C(x) = x - mean(x) and g the gain. Maps are applied to stacks
[images, tokens, stacked, width], which are changes of the stream going forward, and gradients with
respect to it (`_back`) going backward.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SecondLensError, UnsupportedModel
from ..models.blocks import Block, is_affine
from ..models.units.activation import UnitActivation
from ..models.view import Clip, hooked

Stack = Float[Tensor, "images tokens stacked width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearNorm:
    """The derivative of a LayerNorm at given states."""

    gain: Float[Tensor, " width"]
    centred: Float[Tensor, "*batch 1 width"]
    sigma: Float[Tensor, "*batch 1 1"]

    @classmethod
    def at(
        cls, states: Float[Tensor, "*batch width"], norm: Any, dtype: torch.dtype
    ) -> "LinearNorm":
        """The derivative of a `LayerNorm` at its input."""
        states = states.to(dtype)
        centred = states - states.mean(dim=-1, keepdim=True)
        sigma = (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
        gain = norm.weight.detach().to(dtype)
        return cls(gain=gain, centred=centred[..., None, :], sigma=sigma[..., None, :])

    def linear(self, x: Tensor) -> Tensor:
        """With the scale frozen."""
        return self.gain * (x - x.mean(dim=-1, keepdim=True)) / self.sigma

    def through_scale(self, x: Tensor) -> Tensor:
        """Through the scale alone."""
        moved = (self.centred * x).mean(dim=-1, keepdim=True) / self.sigma**3
        return -self.gain * self.centred * moved

    def linear_back(self, y: Tensor) -> Tensor:
        """The transpose of `linear`."""
        scaled = self.gain * y
        return (scaled - scaled.mean(dim=-1, keepdim=True)) / self.sigma

    def through_scale_back(self, y: Tensor) -> Tensor:
        """The transpose of `through_scale`."""
        moved = (self.gain * y * self.centred).mean(dim=-1, keepdim=True) / self.sigma**3
        return -self.centred * moved


class LinearBlock:
    """The edges of one block. Whatever of them needs attention computes it once, when first used.

    Parameters
    ----------
    block
        Of the view.
    before, between
        The residual stream before the block, and between its attention and its MLP.
    slope
        Derivative of the activation function at each neuron and token.
    dtype
        To compute in.
    """

    def __init__(
        self,
        block: Block,
        before: Float[Tensor, "images tokens width"],
        between: Float[Tensor, "images tokens width"],
        slope: Float[Tensor, "images tokens neurons"],
        dtype: torch.dtype,
    ) -> None:
        self.block, self.dtype, self.slope = block, dtype, slope
        self.norm_1 = LinearNorm.at(before, block.ln_1, dtype)
        self.norm_2 = LinearNorm.at(between, block.ln_2, dtype)
        self.query_rows, self.key_rows, self.value_rows, self.output_rows = (
            each.to(dtype).flatten(0, 1)
            for each in (block.query, block.key, block.value, block.output)
        )
        self.heads, self.head_width = block.query.shape[:2]
        self.neuron_inputs = neuron_inputs(block).to(dtype)
        self.neuron_rows = block.neuron_rows.to(dtype)

    @cached_property
    def _normalised(self) -> Tensor:
        centred = self.norm_1.centred / self.norm_1.sigma
        return (centred * self.norm_1.gain + self.block.bias.to(self.dtype))[:, :, 0]

    def _projected(self, rows: Tensor, bias: Tensor) -> Float[Tensor, "images heads tokens width"]:
        found = self._normalised @ rows.T + bias.to(self.dtype).flatten()
        by_head: Tensor = found.unflatten(-1, (self.heads, self.head_width))
        return by_head.transpose(1, 2)

    @cached_property
    def queries(self) -> Float[Tensor, "images heads tokens head_width"]:
        """Over the root of the head's width, so that scores are products with `keys`."""
        queries = self._projected(self.query_rows, self.block.query_bias)
        scaled: Tensor = queries * self.head_width**-0.5
        return scaled

    @cached_property
    def keys(self) -> Float[Tensor, "images heads tokens head_width"]:
        """Of every token."""
        return self._projected(self.key_rows, self.block.key_bias)

    @cached_property
    def values(self) -> Float[Tensor, "images heads tokens head_width"]:
        """Of every token."""
        return self._projected(self.value_rows, self.block.value_bias)

    @cached_property
    def attention(self) -> Float[Tensor, "images heads tokens tokens"]:
        """What each token (row) takes from each token (column)."""
        return (self.queries @ self.keys.mT).softmax(dim=-1)

    # -- between stacks and heads ------------------------------------------------------------

    def _split(self, stack: Tensor) -> Float[Tensor, "images heads stacked tokens head_width"]:
        by_head: Tensor = stack.unflatten(-1, (self.heads, self.head_width))
        return by_head.permute(0, 3, 2, 1, 4)

    def _joined(self, heads: Tensor) -> Float[Tensor, "images tokens stacked joined"]:
        return heads.permute(0, 3, 2, 1, 4).flatten(-2)

    def _mixed(self, attention: Tensor, heads: Tensor) -> Tensor:
        """Tokens mixed by one attention for all that is stacked: one product, not one for each."""
        stacked = heads.shape[2]
        together = heads.permute(0, 1, 3, 2, 4).flatten(-2)
        mixed: Tensor = (attention @ together).unflatten(-1, (stacked, self.head_width))
        return mixed.permute(0, 1, 3, 2, 4)

    # -- edges, forward: from the output of a LayerNorm to the stream -------------------------

    def value(self, y: Stack) -> Stack:
        """Through the values, with attention frozen."""
        heads = self._mixed(self.attention, self._split(y @ self.value_rows.T))
        return self._joined(heads) @ self.output_rows

    def query(self, y: Stack) -> Stack:
        """Through the queries: each token looks elsewhere."""
        moved = self._split(y @ self.query_rows.T) * self.head_width**-0.5
        return self._patterns(moved @ self.keys[:, :, None].mT)

    def key(self, y: Stack) -> Stack:
        """Through the keys: each token is looked at otherwise."""
        moved = self._split(y @ self.key_rows.T)
        return self._patterns(self.queries[:, :, None] @ moved.mT)

    def attend(self, y: Stack) -> Stack:
        """Through values, queries and keys."""
        return self.value(y) + self.query(y) + self.key(y)

    def mlp(self, y: Stack) -> Stack:
        """Through the MLP."""
        return (self.slope[:, :, None] * (y @ self.neuron_inputs.T)) @ self.neuron_rows

    def _patterns(self, scores: Tensor) -> Stack:
        """What changes of scores, [images, heads, stacked, tokens, tokens], write."""
        attention = self.attention[:, :, None]
        moved = attention * (scores - (attention * scores).sum(dim=-1, keepdim=True))
        return self._joined(moved @ self.values[:, :, None]) @ self.output_rows

    # -- their transposes: from the stream to the output of a LayerNorm ------------------------

    def heads_back(self, z: Stack) -> Float[Tensor, "images heads stacked tokens head_width"]:
        """From the stream to what each head writes; the next two begin there."""
        return self._split(z @ self.output_rows.T)

    def value_back(self, heads: Tensor) -> Stack:
        """The transpose of `value`, from `heads_back`."""
        return self._joined(self.values_back(heads)) @ self.value_rows

    def values_back(self, heads: Tensor) -> Float[Tensor, "images heads stacked tokens head_width"]:
        """From what each head writes to its values."""
        return self._mixed(self.attention.mT, heads)

    def patterns_back(self, heads: Tensor) -> tuple[Stack, Stack]:
        """The transposes of `query` and `key`, from `heads_back`."""
        queries, keys = self.scores_back(heads)
        return self._joined(queries) @ self.query_rows, self._joined(keys) @ self.key_rows

    def scores_back(
        self, heads: Tensor
    ) -> tuple[
        Float[Tensor, "images heads stacked tokens head_width"],
        Float[Tensor, "images heads stacked tokens head_width"],
    ]:
        """From what each head writes to its queries and keys."""
        attention = self.attention[:, :, None]
        wanted = heads @ self.values[:, :, None].mT
        scores = attention * (wanted - (attention * wanted).sum(dim=-1, keepdim=True))
        queries = scores @ self.keys[:, :, None] * self.head_width**-0.5
        return queries, scores.mT @ self.queries[:, :, None]

    def neurons_back(self, worth: Float[Tensor, "images tokens stacked neurons"]) -> Stack:
        """The transpose of `mlp`, from the worth of one unit of each activation."""
        return (self.slope[:, :, None] * worth) @ self.neuron_inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Linearised:
    """A batch of images, and the derivative of the tower at it."""

    clip: Clip
    representation: Float[Tensor, "images dim"]
    """What the network gives, not normalised."""
    length: Float[Tensor, " images"]
    """What effects are measured in: by default the norm of the representation."""
    activations: dict[int, Float[Tensor, "images tokens neurons"]]
    """By MLP layer."""
    blocks: dict[int, LinearBlock]
    """By number; those before the one that the network was run on from are not there."""
    norm_post: LinearNorm
    """At the class token: stacks are [images, stacked, width]."""


class Tape:
    """Hooks that keep what `Linearised` needs of a forward pass, gone when the `with` ends."""

    def __init__(self, clip: Clip) -> None:
        check_paths(clip)
        self.clip = clip
        self._before: dict[int, Tensor] = {}
        self._between: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._activations: dict[int, Tensor] = {}
        self._post: list[Tensor] = []

    def hooks(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Of all blocks and `ln_post`, for `hooked`."""
        found: list[tuple[nn.Module, Callable[..., Any]]] = []
        for number, block in enumerate(self.clip.blocks):
            found += [
                (block.ln_1, partial(self._keep_input, self._before, number)),
                (block.ln_2, partial(self._keep_input, self._between, number)),
                (block.activation, partial(self._keep_both, number)),
            ]
        return [*found, (self.clip.ln_post, self._keep_post)]

    def linearised(
        self,
        representation: Float[Tensor, "images dim"],
        length: "Float[Tensor, ' images'] | None" = None,
    ) -> Linearised:
        """The derivative at the pass that gave this representation."""
        dtype = self.clip.compute_dtype
        representation = representation.to(dtype)
        blocks = {
            number: LinearBlock(
                self.clip.blocks[number],
                before,
                self._between[number],
                slope(self.clip.blocks[number].activation, self._inputs[number].to(dtype)),
                dtype,
            )
            for number, before in self._before.items()
        }
        return Linearised(
            clip=self.clip,
            representation=representation,
            length=representation.norm(dim=-1) if length is None else length.to(dtype),
            activations={number: each.to(dtype) for number, each in self._activations.items()},
            blocks=blocks,
            norm_post=LinearNorm.at(
                self.clip.reader.pooled(self._post[-1]), self.clip.ln_post, dtype
            ),
        )

    def _keep_input(
        self,
        kept: dict[int, Tensor],
        number: int,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: Tensor,
    ) -> None:
        kept[number] = self.clip.batch_major(inputs[0])

    def _keep_both(
        self, number: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        self._inputs[number] = self.clip.batch_major(inputs[0])
        self._activations[number] = self.clip.batch_major(output)

    def _keep_post(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._post.append(inputs[0])


@torch.no_grad()
def linearise(clip: Clip, images: Any) -> Linearised:
    """Run images through the network once and keep its derivative there.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes, all in one pass.

    Raises
    ------
    SecondLensError
        A block whose MLP is not a LayerNorm, a linear layer, an activation function and another
        linear layer, or images that `Clip.prepare` refuses.
    """
    tape = Tape(clip)
    with hooked(tape.hooks()):
        representation = clip.encode_image(images)
    return tape.linearised(representation)


def neuron_inputs(block: Block) -> Float[Tensor, "neurons width"]:
    """What each neuron reads from the output of `ln_2`."""
    weight: Tensor = block.mlp_input.weight.detach()  # type: ignore[operator]
    return weight


def neuron_biases(block: Block, dtype: torch.dtype) -> Float[Tensor, " neurons"]:
    """What each neuron gets where `ln_2` gives its bias alone."""
    bias: Tensor = block.mlp_input.bias.detach()  # type: ignore[operator]
    norm: Tensor = block.ln_2.bias.detach()  # type: ignore[operator]
    return neuron_inputs(block).to(dtype) @ norm.to(dtype) + bias.to(dtype)


def slope(activation: nn.Module, inputs: Tensor) -> Tensor:
    """The derivative of an activation function, number by number."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (found,) = torch.autograd.grad(activation(inputs).sum(), inputs)
    return found


def check_paths(clip: Clip) -> None:
    """Raise `SecondLensError` unless the edges describe all of the tower."""
    clip.check_class_token("the paths")
    for number, block in enumerate(clip.blocks):
        check_linear(clip, number, block)


def _refusals(block: Block) -> Iterator[str]:
    if block.gated:
        yield "has gated neurons"
    if isinstance(block.activation, UnitActivation):
        yield "has units in place of its neurons"
    if not block.plain_scores:
        yield "turns or normalises queries and keys before it compares them"
    if block.inner_norm is not None:
        yield "has a norm inside attention"


def check_linear(clip: Clip, number: int, block: Block) -> None:
    """Raise `SecondLensError` unless the edges describe all of a block."""
    for reason in _refusals(block):
        raise UnsupportedModel(
            f"the paths of {clip.name} cannot be told apart: block {number} {reason}"
        )
    if not is_affine(block.ln_2):
        raise SecondLensError(
            f"the paths of {clip.name} cannot be told apart: ln_2 of block {number} is not a "
            "LayerNorm with gain and bias"
        )
    if type(block.mlp_input) is not nn.Linear:
        raise SecondLensError(
            f"the paths of {clip.name} cannot be told apart: its neurons in block {number} read "
            f"through a {type(block.mlp_input).__name__}, not a plain Linear layer"
        )
