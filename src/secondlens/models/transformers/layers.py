"""Layers of transformers' vision models: four Linear layers of attention, and an MLP behind a norm.

Families differ in what they call the parts, in a scale behind attention and MLP, and in whether
the MLP is gated. `LayerNames` says so, and one function makes the `Block` of any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..blocks import Block, detached, is_affine

BUILT_OTHERWISE = "is built otherwise than by transformers 5.24: install that or a newer version"


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """What the layers of some families call their parts."""

    classes: frozenset[str]
    """Of layers, attention and MLPs that are covered."""
    ln_1: str
    ln_2: str
    attention: str
    output: str
    """Of the attention; queries, keys and values are `q_proj`, `k_proj` and `v_proj` in all."""
    heads: str
    """How many the attention has."""
    scales: tuple[str, str] | None = None
    """What multiplies that which attention and MLP add."""


@dataclass(frozen=True)
class MlpNames:
    """What an MLP calls its parts."""

    input: str
    """Of a gated one, the gate's."""
    activation: str
    output: str
    gated: bool = False


MLPS = (
    MlpNames("gate_proj", "act_fn", "down_proj", gated=True),
    MlpNames("up_proj", "act_fn", "down_proj"),
    MlpNames("fc1", "activation_fn", "fc2"),
)
"""The first whose input is there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerBlock(Block):
    """View of a layer; biases that it does not have are zeros."""

    query_map: Any
    key_map: Any
    value_map: Any
    output_map: Any
    head_count: int
    attention_scale: Any
    """Has a `lambda1` that multiplies what attention adds; None if nothing does, as below."""
    mlp_scale: Any

    @property
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.query_map.weight)

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.key_map.weight)

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self.value_map.weight)

    @property
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(_bias(self.query_map))

    @property
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(_bias(self.key_map))

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(_bias(self.value_map))

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(_scaled(self.attention_scale, self.output_map.weight.T))

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _scaled(self.attention_scale, _bias(self.output_map))

    @property
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """See `Block`."""
        rows: Any = self.mlp_output.weight
        return _scaled(self.mlp_scale, rows.T)

    @property
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _scaled(self.mlp_scale, _bias(self.mlp_output))

    def _by_head(self, weight: Tensor) -> Float[Tensor, "heads head_width *width"]:
        split: Tensor = weight.detach().unflatten(0, (self.head_count, -1))
        return split


def _bias(linear: Any) -> Tensor:
    if linear.bias is not None:
        return detached(linear.bias)
    none: Tensor = linear.weight.new_zeros(linear.out_features)
    return none


def _scaled(scale: Any, weight: Tensor) -> Tensor:
    return detached(weight) if scale is None else detached(weight) * detached(scale.lambda1)


def layer_block(
    layer: Any, names: LayerNames, kind: type[LayerBlock] = LayerBlock, **more: Any
) -> LayerBlock:
    """Return the view of a layer that `layer_refusals` has nothing against.

    `kind` is a class with more fields, which `more` fills.
    """
    attention, mlp = getattr(layer, names.attention), layer.mlp
    parts = _mlp_names(mlp)
    scales = [getattr(layer, scale) for scale in names.scales] if names.scales else [None, None]
    output, mlp_output = getattr(attention, names.output), getattr(mlp, parts.output)
    return kind(
        module=layer,
        ln_1=getattr(layer, names.ln_1),
        ln_2=getattr(layer, names.ln_2),
        query_map=attention.q_proj,
        key_map=attention.k_proj,
        value_map=attention.v_proj,
        output_map=output,
        head_count=getattr(attention, names.heads),
        attention_scale=scales[0],
        attention_end=scales[0] or output,
        mlp_input=getattr(mlp, parts.input),
        activation=getattr(mlp, parts.activation),
        mlp_output=mlp_output,
        mlp_scale=scales[1],
        mlp_end=scales[1] or mlp_output,
        gated=parts.gated,
        mlp_half=partial(_second_half, names, layer),
        **more,
    )


def _second_half(names: LayerNames, layer: Any, x: Tensor) -> Tensor:
    added: Tensor = layer.mlp(getattr(layer, names.ln_2)(x))
    if names.scales:
        added = getattr(layer, names.scales[1])(added)
    return x + added


def _mlp_names(mlp: Any) -> MlpNames:
    return next(each for each in MLPS if hasattr(mlp, each.input))


def layer_refusals(layer: Any, names: LayerNames) -> Iterator[str]:
    """Reasons why the mathematics does not describe a layer, said of "block N"."""
    if type(layer).__name__ not in names.classes:
        yield f"is a {type(layer).__name__}, which is not covered"
        return
    attention, mlp = getattr(layer, names.attention), layer.mlp
    for what, part in (("attention", attention), ("an MLP", mlp)):
        if type(part).__name__ not in names.classes:
            yield f"has {what} of class {type(part).__name__}, which is not covered"
            return
    if not all(hasattr(attention, f"{each}_proj") for each in "qkv"):
        yield BUILT_OTHERWISE
        return
    if not is_affine(getattr(layer, names.ln_1)):
        yield f"has a {names.ln_1} that is no LayerNorm with gain and bias"
    maps = [getattr(attention, f"{each}_proj") for each in "qkv"]
    maps += [getattr(attention, names.output), getattr(mlp, _mlp_names(mlp).output)]
    for linear in maps:
        if type(linear) is not nn.Linear:
            yield f"has a {type(linear).__name__} where a plain Linear layer is read"
