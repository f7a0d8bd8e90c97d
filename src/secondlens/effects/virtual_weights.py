"""Virtual weights: what one neuron's output row comes to at another neuron's input, without data.

A neuron n writes w_n to the residual stream, and a later neuron m reads it through its LayerNorm,

    straight        V_nm  = <C w_n, g_2 * W_m>
    through head h  V_nmh = <C ( (g_1 * C w_n) W_V^hT W_O^h ), g_2 * W_m>

with C(x) = x - mean(x). An image adds three factors: the activation of n, the scale 1 / sigma of
each LayerNorm on the way, and, through a head, what m's token takes of n's token. They are the
parts of `edges` that no image changes. Paths through other neurons and through two heads are left
to `edges`.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.blocks import Block
from ..models.view import Clip
from .linearised import neuron_inputs

Found = tuple[int, "int | None", "int | None", Float[Tensor, " neurons"]]
"""Layer of the other neurons, block and head in between or None, and weights."""


@torch.no_grad()
def outputs(clip: Clip, layer: int, neuron: int) -> Iterator[Found]:
    """Virtual weights from one neuron to all neurons of each later layer."""
    row = clip.blocks[layer].neuron_rows[neuron].to(clip.compute_dtype)
    for later in range(layer + 1, clip.layers):
        inputs = _inputs(clip, later)
        yield later, None, None, inputs @ row
        for block in range(layer + 1, later + 1):
            for head, written in enumerate(_through_heads(clip.blocks[block], row)):
                yield later, block, head, inputs @ written


@torch.no_grad()
def inputs(clip: Clip, layer: int, neuron: int) -> Iterator[Found]:
    """Virtual weights to one neuron from all neurons of each earlier layer."""
    read = _inputs(clip, layer)[neuron]
    for earlier in range(layer):
        rows = clip.blocks[earlier].neuron_rows.to(read)
        yield earlier, None, None, rows @ read
        for block in range(earlier + 1, layer + 1):
            for head, back in enumerate(_heads_back(clip.blocks[block], read)):
                yield earlier, block, head, rows @ back


def _inputs(clip: Clip, layer: int) -> Float[Tensor, "neurons width"]:
    """What the neurons of a layer read of the stream, but for the scale."""
    block = clip.blocks[layer]
    weight = neuron_inputs(block).to(clip.compute_dtype)
    gain: Tensor = block.ln_2.weight.detach()  # type: ignore[operator]
    return _centred(weight * gain.to(weight))


def _through_heads(block: Block, row: Float[Tensor, " width"]) -> Float[Tensor, "heads width"]:
    """What heads write of a row at a token from which they take all, but for the scale."""
    read = block.gain.to(row) * _centred(row)
    values = torch.einsum("hew,w->he", block.value.to(row), read)
    return torch.einsum("he,hew->hw", values, block.output.to(row))


def _heads_back(block: Block, read: Float[Tensor, " width"]) -> Float[Tensor, "heads width"]:
    """The transpose: what a reader reads through heads."""
    values = torch.einsum("hew,w->he", block.output.to(read), read)
    return _centred(torch.einsum("he,hew->hw", values, block.value.to(read)) * block.gain.to(read))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)
