"""Find the circuit of a target: choose nodes, compute edges, prune them, and check what is left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...arguments import checked
from ...data.reader import FEW_IMAGES, Reader
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons
from ...effects.edges import (
    Gradient,
    Means,
    Nodes,
    Sources,
    Unit,
    frozen_worth,
    gradient,
    inputs_of,
    means,
)
from ...effects.edges import edges as edges_between
from ...effects.held_runs import held_inputs, held_run, with_secants
from ...effects.linearised import Linearised, check_paths, linearise
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip, hooked
from ...progress import tracked
from .graph import Check, Circuit
from .pruning import Drawing, MeanGraph, balanced, leading_on, strongest


@checked
@undisturbed
@torch.no_grad()
def circuit(
    clip: Clip,
    lens: Lens | None,
    images: Any,
    target: Any,
    against: Any,
    *,
    minus: Any = None,
    nodes: int = 64,
    heads: int = 8,
    edges: int = 400,
    share: float | None = None,
    gain: Literal["secant", "tangent"] = "secant",
    name: str = "",
    progress: bool = False,
) -> Circuit:
    """Explain a score, or the activation of a neuron, as a graph of neurons, patches and heads.

    What is explained is the difference to `against`: neurons and embeddings count by how far they
    are from their means. The neurons are those that do most along values and MLPs; the edges are
    the strongest between them, `edges` of the ones that `effects.edges` defines. What they leave
    out is there as the nodes `REST` and `ERROR`, so that what goes into a neuron adds up to what it
    does. One picture costs about 6 encodings, and a twelfth of one for each neuron.

    Parameters
    ----------
    clip
        The model.
    lens
        Which says what its neurons fire on; None for a graph of numbers alone.
    images
        What `fit` takes: one picture, or a set whose mean graph is wanted, and its spread.
    target
        A text; two texts, for the margin of the first above the second; the layer and number of a
        neuron, for its activation at the token where it is strongest; or a row of the embedding.
    against
        Pictures whose mean is what edges are compared with, as `fit` takes them, or their `Means`.
    minus
        Pictures whose mean graph is subtracted: what is another way here than there.
    nodes, heads, edges
        How many neurons, heads and edges the graph has at most.
    share
        In place of `edges`: the fewest edges with which the network keeps this share of what is
        explained, such as 0.9, where attention is frozen and all other edges are held at their
        means; as much too far counts as not far enough. What a neuron then keeps of its edges adds
        up to what it gets, see `pruning.balanced`. For a score and one set.
    gain
        Of a neuron: "secant" from what it gets with all edges held to what it gets, which suits
        finite differences to a mean and leaves hardly anything to `ERROR`; or "tangent", the
        derivative at the picture, with which edges are exactly those of `paths`.
    name
        What the target is called in the graph; by default its texts.

    Raises
    ------
    SecondLensError
        A target of another kind, no such neuron, no nodes or edges, a share that no number of
        edges keeps, a lens of another model, a model of a kind that `linearise` refuses, or no
        picture that can be read.
    """
    check_paths(clip)
    if lens is not None:
        lens.check_model(clip)
    if nodes < 1 or edges < 1 or heads < 0:
        raise SecondLensError(
            f"a graph needs at least 1 node and 1 edge, and no fewer than 0 heads, not {nodes}, "
            f"{edges} and {heads}"
        )
    if gain not in ("secant", "tangent"):
        raise SecondLensError(f'a gain is "secant" or "tangent", not {gain!r}')
    if share is not None and not 0 < share <= 1:
        raise SecondLensError(f"a share to keep is above 0 and at most 1, not {share:g}")
    aim = _aim(clip, target, name)
    if share is not None and (aim.neuron is not None or minus is not None):
        raise SecondLensError(
            "a share is kept of a score and on one set of pictures, not of a neuron or a "
            "difference: leave out `share`"
        )
    held = against if isinstance(against, Means) else mean_of(clip, against, progress)
    like = clip.projection.to(clip.compute_dtype)
    tracer = Tracer(clip=clip, aim=aim, means=held.to(like), secant=gain == "secant")
    sets = [tracer.reader(images), *([] if minus is None else [tracer.reader(minus)])]
    chosen = tracer.chosen(sets, nodes, heads, progress)
    found = [tracer.traced(each, chosen, progress) for each in sets]
    graph = found[0] if minus is None else found[0].minus(found[1])
    if share is None:
        kept = leading_on(strongest(graph["weights"], edges), len(chosen.neurons))
    else:
        kept = tracer.fewest(sets[0], chosen, share, progress)
    return tracer.pruned(graph, chosen, kept, lens, sets)


@checked
@undisturbed
def mean_of(clip: Clip, images: Any, progress: bool = False) -> Means:
    """Average neurons and embeddings over pictures, for `circuit`; raises what `fit` raises."""
    return means(clip, Reader(source=as_source(images), clip=clip), progress)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is explained."""

    name: str
    direction: Tensor | None = None
    neuron: tuple[int, int] | None = None


def _aim(clip: Clip, target: Any, name: str) -> Aim:
    if isinstance(target, str):
        return Aim(name=name or target, direction=clip.encode_text([target])[0])
    if isinstance(target, Tensor):
        if target.shape != (clip.dim,) or not target.isfinite().all():
            raise SecondLensError(
                f"a row of the embedding has {clip.dim} finite numbers, and this is "
                f"{list(target.shape)}"
            )
        return Aim(name=name or "direction", direction=target.to(clip.device))
    if isinstance(target, Sequence) and len(target) == 2:
        one, other = target
        if isinstance(one, str) and isinstance(other, str):
            rows = clip.encode_text([one, other])
            return Aim(name=name or f"{one} above {other}", direction=rows[0] - rows[1])
        if isinstance(one, int) and isinstance(other, int):
            clip.check_layer(one, last=True)
            check_neurons(clip, one, [other])
            return Aim(name=name or f"neuron {one}:{other}", neuron=(one, other))
    raise SecondLensError(
        "a circuit explains a text, a pair of texts, a neuron such as (9, 123), or a row of the "
        f"embedding, not {type(target).__name__}"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture, run once."""

    tower: Linearised
    embedding: Float[Tensor, "1 tokens width"]
    target: Unit | Tensor
    means: Means
    held: dict[int, Float[Tensor, "1 tokens neurons"]]
    """Of `held_inputs`."""

    @cached_property
    def change(self) -> dict[int, Float[Tensor, "1 tokens neurons"]]:
        """Of activations, from their means."""
        found = self.tower.activations
        return {layer: each - self.means.activations[layer] for layer, each in found.items()}

    @cached_property
    def gradient(self) -> Gradient:
        """Of the target."""
        return gradient(self.tower, self.target)

    @cached_property
    def frozen(self) -> Gradient:
        """The same where activations are worth what they do with attention and scales frozen."""
        return replace(self.gradient, worth=frozen_worth(self.tower, self.target))

    def inflow(self, gradient: Gradient, nodes: Nodes) -> Float[Tensor, " neurons"]:
        """All that goes into neurons over edges, whether these are in a graph or not."""
        found = [self.embedding.new_zeros(0)]
        for layer in range(self.tower.clip.layers):
            some = nodes.of_layer(layer)
            if layer not in gradient.worth:
                found.append(self.embedding.new_zeros(len(some)))
                continue
            gain = self.tower.blocks[layer].slope[:, :, some] * gradient.worth[layer][:, :, some]
            moved = inputs_of(self.tower, layer, some) - self.held[layer][:, :, some]
            found.append((gain * moved).sum(1)[0])
        return torch.cat(found)

    @cached_property
    def without(self) -> tuple[float, float]:
        """The score with no edge, with attention frozen and free, where the target is a score."""
        assert isinstance(self.target, Tensor)
        none = Nodes(neurons=()), torch.zeros(self.embedding.shape[1], 1).bool()
        frozen, free = (
            float(held_run(*self.run, *none, free=free).score(self.target)[0])
            for free in (False, True)
        )
        return frozen, free

    @property
    def run(self) -> tuple[Linearised, Tensor, Means]:
        """What `held_run` takes first."""
        return self.tower, self.embedding, self.means


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracer:
    """Finds the graph of one target, picture by picture."""

    clip: Clip
    aim: Aim
    means: Means
    secant: bool
    alone: dict[int, tuple[Reader, int, Picture]] = field(default_factory=dict)
    """The only picture of a reader, by the reader's id."""

    def reader(self, images: Any) -> Reader:
        """Pictures for the methods below."""
        return Reader(source=as_source(images), clip=self.clip, batch_size=FEW_IMAGES)

    def pictures(self, reader: Reader, what: str, progress: bool) -> Iterator[tuple[int, Picture]]:
        """One after another, with their positions; a picture that is alone is run once."""
        if id(reader) in self.alone:
            yield self.alone[id(reader)][1:]
            return
        for batch in tracked(reader, what, progress):
            pixels = batch.on(self.clip.device)
            for position, each in zip(batch.positions, pixels.split(1), strict=True):
                picture = self.picture(each)
                if len(reader.source.ids) == 1:
                    self.alone[id(reader)] = reader, position, picture
                yield position, picture

    def picture(self, pixels: Tensor) -> Picture:
        """Run one preprocessed picture, [1, 3, height, width]."""
        seen = Sources(self.clip)
        with hooked([], seen.hooks()):
            tower = linearise(self.clip, pixels)
        if not tower.representation.isfinite().all():
            raise SecondLensError(
                f"{self.clip.name} gives NaN or infinity on a picture: use a wider precision"
            )
        held = held_inputs(tower, self.means)
        return Picture(
            tower=with_secants(tower, held) if self.secant else tower,
            embedding=seen.embedding.to(self.clip.compute_dtype),
            target=self._target(tower),
            means=self.means,
            held=held,
        )

    def _target(self, tower: Linearised) -> Unit | Tensor:
        if self.aim.neuron is None:
            assert self.aim.direction is not None
            return self.aim.direction.to(tower.representation)
        layer, neuron = self.aim.neuron
        token = int(tower.activations[layer][0, :, neuron].argmax())
        return Unit(layer=layer, neuron=neuron, token=token)

    # -- nodes -------------------------------------------------------------------------------

    def chosen(self, readers: Sequence[Reader], neurons: int, heads: int, progress: bool) -> Nodes:
        """The neurons and heads that do most on average over all pictures, by size."""
        size = torch.zeros(0)
        looking = torch.zeros(0)
        for reader in readers:
            for _, each in self.pictures(reader, "nodes", progress):
                worth = frozen_worth(each.tower, each.target)
                layers = range(len(worth))
                found = torch.cat([(worth[n] * each.change[n]).sum(1)[0] for n in layers] or [size])
                size = (size.to(found) if len(size) else torch.zeros_like(found)) + found.abs()
                of_heads = each.gradient.of_heads()[0].abs().flatten()
                looking = of_heads + (looking if len(looking) else torch.zeros_like(of_heads))
        if not len(looking):
            raise SecondLensError("none of the pictures could be read")
        return Nodes(
            neurons=_largest(size, neurons, self.clip.neurons),
            heads=_largest(looking, heads, self.clip.heads),
        )

    # -- edges -------------------------------------------------------------------------------

    def traced(self, reader: Reader, nodes: Nodes, progress: bool) -> MeanGraph:
        """All edges between the nodes, over the pictures of a set."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        positions, score, held = [], 0.0, 0.0
        for position, each in self.pictures(reader, "edges", progress):
            positions.append(position)
            found, base = self._numbers(each, nodes)
            for kind, value in found.items():
                mean, squares = sums.get(kind, (torch.zeros_like(value), torch.zeros_like(value)))
                step = value - mean
                mean = mean + step / len(positions)
                sums[kind] = mean, squares + step * (value - mean)
            score += self.score(each)
            held += base
        count = len(positions)
        return MeanGraph(
            ids=tuple(reader.source.ids[position] for position in positions),
            minus_ids=(),
            score=score / count,
            held=held / count,
            moments={
                kind: (mean, squares / max(1, count - 1)) for kind, (mean, squares) in sums.items()
            },
        )

    def score(self, picture: Picture) -> float:
        """What is explained of a picture."""
        tower = picture.tower
        if isinstance(picture.target, Unit):
            unit = picture.target
            return float(tower.activations[unit.layer][0, unit.token, unit.neuron])
        return float(tower.representation[0] @ picture.target / tower.length[0])

    def _numbers(self, picture: Picture, nodes: Nodes) -> tuple[dict[str, Tensor], float]:
        """Edges of a picture, what goes into neurons altogether, and the score with none."""
        embedding = picture.embedding - self.means.embedding
        found = edges_between(picture.gradient, nodes, picture.change, embedding, heads=True)
        assert found.by_head is not None
        inflow = torch.cat([self._into_target(picture), picture.inflow(picture.gradient, nodes)])
        activations = [
            picture.tower.activations[layer][0, :, nodes.of_layer(layer)]
            for layer in range(self.clip.layers)
        ]
        values = {
            "weights": found.weights[0],
            "flows": found.flows[0],
            "effects": found.flows[0].sum(-1),
            "inflow": inflow,
            "by_head": found.by_head[0],
            "activations": torch.cat(activations, dim=1),
        }
        return {kind: each.cpu() for kind, each in values.items()}, self.score(picture) - float(
            inflow[0]
        )

    def _into_target(self, picture: Picture) -> Tensor:
        """All that goes into the target, the rest of which is what it is with all edges held."""
        if isinstance(picture.target, Tensor):
            return picture.embedding.new_tensor([self.score(picture) - picture.without[0]])
        unit = picture.target
        x = inputs_of(picture.tower, unit.layer, [unit.neuron])[0, unit.token, 0]
        gain = picture.tower.blocks[unit.layer].slope[0, unit.token, unit.neuron]
        found: Tensor = gain * (x - picture.held[unit.layer][0, unit.token, unit.neuron])
        return found[None]

    # -- the fewest edges that do a share ------------------------------------------------------

    def frozen_edges(self, picture: Picture, nodes: Nodes) -> tuple[Tensor, Tensor]:
        """Edges as they are with attention and scales frozen, [sources, targets], and all that
        goes into the target and the neurons."""
        embedding = picture.embedding - self.means.embedding
        found = edges_between(picture.frozen, replace(nodes, heads=()), picture.change, embedding)
        into = [self._into_target(picture), picture.inflow(picture.frozen, nodes)]
        return found.weights[0].cpu(), torch.cat(into).cpu()

    def fewest(
        self, reader: Reader, nodes: Nodes, share: float, progress: bool
    ) -> Bool[Tensor, "sources receivers"]:
        """The fewest balanced edges with which the network, attention frozen, keeps a share.

        Twice as many are tried until they do, and then what lies between.

        Raises
        ------
        SecondLensError
            However many edges between the nodes are taken, they keep less.
        """
        found = [
            self.frozen_edges(each, nodes) for _, each in self.pictures(reader, "share", progress)
        ]
        weights, wanted = (torch.stack(each).mean(0) for each in zip(*found, strict=True))

        def tried(count: int) -> tuple[Bool[Tensor, "sources targets"], float]:
            mask = leading_on(balanced(weights, wanted, count), len(nodes.neurons))
            sums = torch.zeros(3, dtype=torch.float64)
            for _, each in self.pictures(reader, "share", False):
                score = float(held_run(*each.run, nodes, mask).score(each.target)[0])  # type: ignore[arg-type]
                sums += torch.tensor([score, each.without[0], self.score(each)])
            # as much too far is as bad as not far enough
            return mask, 1 - abs(1 - share_of(*(sums / len(found)).tolist()))

        every = int((weights != 0).sum())
        few, enough = 0, 1
        kept, near = tried(enough)
        best = near
        while near < share and enough < every:
            few, enough = enough, min(2 * enough, every)
            kept, near = tried(enough)
            best = max(best, near)
        if near < share:
            raise SecondLensError(
                f"edges between the {len(nodes.neurons)} neurons keep at most {100 * best:.1f} % "
                f"of what is explained, not {100 * share:g} %: take more nodes, or a smaller share"
            )
        while few + max(1, few // 20) < enough:
            middle = (few + enough) // 2
            mask, near = tried(middle)
            if near >= share:
                kept, enough = mask, middle
            else:
                few = middle
        none = torch.zeros(len(kept), 2 * len(nodes.heads)).bool()
        return torch.cat([kept, none], dim=1)

    # -- the graph ---------------------------------------------------------------------------

    def pruned(
        self,
        graph: MeanGraph,
        nodes: Nodes,
        kept: Bool[Tensor, "sources receivers"],
        lens: Lens | None,
        sets: Sequence[Reader],
    ) -> Circuit:
        """The edges that are kept, the nodes that they connect to the target, and what is left."""
        layers, neurons = self.clip.layers, self.clip.neurons
        last = layers if self.aim.neuron is None else self.aim.neuron[0]
        possible = (
            neurons**2 * last * (last - 1) // 2
            + last * neurons
            + self.clip.tokens * (last * neurons + 1)
        )
        drawn = Drawing(
            clip=self.clip, graph=graph, nodes=nodes, kept=kept, lens=lens, target=self.aim.name
        )
        return Circuit(
            model=self.clip.name,
            target=self.aim.name,
            image_ids=graph.ids,
            minus_ids=graph.minus_ids,
            score=graph.score,
            held=graph.held,
            nodes=drawn.nodes_of_graph(),
            edges=tuple(drawn.edges_of_graph()),
            possible=possible,
            checks=self._checks(sets, nodes, kept),
        )

    def _checks(
        self, sets: Sequence[Reader], nodes: Nodes, kept: Bool[Tensor, "sources receivers"]
    ) -> tuple[Check, ...]:
        """Run the network with the edges, where the target is a score of one set."""
        if self.aim.neuron is not None or len(sets) > 1:
            return ()
        mask = kept[:, : 1 + len(nodes.neurons)]
        sums = torch.zeros(2, 3, dtype=torch.float64)
        count = 0
        for _, each in self.pictures(sets[0], "check", False):
            sums += torch.tensor(held_scores(each, nodes, mask, self.score(each)))
            count += 1
        found = []
        for attention, (score, held, whole) in zip(
            ("frozen", "free"), (sums / count).tolist(), strict=True
        ):
            share = share_of(score, held, whole)
            found.append(Check(attention=attention, score=score, held=held, share=share))  # type: ignore[arg-type]
        return tuple(found)


def share_of(score: float, held: float, whole: float) -> float:
    """How far a score is on the way from the one with no edge to the whole one."""
    return (score - held) / (whole - held) if whole != held else 0.0


def held_scores(
    picture: Picture, nodes: Nodes, mask: Bool[Tensor, "sources targets"], whole: float
) -> list[list[float]]:
    """With frozen and with free attention: the score with some edges, with none, and as it is."""
    assert isinstance(picture.target, Tensor)
    return [
        [
            float(held_run(*picture.run, nodes, mask, free=free).score(picture.target)[0]),
            none,
            whole,
        ]
        for free, none in zip((False, True), picture.without, strict=True)
    ]


def _largest(size: Tensor, count: int, row: int) -> tuple[tuple[int, int], ...]:
    """Places of the largest numbers, by layer and number in ascending order."""
    places = size.argsort(descending=True, stable=True)[:count]
    return tuple((int(each) // row, int(each) % row) for each in places.sort().values)
