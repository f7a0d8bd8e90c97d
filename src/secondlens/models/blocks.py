"""What the mathematics reads of a tower's parts: heads behind a norm, and the blocks made of them.

A family of models says how its weights are split by head, and nothing of how they are used.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MIXED_PRODUCTS = hasattr(torch.ops.aten.bmm, "dtype")
"""Whether this torch can sum products of half precision into a float32 result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention(ABC):
    """Heads that read the residual stream behind a LayerNorm: their weights, split by head.

    Weights are read from the model each time, so they follow it to another device, precision or
    checkpoint; they are views of the model's own where no LayerScale has to be folded in. They map
    a row vector `x` of the residual stream by `x @ value[h].T + value_bias[h]` to a head, and a row
    vector of a head by `v @ output[h]` back to the stream.
    """

    module: Any
    ln_1: Any
    """The norm before the heads; of heads without one, what gives the tokens that they read."""
    attention_end: Any
    """Its output is what the heads add to the residual stream."""

    @property
    def gain(self) -> Float[Tensor, " width"]:
        """Of `ln_1`, as `bias` and `eps`."""
        return detached(self.ln_1.weight)

    @property
    def bias(self) -> Float[Tensor, " width"]:
        """Of `ln_1`."""
        return detached(self.ln_1.bias)

    @property
    def eps(self) -> float:
        """Of `ln_1`."""
        eps: float = self.ln_1.eps
        return eps

    def read_from(self, inputs: tuple[Any, ...], output: Any) -> Float[Tensor, "_ _ features"]:
        """What the heads read, of what `ln_1` saw and returned: this, unless a pool makes its
        tokens itself."""
        returned: Tensor = output
        return returned

    @property
    def heads(self) -> int:
        """How many."""
        return self.value.shape[0]

    @property
    @abstractmethod
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """From the residual stream to each head."""

    @property
    @abstractmethod
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """Of the value."""

    @property
    @abstractmethod
    def output(self) -> Float[Tensor, "heads head_width out"]:
        """From each head back to the stream; layer scale included, as in every weight below."""

    @property
    @abstractmethod
    def output_bias(self) -> Float[Tensor, " out"]:
        """Of the output."""

    def attended(
        self,
        rows: Float[Tensor, "images heads tokens"],
        normalised: Float[Tensor, "images tokens width"],
    ) -> Float[Tensor, "images out"]:
        """What the heads add where they take these `rows` of the tokens, biases included (Eq. 4).

        `normalised` is what they read of `ln_1`.
        """
        return self._written(rows, normalised, self.value_bias.to(normalised))

    def _written(
        self, rows: Tensor, normalised: Tensor, value_bias: Tensor
    ) -> Float[Tensor, "images out"]:
        heads = self._read(rows, normalised) + value_bias
        output = self.output.to(normalised)
        return torch.einsum("bhe,hew->bw", heads, output) + self.output_bias.to(normalised)

    def _read(self, rows: Tensor, normalised: Tensor) -> Float[Tensor, "images heads head_width"]:
        """Values of tokens, mixed first, so that no token's value is ever computed."""
        mixed = torch.bmm(rows, normalised)
        return torch.einsum("bhw,hew->bhe", mixed, self.value.to(normalised))


@dataclass(frozen=True, kw_only=True, eq=False)
class Block(Attention):
    """One residual block: the modules whose outputs are read, and weights split by head."""

    ln_2: nn.Module
    mlp_input: nn.Module
    """Its output is what the activation function gets; of a gated MLP, the gate's."""
    activation: nn.Module
    mlp_output: nn.Module
    """Its input is the neurons' activations."""
    mlp_end: nn.Module
    """Its output is what the MLP adds to the residual stream."""
    mlp_half: Callable[[Tensor], Tensor] | None = None
    """The second half of the block, x + mlp(ln_2(x)), for any number of tokens; None if it cannot
    be run on its own."""
    inner_norm: Any = None
    """A LayerNorm of what all heads of a token read together, before their output. `output` holds
    its centring and gain, `output_bias` its bias, and `class_rows` are over its scale."""
    gated: bool = False
    """Whether a neuron is a product of two linear readings, or a norm lies between it and what it
    reads: then it is more than `activation` of `mlp_input`."""

    @property
    @abstractmethod
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """From the residual stream to each head, as `key`."""

    @property
    @abstractmethod
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `query`."""

    @property
    @abstractmethod
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """Of the query."""

    @property
    @abstractmethod
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """Of the key."""

    @property
    @abstractmethod
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """What one unit of each neuron's activation writes to the residual stream (w of Eq. 3)."""

    @property
    @abstractmethod
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """Of the MLP's output."""

    @property
    def plain_scores(self) -> bool:
        """Whether scores are products of `query` and `key` and nothing else: `placed` is not
        overridden."""
        return type(self).placed is Block.placed

    def placed(
        self, heads: Float[Tensor, "images heads tokens head_width"], *, queries: bool
    ) -> Float[Tensor, "images heads tokens head_width"]:
        """What becomes of queries (or keys) of all tokens before their products are scores: norms
        of queries and keys, rotary positions. Nothing, unless a family says otherwise."""
        return heads

    def at_grid(self, grid: tuple[int, int]) -> "Block":
        """The same block of a model that cuts pictures into another grid of patches."""
        return self

    def queries_and_keys(
        self, normalised: Float[Tensor, "images tokens width"]
    ) -> tuple[
        Float[Tensor, "images heads tokens head_width"],
        Float[Tensor, "images heads tokens head_width"],
    ]:
        """Of every token, from the output of `ln_1`; scores are products of the two."""
        query, key = (
            self.placed(
                torch.einsum("btw,hew->bhte", normalised, weight.to(normalised))
                + bias.to(normalised)[:, None],
                queries=queries,
            )
            for weight, bias, queries in (
                (self.query, self.query_bias, True),
                (self.key, self.key_bias, False),
            )
        )
        return query * query.shape[-1] ** -0.5, key

    def class_attention(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "images heads tokens"]:
        """Attention of the class token to every token (a_i of Eq. 4), from the output of `ln_1`.

        One query a head, folded into the keys' weights where scores are plain: then no key is ever
        computed, and the key bias shifts all scores of a head alike, so the softmax drops it.
        Scores and attention are in `dtype`, by default that of `normalised`.
        """
        wide = dtype or normalised.dtype
        if not self.plain_scores:
            queries, keys = self.queries_and_keys(normalised.to(wide))
            return (queries[:, :, :1] @ keys.mT).softmax(dim=-1)[:, :, 0]
        mixed = MIXED_PRODUCTS and normalised.is_cuda and wide != normalised.dtype
        keys = normalised if mixed else normalised.to(wide)
        query = torch.einsum("bw,hew->bhe", keys[:, 0], self.query.to(keys))
        query = (query + self.query_bias.to(keys)) * self.query.shape[1] ** -0.5
        folded = torch.einsum("bhe,hew->bhw", query, self.key.to(keys))
        if mixed:
            # queries are rounded as the model rounds its own, scores are not
            return torch.bmm(folded, keys.mT, out_dtype=wide).softmax(dim=-1)
        return torch.bmm(folded, keys.mT).softmax(dim=-1)

    def token_attention(
        self,
        normalised: Float[Tensor, "images tokens width"],
        place: Int[Tensor, " images"],
        dtype: torch.dtype,
        *,
        causal: bool,
    ) -> Float[Tensor, "images heads tokens"]:
        """Attention of one token of each input to every token, or to those not after it."""
        queries, keys = self.queries_and_keys(normalised.to(dtype))
        asked = queries[torch.arange(len(queries), device=queries.device), :, place]
        scores = torch.einsum("bhe,bhte->bht", asked, keys)
        if causal:
            after = torch.arange(scores.shape[-1], device=place.device) > place[:, None]
            scores = scores.masked_fill(after[:, None], -torch.inf)
        return scores.softmax(dim=-1)

    def class_rows(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "images heads tokens"]:
        """How much of each token's value reaches the class token: `class_attention`, over the scale
        of `inner_norm` where there is one."""
        attention = self.class_attention(normalised, dtype)
        if self.inner_norm is None:
            return attention
        heads = self._read(attention, normalised.to(attention)) + self.value_bias.to(attention)
        return attention / self.inner_sigma(heads.flatten(1))[:, None, None]

    def inner_sigma(self, heads: Float[Tensor, "*batch joined"]) -> Float[Tensor, "*batch"]:
        """What `inner_norm` divides by, of all heads side by side: sqrt(variance + eps)."""
        sigma: Tensor = (heads.var(dim=-1, correction=0) + self.inner_norm.eps).sqrt()
        return sigma

    def attended(
        self,
        rows: Float[Tensor, "images heads tokens"],
        normalised: Float[Tensor, "images tokens width"],
    ) -> Float[Tensor, "images out"]:
        """See `Attention`: `inner_norm` divides values and their biases alike."""
        value_bias = self.value_bias.to(normalised)
        if self.inner_norm is not None:
            value_bias = value_bias * rows.sum(dim=-1, keepdim=True)
        return self._written(rows, normalised, value_bias)

    def weighted_attention(
        self,
        normalised: Float[Tensor, "images tokens width"],
        weights: Float[Tensor, "images tokens"],
    ) -> Float[Tensor, "images heads tokens"]:
        """Attention of all tokens to every token, summed over the tokens that look with `weights`,
        each over its scale of `inner_norm` where there is one.

        One head at a time: all heads' attention at once would be the largest thing in memory.
        """
        normalised = normalised.to(weights)
        queries, keys = self.queries_and_keys(normalised)

        def attention(head: int) -> Float[Tensor, "images tokens tokens"]:
            return (queries[:, head] @ keys[:, head].mT).softmax(dim=-1)

        if self.inner_norm is not None:
            values = torch.einsum("btw,hew->bhte", normalised, self.value.to(weights))
            values = values + self.value_bias.to(weights)[:, None]
            heads = [attention(h) @ values[:, h] for h in range(self.heads)]
            weights = weights / self.inner_sigma(torch.cat(heads, dim=-1))
        rows = [torch.bmm(weights[:, None], attention(h)) for h in range(self.heads)]
        return torch.cat(rows, dim=1)


def detached(weight: Tensor) -> Tensor:
    """The numbers of a weight."""
    return weight.detach()


def is_affine(norm: nn.Module) -> bool:
    """Whether it is a LayerNorm with gain and bias, the only norm that the effects describe."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
