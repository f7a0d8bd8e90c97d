"""What a fit knows of some of its images, and how such pieces are put together.

There are two stages, "means" and "top images", and each is a tree. A leaf tells of one shard; every
node above merges up to `FAN_IN` nodes below, in their order. The trees follow from the plan alone,
so whoever makes a node, and whenever, it is the same; and nobody ever holds more than two of them.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..clip.view import Clip
from ..statistics import Centre, Moments, TopImages
from ..storage.parts import Parts
from .plan import Plan

FAN_IN = 16
"""Nodes that one node of the level above merges."""
STAGES = ("means", "top images")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """What a node of the first stage holds; layers only if an image could be read."""

    images: int
    unread: list[int]
    """Positions of images that could not be read."""
    skipped: dict[str, str]
    """Why, by the image's id; damaged files too."""
    moments: dict[int, Moments]
    activations: dict[int, Tensor]
    """Sums of activations [tokens, neurons], by layer."""

    def merge(self, other: "Means") -> "Means":
        """What both know."""
        if not self.images or not other.images:
            known = self if self.images else other
            moments, activations = known.moments, known.activations
        else:
            moments = {n: each.merge(other.moments[n]) for n, each in self.moments.items()}
            activations = {n: each + other.activations[n] for n, each in self.activations.items()}
        return Means(
            images=self.images + other.images,
            unread=self.unread + other.unread,
            skipped=self.skipped | other.skipped,
            moments=moments,
            activations=activations,
        )


Ranked = dict[int, tuple[TopImages, Tensor]]
"""What a node of the second stage holds: top images and histogram [neurons, bins], by layer."""


class Nodes:
    """The nodes of a fit, in its parts; tensors are read onto the device where the model is."""

    def __init__(self, clip: Clip, plan: Plan, parts: Parts) -> None:
        self.clip, self.plan, self.parts = clip, plan, parts
        self._centred: tuple[int, dict[int, Centre]] | None = None

    def root(self, group: int, stage: str) -> Node:
        """The node that holds what all shards tell."""
        level = len(levels(len(self.plan.shards))) - 1
        return Node(group=group, stage=stage, level=level, number=0)

    def below(self, node: Node) -> list[Node]:
        """The nodes that one above the leaves merges."""
        width = levels(len(self.plan.shards))[node.level - 1]
        first = node.number * FAN_IN
        numbers = range(first, min(first + FAN_IN, width))
        return [replace(node, level=node.level - 1, number=number) for number in numbers]

    def info(self, node: Node) -> dict[str, Any]:
        """Of a node of the means: images, unread and skipped."""
        return self.parts.info(node.name)

    def means(self, node: Node) -> Means:
        """What it holds."""
        info, tensors = self.info(node), self.tensors(node.name)
        layers = self.plan.groups[node.group] if info["images"] else ()
        return Means(
            **info,
            moments={n: self._moments(info["images"], tensors, n) for n in layers},
            activations={n: tensors[f"{n}.activations"] for n in layers},
        )

    def layer_means(self, node: Node, layer: int) -> tuple[Moments, Tensor]:
        """Moments and sums of activations of one layer alone."""
        found = self.tensors(node.name, f"{layer}.")
        tensors = {f"{layer}.{name}": tensor for name, tensor in found.items()}
        moments = self._moments(self.info(node)["images"], tensors, layer)
        return moments, found["activations"]

    def save_means(self, node: Node, means: Means) -> None:
        """Write it; at the root also the centres, which are all that the second stage needs."""
        info = {"images": means.images, "unread": means.unread, "skipped": means.skipped}
        tensors: dict[str, Tensor] = {}
        centres: dict[str, Tensor] = {}
        for layer, moments in means.moments.items():
            tensors[f"{layer}.mean"], tensors[f"{layer}.scatter"] = moments.mean, moments.scatter
            tensors[f"{layer}.activations"] = means.activations[layer]
            centres[f"{layer}.mean"], centres[f"{layer}.energy"] = moments.mean, moments.energy
        if node == self.root(node.group, node.stage):
            self.parts.save(_centres(node.group), centres, info)
        self.parts.save(node.name, tensors, info)

    def centres(self, group: int) -> tuple[int, dict[int, Centre]]:
        """How many images there are, and their centre in each layer of a group."""
        # kept, because every shard needs them
        if self._centred is None or self._centred[0] != group:
            found = self.tensors(_centres(group))
            of_layers = {
                n: Centre(mean=found[f"{n}.mean"], energy=found[f"{n}.energy"])
                for n in self.plan.groups[group]
            }
            self._centred = group, of_layers
        return self.parts.info(_centres(group))["images"], self._centred[1]

    def ranked(self, node: Node, layer: int) -> tuple[TopImages, Tensor]:
        """What it holds of one layer."""
        return _ranked(self.tensors(node.name, f"{layer}."))

    def save_ranked(self, node: Node, ranked: Ranked) -> None:
        """Write it."""
        tensors = {}
        for layer, (top_images, histogram) in ranked.items():
            for name in ("norms", "images", "centred"):
                tensors[f"{layer}.{name}"] = getattr(top_images, name)
            tensors[f"{layer}.histogram"] = histogram
        self.parts.save(node.name, tensors, {})

    def merge(self, node: Node) -> None:
        """Make a node of those below it."""
        first, *others = self.below(node)
        if node.stage == STAGES[0]:
            means = self.means(first)
            for each in others:
                means = means.merge(self.means(each))
            self.save_means(node, means)
        else:
            ranked = self._all_ranked(first)
            for each in others:
                for layer, (top_images, histogram) in self._all_ranked(each).items():
                    ranked[layer][0].merge(top_images)
                    ranked[layer] = ranked[layer][0], ranked[layer][1] + histogram
            self.save_ranked(node, ranked)

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Of a part, see `Parts.tensors`."""
        found = self.parts.tensors(name, prefix)
        return {key: tensor.to(self.clip.device) for key, tensor in found.items()}

    def _all_ranked(self, node: Node) -> Ranked:
        tensors = self.tensors(node.name)
        # copied, because merging writes into them, and parts never change
        return {
            n: _ranked(
                {
                    k.removeprefix(f"{n}."): v.clone()
                    for k, v in tensors.items()
                    if k.startswith(f"{n}.")
                }
            )
            for n in self.plan.groups[node.group]
        }

    def _moments(self, images: int, tensors: dict[str, Tensor], layer: int) -> Moments:
        return Moments(
            count=images, mean=tensors[f"{layer}.mean"], scatter=tensors[f"{layer}.scatter"]
        )


def _ranked(tensors: dict[str, Tensor]) -> tuple[TopImages, Tensor]:
    histogram = tensors.pop("histogram").cpu()
    return TopImages(**tensors), histogram


def _centres(group: int) -> str:
    return f"group-{group:02}-centres"
