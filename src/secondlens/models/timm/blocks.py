"""Blocks and attention pools of timm: their weights split by head.

timm writes a block's query, key and value as one matrix or as three, with all biases, some or none;
its MLP plain or gated; layer scale as a module or as a parameter. All of it is read here, and
`covered` says of which modules this is everything.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.func import functional_call

from ..blocks import Block, detached
from ..readers import LearnedPool


@dataclass(frozen=True, kw_only=True)
class MlpParts:
    """Where an MLP of timm keeps what a `Block` reads."""

    reads: str
    """What the activation function gets, of a gated MLP with or beside the other factor."""
    writes: str
    gated: bool


MLPS: Mapping[str, MlpParts] = {
    "Mlp": MlpParts(reads="fc1", writes="fc2", gated=False),
    "GluMlp": MlpParts(reads="fc1", writes="fc2", gated=True),
    "SwiGLU": MlpParts(reads="fc1_g", writes="fc2", gated=True),
    "GeGluMlp": MlpParts(reads="w0", writes="w2", gated=True),
}
"""By the name of the class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TimmBlock(Block):
    """View of a block of timm's VisionTransformer or Eva."""

    @property
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self._weight(0))

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self._weight(1))

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._by_head(self._weight(2))

    @property
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self._bias(0))

    @property
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self._bias(1))

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._by_head(self._bias(2))

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        whole = self._attention_scaled(self.module.attn.proj.weight.detach().T)
        if self.inner_norm is not None:
            whole = self.inner_norm.weight.detach()[:, None] * whole
            whole = whole - whole.mean(dim=0)
        split: Tensor = whole.unflatten(0, (self.module.attn.num_heads, -1))
        return split

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        proj = self.module.attn.proj
        bias = _bias_of(proj)
        if self.inner_norm is not None:
            bias = bias + proj.weight.detach() @ self.inner_norm.bias.detach()
        return self._attention_scaled(bias)

    @property
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """See `Block`."""
        return self._mlp_scaled(_linear(self.mlp_output).weight.detach().T)

    @property
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return self._mlp_scaled(_bias_of(_linear(self.mlp_output)))

    def _weight(self, which: int) -> Float[Tensor, "rows width"]:
        """Of the query (0), key (1) or value (2)."""
        attention = self.module.attn
        if attention.qkv is None:
            linear = (attention.q_proj, attention.k_proj, attention.v_proj)[which]
            return detached(linear.weight)
        return detached(attention.qkv.weight).chunk(3)[which]

    def _bias(self, which: int) -> Float[Tensor, " rows"]:
        """As `_weight`; zero where there is none."""
        attention = self.module.attn
        if attention.qkv is None:
            return _bias_of((attention.q_proj, attention.k_proj, attention.v_proj)[which])
        if getattr(attention, "q_bias", None) is not None:
            return detached((attention.q_bias, attention.k_bias, attention.v_bias)[which])
        return _bias_of(attention.qkv).chunk(3)[which]

    def _by_head(self, rows: Tensor) -> Float[Tensor, "heads head_width *width"]:
        """Where several heads share a key and a value, each of them gets a copy."""
        attention = self.module.attn
        heads: int = attention.num_heads
        split: Tensor = rows.unflatten(0, (-1, attention.proj.in_features // heads))
        return split if len(split) == heads else split.repeat_interleave(heads // len(split), dim=0)

    def _attention_scaled(self, weight: Tensor) -> Tensor:
        return _scaled(weight, layer_scale(self.module, 1))

    def _mlp_scaled(self, weight: Tensor) -> Tensor:
        return _scaled(weight, layer_scale(self.module, 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedBlock(TimmBlock):
    """One that norms queries and keys, or turns those of patches by where they are."""

    rope: Any = None
    """The rotary positions of the tower, if it has any."""
    number: int
    """Of the block: each may have frequencies of its own."""
    grid: tuple[int, int]

    def at_grid(self, grid: tuple[int, int]) -> Block:
        """See `Block`."""
        return replace(self, grid=grid)

    def placed(
        self, heads: Float[Tensor, "images heads tokens head_width"], *, queries: bool
    ) -> Float[Tensor, "images heads tokens head_width"]:
        """See `Block`."""
        heads = self._normed(heads, queries=queries)
        if self.rope is None:
            return heads
        turns = rotary(self.rope, self.grid)
        if turns.dim() == 4:
            turns = turns[self.number]
        attention = self.module.attn
        prefix: int = attention.num_prefix_tokens
        # the older versions of timm know one layout alone
        layout = {"half": True} if getattr(attention, "rotate_half", False) else {}
        turned = apply_rot_embed_cat(heads[:, :, prefix:], turns.detach().to(heads), **layout)
        return torch.cat([heads[:, :, :prefix], turned], dim=2)

    def class_attention(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Block`: one query a head, which the class token's place does not turn."""
        normalised = normalised.to(dtype or normalised.dtype)
        asked = torch.einsum("bw,hew->bhe", normalised[:, 0], self.query.to(normalised))
        query = self._normed(asked + self.query_bias.to(normalised), queries=True)
        keys = torch.einsum("btw,hew->bhte", normalised, self.key.to(normalised))
        keys = self.placed(keys + self.key_bias.to(normalised)[:, None], queries=False)
        scores = keys @ (query * query.shape[-1] ** -0.5)[..., None]
        attention: Tensor = scores[..., 0].softmax(dim=-1)
        return attention

    def _normed(
        self, heads: Float[Tensor, "*batch head_width"], *, queries: bool
    ) -> Float[Tensor, "*batch head_width"]:
        attention = self.module.attn
        norm: nn.Module = attention.q_norm if queries else attention.k_norm
        weights = {name: each.detach().to(heads) for name, each in norm.named_parameters()}
        normed: Tensor = functional_call(norm, weights, heads)
        return normed


@dataclass(frozen=True, kw_only=True, eq=False)
class TimmPool(LearnedPool):
    """View of an `AttentionPoolLatent` with one query."""

    skipped: int
    """Tokens at the beginning that it does not see."""

    @property
    def query(self) -> Float[Tensor, "heads head_width"]:
        """See `LearnedPool`."""
        latent = self.module.latent.detach()[0, 0]
        query: Tensor = self.module.q(latent).detach() * self.module.scale
        return self._by_head(query)

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `LearnedPool`."""
        return self._by_head(self.module.kv.weight.detach().chunk(2)[0])

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Attention`."""
        return self._by_head(self.module.kv.weight.detach().chunk(2)[1])

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Attention`."""
        return self._by_head(_bias_of(self.module.kv).chunk(2)[1])

    @property
    def output(self) -> Float[Tensor, "heads head_width out"]:
        """See `Attention`."""
        return self._by_head(self.module.proj.weight.detach().T)

    @property
    def output_bias(self) -> Float[Tensor, " out"]:
        """See `Attention`."""
        return _bias_of(self.module.proj)

    def row(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Pool`: zero at the tokens that it does not see."""
        return F.pad(super().row(normalised[:, self.skipped :], dtype), (self.skipped, 0))

    def _by_head(self, rows: Tensor) -> Float[Tensor, "heads head_width *width"]:
        split: Tensor = rows.unflatten(0, (self.module.num_heads, -1))
        return split


def view_of_block(block: Any, number: int, *, rope: Any, grid: tuple[int, int]) -> Block:
    """View a block that `covered` does not refuse."""
    parts = MLPS[type(block.mlp).__name__]
    attention = block.attn
    inner = getattr(attention, "norm", None)
    common: dict[str, Any] = {
        "module": block,
        "ln_1": block.norm1,
        "ln_2": block.norm2,
        "mlp_input": getattr(block.mlp, parts.reads),
        "activation": block.mlp.act,
        "mlp_output": getattr(block.mlp, parts.writes),
        # what follows layer scale, which Eva has as a parameter
        "attention_end": block.drop_path1,
        "mlp_end": block.drop_path2,
        "mlp_half": partial(_mlp_half, block),
        "gated": parts.gated or is_norm(getattr(block.mlp, "norm", None)),
        "inner_norm": inner if is_norm(inner) else None,
    }
    if rope is None and not is_norm(attention.q_norm) and not is_norm(attention.k_norm):
        return TimmBlock(**common)
    return PlacedBlock(**common, rope=rope, number=number, grid=grid)


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    return x + _scaled(block.mlp(block.norm2(x)), layer_scale(block, 2))


def layer_scale(block: Any, which: int) -> Tensor | None:
    """What a block multiplies the output of its attention (1) or its MLP (2) by."""
    if hasattr(block, f"gamma_{which}"):
        gamma: Tensor | None = getattr(block, f"gamma_{which}")
    else:
        gamma = getattr(getattr(block, f"ls{which}"), "gamma", None)
    return None if gamma is None else gamma.detach()


def is_norm(module: nn.Module | None) -> bool:
    """Whether something stands where timm may have a norm."""
    return not isinstance(module, nn.Identity | None)


def rotary(rope: Any, grid: tuple[int, int]) -> Float[Tensor, "*depth_and_heads patches turns"]:
    """Sines and cosines of the patches of a grid, as the tower has them for its own."""
    own = getattr(rope, "feat_shape", None)
    if own is None:
        found: Tensor = rope.get_embed(shape=grid)
    elif tuple(own) == tuple(grid):
        found = rope.get_embed()
    else:
        found = rotary_at(rope, grid).get_embed()
    return found


def rotary_at(rope: Any, grid: tuple[int, int]) -> Any:
    """The same rotary positions for another grid, beside the tower's; those that are made anew for
    each grid are the tower's own."""
    if getattr(rope, "feat_shape", None) is None:
        return rope
    other = beside(rope)
    other.update_feat_shape(grid)
    return other


def beside(module: nn.Module) -> Any:
    """A second module of the same parts: some can be replaced, and the first stays as it is.

    Parts that are not replaced are the same ones, with their hooks.
    """
    other = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(other, name, vars(module)[name].copy())
    return other


def _linear(module: Any) -> Any:
    return module


def _bias_of(linear: Any) -> Tensor:
    if linear.bias is not None:
        return detached(linear.bias)
    weight: Tensor = linear.weight
    return weight.new_zeros(len(weight)).detach()


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale
