"""What a fit does with a shard of its images, in each of its two passes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..capture import Capture
from ..clip.view import Clip
from ..effects.paths import coordinates, extended_coefficients, image_scale, isometry, value_paths
from ..errors import SecondLensError
from ..images import Reader
from ..lens.layer import Ranking
from ..statistics import Moments
from ..storage.parts import Parts
from .nodes import STAGES, Means, Node, Nodes
from .plan import Plan

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
        parts: Parts,
        top: Callable[[int], int],
    ) -> None:
        self.clip, self.plan, self.convention = clip, plan, convention
        self.reader, self.parts, self.top = reader, parts, top
        self.nodes = Nodes(clip, plan, parts)
        self._transforms: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}

    def __call__(self, node: Node) -> None:
        """Make one node."""
        if node.level:
            self.nodes.merge(node)
        elif node.stage == STAGES[0]:
            self.first_pass(node)
        else:
            self.second_pass(node)

    def stored(self, layer: int, number: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored."""
        z = self.nodes.tensors(_stored(number, layer))["z"]
        if z.dtype != torch.float16:
            return z
        moments, _ = self.nodes.layer_means(self._leaf(layer, number), layer)
        return z.to(moments.mean.dtype) * _rms(moments) + moments.mean

    def with_images(self, layer: int) -> list[int]:
        """Numbers of the shards of which something could be read."""
        numbers = range(len(self.plan.shards))
        return [n for n in numbers if self.nodes.info(self._leaf(layer, n))["images"]]

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, rank]."""
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
                    kept[layer].append(z)
        for layer, seen in moments.items() if self.plan.store is not None else ():
            z = torch.cat(kept.pop(layer))
            if self.plan.store == "float16":
                z = ((z - seen.mean) / _rms(seen)).half()
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
            for start in range(0, len(z), IMAGES_PER_RANKING):
                some = slice(start, start + IMAGES_PER_RANKING)
                ranking.see(z[some], positions[some])

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
