"""The graph of a circuit: what is in it, and the document that says so."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

TARGET, REST, ERROR = "target", "rest", "error"
"""Ids of the nodes that are always there."""

NodeKind = Literal["target", "neuron", "patch", "head", "rest", "error"]
EdgeKind = Literal["value", "query", "key", "rest", "error"]


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """A head that carries part of an edge through its values."""

    layer: int
    head: int
    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """Something that does something to the target, in units of the target."""

    id: str
    """Such as "5:123" for a neuron, "patch 9" for the embedding of a token, "head 6:1" for where a
    head looks."""
    kind: NodeKind
    layer: int
    """-1 for embeddings; the target, the rest and the error stand after the last."""
    number: int
    """Of the neuron, head or token in it."""
    title: str
    """In words: what a neuron fires on, as the lens has it."""
    effect: float
    """All that it does, by all paths; of the target, what is explained."""
    spread: float
    """Standard deviation of the effect over pictures; 0 for one."""
    flows: dict[str, float]
    """Its effect by class, see `edges.FLOWS`, of neurons and patches."""
    kept: float
    """How much of it goes out over edges of the graph."""
    activation: "Float[Tensor, ' tokens'] | None" = None
    """Of a neuron, at every token, on average over the pictures."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one node does through another."""

    source: str
    receiver: str
    kind: EdgeKind
    weight: float
    """On average over the pictures."""
    spread: float
    """Its standard deviation over pictures; 0 for one."""
    identity: float
    """The part of a value edge that no head carries."""
    heads: tuple[Carrier, ...]
    """The heads that carry most of the rest, by the first one on the way."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The network run with all edges held at their means but those of the graph."""

    attention: Literal["frozen", "free"]
    score: float
    """With the edges of the graph."""
    held: float
    """With none."""
    share: float
    """How far the graph brings the score from there to what it is: 1 is all the way."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit:
    """A graph that explains a score, or the activation of a neuron."""

    model: str
    target: str
    image_ids: tuple[str, ...]
    minus_ids: tuple[str, ...]
    """Pictures whose mean graph is subtracted; empty if there are none."""
    score: float
    """What is explained, on average over the pictures."""
    held: float
    """The same with all edges at their means, attention and scales as they are."""
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    possible: int
    """Edges that there are between all neurons, patches and the target."""
    checks: tuple[Check, ...]

    @property
    def neurons(self) -> list[Node]:
        """Those of the nodes."""
        return [node for node in self.nodes if node.kind == "neuron"]

    def node(self, id: str) -> Node:
        """The node of an id; raises `KeyError` if there is none."""
        for each in self.nodes:
            if each.id == id:
                return each
        raise KeyError(id)

    def into(self, id: str) -> list[Edge]:
        """Edges to a node, the strongest first."""
        return _strongest(each for each in self.edges if each.receiver == id)

    def out_of(self, id: str) -> list[Edge]:
        """Edges from a node, the strongest first."""
        return _strongest(each for each in self.edges if each.source == id)

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        found = {
            name: getattr(self, name)
            for name in ("model", "target", "image_ids", "minus_ids", "score", "held", "possible")
        }
        nodes = []
        for each in self.nodes:
            activation = None if each.activation is None else each.activation.tolist()
            nodes.append({**vars(each), "activation": activation})
        return found | {
            "nodes": nodes,
            "edges": [asdict(each) for each in self.edges],
            "checks": [asdict(each) for each in self.checks],
        }


def _strongest(edges: Any) -> list[Edge]:
    return sorted(edges, key=lambda edge: -abs(edge.weight))
