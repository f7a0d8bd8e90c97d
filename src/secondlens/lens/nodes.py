"""The parts of a fit, and how they are put together.

There are two stages, "means" and "top images", and each is a tree. A leaf tells of one shard; every
node above merges up to `FAN_IN` nodes below, in their order. The trees follow from the plan alone,
so whoever makes a node, and whenever, it is the same; and nobody ever holds more than one layer of
two of them. Layers whose top images are not proven by the second stage (see `ranking`) get a third
one, "top images again".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.view import Clip
from ..storage.checkpoints import Checkpoints
from ..storage.validation import Digest, Position, check_positions, convert
from .moments import HISTOGRAM_EDGES, Centre, Moments, TopImages
from .plan import Plan
from .ranking import Ranked

FAN_IN = 16
"""Nodes that one node of the level above merges."""
MEANS, TOP_IMAGES, AGAIN = STAGES = ("means", "top images", "top images again")


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


@dataclass(frozen=True, kw_only=True)
class Readable:
    """Which images of a node could be read: what its JSON holds."""

    images: Position
    """How many."""
    unread: tuple[Position, ...]
    """Positions of the others."""
    skipped: dict[str, str]
    """Why, by the image's id; damaged files too."""

    def merge(self, other: "Readable") -> "Readable":
        """What both know."""
        return Readable(
            images=self.images + other.images,
            unread=self.unread + other.unread,
            skipped=self.skipped | other.skipped,
        )


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of the contents of the images of a shard that could be read: what its JSON holds."""

    digests: tuple[Digest, ...]


class Nodes:
    """The nodes of a fit, in its parts; tensors are read onto the device where the model is."""

    def __init__(self, clip: Clip, plan: Plan, parts: Checkpoints) -> None:
        self.clip, self.plan, self.parts = clip, plan, parts
        self._centred: tuple[str, dict[int, Centre]] | None = None

    def shards(self, stage: str) -> tuple[Sequence[int], ...]:
        """Return the positions of the images of each leaf of a stage."""
        return self.plan.sampled_shards if stage == MEANS else self.plan.shards

    def levels(self, stage: str) -> list[int]:
        """Return how many nodes each level of a stage has."""
        return levels(len(self.shards(stage)))

    def root(self, group: int, stage: str) -> Node:
        """The node that holds what all shards tell."""
        return Node(group=group, stage=stage, level=len(self.levels(stage)) - 1, number=0)

    def below(self, node: Node) -> list[Node]:
        """The nodes that one above the leaves merges."""
        width = self.levels(node.stage)[node.level - 1]
        first = node.number * FAN_IN
        numbers = range(first, min(first + FAN_IN, width))
        return [replace(node, level=node.level - 1, number=number) for number in numbers]

    def readable(self, node: Node) -> Readable:
        """Return which of its images could be read."""
        with self.parts.reading(node.name):
            found = convert(self.parts.info(node.name), Readable, node.name)
            if found.images + len(found.unread) > self.plan.images:
                raise ValueError("it has more images than there are")
        return found

    def layers(self, node: Node) -> tuple[int, ...]:
        """Return those that it tells of, if anything could be read."""
        if node.stage == AGAIN:
            return tuple(self.centres(node.group, AGAIN))
        return self.plan.groups[node.group]

    def means(self, node: Node, layer: int) -> tuple[Moments, Tensor]:
        """Moments and sums of activations [tokens, neurons] of one layer."""
        found = self.tensors(node.name, f"{layer}.")
        images = self.readable(node).images
        with self.parts.reading(node.name):
            moments = Moments(count=images, mean=found["mean"], scatter=found["scatter"])
            return moments, found["activations"]

    def save_means(
        self,
        node: Node,
        readable: Readable,
        moments: Mapping[int, Moments],
        activations: Mapping[int, Tensor],
    ) -> None:
        """Write it; at the root also the centres, which are all that the second stage needs."""
        tensors: dict[str, Tensor] = {}
        for layer, each in moments.items():
            tensors[f"{layer}.mean"], tensors[f"{layer}.scatter"] = each.mean, each.scatter
            tensors[f"{layer}.activations"] = activations[layer]
        if node == self.root(node.group, MEANS):
            centres = {n: Centre(mean=m.mean, energy=m.energy) for n, m in moments.items()}
            self.save_centres(node.group, TOP_IMAGES, centres)
        self.parts.save(node.name, tensors, vars(readable))

    def centres(self, group: int, stage: str) -> dict[int, Centre]:
        """Return around what a stage ranks images, by layer of a group."""
        name = _centres(group, stage)
        # kept, because every shard needs them
        if self._centred is None or self._centred[0] != name:
            found = self.tensors(name)
            with self.parts.reading(name):
                layers = sorted({int(key.partition(".")[0]) for key in found})
                self._centred = (
                    name,
                    {
                        n: Centre(mean=found[f"{n}.mean"], energy=found[f"{n}.energy"])
                        for n in layers
                    },
                )
        return self._centred[1]

    def save_centres(self, group: int, stage: str, centres: Mapping[int, Centre]) -> None:
        """Write around what a stage ranks images."""
        tensors: dict[str, Tensor] = {}
        for layer, centre in centres.items():
            tensors[f"{layer}.mean"], tensors[f"{layer}.energy"] = centre.mean, centre.energy
        self.parts.save(_centres(group, stage), tensors, {})

    def ranked(self, node: Node, layer: int) -> Ranked:
        """What it holds of one layer."""
        found = self.tensors(node.name, f"{layer}.")
        with self.parts.reading(node.name):
            top_images = TopImages(**{name: found.pop(name) for name in _OF_TOP_IMAGES})
            return Ranked(top_images=top_images, **found)

    def save_ranked(self, node: Node, readable: Readable, ranked: Mapping[int, Ranked]) -> None:
        """Write it."""
        tensors = {}
        for layer, each in ranked.items():
            for name in _OF_TOP_IMAGES:
                tensors[f"{layer}.{name}"] = getattr(each.top_images, name)
            for name in ("histogram", "total", "squares"):
                tensors[f"{layer}.{name}"] = getattr(each, name)
        self.parts.save(node.name, tensors, vars(readable))

    def merge(self, node: Node) -> None:
        """Make a node of those below it, layer by layer."""
        with self.parts.reading(self.below(node)[0].name):
            self._merge(node)

    def _merge(self, node: Node) -> None:
        below = self.below(node)
        readable = self.readable(below[0])
        for each in below[1:]:
            readable = readable.merge(self.readable(each))
        if node.stage == MEANS:
            moments, activations = {}, {}
            told = [each for each in below if self.readable(each).images]
            for layer in self.layers(node) if told else ():
                moments[layer], activations[layer] = self.means(told[0], layer)
                for each in told[1:]:
                    more, sums = self.means(each, layer)
                    moments[layer] = moments[layer].merge(more)
                    activations[layer] = activations[layer] + sums
            self.save_means(node, readable, moments, activations)
        else:
            ranked = {}
            for layer in self.layers(node):
                ranked[layer] = self.ranked(below[0], layer)
                for each in below[1:]:
                    ranked[layer] = ranked[layer].merge(self.ranked(each, layer))
            self.save_ranked(node, readable, ranked)

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Of a part, see `Checkpoints.tensors`."""
        found = self.parts.tensors(name, prefix)
        with self.parts.reading(name):
            for key, tensor in found.items():
                self._check(f"{prefix}{key}", tensor)
        return {key: tensor.to(self.clip.device) for key, tensor in found.items()}

    def stored(self, number: int, layer: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored; on the CPU."""
        name = stored_name(number, layer)
        with self.parts.reading(name):
            z = self.parts.tensors(name)["z"]
            self._check(f"{layer}.z", z)
        return z

    def _check(self, key: str, tensor: Tensor) -> None:
        """Raise `ValueError` for a tensor that no node has."""
        layer, _, name = key.partition(".")
        plan, clip = self.plan, self.clip
        number = torch.finfo(clip.compute_dtype).bits // 8
        sizes = {
            "neurons": clip.neurons,
            "tokens": clip.tokens,
            "bins": len(HISTOGRAM_EDGES) - 1,
            "rank": plan.coordinates_per_image[int(layer)] // (clip.neurons * number),
        }
        for axis, size in zip(AXES[name], tensor.shape, strict=True):
            if size != sizes.get(axis, size) or size > max(plan.images, *sizes.values()):
                raise ValueError(f"{key} has {size} {axis}")
        wanted = torch.int64 if name in ("images", "histogram") else clip.compute_dtype
        narrow = name in ("z", "centred") and tensor.dtype in NARROW
        if tensor.dtype != wanted and not narrow:
            raise ValueError(f"{key} is {tensor.dtype} and not {wanted}")
        if tensor.dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise ValueError(f"{key} has numbers that are not finite")
        if name in ("energy", "squares") and bool((tensor < 0).any()):
            raise ValueError(f"{key} has numbers below zero")
        if name == "images":
            check_positions(tensor, plan.images, key, least=-1)


NARROW = (torch.float16, torch.bfloat16)
"""What coordinates may be kept in, see `fit`."""

AXES = {
    "mean": ("neurons", "rank"),
    "scatter": ("neurons", "rank", "rank"),
    "energy": ("neurons",),
    "activations": ("tokens", "neurons"),
    "norms": ("neurons", "top"),
    "images": ("neurons", "top"),
    "centred": ("neurons", "top", "rank"),
    "unit": ("neurons",),
    "histogram": ("neurons", "bins"),
    "total": ("neurons", "rank"),
    "squares": ("neurons",),
    "z": ("images", "neurons", "rank"),
}
"""Of the tensors of nodes, by the end of their names."""
_OF_TOP_IMAGES = ("norms", "images", "centred", "unit")


def stored_name(number: int, layer: int) -> str:
    """Of the part with a shard's coordinates of a layer."""
    return f"coordinates-{layer:02}-{number:05}"


def digests_name(number: int) -> str:
    """Of the part with the digests of a shard's images."""
    return f"digests-{number:05}"


def _centres(group: int, stage: str) -> str:
    return f"group-{group:02}-centres-of-{stage.replace(' ', '-')}"
