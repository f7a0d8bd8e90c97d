"""Edges of a circuit: what one neuron does through another one, exactly, at an image.

The tower is differentiated at an image. What a neuron n, or the embedding of one token, does to the
target is cut at the first edge of its paths that is neither identity nor value, as in `all_paths`:

    to the output      no such edge: identities and values alone lead to the target
    to a neuron m      the edge is the MLP, through m:  E_nm = sum over t of  dp_tn <w_n, R_tm>
    to a query or key  of one head of one layer: n changes where it looks
    norm               the scale of a LayerNorm, which is left as one number

with dp the activation, or its difference to a mean, and R_m the gradient of what m does in the
stream after n's block, taken back from m's input over identities and values:

    R_m = L_2^T ( gelu'(x_m) <w_m, F> W_m )  at m's block, F the gradient of the target,

so that the gain of m's activation function is that at the image, and what m does in its turn is all
of its paths. What goes out of a neuron over all edges is its total effect; edges to all neurons add
up to its class `mlp`. A path from n to m whose first value edge is in head h counts to that head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.reader import Reader
from ..devices import undisturbed, wide
from ..errors import SecondLensError
from ..models.blocks import Block
from ..models.view import Clip, hooked
from ..progress import tracked
from .all_paths import NORMS, VALUES, Gradients, through_attention, through_mlp
from .linearised import LinearBlock, Linearised

FLOWS = ("output", "query", "key", "mlp", "norm")
"""Classes of what a source does, in their order; `output` holds direct, value and higher paths."""
KINDS = ("output", "neuron", "query", "key")
"""Of receivers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """What neurons and embeddings are on average over some images: where edges are held."""

    images: int
    activations: dict[int, Float[Tensor, "tokens neurons"]]
    """By layer."""
    embedding: Float[Tensor, "tokens width"]
    """The residual stream before the first block."""

    def to(self, like: Tensor) -> "Means":
        """Return the same on the device and in the precision of a tensor."""
        return replace(
            self,
            activations={layer: each.to(like) for layer, each in self.activations.items()},
            embedding=self.embedding.to(like),
        )


@undisturbed
@torch.no_grad()
def means(clip: Clip, reader: Reader, progress: bool = False) -> Means:
    """Average what all neurons and embeddings are over images, in one pass; on the CPU.

    Raises
    ------
    SecondLensError
        No image can be read, or the network is not finite on them.
    """
    activations: dict[int, Tensor] = {}
    embedding: list[Tensor] = []
    count = 0
    for batch in tracked(reader, "means", progress):
        seen = Sources(clip)
        with hooked([], seen.hooks()):
            clip.encode_image(batch.on(clip.device))
        for layer, each in seen.activations.items():
            added = wide(each.to(clip.compute_dtype)).sum(0).cpu()
            activations[layer] = activations.get(layer, torch.zeros_like(added)) + added
        embedding.append(wide(seen.embedding.to(clip.compute_dtype)).sum(0).cpu())
        count += len(batch.positions)
    if not count:
        raise SecondLensError("none of the pictures could be read")
    found = Means(
        images=count,
        activations={layer: each / count for layer, each in activations.items()},
        embedding=torch.stack(embedding).sum(0) / count,
    )
    if not all(each.isfinite().all() for each in (found.embedding, *found.activations.values())):
        raise SecondLensError(
            f"{clip.name} gives NaN or infinity on some of the pictures: use a wider precision"
        )
    return found


class Sources:
    """Hooks that keep what edges come from: embeddings, and the activations of every layer."""

    embedding: Float[Tensor, "images tokens width"]

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.activations: dict[int, Float[Tensor, "images tokens neurons"]] = {}

    def hooks(self) -> Iterator[tuple[Any, Any]]:
        """For `hooked`, before modules run."""
        yield self.clip.blocks[0].ln_1, self._see_embedding
        for layer, block in enumerate(self.clip.blocks):

            def see(module: Any, inputs: tuple[Any, ...], layer: int = layer) -> None:
                self.activations[layer] = self.clip.batch_major(inputs[0])

            yield block.mlp_output, see

    def _see_embedding(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.embedding = self.clip.batch_major(inputs[0])


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The activation of a neuron at one token, as a target."""

    layer: int
    neuron: int
    token: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradient:
    """The gradient of one target at a batch of images, in every place where edges begin or end.

    By class of path, in the order of `FLOWS`; see `Gradients.streams`.
    """

    tower: Linearised
    start: Float[Tensor, "images tokens width"]
    """What the target reads, over identities and values, of the stream where it begins."""
    after: dict[int, Float[Tensor, "5 images tokens width"]]
    """By layer, after its block. Layers that are not before the target are not there."""
    worth: dict[int, Float[Tensor, "images tokens neurons"]]
    """By layer, what one unit of each activation does to the target."""
    between: dict[int, Float[Tensor, "images tokens width"]]
    """By layer, of all classes, between its attention and its MLP."""
    embedding: Float[Tensor, "5 images tokens width"]
    """Before the first block."""

    @property
    def last(self) -> int:
        """The last layer whose attention lies before the target."""
        return max(self.between)

    def of_neurons(
        self, layer: int, change: Float[Tensor, "images tokens neurons"]
    ) -> Float[Tensor, "images neurons"]:
        """What changes of all activations of a layer do to the target, over all paths."""
        return (self.worth[layer] * change).sum(1)

    def of_heads(self) -> Float[Tensor, "images layers heads"]:
        """How much each head's looking where it looks matters: the gradient in its scores, times
        them. A score that is the same everywhere in a row drops out."""
        found = []
        for layer in range(self.last + 1):
            block = self.tower.blocks[layer]
            queries, _ = block.scores_back(block.heads_back(self.between[layer][:, :, None]))
            plain = block.queries * block.head_width**0.5  # scores_back holds the root
            found.append((queries[:, :, 0] * plain).sum((-2, -1)))
        return torch.stack(found, dim=1)


@torch.no_grad()
def gradient(tower: Linearised, target: "Unit | Float[Tensor, ' dim']") -> Gradient:
    """Take the gradient of one target back through the tower, by class of path.

    Parameters
    ----------
    tower
        Images, and the derivative of the network there.
    target
        A direction of the embedding, in units of the normalised embedding, or the activation of one
        neuron at one token, in its own units.
    """
    clip = tower.clip
    after, worth, between = {}, {}, {}
    if isinstance(target, Unit):
        streams, start = _of_unit(tower, target)
        last = target.layer
        between[last] = streams.sum(0)[:, :, 0]
        through_attention(tower.blocks[last], streams)
    else:
        found = Gradients(tower, target[None])
        streams, last = found.streams, clip.layers
        start = torch.zeros_like(streams[VALUES, :, :, 0])
        start[:, 0] = found.direct[:, 0]
    for layer in reversed(range(last)):
        block = tower.blocks[layer]
        after[layer] = streams[:, :, :, 0].clone()
        of_units = streams.sum(0) @ block.neuron_rows.T
        worth[layer] = of_units[:, :, 0]
        through_mlp(block, streams, of_units)
        between[layer] = streams.sum(0)[:, :, 0]
        through_attention(block, streams)
    return Gradient(
        tower=tower,
        start=start,
        after=after,
        worth=worth,
        between=between,
        embedding=streams[:, :, :, 0],
    )


@torch.no_grad()
def frozen_worth(
    tower: Linearised, target: "Unit | Float[Tensor, ' dim']"
) -> dict[int, Float[Tensor, "images tokens neurons"]]:
    """What one unit of each activation does with attention and scales of LayerNorm frozen.

    By layer before the target. These are paths of identities, values and MLPs alone: what edges
    between neurons can carry.
    """
    clip, worth = tower.clip, {}
    if isinstance(target, Unit):
        _, start = _of_unit(tower, target)
        reading, last = start[:, :, None], target.layer
    else:
        row = target.to(tower.representation) @ clip.projection.to(tower.representation).T
        reading = row.new_zeros(len(tower.length), clip.tokens, 1, clip.width)
        reading[:, 0] = tower.norm_post.linear_back(row) / tower.length[:, None, None]
        last = clip.layers
    for layer in reversed(range(clip.layers)):
        block = tower.blocks[layer]
        if layer < last:
            of_units = reading @ block.neuron_rows.T
            worth[layer] = of_units[:, :, 0]
            reading = reading + block.norm_2.linear_back(block.neurons_back(of_units))
        if layer <= last:
            passed = block.value_back(block.heads_back(reading))
            reading = reading + block.norm_1.linear_back(passed)
    return worth


def inputs_of(
    tower: Linearised, layer: int, neurons: Sequence[int]
) -> Float[Tensor, "images tokens chosen"]:
    """What the activation functions of some neurons get."""
    block, linear = tower.clip.blocks[layer], tower.blocks[layer]
    norm, inputs = linear.norm_2, linear.neuron_inputs[list(neurons)]
    centred = (norm.centred / norm.sigma)[:, :, 0] * norm.gain
    return centred @ inputs.T + input_bias(block, inputs, neurons)


def input_bias(
    block: Block, inputs: Float[Tensor, "chosen width"], neurons: Sequence[int]
) -> Float[Tensor, " chosen"]:
    """What some neurons, which read `inputs`, get of the biases of `ln_2` and of their own."""
    of_norm, own = (each.bias.detach().to(inputs) for each in (block.ln_2, block.mlp_input))  # type: ignore[operator]
    found: Tensor = inputs @ of_norm + own[list(neurons)]
    return found


def _of_unit(tower: Linearised, unit: Unit) -> tuple[Tensor, Tensor]:
    """Gradients of an activation by class, and what it reads, between attention and MLP."""
    block = tower.blocks[unit.layer]
    slope = block.slope[:, :, None, unit.neuron, None]
    at_token = torch.zeros_like(slope)
    at_token[:, unit.token] = slope[:, unit.token]
    read = at_token * block.neuron_inputs[unit.neuron]
    streams = read.new_zeros(5, *read.shape)
    streams[VALUES] = block.norm_2.linear_back(read)
    streams[NORMS] = block.norm_2.through_scale_back(read)
    return streams, streams[VALUES, :, :, 0].clone()


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What takes part in a graph, beside the target and the embedding of every token."""

    neurons: tuple[tuple[int, int], ...]
    """By layer and number, in ascending order."""
    heads: tuple[tuple[int, int], ...] = ()
    """Whose queries and keys receive edges, by layer and number, in ascending order."""

    def of_layer(self, layer: int) -> list[int]:
        """Numbers of the neurons of one layer."""
        return [neuron for each, neuron in self.neurons if each == layer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Edges of a batch of images, in units of the target.

    Sources are the neurons of `nodes`, then the embeddings of all tokens. Receivers are the target,
    the neurons, the queries of the heads, and their keys.
    """

    nodes: Nodes
    weights: Float[Tensor, "images sources receivers"]
    flows: Float[Tensor, "images sources 5"]
    """All that each source does, in the classes of `FLOWS`, through whatever it goes."""
    by_head: "Float[Tensor, 'images layers heads sources targets'] | None" = None
    """Parts of the edges to the target and to neurons whose first value edge is in this head; what
    they leave are identities."""


@torch.no_grad()
def edges(
    gradient: Gradient,
    nodes: Nodes,
    change: Mapping[int, Float[Tensor, "images tokens neurons"]],
    embedding: Float[Tensor, "images tokens width"],
    *,
    heads: bool = False,
) -> Edges:
    """Compute all edges between some nodes.

    Parameters
    ----------
    gradient
        Of the target.
    nodes
        Those of the graph; neurons that are not before the target do nothing.
    change
        What counts of the activations, by layer: themselves, or differences to their means.
    embedding
        The same of the residual stream before the first block.
    heads
        Whether edges are divided over heads, which takes memory for all heads of all layers.
    """
    tower = gradient.tower
    clip = tower.clip
    count, tokens = len(nodes.neurons), clip.tokens
    sources = count + tokens
    images = len(embedding)
    place = {neuron: row for row, neuron in enumerate(nodes.neurons)}
    columns = [0]
    weights = embedding.new_zeros(images, sources, 1 + count + 2 * len(nodes.heads))
    flows = embedding.new_zeros(images, sources, len(FLOWS))
    shape = (images, clip.layers, clip.heads, sources, 1 + count)
    by_head = embedding.new_zeros(shape) if heads else None
    # [images, tokens, receivers so far, width]
    reading = gradient.start[:, :, None]
    for layer in reversed(range(gradient.last + 1)):
        block, some = tower.blocks[layer], nodes.of_layer(layer)
        rows = [place[layer, neuron] for neuron in some]
        if layer in gradient.after and some:
            moved, writes = change[layer][:, :, some], block.neuron_rows[some]
            found = torch.einsum("btn,btkn->bnk", moved, reading @ writes.T)
            down, across = (torch.tensor(each, device=found.device) for each in (rows, columns))
            weights[:, down[:, None], across] = found
            flows[:, rows] = torch.einsum("btn,cbtn->bnc", moved, gradient.after[layer] @ writes.T)
            worth = block.slope[:, :, some] * gradient.worth[layer][:, :, some]
            read = block.norm_2.linear_back(worth[..., None] * block.neuron_inputs[some])
            reading = torch.cat([reading, read], dim=2)
            columns += [1 + row for row in rows]
        back = block.heads_back(reading)
        if by_head is not None:
            _divide(by_head[:, layer], gradient, nodes, change, embedding, layer, back, columns)
        reading = reading + block.norm_1.linear_back(block.value_back(back))
        watched = [head for each, head in nodes.heads if each == layer]
        if watched:
            reading = torch.cat([reading, *_scores(gradient, layer, watched)], dim=2)
            first = 1 + count + [each for each, _ in nodes.heads].index(layer)
            columns += range(first, first + len(watched))
            columns += range(first + len(nodes.heads), first + len(nodes.heads) + len(watched))
    weights[:, count:, columns] = torch.einsum("btw,btkw->btk", embedding, reading)
    flows[:, count:] = torch.einsum("btw,cbtw->btc", embedding, gradient.embedding)
    return Edges(nodes=nodes, weights=weights, flows=flows, by_head=by_head)


def _scores(gradient: Gradient, layer: int, heads: Sequence[int]) -> Iterator[Tensor]:
    """What queries of some heads read of the stream before a block, then what keys do."""
    block = gradient.tower.blocks[layer]
    found = block.scores_back(block.heads_back(gradient.between[layer][:, :, None]))
    for each, rows in zip(found, (block.query_rows, block.key_rows), strict=True):
        by_head = rows.unflatten(0, (block.heads, block.head_width))[list(heads)]
        read = torch.einsum("bhte,hew->bthw", each[:, list(heads), 0], by_head)
        yield block.norm_1.linear_back(read)


def _divide(
    by_head: Float[Tensor, "images heads sources targets"],
    gradient: Gradient,
    nodes: Nodes,
    change: Mapping[int, Tensor],
    embedding: Tensor,
    layer: int,
    back: Float[Tensor, "images heads receivers tokens head_width"],
    columns: list[int],
) -> None:
    """Add what goes from all earlier sources through the values of one block's heads."""
    block = gradient.tower.blocks[layer]
    count = len(nodes.neurons)
    kept = [at for at, column in enumerate(columns) if column <= count]
    into = torch.tensor([columns[at] for at in kept], device=back.device)
    # [images, heads, receivers, tokens, head_width]
    values = block.values_back(back)[:, :, kept]
    earlier = [row for row, (each, _) in enumerate(nodes.neurons) if each < layer]
    if earlier:
        moved = torch.cat(
            [change[each][:, :, nodes.of_layer(each)] for each in range(layer)], dim=2
        )
        writes = torch.cat(
            [gradient.tower.blocks[each].neuron_rows[nodes.of_layer(each)] for each in range(layer)]
        )
        read = _values_of(block, _centred(writes) * block.norm_1.gain)
        moved = moved / block.norm_1.sigma[:, :, 0]
        found = torch.einsum("btn,bhktn->bhnk", moved, values @ read[:, None].mT)
        by_head[:, :, torch.tensor(earlier, device=back.device)[:, None], into] = found
    read = _values_of(block, block.norm_1.linear(embedding[:, :, None])[:, :, 0])
    found = torch.einsum("bhktf,bhtf->bhtk", values, read.movedim(0, 1))
    by_head[:, :, count:, into] = found


def _values_of(
    block: LinearBlock, read: Float[Tensor, "*rows width"]
) -> Float[Tensor, "heads *rows head_width"]:
    by_head: Tensor = (read @ block.value_rows.T).unflatten(-1, (block.heads, block.head_width))
    return by_head.movedim(-2, 0)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)
