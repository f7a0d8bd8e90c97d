"""Fit a lens: stream images through a model and keep what they show about each neuron.

Images are cut into shards of consecutive positions. Each shard gives a part: means and covariances
of its coordinates, and in a second pass its strongest images around the final mean. Parts are
reduced in the order of the shards, so that a fit which was interrupted and goes on from the parts
that exist ends with the same lens, bit for bit. Nothing that is held grows with the number of
images, unless coordinates are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from . import statistics
from .accumulate import LayerLens, Ranking, layer_lens
from .capture import Capture
from .errors import SecondLensError
from .images import Reader, as_source, dataset_hash
from .lens import Coordinates, Lens
from .parts import Parts
from .paths import coordinates, extended_coefficients, image_scale, isometry, value_paths
from .plan import Plan, make_plan
from .statistics import Moments, TopImages
from .storage import check_empty
from .view import Clip

IMAGES_PER_RANKING = 1024
"""Stored coordinates ranked at a time."""


def fit(
    clip: Clip,
    images: Any,
    layers: "Sequence[int] | Literal['all']" = "all",
    *,
    top: int | None = None,
    out: str | Path | None = None,
    convention: str = "exact",
    store: str = "auto",
    keep_coordinates: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    memory: int | None = None,
    progress: bool = False,
    announce: Callable[[Plan], None] | None = None,
) -> Lens:
    """Fit a lens: stream images through the model and keep what they show about each neuron.

    All layers share a forward pass. Top images are exact around the final mean: from stored
    coordinates where there is room, else in a second pass.

    With `out`, finished parts are kept in the folder `out` + ".unfinished" until the lens is
    written. The same call after an interruption, of whatever kind, goes on from them.

    Parameters
    ----------
    clip
        The model.
    images
        A folder of pictures, a list of PIL images, a preprocessed tensor [images, 3, height,
        width], or an `ImageSource`.
    layers
        MLP layers, or "all" that have second-order effects.
    top
        Images that count as a neuron's top images; by default 2 %, at most 100 (the paper: 100 of
        5,000).
    out
        A folder to save the lens in; it must not exist or be empty.
    convention
        "exact", or "official" to compare with published numbers.
    store
        Coordinates between the passes: "float32", "float16" (errors of about 1e-3 of a centred
        effect), "never" for two passes, or "auto": float32 where there is room.
    keep_coordinates
        Keep every image's float32 coordinates in memory and in the lens, so that it can be
        merged.
    batch_size
        Images in one forward pass.
    workers
        Processes that decode pictures.
    memory
        Bytes that may be used besides the model; by default half of what is free. Layers are
        fitted in groups where it is short.
    progress
        Show progress bars.
    announce
        Called with the plan before work begins.

    Raises
    ------
    SecondLensError
        A layer without second-order effects, no readable image, `top` out of range, a folder that
        is not empty, too little memory, or unfinished work with other settings.
    """
    chosen = range(clip.layers - 1) if layers == "all" else layers
    chosen = sorted({clip.check_layer(layer) for layer in chosen})
    if not chosen:
        raise SecondLensError("no layers to fit: name at least one, or all")
    source = as_source(images)
    count = len(source.ids)
    statistics.top_count(top, count)
    if out is not None:
        check_empty(out)
    plan = make_plan(
        clip,
        count,
        chosen,
        top=statistics.top_count(top, count),
        convention=convention,
        batch_size=batch_size,
        store="float32" if keep_coordinates else store,
        out=None if out is None else Path(out),
        memory=memory,
    )
    parts = Parts(None if out is None else Path(f"{out}.unfinished"))
    work = {
        "model": describe_model(clip),
        "images": dataset_hash(source),
        "layers": chosen,
        "top": top,
        "convention": convention,
        "store": "float32" if keep_coordinates else store,
        "batch size": batch_size,
    }
    plan = _plan_from_json(plan, parts.claim(work, _plan_to_json(plan)))
    if announce is not None:
        announce(plan)
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not progress,
    ) as bars:
        groups = [
            _Group(clip, number, plan, convention, reader, parts, bars)
            for number in range(len(plan.groups))
        ]
        by_layer: dict[int, LayerLens] = {}
        for group in groups:
            by_layer |= group.fit(top)
    positions = groups[0].positions
    lens = Lens(
        model=describe_model(clip),
        convention=convention,
        top=statistics.top_count(top, len(positions)),
        image_ids=tuple(source.ids[position] for position in positions),
        skipped=groups[0].skipped,
        by_layer=dict(sorted(by_layer.items())),
        coordinates=_coordinates(groups, plan) if keep_coordinates else None,
    )
    if out is not None:
        lens.save(out)
    parts.drop()
    return lens


def describe_model(clip: Clip) -> dict[str, Any]:
    """What a lens records about its model."""
    return {
        "name": clip.name,
        "weights": clip.weights_hash,
        "activation": clip.activation,
        "layers": clip.layers,
        "heads": clip.heads,
        "neurons": clip.neurons,
        "dim": clip.dim,
        "grid": list(clip.grid),
    }


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    shards = [[shard.start, shard.stop] for shard in plan.shards]
    groups = [list(group) for group in plan.groups]
    return {"groups": groups, "shards": shards, "store": plan.store}


def _plan_from_json(plan: Plan, recorded: dict[str, Any]) -> Plan:
    """The plan with the choices recorded when the work began: less may be free now."""
    return replace(
        plan,
        groups=tuple(tuple(group) for group in recorded["groups"]),
        shards=tuple(range(*shard) for shard in recorded["shards"]),
        store=recorded["store"],
    )


def _coordinates(groups: "list[_Group]", plan: Plan) -> Coordinates:
    z, basis = {}, {}
    for group in groups:
        for layer in group.layers:
            stored = [group.stored(layer, number) for number in group.shards_with_images()]
            z[layer] = torch.cat(stored)
            basis[layer] = group.basis(layer)
    return Coordinates(z=z, basis=basis)


class _Group:
    """Some layers that share their passes."""

    def __init__(
        self,
        clip: Clip,
        number: int,
        plan: Plan,
        convention: str,
        reader: Reader,
        parts: Parts,
        bars: Progress,
    ) -> None:
        self.clip, self.number, self.plan, self.convention = clip, number, plan, convention
        self.layers = plan.groups[number]
        self.reader, self.parts, self.bars = reader, parts, bars
        self.positions: list[int] = []
        self.skipped: dict[str, str] = {}
        self._transforms: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}

    def fit(self, top: int | None) -> dict[int, LayerLens]:
        """Both passes, and what they tell of each layer."""
        bar = self._bar("means")
        for number in range(len(self.plan.shards)):
            if self._means(number) not in self.parts:
                self._first_pass(number, bar)
            self._advance_to(bar, number)
            info = self.parts.info(self._means(number))
            self.positions += info["positions"]
            self.skipped |= info["skipped"]
        if not self.positions:
            self.parts.drop()
            raise SecondLensError("none of the pictures could be read")
        count = statistics.top_count(top, len(self.positions))
        if self.plan.store is not None:
            return {layer: self._rank_stored(layer, count) for layer in self.layers}
        moments = {layer: self._moments(layer) for layer in self.layers}
        bar = self._bar("top images")
        for number in self.shards_with_images():
            if self._top(number) not in self.parts:
                self._second_pass(number, moments, count, bar)
            self._advance_to(bar, number)
        return {
            layer: self._merge_ranked(layer, moments.pop(layer), count) for layer in self.layers
        }

    def shards_with_images(self) -> list[int]:
        """Numbers of the shards of which something could be read."""
        numbers = range(len(self.plan.shards))
        return [n for n in numbers if self.parts.info(self._means(n))["positions"]]

    def stored(self, layer: int, number: int) -> Tensor:
        """Coordinates [images, neurons, rank] of a shard, as they were stored."""
        z = self.parts.tensors(self._stored(number, layer))["z"]
        if z.dtype != torch.float16:
            return z
        moments = self._shard_moments(layer, number)
        return z.to(moments.mean.dtype) * _rms(moments) + moments.mean

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, rank]."""
        if layer not in self._bases:
            self._isometry(layer, keep_basis=True)
        return self._bases[layer]

    def _first_pass(self, number: int, bar: Any) -> None:
        moments: dict[int, Moments] = {}
        activations: dict[int, Tensor] = {}
        kept: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        positions: list[int] = []
        reader = self._reader(number)
        for batch, z_of_layer, sums in self._batches(reader, bar, activations=True):
            positions += batch
            for layer, z in z_of_layer.items():
                seen = Moments.of(z)
                moments[layer] = moments[layer].merge(seen) if layer in moments else seen
                activations[layer] = activations.get(layer, 0) + sums[layer]
                if self.plan.store is not None:
                    kept[layer].append(z)
        tensors = {}
        for layer, seen in moments.items():
            tensors[f"{layer}.mean"], tensors[f"{layer}.scatter"] = seen.mean, seen.scatter
            tensors[f"{layer}.activations"] = activations[layer]
            if self.plan.store is not None:
                z = torch.cat(kept.pop(layer))
                if self.plan.store == "float16":
                    z = ((z - seen.mean) / _rms(seen)).half()
                self.parts.save(self._stored(number, layer), {"z": z}, {})
        # last, because it says that the shard is complete
        info = {"positions": positions, "skipped": dict(reader.skipped)}
        self.parts.save(self._means(number), tensors, info)

    def _second_pass(self, number: int, moments: dict[int, Moments], top: int, bar: Any) -> None:
        rankings = {layer: Ranking(moments[layer], top) for layer in self.layers}
        expected = self.parts.info(self._means(number))["positions"]
        seen: list[int] = []
        for batch, z_of_layer, _ in self._batches(self._reader(number), bar):
            seen += batch
            for layer, z in z_of_layer.items():
                rankings[layer].see(z, torch.tensor(batch, device=z.device))
        if seen != expected:
            self.parts.drop()
            raise SecondLensError(
                "other pictures could be read in the second pass than in the first: they changed "
                "meanwhile, so begin again"
            )
        tensors = {}
        for layer, ranking in rankings.items():
            for name in ("norms", "images", "centred"):
                tensors[f"{layer}.{name}"] = getattr(ranking.top_images, name)
            tensors[f"{layer}.histogram"] = ranking.histogram
        self.parts.save(self._top(number), tensors, {})

    def _rank_stored(self, layer: int, top: int) -> LayerLens:
        ranking = Ranking(self._moments(layer), top)
        for number in self.shards_with_images():
            positions = torch.tensor(self.parts.info(self._means(number))["positions"])
            z = self.stored(layer, number)
            for start in range(0, len(z), IMAGES_PER_RANKING):
                some = slice(start, start + IMAGES_PER_RANKING)
                ranking.see(z[some], positions[some].to(z.device))
        return self._finished(layer, ranking)

    def _merge_ranked(self, layer: int, moments: Moments, top: int) -> LayerLens:
        ranking = Ranking(moments, top)
        for number in self.shards_with_images():
            found = self.parts.tensors(self._top(number), f"{layer}.")
            histogram = found.pop("histogram")
            ranking.see_ranked(TopImages(**found), histogram)
        return self._finished(layer, ranking)

    def _finished(self, layer: int, ranking: Ranking) -> LayerLens:
        numbers = self.shards_with_images()
        sums = [self.parts.tensors(self._means(n), f"{layer}.activations")[""] for n in numbers]
        mean = reduce(torch.add, sums) / len(self.positions)
        fitted = layer_lens(ranking, self.basis(layer), mean)
        if not self.plan.keep_basis:
            del self._bases[layer]
        # from positions in the source to positions among the images that could be read
        order = torch.tensor(self.positions, device=fitted.top_images.device)
        return replace(fitted, top_images=torch.searchsorted(order, fitted.top_images))

    def _moments(self, layer: int) -> Moments:
        shards = (self._shard_moments(layer, number) for number in self.shards_with_images())
        return reduce(Moments.merge, shards)

    def _shard_moments(self, layer: int, number: int) -> Moments:
        count = len(self.parts.info(self._means(number))["positions"])
        found = self.parts.tensors(self._means(number), f"{layer}.")
        return Moments(count=count, mean=found["mean"], scatter=found["scatter"])

    def _batches(
        self, reader: Reader, bar: Any, *, activations: bool = False
    ) -> Iterator[tuple[list[int], dict[int, Tensor], dict[int, Tensor]]]:
        """(positions, coordinates by layer, sums of activations [tokens, neurons] by layer)."""
        for layer in self.layers:
            self._isometry(layer, keep_basis=self.plan.keep_basis)
        shortcut = self.clip.class_token_only()
        with shortcut, Capture(self.clip, self.layers, keep_activations=activations) as capture:
            for batch in reader:
                pooled = capture.pool(self.clip.encode_image(batch.pixels))
                scale = image_scale(pooled, self.convention)
                z = {
                    layer: coordinates(
                        self._transforms[layer],
                        extended_coefficients(pooled, layer, self.convention),
                        scale,
                    )
                    for layer in self.layers
                }
                yield batch.positions, z, {n: a.sum(0) for n, a in pooled.activations.items()}
                self.bars.advance(bar, len(batch.positions))

    def _isometry(self, layer: int, *, keep_basis: bool) -> None:
        if layer in self._transforms and (layer in self._bases or not keep_basis):
            return
        found = isometry(value_paths(self.clip, layer, self.convention))
        self._transforms[layer] = found.transform
        if keep_basis:
            self._bases[layer] = found.basis

    def _reader(self, number: int) -> Reader:
        return replace(self.reader, positions=self.plan.shards[number], skipped={})

    def _bar(self, purpose: str) -> Any:
        of = f" {self.number + 1}/{len(self.plan.groups)}" if len(self.plan.groups) > 1 else ""
        return self.bars.add_task(purpose + of, total=self.plan.images)

    def _advance_to(self, bar: Any, number: int) -> None:
        self.bars.update(bar, completed=self.plan.shards[number].stop)

    def _means(self, number: int) -> str:
        return f"group-{self.number:02}-means-{number:04}"

    def _top(self, number: int) -> str:
        return f"group-{self.number:02}-top-{number:04}"

    def _stored(self, number: int, layer: int) -> str:
        return f"coordinates-{layer:02}-{number:04}"


def _rms(moments: Moments) -> Tensor:
    """Root mean square of a coordinate, [neurons, 1]: what float16 coordinates are measured in."""
    rms = (moments.energy / moments.mean.shape[1]).sqrt()
    return torch.where(rms > 0, rms, 1)[:, None]
