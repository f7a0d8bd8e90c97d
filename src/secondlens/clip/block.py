"""One residual block of an image tower: its modules, and its weights split by head."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One residual block: the modules whose outputs are read, and weights split by head.

    Weights are views of the model's own where no LayerScale has to be folded in. They map a row
    vector `x` of the residual stream by `x @ query[h].T + query_bias[h]` to a head, and a row
    vector of a head by `v @ output[h]` back to the stream.
    """

    module: nn.Module
    ln_1: nn.Module
    activation: nn.Module
    attention_end: nn.Module
    """Its output is what attention adds to the residual stream."""
    mlp_end: nn.Module
    """Its output is what the MLP adds to the residual stream."""

    gain: Float[Tensor, " width"]
    """Of `ln_1`, as `bias` and `eps`."""
    bias: Float[Tensor, " width"]
    eps: float
    query: Float[Tensor, "heads head_width width"]
    key: Float[Tensor, "heads head_width width"]
    value: Float[Tensor, "heads head_width width"]
    query_bias: Float[Tensor, "heads head_width"]
    key_bias: Float[Tensor, "heads head_width"]
    value_bias: Float[Tensor, "heads head_width"]
    output: Float[Tensor, "heads head_width width"]
    """Layer scale included, as in every weight below."""
    output_bias: Float[Tensor, " width"]
    neuron_rows: Float[Tensor, "neurons width"]
    """What one unit of each neuron's activation writes to the residual stream (w of Eq. 3)."""
    mlp_bias: Float[Tensor, " width"]
    mlp_half: Callable[[Tensor], Tensor] | None = None
    """The second half of the block, x + mlp(ln_2(x)), for any number of tokens; None if it cannot
    be run on its own."""

    def class_attention(
        self, normalised: Float[Tensor, "images tokens width"]
    ) -> Float[Tensor, "images heads tokens"]:
        """Attention of the class token to every token (a_i of Eq. 4), from the output of `ln_1`.

        One query a head, folded into the keys' weights: no key is ever computed, and the key bias
        shifts all scores of a head alike, so the softmax drops it. Computed in the dtype given.
        """
        dtype = normalised.dtype
        query = torch.einsum("bw,hew->bhe", normalised[:, 0], self.query.to(dtype))
        query = (query + self.query_bias.to(dtype)) * self.query.shape[1] ** -0.5
        folded = torch.einsum("bhe,hew->bhw", query, self.key.to(dtype))
        return torch.bmm(folded, normalised.mT).softmax(dim=-1)


def is_affine(norm: nn.Module) -> bool:
    """Whether it is a LayerNorm with gain and bias, the only norm that the effects describe."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
