"""Prune a graph: the strongest edges, the nodes that they connect, and what they leave."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...effects.edges import FLOWS, Nodes
from ...lens.lens import Lens
from ...models.view import Clip
from ...words.summary import label
from .graph import ERROR, REST, TARGET, Carrier, Edge, Node

CARRIERS = 3
"""Heads that are named on an edge."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanGraph:
    """All edges between the chosen nodes, on average over pictures, and their variance."""

    ids: tuple[str, ...]
    minus_ids: tuple[str, ...]
    score: float
    held: float
    moments: dict[str, tuple[Tensor, Tensor]]
    """Means and variances of the numbers of each kind."""

    def __getitem__(self, kind: str) -> Tensor:
        return self.moments[kind][0]

    def spread(self, kind: str) -> Tensor:
        """Standard deviations of the numbers of a kind."""
        return self.moments[kind][1].sqrt()

    def minus(self, other: "MeanGraph") -> "MeanGraph":
        """Return the difference of the means, whose variance is the sum of both."""
        return replace(
            self,
            minus_ids=other.ids,
            score=self.score - other.score,
            held=self.held - other.held,
            moments={
                kind: (mean - other.moments[kind][0], variance + other.moments[kind][1])
                for kind, (mean, variance) in self.moments.items()
            },
        )


def strongest(
    weights: Float[Tensor, "sources receivers"], count: int
) -> Bool[Tensor, "sources receivers"]:
    """Return which edges are the strongest, `count` of them at most and none that are zero."""
    order = weights.abs().flatten().argsort(descending=True, stable=True)[:count]
    kept = torch.zeros(weights.numel(), dtype=torch.bool)
    kept[order] = True
    return kept.view_as(weights) & (weights != 0)


TILT = 0.9
"""How far bars may be moved apart, as a share of what they are with none."""
BARS = 64
"""That are tried at once; twice, the second time between two of the first ones."""
HALVINGS = 16
"""Of the range in which shifts are looked for."""


def balanced(
    weights: Float[Tensor, "sources receivers"], wanted: Float[Tensor, " receivers"], count: int
) -> Bool[Tensor, "sources receivers"]:
    """Return which edges are strong, and add up to what their receiver gets.

    What is pruned of a receiver is very many weak edges, most of them of one sign. That is lost
    from layer to layer, and little arrives at the end. So each receiver has two bars, one for each
    sign, moved by one shift to where the edges over them bring what is wanted, as nearly as `TILT`
    allows:

        kept if  E > bar - shift_m  or  E < -bar - shift_m,    |shift_m| <= TILT bar

    The bar is one for all, and the lowest that keeps no more than `count` edges.
    """
    if count >= int((weights != 0).sum()):
        return weights != 0
    # [receivers, sources], ascending, and what the first ones of them add up to
    ordered = weights.double().T.sort(dim=1).values.contiguous()
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    wanted = wanted.double()[:, None]
    largest = float(ordered.abs().max())
    # over the last no edge has a chance, however far bars are moved
    ends = largest * 1e-6, largest / (1 - TILT)
    for _ in range(2):
        low_end, high_end = (math.log10(end) for end in ends)
        bars = torch.logspace(low_end, high_end, BARS, dtype=torch.float64)
        bars[-1] = ends[1]
        high = (TILT * bars).repeat(len(wanted), 1)
        low = -high
        for _ in range(HALVINGS):
            shift = (low + high) / 2
            below = torch.searchsorted(ordered, -bars - shift)
            above = torch.searchsorted(ordered, bars - shift, right=True)
            few = sums.gather(1, below) + sums[:, -1:] - sums.gather(1, above) < wanted
            low, high = torch.where(few, shift, low), torch.where(few, high, shift)
        number = (below + ordered.shape[1] - above).sum(0)
        at = int((number <= count).nonzero()[0])
        ends = float(bars[max(0, at - 1)]), float(bars[at])
    shift = shift[:, at]
    kept: Tensor = (weights > bars[at] - shift) | (weights < -bars[at] - shift)
    return kept


def leading_on(
    kept: Bool[Tensor, "sources receivers"], neurons: int
) -> Bool[Tensor, "sources receivers"]:
    """Return edges without those whose receiver does not lead on to the target.

    Receivers are the target, `neurons` neurons and heads; heads lead on by definition.
    """
    kept = kept.clone()
    for _ in range(neurons):
        lost = ~kept[:neurons].any(1)
        lost &= kept[:, 1 : 1 + neurons].any(0)
        if not lost.any():
            break
        kept[:, 1 : 1 + neurons][:, lost] = False
    return kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """Names and numbers of what is kept."""

    clip: Clip
    graph: MeanGraph
    nodes: Nodes
    kept: Bool[Tensor, "sources receivers"]
    lens: Lens | None
    target: str

    @cached_property
    def sources(self) -> list[str]:
        """Ids of the sources of edges."""
        tokens = (f"patch {token}" for token in range(self.clip.tokens))
        return [*(f"{layer}:{neuron}" for layer, neuron in self.nodes.neurons), *tokens]

    @cached_property
    def receivers(self) -> list[str]:
        """Ids of their receivers; a head is there twice, for its queries and its keys."""
        heads = [f"head {layer}:{head}" for layer, head in self.nodes.heads]
        return [TARGET, *self.sources[: len(self.nodes.neurons)], *heads, *heads]

    def nodes_of_graph(self) -> tuple[Node, ...]:
        """Sources and heads with an edge, the target, the rest and the error."""
        effects, spreads = self.graph["effects"], self.graph.spread("effects")
        sent = (self.graph["weights"] * self.kept).sum(1)
        count = len(self.nodes.neurons)
        found = []
        for row, id in enumerate(self.sources):
            if not self.kept[row].any():
                continue
            is_neuron = row < count
            layer, number = self.nodes.neurons[row] if is_neuron else (-1, row - count)
            found.append(
                Node(
                    id=id,
                    kind="neuron" if is_neuron else "patch",
                    layer=layer,
                    number=number,
                    title=self._title(layer, number) if is_neuron else self._token(number),
                    effect=float(effects[row]),
                    spread=float(spreads[row]),
                    flows=dict(zip(FLOWS, self.graph["flows"][row].tolist(), strict=True)),
                    kept=float(sent[row]),
                    activation=self.graph["activations"][:, row] if is_neuron else None,
                )
            )
        heads = len(self.nodes.heads)
        for at, (layer, head) in enumerate(self.nodes.heads):
            columns = [1 + count + at, 1 + count + heads + at]
            if self.kept[:, columns].any():
                into = float((self.graph["weights"] * self.kept)[:, columns].sum())
                found.append(_plain_node(f"head {layer}:{head}", "head", layer, head, into))
        last = self.clip.layers
        rest = [edge.weight for edge in self.left(REST)]
        error = [edge.weight for edge in self.left(ERROR)]
        explained = self.graph.score - self.graph.held
        return (
            *found,
            _plain_node(TARGET, "target", last, 0, explained, self.target),
            _plain_node(REST, "rest", last, 1, sum(rest), "what was pruned"),
            _plain_node(ERROR, "error", last, 2, sum(error), "gains that are not linear"),
        )

    def _title(self, layer: int, neuron: int) -> str:
        if self.lens is None or layer not in self.lens.layers:
            return ""
        return label(self.lens, layer, neuron)

    def _token(self, token: int) -> str:
        if token < self.clip.prefix:
            return f"register {token}" if token else "class token"
        row, column = divmod(token - self.clip.prefix, self.clip.grid[1])
        return f"row {row + 1}, column {column + 1}"

    def edges_of_graph(self) -> Iterator[Edge]:
        """Those that are kept, and what they leave."""
        weights, spread = self.graph["weights"], self.graph.spread("weights")
        count, heads = len(self.nodes.neurons), len(self.nodes.heads)
        for source, receiver in self.kept.nonzero().tolist():
            kind = "value"
            if receiver > count:
                kind = "query" if receiver <= count + heads else "key"
            weight = float(weights[source, receiver])
            carried: list[Carrier] = []
            identity = 0.0
            if kind == "value":
                by_head = self.graph["by_head"][:, :, source, receiver]
                identity = weight - float(by_head.sum())
                carried = self._carriers(by_head)
            yield Edge(
                source=self.sources[source],
                receiver=self.receivers[receiver],
                kind=kind,  # type: ignore[arg-type]
                weight=weight,
                spread=float(spread[source, receiver]),
                identity=identity,
                heads=tuple(carried),
            )
        yield from self.left(REST)
        yield from self.left(ERROR)

    def _carriers(self, by_head: Float[Tensor, "layers heads"]) -> list[Carrier]:
        flat = by_head.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:CARRIERS].tolist()
        return [
            Carrier(layer=at // self.clip.heads, head=at % self.clip.heads, weight=float(flat[at]))
            for at in order
            if flat[at] != 0
        ]

    def left(self, node: str) -> Iterator[Edge]:
        """What goes into the target and into neurons of the graph and is not on its edges."""
        count = len(self.nodes.neurons)
        into = (self.graph["weights"] * self.kept)[:, : 1 + count].sum(0)
        effects = self.graph["effects"][:count]
        explained = torch.tensor([self.graph.score - self.graph.held]).to(effects)
        done = torch.cat([explained, effects])
        left = self.graph["inflow"] - into if node == REST else done - self.graph["inflow"]
        for receiver in range(1 + count):
            if receiver and not self.kept[receiver - 1].any():
                continue
            yield Edge(
                source=node,
                receiver=self.receivers[receiver],
                kind="rest" if node == REST else "error",
                weight=float(left[receiver]),
                spread=0.0,
                identity=0.0,
                heads=(),
            )


def _plain_node(
    id: str, kind: Any, layer: int, number: int, effect: float, title: str = ""
) -> Node:
    return Node(
        id=id,
        kind=kind,
        layer=layer,
        number=number,
        title=title or id,
        effect=effect,
        spread=0.0,
        flows={},
        kept=0.0,
    )
