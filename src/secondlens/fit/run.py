"""The course of a fit: both trees of nodes of each group of layers, and the lens in their roots."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..engine import Engine, Incomplete, Workers
from ..errors import SecondLensError
from ..lens import Coordinates, LayerLens
from ..lens.layer import layer_lens
from .nodes import STAGES, Node, levels
from .shards import ShardWork


class NothingReadable(SecondLensError):
    """None of the pictures could be read."""


class Unfinished(SecondLensError):
    """Some shards failed on every worker that tried them; all others are done."""

    def __init__(self, failures: Mapping[Node, str], kept: str | None) -> None:
        self.failures = dict(failures)
        reasons = "".join(f"\n  {node}: {reason}" for node, reason in self.failures.items())
        rest = (
            "there is no lens"
            if kept is None
            else f"there is no lens yet, and the rest is kept in {kept}: the same call goes on"
        )
        count = "1 shard" if len(self.failures) == 1 else f"{len(self.failures)} shards"
        super().__init__(f"{count} could not be done; {rest}{reasons}")


class Run:
    """Every node of a fit, made by the workers of an engine, and what follows from the roots."""

    def __init__(self, shards: ShardWork, engine: Engine, bars: Progress) -> None:
        self.shards, self.engine, self.bars = shards, engine, bars
        self.plan, self.parts = shards.plan, shards.parts

    def fit(self) -> tuple[dict[int, LayerLens], dict[str, Any]]:
        """What both passes tell of each layer, and which pictures could be read."""
        by_layer: dict[int, LayerLens] = {}
        with self.engine.start(self.shards) as workers:
            for group, layers in enumerate(self.plan.groups):
                means, top_images = (self.shards.nodes.root(group, stage) for stage in STAGES)
                self.make_tree(workers, means)
                info = self.shards.nodes.info(means)
                if not info["images"]:
                    raise NothingReadable("none of the pictures could be read")
                self.make_tree(workers, top_images)
                unread = torch.tensor(info["unread"], dtype=torch.int64)
                for layer in layers:
                    by_layer[layer] = self._finished(means, top_images, layer, unread)
        return by_layer, info

    def coordinates(self) -> Coordinates:
        """Of all images that could be read, where they were stored."""
        z, basis = {}, {}
        for layer in self.plan.layers:
            numbers = self.shards.with_images(layer)
            z[layer] = torch.cat([self.shards.stored(layer, number) for number in numbers])
            basis[layer] = self.shards.basis(layer)
        return Coordinates(z=z, basis=basis)

    def make_tree(self, workers: Workers, root: Node) -> None:
        """Make a stage's nodes that are missing, level by level."""
        of = f" {root.group + 1}/{len(self.plan.groups)}" if len(self.plan.groups) > 1 else ""
        for level, count in enumerate(levels(len(self.plan.shards))):
            nodes = [replace(root, level=level, number=number) for number in range(count)]
            there = self.parts.names()
            missing = [node for node in nodes if node.name not in there]
            title = f"{root.stage}{of}" if level == 0 else f"merging {root.stage}{of}"
            bar = self.bars.add_task(title, total=count, completed=count - len(missing))
            try:
                for _ in workers.map(missing):
                    self.bars.advance(bar)
            except Incomplete as error:
                raise Unfinished(error.failures, self.parts.folder) from error

    def _finished(self, means: Node, top_images: Node, layer: int, unread: Tensor) -> LayerLens:
        moments, sums = self.shards.nodes.layer_means(means, layer)
        ranked = self.shards.nodes.ranked(top_images, layer)
        fitted = layer_lens(moments, *ranked, self.shards.basis(layer), sums / moments.count)
        # from positions in the source to positions among the images that could be read
        before = torch.searchsorted(unread.to(fitted.top_images.device), fitted.top_images)
        return replace(fitted, top_images=fitted.top_images - before)


def shard_bars(progress: bool) -> Progress:
    """Bars that count shards and merged nodes; none unless `progress`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not progress,
    )
