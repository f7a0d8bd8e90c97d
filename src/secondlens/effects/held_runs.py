"""The network with edges held: what is left of the output when only some edges say what they say.

Every neuron and every embedding writes to the residual stream, and what it writes is carried on by
identities and values. So a receiver (a neuron, or the output) reads a sum over sources. Here it
gets what its kept edges bring, and along all other edges what the sources are on average,

    x_m = base + sum over kept n of  what (p'_n - mean p_n) w_n comes to at m,   p'_m = gelu(x_m),

from the first layer to the last, so that a neuron which is kept says what its own kept edges make
of it, and one which is not kept stays at its mean. Attention and the scales of LayerNorm are
either those of the unchanged image, or free: then they are those of a stream to which all kept
nodes write. With all nodes and edges, both are the network itself.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.blocks import Block
from .edges import Means, Nodes, inputs_of
from .linearised import LinearBlock, Linearised, LinearNorm, neuron_biases

Streams = Float[Tensor, "images tokens streams width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldRun:
    """What comes of a run with held edges."""

    representation: Float[Tensor, "images dim"]
    length: Float[Tensor, " images"]
    """What scores are measured in: with free attention the norm of this representation, otherwise
    that of the unchanged one."""
    inputs: dict[int, Float[Tensor, "images tokens chosen"]]
    """What the activation functions of the nodes' neurons get, by layer."""

    def score(self, direction: "Float[Tensor, ' dim']") -> Float[Tensor, " images"]:
        """Along a direction of the embedding, as the normalised embedding has it."""
        return self.representation @ direction.to(self.representation) / self.length


@torch.no_grad()
def held_run(
    tower: Linearised,
    embedding: Float[Tensor, "images tokens width"],
    means: Means,
    nodes: Nodes,
    kept: Bool[Tensor, "sources targets"],
    *,
    free: bool = False,
) -> HeldRun:
    """Run the network on with all edges held at their means but those that are kept.

    Parameters
    ----------
    tower
        Images, and the derivative of the network there.
    embedding
        The residual stream before the first block.
    means
        Where edges are held.
    nodes
        Neurons between which edges are kept; heads are of no matter.
    kept
        Which edges say what they say: from the neurons of `nodes`, then the embeddings of all
        tokens; to the output, then to the neurons.
    free
        Whether attention and the scales of LayerNorm follow the kept nodes.
    """
    clip, means = tower.clip, means.to(embedding)
    count, tokens = len(nodes.neurons), clip.tokens
    kept = kept.to(embedding.device)
    change = embedding - means.embedding
    groups, first = grouped(kept[count:])
    streams = change.new_zeros(*change.shape[:2], 1 + len(first), change.shape[2])
    streams[:, :, 0] = means.embedding
    streams[:, list(range(tokens)), [1 + group for group in groups]] = change
    # of each stream but the first, which edges to the output and to neurons still ahead are kept
    masks = kept[count:][first]
    inputs = {}
    done = 0
    for layer, block in enumerate(clip.blocks):
        linear = tower.blocks[layer]
        if free:
            total = streams.sum(2)
            linear = LinearBlock(block, total, total, linear.slope, linear.dtype)
        streams = _past_attention(block, linear, streams)
        norm = linear.norm_2
        if free:
            norm = LinearNorm.at(streams.sum(2), block.ln_2, linear.dtype)
        neurons = nodes.of_layer(layer)
        here = slice(1, 1 + len(neurons))
        inputs[layer] = _read(block, linear, norm, streams, neurons, masks[:, here])
        moved = block.activation(inputs[layer]) - means.activations[layer][:, neurons]
        mean = means.activations[layer] @ linear.neuron_rows + block.mlp_bias.to(embedding)
        streams[:, :, 0] += mean
        done += len(neurons)
        ahead = [0, *range(1 + done, 1 + count)]
        new = kept[done - len(neurons) : done, ahead]
        masks = torch.cat([masks[:, [0, *range(1 + len(neurons), masks.shape[1])]], new])
        groups, first = grouped(masks)
        masks = masks[first]
        places = 1 + torch.tensor(groups, device=streams.device).long()
        before = streams
        streams = before.new_zeros(*change.shape[:2], 1 + len(first), clip.width)
        streams[:, :, 0] = before[:, :, 0]
        old = before.shape[2] - 1
        streams.index_add_(2, places[:old], before[:, :, 1:])
        streams.index_add_(2, places[old:], moved[..., None] * linear.neuron_rows[neurons])
    at_class = streams[:, 0]
    norm = tower.norm_post
    if free:
        norm = LinearNorm.at(at_class.sum(1), clip.ln_post, at_class.dtype)
    chosen = masks[:, 0].to(at_class)
    output = at_class[:, 0] + torch.einsum("bsw,s->bw", at_class[:, 1:], chosen)
    normalised = norm.linear(output[:, None])[:, 0] + clip.post_bias.to(output)
    representation = normalised @ clip.projection.to(output)
    if clip.read_offset is not None:
        representation = representation + clip.read_offset().to(output)
    length = representation.norm(dim=-1) if free else tower.length
    return HeldRun(representation=representation, length=length, inputs=inputs)


def grouped(kept: Bool[Tensor, "sources targets"]) -> tuple[list[int], list[int]]:
    """Sources whose edges lead to the same targets can share a stream: the group of each, numbered
    as they come, and the first source of each group."""
    numbers: dict[bytes, int] = {}
    groups = []
    first = []
    for place, row in enumerate(kept.cpu().numpy()):
        key = row.tobytes()
        if key not in numbers:
            numbers[key] = len(numbers)
            first.append(place)
        groups.append(numbers[key])
    return groups, first


@torch.no_grad()
def held_inputs(
    tower: Linearised, means: Means
) -> dict[int, Float[Tensor, "images tokens neurons"]]:
    """What activation functions get with all edges held, attention and scales as they are."""
    clip, means = tower.clip, means.to(tower.length)
    streams = means.embedding.expand(len(tower.length), -1, -1)[:, :, None]
    found = {}
    for layer, block in enumerate(clip.blocks):
        linear, every = tower.blocks[layer], list(range(clip.neurons))
        streams = _past_attention(block, linear, streams)
        none = torch.zeros(0, clip.neurons, device=streams.device)
        found[layer] = _read(block, linear, linear.norm_2, streams, every, none.bool())
        mean = means.activations[layer]
        streams = streams + (mean @ linear.neuron_rows + block.mlp_bias.to(mean))[:, None]
    return found


SMALLEST_STEP = 1e-4
"""Between inputs of an activation function whose difference is divided by."""


@torch.no_grad()
def with_secants(tower: Linearised, held: dict[int, Tensor]) -> Linearised:
    """Return the tower with secants of activation functions in place of their derivatives.

    The gain of a neuron is then (gelu(x) - gelu(h)) / (x - h) with h from `held_inputs`, so that a
    difference to the mean goes through the frozen network whole, however large it is.
    """
    blocks = {}
    for layer, linear in tower.blocks.items():
        block, h = tower.clip.blocks[layer], held[layer]
        x = inputs_of(tower, layer, list(range(tower.clip.neurons)))
        moved = block.activation(x) - block.activation(h)
        blocks[layer] = copy(linear)
        near = (x - h).abs() < SMALLEST_STEP
        blocks[layer].slope = torch.where(near, linear.slope, moved / torch.where(near, 1, x - h))
    return replace(tower, blocks=blocks)


PIECE = 64
"""Neurons whose inputs are added up at once."""


def _past_attention(block: Block, linear: LinearBlock, streams: Streams) -> Streams:
    """Streams after a block's attention; the first one, to which biases belong, comes with them."""
    read = linear.norm_1.linear(streams)
    read[:, :, 0] += block.bias.to(read)
    written = linear.value(read)
    bias = torch.einsum(
        "he,hew->w", block.value_bias.to(read), block.output.to(read)
    ) + block.output_bias.to(read)
    written[:, :, 0] += bias
    return streams + written


def _read(
    block: Block,
    linear: LinearBlock,
    norm: LinearNorm,
    streams: Streams,
    some: list[int],
    kept: Bool[Tensor, "sources chosen"],
) -> Float[Tensor, "images tokens chosen"]:
    """What some neurons read of the first stream, and of those of the others that are kept."""
    inputs = linear.neuron_inputs[some]
    read = norm.linear(streams)
    # some neurons at a time: all streams of all neurons would take too much memory
    others = torch.cat(
        [
            (read[:, :, 1:] @ rows.T).mul_(mask).sum(2)
            for rows, mask in zip(inputs.split(PIECE), kept.to(read).split(PIECE, 1), strict=True)
        ],
        dim=-1,
    )
    return read[:, :, 0] @ inputs.T + others + neuron_biases(block, inputs.dtype)[some]
