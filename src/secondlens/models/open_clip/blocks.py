"""Blocks of open_clip's transformers, of either tower: their weights split by head, or the reason
why the mathematics does not describe them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    LayerScale,
    ResidualAttentionBlock,
)
from torch import Tensor, nn

from ..blocks import Block, is_affine


def view_of_block(block: Any) -> Block:
    """Return the view of a block that `block_refusals` has nothing against."""
    return OpenClipBlock(
        module=block,
        ln_1=block.ln_1,
        ln_2=block.ln_2,
        mlp_input=block.mlp.c_fc,
        activation=block.mlp.gelu,
        mlp_output=block.mlp.c_proj,
        attention_end=block.ls_1,
        mlp_end=block.ls_2,
        mlp_half=partial(_mlp_half, block),
    )


def block_refusals(block: Any) -> Iterator[str]:
    """Yield reasons why the mathematics does not describe a block."""
    if type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock):
        yield f"is a {type(block).__name__}, which is not covered"
        return
    attention, mlp = block.attn, block.mlp
    if type(attention) not in (nn.MultiheadAttention, Attention):
        yield f"has attention of class {type(attention).__name__}, which is not covered"
        return
    for scale in (block.ls_1, block.ls_2):
        if not isinstance(scale, LayerScale | nn.Identity):
            yield f"scales its layers by a {type(scale).__name__}, which is not covered"
    if not is_affine(block.ln_1):
        yield "has an ln_1 that is no LayerNorm with gain and bias"
    if hasattr(block, "ln_1_kv"):
        yield "attends across sequences"
    if _is_active(attention, "ln_q") or _is_active(attention, "ln_k"):
        yield "normalises queries and keys (qk_norm)"
    if getattr(attention, "logit_scale", None) is not None:
        yield "has scaled cosine attention"
    if getattr(attention, "head_scale", None) is not None:
        yield "scales its heads (scale_heads)"
    if _is_active(attention, "ln_inner"):
        yield "has a norm inside attention (scale_attn_inner)"
    if _is_active(block, "ln_attn"):
        yield "has a norm after attention (scale_attn)"
    if _is_active(mlp, "ln"):
        yield "has a norm inside the MLP (scale_fc)"
    if attention.in_proj_weight is None or attention.in_proj_bias is None:
        yield "has no joint query, key and value projection with biases"
    if not _is_active(mlp, "gelu"):
        yield "has no activation in its MLP, so no neurons"


def _is_active(parent: nn.Module, name: str) -> bool:
    return not isinstance(getattr(parent, name, None), nn.Identity | None)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenClipBlock(Block):
    """View of an open_clip block."""

    @property
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_weight)[0]

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_weight)[1]

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_weight)[2]

    @property
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_bias)[0]

    @property
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_bias)[1]

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Block`."""
        return self._split(self.module.attn.in_proj_bias)[2]

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`."""
        whole = _scaled(self.module.ls_1, self.module.attn.out_proj.weight.detach().T)
        split: Tensor = whole.unflatten(0, (self.module.attn.num_heads, -1))
        return split

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _scaled(self.module.ls_1, self.module.attn.out_proj.bias.detach())

    @property
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """See `Block`."""
        return _scaled(self.module.ls_2, self.module.mlp.c_proj.weight.detach().T)

    @property
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """See `Block`."""
        return _scaled(self.module.ls_2, self.module.mlp.c_proj.bias.detach())

    def _split(self, joint: Tensor) -> Float[Tensor, "3 heads head_width *width"]:
        """Query, key and value of each head."""
        split: Tensor = joint.detach().unflatten(0, (3, self.module.attn.num_heads, -1))
        return split


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    added: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + added


def _scaled(scale: nn.Module, weight: Tensor) -> Tensor:
    return weight * scale.gamma.detach() if isinstance(scale, LayerScale) else weight
