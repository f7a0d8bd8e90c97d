"""What a fit does with its images, shard by shard, and how what it found is put together.

There are two stages, "means" and "top images", and each is a tree. A leaf tells of one shard; every
node above merges up to `FAN_IN` nodes below, in their order. The trees follow from the plan alone,
so whoever makes a node, and whenever, it is the same; and nobody ever holds more than two of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.reader import Reader
from ..devices import smaller
from ..effects.streaming import stream
from ..effects.value_paths import (
    coordinates,
    extended_coefficients,
    image_scale,
    isometry,
    value_paths,
)
from ..errors import SecondLensError
from ..models.view import Clip
from ..storage.checkpoints import Checkpoints
from ..storage.validation import Position, check_positions, convert
from .layer import Ranking
from .moments import HISTOGRAM_EDGES, Centre, Moments, TopImages
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


@dataclass(frozen=True, kw_only=True)
class Info:
    """What the JSON of a node of the first stage holds."""

    images: Position
    unread: tuple[Position, ...]
    skipped: dict[str, str]


AXES = {
    "mean": ("neurons", "rank"),
    "scatter": ("neurons", "rank", "rank"),
    "energy": ("neurons",),
    "activations": ("tokens", "neurons"),
    "norms": ("neurons", "top"),
    "images": ("neurons", "top"),
    "centred": ("neurons", "top", "rank"),
    "histogram": ("neurons", "bins"),
    "z": ("images", "neurons", "rank"),
}
"""Of the tensors of nodes, by the end of their names."""

Ranked = dict[int, tuple[TopImages, Tensor]]
"""What a node of the second stage holds: top images and histogram [neurons, bins], by layer."""


class Nodes:
    """The nodes of a fit, in its parts; tensors are read onto the device where the model is."""

    def __init__(self, clip: Clip, plan: Plan, parts: Checkpoints) -> None:
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
        return self._info(node.name)

    def _info(self, name: str) -> dict[str, Any]:
        with self.parts.reading(name):
            found = vars(convert(self.parts.info(name), Info, name))
            if found["images"] + len(found["unread"]) > self.plan.images:
                raise ValueError("it has more images than there are")
        return {**found, "unread": list(found["unread"])}

    def means(self, node: Node) -> Means:
        """What it holds."""
        info, tensors = self.info(node), self.tensors(node.name)
        layers = self.plan.groups[node.group] if info["images"] else ()
        with self.parts.reading(node.name):
            return Means(
                **info,
                moments={n: self._moments(info["images"], tensors, n) for n in layers},
                activations={n: tensors[f"{n}.activations"] for n in layers},
            )

    def layer_means(self, node: Node, layer: int) -> tuple[Moments, Tensor]:
        """Moments and sums of activations of one layer alone."""
        found = self.tensors(node.name, f"{layer}.")
        tensors = {f"{layer}.{name}": tensor for name, tensor in found.items()}
        images = self.info(node)["images"]
        with self.parts.reading(node.name):
            return self._moments(images, tensors, layer), found["activations"]

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
            with self.parts.reading(_centres(group)):
                of_layers = {
                    n: Centre(mean=found[f"{n}.mean"], energy=found[f"{n}.energy"])
                    for n in self.plan.groups[group]
                }
            self._centred = group, of_layers
        return self._info(_centres(group))["images"], self._centred[1]

    def ranked(self, node: Node, layer: int) -> tuple[TopImages, Tensor]:
        """What it holds of one layer."""
        tensors = self.tensors(node.name, f"{layer}.")
        with self.parts.reading(node.name):
            return _ranked(tensors)

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
        with self.parts.reading(self.below(node)[0].name):
            self._merge(node)

    def _merge(self, node: Node) -> None:
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
        """Of a part, see `Checkpoints.tensors`."""
        found = self.parts.tensors(name, prefix)
        with self.parts.reading(name):
            for key, tensor in found.items():
                self._check(f"{prefix}{key}", tensor)
        return {key: tensor.to(self.clip.device) for key, tensor in found.items()}

    def stored(self, number: int, layer: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored; on the CPU."""
        name = _stored(number, layer)
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
        whole = name in ("images", "histogram")
        if tensor.dtype.is_floating_point == whole:
            raise ValueError(f"{key} is {tensor.dtype}")
        if name == "images":
            check_positions(tensor, plan.images, key, least=-1)

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


IMAGES_PER_RANKING = 1024
"""Stored coordinates ranked at a time."""


class Changed(SecondLensError):
    """The pictures of the second pass are not those of the first."""


class ShardWork:
    """Makes the nodes of a fit, each a task; the leaves of both stages run the model.

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
        parts: Checkpoints,
        top: Callable[[int], int],
    ) -> None:
        self.clip, self.plan, self.convention = clip, plan, convention
        self.reader, self.parts, self.top = reader, parts, top
        self.nodes = Nodes(clip, plan, parts)
        self._transforms: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.device

    def to(self, device: torch.device) -> None:
        """Move the model; the rest follows it."""
        self.clip.model.to(device)

    def __call__(self, node: Node) -> int:
        """Make one node, in smaller batches if memory runs out; return the images of a batch.

        Raises
        ------
        SecondLensError
            Memory runs out with a single picture, or while nodes are merged.
        """
        while not self._made(node):
            size = 1 if node.level else self.reader.images_per_batch
            self.reader = replace(self.reader, batch_size=smaller(size, self.clip.device))
        return self.reader.images_per_batch

    def _made(self, node: Node) -> bool:
        """Make one node, unless memory runs out; the error would keep what filled it."""
        try:
            if node.level:
                self.nodes.merge(node)
            elif node.stage == STAGES[0]:
                self.first_pass(node)
            else:
                self.second_pass(node)
        except torch.OutOfMemoryError:
            return False
        return True

    def stored(self, layer: int, number: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored; on the CPU."""
        z = self.nodes.stored(number, layer)
        if z.dtype != torch.float16:
            return z
        moments, _ = self.nodes.layer_means(self._leaf(layer, number), layer)
        return z.to(moments.mean.dtype) * _rms(moments).cpu() + moments.mean.cpu()

    def with_images(self, layer: int) -> list[int]:
        """Numbers of the shards of which something could be read."""
        numbers = range(len(self.plan.shards))
        return [n for n in numbers if self.nodes.info(self._leaf(layer, n))["images"]]

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, rank], on the model's device."""
        if layer not in self._bases:
            self._isometry(layer, keep_basis=True)
        return self._bases.pop(layer)

    def first_pass(self, node: Node) -> None:
        """Means of a shard, and its coordinates where they are stored."""
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
                    kept[layer].append(z.cpu())
        for layer, seen in moments.items() if self.plan.store is not None else ():
            z = torch.cat(kept.pop(layer))
            if self.plan.store == "float16":
                z = ((z - seen.mean.cpu()) / _rms(seen).cpu()).half()
            self.parts.save(_stored(node.number, layer), {"z": z}, {})
        means = Means(
            images=len(read),
            unread=sorted(set(self.plan.shards[node.number]) - set(read)),
            skipped=dict(reader.skipped),
            moments=moments,
            activations=activations,
        )
        # last, because it says that the shard is complete
        self.nodes.save_means(node, means)

    def second_pass(self, node: Node) -> None:
        """Top images of a shard, around the centre of all images."""
        images, centres = self.nodes.centres(node.group)
        rankings = {n: Ranking(centre, self.top(images)) for n, centre in centres.items()}
        unread = set(self.nodes.info(replace(node, stage=STAGES[0]))["unread"])
        expected = [n for n in self.plan.shards[node.number] if n not in unread]
        if self.plan.store is None:
            self._rank_again(node, rankings, expected)
        elif expected:
            self._rank_stored(node, rankings, expected)
        ranked = {n: (ranking.top_images, ranking.histogram) for n, ranking in rankings.items()}
        self.nodes.save_ranked(node, ranked)

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
            with self.parts.reading(_stored(node.number, layer)):
                if len(z) != len(expected):
                    raise ValueError(f"it is of {len(z)} images and not {len(expected)}")
            for start in range(0, len(z), IMAGES_PER_RANKING):
                some = slice(start, start + IMAGES_PER_RANKING)
                ranking.see(z[some].to(self.clip.device), positions[some])

    def _batches(
        self, reader: Reader, layers: tuple[int, ...], *, activations: bool = False
    ) -> Iterator[tuple[list[int], dict[int, Tensor], dict[int, Tensor]]]:
        """(positions, coordinates by layer, sums of activations [tokens, neurons] by layer)."""
        for layer in self._transforms.keys() - set(layers):
            del self._transforms[layer]
        for layer in layers:
            self._isometry(layer, keep_basis=False)
        for batch in stream(
            *(self.clip, reader, layers),
            keep_activations=activations,
            class_token_only=True,
            in_halves=False,  # what is computed here takes memory too
        ):
            pooled = batch.pooled
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

    def _reader(self, node: Node) -> Reader:
        return replace(self.reader, positions=self.plan.shards[node.number], skipped={})

    def _leaf(self, layer: int, number: int) -> Node:
        group = next(g for g, layers in enumerate(self.plan.groups) if layer in layers)
        return Node(group=group, stage=STAGES[0], level=0, number=number)


def _stored(number: int, layer: int) -> str:
    return f"coordinates-{layer:02}-{number:05}"


def _rms(moments: Moments) -> Tensor:
    """Root mean square of a coordinate, [neurons, 1]: what float16 coordinates are measured in."""
    rms = (moments.energy / moments.mean.shape[1]).sqrt()
    return torch.where(rms > 0, rms, 1)[:, None]
