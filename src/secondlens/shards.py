"""What a fit does with each shard of its images, and how the shards' parts are put together.

There are two stages, "means" and "top images", and each is a tree. A leaf reads a shard; every node
above merges up to `FAN_IN` nodes below, in their order. The trees follow from the plan alone, so
whoever does a node, and whenever, it is the same; and nobody ever holds more than two of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .accumulate import Ranking
from .capture import Capture
from .errors import SecondLensError
from .images import Reader
from .parts import Parts
from .paths import coordinates, extended_coefficients, image_scale, isometry, value_paths
from .plan import Plan
from .statistics import Centre, Moments, TopImages
from .view import Clip

FAN_IN = 16
"""Nodes that one node of the level above merges."""
IMAGES_PER_RANKING = 1024
"""Stored coordinates ranked at a time."""
STAGES = ("means", "top images")


class Changed(SecondLensError):
    """The pictures of the second pass are not those of the first."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One part of a fit, and the task of making it."""

    group: int
    """Of layers, see `Plan.groups`."""
    stage: str
    level: int
    """0 for a shard."""
    number: int

    def __str__(self) -> str:
        what = "shard" if self.level == 0 else f"level {self.level}, node"
        return f"{self.stage} of {what} {self.number}"

    @property
    def name(self) -> str:
        """Of its part."""
        stage = self.stage.replace(" ", "-")
        return f"group-{self.group:02}-{stage}-{self.level}-{self.number:05}"


def levels(shards: int) -> list[int]:
    """Nodes of each level of a tree, from its leaves to its root."""
    counts = [shards]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FAN_IN))
    return counts


class ShardWork:
    """Makes the parts of a fit, node by node; both stages' leaves run the model.

    Parameters
    ----------
    clip, plan, convention
        Of the fit.
    reader
        Of all images.
    parts
        Where nodes are written.
    top
        Top images a neuron, given how many images could be read.
    """

    def __init__(
        self,
        clip: Clip,
        plan: Plan,
        convention: str,
        reader: Reader,
        parts: Parts,
        top: Callable[[int], int],
    ) -> None:
        self.clip, self.plan, self.convention = clip, plan, convention
        self.reader, self.parts, self.top = reader, parts, top
        self._transforms: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}
        self._centred: tuple[int, dict[int, Centre]] | None = None

    def __call__(self, node: Node) -> None:
        """Make one part."""
        if node.level:
            self._merge(node)
        elif node.stage == STAGES[0]:
            self._first_pass(node)
        else:
            self._second_pass(node)

    def root(self, group: int, stage: str) -> Node:
        """The node that holds what all shards tell."""
        level = len(levels(len(self.plan.shards))) - 1
        return Node(group=group, stage=stage, level=level, number=0)

    def moments(self, node: Node, layer: int) -> Moments:
        """What a node of the means holds of a layer."""
        found = self._tensors(node.name, f"{layer}.")
        return Moments(
            count=self.parts.info(node.name)["images"], mean=found["mean"], scatter=found["scatter"]
        )

    def activations(self, node: Node, layer: int) -> Tensor:
        """Sums of activations [tokens, neurons] in a node of the means."""
        return self._tensors(node.name, f"{layer}.activations")[""]

    def ranked(self, node: Node, layer: int) -> tuple[TopImages, Tensor]:
        """Top images and histogram in a node of the top images."""
        found = self._tensors(node.name, f"{layer}.")
        histogram = found.pop("histogram").cpu()
        return TopImages(**found), histogram

    def stored(self, layer: int, number: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored."""
        z = self._tensors(_stored(number, layer))["z"]
        if z.dtype != torch.float16:
            return z
        moments = self.moments(self._leaf_of(layer, number), layer)
        return z.to(moments.mean.dtype) * _rms(moments) + moments.mean

    def with_images(self, layer: int) -> list[int]:
        """Numbers of the shards of which something could be read."""
        numbers = range(len(self.plan.shards))
        return [n for n in numbers if self.parts.info(self._leaf_of(layer, n).name)["images"]]

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, rank]."""
        if layer not in self._bases:
            self._isometry(layer, keep_basis=True)
        return self._bases.pop(layer)

    def _first_pass(self, node: Node) -> None:
        layers = self.plan.groups[node.group]
        moments: dict[int, Moments] = {}
        activations: dict[int, Tensor] = {}
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        read: list[int] = []
        reader = self._reader(node)
        for positions, z_of_layer, sums in self._batches(reader, layers, activations=True):
            read += positions
            for layer, z in z_of_layer.items():
                seen = Moments.of(z)
                moments[layer] = moments[layer].merge(seen) if layer in moments else seen
                activations[layer] = activations.get(layer, 0) + sums[layer]
                if self.plan.store is not None:
                    kept[layer].append(z)
        for layer, seen in moments.items():
            if self.plan.store is not None:
                z = torch.cat(kept.pop(layer))
                if self.plan.store == "float16":
                    z = ((z - seen.mean) / _rms(seen)).half()
                self.parts.save(_stored(node.number, layer), {"z": z}, {})
        unread = sorted(set(self.plan.shards[node.number]) - set(read))
        # last, because it says that the shard is complete
        self._save_means(node, len(read), unread, dict(reader.skipped), moments, activations)

    def _save_means(
        self,
        node: Node,
        images: int,
        unread: list[int],
        skipped: dict[str, str],
        moments: dict[int, Moments],
        activations: dict[int, Tensor],
    ) -> None:
        info = {"images": images, "unread": unread, "skipped": skipped}
        if node == self.root(node.group, node.stage):
            # what the second pass needs is little beside the scatter
            centres = {f"{n}.mean": each.mean for n, each in moments.items()}
            centres |= {f"{n}.energy": each.energy for n, each in moments.items()}
            self.parts.save(_centres(node.group), centres, info)
        tensors = {}
        for layer, each in moments.items():
            tensors[f"{layer}.mean"], tensors[f"{layer}.scatter"] = each.mean, each.scatter
            tensors[f"{layer}.activations"] = activations[layer]
        self.parts.save(node.name, tensors, info)

    def _second_pass(self, node: Node) -> None:
        layers, centres = self.plan.groups[node.group], self._centres(node.group)
        count = self.top(self.parts.info(_centres(node.group))["images"])
        rankings = {layer: Ranking(centres[layer], count) for layer in layers}
        info = self.parts.info(replace(node, stage=STAGES[0]).name)
        unread = set(info["unread"])
        expected = [n for n in self.plan.shards[node.number] if n not in unread]
        if self.plan.store is None:
            self._rank_again(node, rankings, expected)
        elif expected:
            self._rank_stored(node, rankings, expected)
        self._save_ranked(
            node, {n: (ranking.top_images, ranking.histogram) for n, ranking in rankings.items()}
        )

    def _rank_again(self, node: Node, rankings: dict[int, Ranking], expected: list[int]) -> None:
        seen: list[int] = []
        for positions, z_of_layer, _ in self._batches(self._reader(node), tuple(rankings)):
            seen += positions
            for layer, z in z_of_layer.items():
                rankings[layer].see(z, torch.tensor(positions, device=z.device))
        if seen != expected:
            raise Changed(
                "other pictures could be read in the second pass than in the first: they changed "
                "meanwhile, so begin again"
            )

    def _rank_stored(self, node: Node, rankings: dict[int, Ranking], expected: list[int]) -> None:
        positions = torch.tensor(expected, device=self.clip.device)
        for layer, ranking in rankings.items():
            z = self.stored(layer, node.number)
            for start in range(0, len(z), IMAGES_PER_RANKING):
                some = slice(start, start + IMAGES_PER_RANKING)
                ranking.see(z[some], positions[some])

    def _save_ranked(self, node: Node, ranked: dict[int, tuple[TopImages, Tensor]]) -> None:
        tensors = {}
        for layer, (top_images, histogram) in ranked.items():
            for name in ("norms", "images", "centred"):
                tensors[f"{layer}.{name}"] = getattr(top_images, name)
            tensors[f"{layer}.histogram"] = histogram
        self.parts.save(node.name, tensors, {})

    def _merge(self, node: Node) -> None:
        width = levels(len(self.plan.shards))[node.level - 1]
        first = node.number * FAN_IN
        below = [
            replace(node, level=node.level - 1, number=number)
            for number in range(first, min(first + FAN_IN, width))
        ]
        if node.stage == STAGES[0]:
            self._merge_means(node, below)
        else:
            self._merge_ranked(node, below)

    def _merge_means(self, node: Node, below: list[Node]) -> None:
        images = 0
        unread: list[int] = []
        skipped: dict[str, str] = {}
        moments: dict[int, Moments] = {}
        activations: dict[int, Tensor] = {}
        for each in below:
            info, tensors = self.parts.info(each.name), self._tensors(each.name)
            images += info["images"]
            unread += info["unread"]
            skipped |= info["skipped"]
            for layer in self.plan.groups[node.group] if info["images"] else ():
                seen = Moments(
                    count=info["images"],
                    mean=tensors[f"{layer}.mean"],
                    scatter=tensors[f"{layer}.scatter"],
                )
                sums = tensors[f"{layer}.activations"]
                moments[layer] = moments[layer].merge(seen) if layer in moments else seen
                activations[layer] = activations[layer] + sums if layer in activations else sums
        self._save_means(node, images, unread, skipped, moments, activations)

    def _merge_ranked(self, node: Node, below: list[Node]) -> None:
        ranked: dict[int, tuple[TopImages, Tensor]] = {}
        for each in below:
            tensors = self._tensors(each.name)
            for layer in self.plan.groups[node.group]:
                found = {
                    name: tensors[f"{layer}.{name}"].clone()
                    for name in ("norms", "images", "centred")
                }
                histogram = tensors[f"{layer}.histogram"].cpu()
                if layer in ranked:
                    ranked[layer][0].merge(TopImages(**found))
                    histogram = ranked[layer][1] + histogram
                    ranked[layer] = ranked[layer][0], histogram
                else:
                    ranked[layer] = TopImages(**found), histogram
        self._save_ranked(node, ranked)

    def _batches(
        self, reader: Reader, layers: tuple[int, ...], *, activations: bool = False
    ) -> Iterator[tuple[list[int], dict[int, Tensor], dict[int, Tensor]]]:
        """(positions, coordinates by layer, sums of activations [tokens, neurons] by layer)."""
        for layer in self._transforms.keys() - set(layers):
            del self._transforms[layer]
        for layer in layers:
            self._isometry(layer, keep_basis=False)
        shortcut = self.clip.class_token_only()
        with shortcut, Capture(self.clip, layers, keep_activations=activations) as capture:
            for batch in reader:
                pooled = capture.pool(self.clip.encode_image(batch.pixels))
                scale = image_scale(pooled, self.convention)
                z = {
                    layer: coordinates(
                        self._transforms[layer],
                        extended_coefficients(pooled, layer, self.convention),
                        scale,
                    )
                    for layer in layers
                }
                yield batch.positions, z, {n: a.sum(0) for n, a in pooled.activations.items()}

    def _isometry(self, layer: int, *, keep_basis: bool) -> None:
        if layer in self._transforms and not keep_basis:
            return
        found = isometry(value_paths(self.clip, layer, self.convention))
        self._transforms[layer] = found.transform
        if keep_basis or self.plan.keep_basis:
            self._bases[layer] = found.basis

    def _centres(self, group: int) -> dict[int, Centre]:
        """Of all images, for each layer of a group; kept, because every shard needs them."""
        if self._centred is None or self._centred[0] != group:
            found = self._tensors(_centres(group))
            of_layers = {
                n: Centre(mean=found[f"{n}.mean"], energy=found[f"{n}.energy"])
                for n in self.plan.groups[group]
            }
            self._centred = group, of_layers
        return self._centred[1]

    def _tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        found = self.parts.tensors(name, prefix)
        return {key: tensor.to(self.clip.device) for key, tensor in found.items()}

    def _reader(self, node: Node) -> Reader:
        return replace(self.reader, positions=self.plan.shards[node.number], skipped={})

    def _leaf_of(self, layer: int, number: int) -> Node:
        group = next(g for g, layers in enumerate(self.plan.groups) if layer in layers)
        return Node(group=group, stage=STAGES[0], level=0, number=number)


def _stored(number: int, layer: int) -> str:
    return f"coordinates-{layer:02}-{number:05}"


def _centres(group: int) -> str:
    return f"group-{group:02}-centres"


def _rms(moments: Moments) -> Tensor:
    """Root mean square of a coordinate, [neurons, 1]: what float16 coordinates are measured in."""
    rms = (moments.energy / moments.mean.shape[1]).sqrt()
    return torch.where(rms > 0, rms, 1)[:, None]
