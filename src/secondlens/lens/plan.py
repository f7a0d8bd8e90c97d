"""What a fit will need before it starts: passes over the images, memory, disk.

Sizes follow from the shapes alone. With K' extended coefficients a neuron and rank = min(K', d),
an image's coordinates in one layer of N neurons take N * rank numbers, and a layer's covariances
N * rank^2, whatever the number of images.
"""

import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from ..data.reader import default_batch
from ..devices import CPU, free_memory
from ..effects.centring import pooling_dtype
from ..effects.total_effects import pass_numbers
from ..effects.value_paths import check_convention
from ..errors import SecondLensError
from ..formatting import counted
from ..models.view import Clip
from ..storage.remote import is_remote
from ..storage.validation import Position, convert
from .moments import HISTOGRAM_EDGES

STORES = ("auto", "float32", "float16", "never")
"""How coordinates may be stored between the passes."""
SHARE = 0.5
"""Of the free memory and disk that a plan may count on."""
BUFFER = 512 * 2**20
"""Bytes of coordinates that a shard may gather before they are written."""
IMAGES_PER_SHARD = 512
"""At least, where coordinates are not stored."""
SAMPLE = 8192
"""Images from which covariances and mean activations are: eigenvalues need thousands, and not
millions."""
SPARE = 2
"""Images that a neuron keeps around the mean of a sample, for each of its top images."""
PILOT_BATCH = 4
"""Images whose total effects are in memory at a time, in the whole embedding, where axes are
found."""
MAX_SHARDS = 256
MAX_PARTIALS = 4 * 2**30
"""Bytes that the partial statistics of all shards of a group may take together."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a fit will run."""

    images: int
    sample: int
    """Images from which covariances and mean activations are: all, or a random choice of them."""
    sample_shard: int
    """Images of a shard of the sample."""
    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    """Layers that share their passes; more than one group where memory is short."""
    shards: tuple[range, ...]
    """Positions of the images, in the order in which statistics are reduced."""
    store: str | None
    """Dtype of stored coordinates, None if images pass again instead."""
    keep_basis: bool
    """Whether bases stay in memory; if not, they are computed again at the end."""
    memory: int
    """Bytes at the peak where the model is, besides its weights."""
    disk: int
    """Bytes of work files, removed at the end; in memory where nothing is written."""
    lens: int
    """Bytes of the finished lens."""
    coordinates_per_image: dict[int, int]
    """Bytes of one image's float32 coordinates, by layer."""
    axes: int | None = None
    """Of the embedding, along which effects over all paths are; None for those of the value
    path."""

    @property
    def sampled(self) -> bool:
        """Whether the first stage reads a sample of the images."""
        return self.sample < self.images

    @property
    def sampled_shards(self) -> tuple[Sequence[int], ...]:
        """Positions of the images that the first stage reads."""
        if not self.sampled:
            return self.shards
        return _sampled_shards(self.images, self.sample, self.sample_shard)

    @property
    def passes(self) -> int:
        """Forward passes of every image; those of a sample come on top."""
        return len(self.groups) * (1 if self.store or self.sampled else 2)

    def __str__(self) -> str:
        if self.sampled:
            stored = f"and one of a sample of {self.sample:,} for covariances and mean activations"
        elif self.store:
            stored = f"coordinates stored in {self.store}"
        else:
            stored = "images pass again for the top images"
        groups = f" in {len(self.groups)} groups" if len(self.groups) > 1 else ""
        over, passes = "", counted(self.passes, "forward pass")
        if self.axes is not None:
            over = f"all paths along {self.axes} {'axis' if self.axes == 1 else 'axes'}: "
            passes += f" and {self.passes * self.axes:,} backward"
        return (
            f"{over}{counted(len(self.layers), 'layer')}{groups}, {counted(self.images, 'image')} "
            f"in {counted(len(self.shards), 'shard')}, {passes} an image ({stored}); "
            f"up to {size(self.memory)} of memory besides the model, {size(self.disk)} of work "
            f"files, {size(self.lens)} for the lens"
        )


def make_plan(
    clip: Clip,
    images: int,
    layers: Iterable[int],
    *,
    top: int,
    convention: str = "exact",
    batch_size: int | None = None,
    store: str = "auto",
    keep_coordinates: bool = False,
    out: str | Path | None = None,
    memory: int | None = None,
    disk: int | None = None,
    shard_size: int | None = None,
    sample: int | None = None,
    axes: int | None = None,
) -> Plan:
    """Decide how to fit.

    Parameters
    ----------
    clip
        The model.
    images
        How many.
    layers
        MLP layers to fit.
    top
        Top images a neuron.
    convention
        "exact" or "official".
    batch_size
        Images in one forward pass; by default `default_batch`.
    store
        "float32" or "float16": store the coordinates of all images, so that one pass is enough.
        "never": images pass again. "auto": float32 where there is room and every image is in the
        sample, else never.
    keep_coordinates
        Whether coordinates and bases of all layers are in memory at the end, for the lens.
    out
        Where the lens will be; work files stand beside it. None: all in memory.
    memory
        Bytes of the model's device that may be used; by default half of what is free there.
    disk
        Bytes that may be used for stored coordinates, which are in this machine's own memory where
        nothing is written; by default half of what is free on the disk, or a quarter of the memory.
    shard_size
        Images a shard, rounded up to whole batches; by default at most 256 shards.
    sample
        Images from which covariances and mean activations are; by default 8,192. Where coordinates
        of all images are stored, all.
    axes
        Of the embedding, along which effects over all paths are; by default those of the value path
        are planned.

    Raises
    ------
    SecondLensError
        No such convention or way to store, batches, shards or samples without images, or too
        little memory for even one layer.
    """
    check_convention(convention)
    for what, count in (("batch", batch_size), ("shard", shard_size), ("sample", sample)):
        if count is not None and count < 1:
            raise SecondLensError(f"a {what} needs at least 1 image, and it has {count}")
    if store not in STORES:
        raise SecondLensError(f"no way to store {store!r}: choose one of {', '.join(STORES)}")
    batch_size = batch_size or default_batch(clip)
    host = int(SHARE * free_memory(CPU))
    if memory is None:
        memory = host if clip.device.type == "cpu" else int(SHARE * free_memory(clip.device))
    if disk is None:
        in_memory = memory if clip.device.type == "cpu" else host
        disk = int(SHARE * _free(out)) if out else in_memory // 2
    layers = tuple(sorted(layers))
    keeps = keep_coordinates or store in ("float32", "float16")
    sample = images if keeps else min(images, SAMPLE if sample is None else sample)
    shapes = {
        layer: _Shape.of(
            clip, layer, top, convention, batch_size, sampled=sample < images, axes=axes
        )
        for layer in layers
    }
    z_bytes = sum(shape.z for shape in shapes.values()) * images
    if store == "auto":
        store = "float32" if z_bytes <= disk and sample == images else "never"
    scale = {"float32": 1.0, "float16": 0.5, "never": 0.0}[store]
    groups = _groups(shapes, memory)
    largest = max(groups, key=lambda group: _needed([shapes[n] for n in group]))
    working = _needed([shapes[n] for n in largest])
    keep_basis = working + sum(shapes[n].basis for n in largest) <= memory
    moments, ranked = (
        sum(getattr(shape, what) for shape in shapes.values()) for what in ("moments", "top")
    )
    # a part of a sampled fit holds either moments or top images, and else a shard has both
    apart = sample < images
    partial = sum((0 if apart else shapes[n].moments) + shapes[n].top for n in largest)
    z_of_image = sum(shapes[n].z for n in largest) if store != "never" else None
    shards = _shards(images, batch_size, partial, z_of_image, shard_size)
    sample_shard = len(shards[0])
    if apart:
        parts = max(2, MAX_PARTIALS // sum(shapes[n].moments for n in largest))
        sample_shard = max(min(sample_shard, IMAGES_PER_SHARD), -(-sample // parts))
    partials = moments * -(-sample // sample_shard) + ranked * len(shards)
    # coordinates are in this machine's own memory, wherever the model is
    kept = min(BUFFER, int(scale * z_bytes)) if store != "never" else 0
    if keep_coordinates:
        kept += z_bytes + sum(shape.basis for shape in shapes.values())
    used = working + (sum(shapes[n].basis for n in largest) if keep_basis else 0)
    used += kept if clip.device.type == "cpu" else 0
    number = torch.finfo(clip.compute_dtype).bits // 8
    centres = sum(shape.z + clip.neurons * number for shape in shapes.values())
    return Plan(
        images=images,
        sample=sample,
        sample_shard=sample_shard,
        layers=layers,
        groups=groups,
        shards=shards,
        store=None if store == "never" else store,
        keep_basis=keep_basis,
        memory=used if axes is None else max(used, _finding_axes(clip, len(layers))),
        disk=int(scale * z_bytes) + partials + centres + (axes or 0) * clip.dim * number,
        lens=sum(shape.lens for shape in shapes.values()),
        coordinates_per_image={layer: shape.z for layer, shape in shapes.items()},
        axes=axes,
    )


@dataclass(frozen=True, kw_only=True)
class Need:
    """What plans take that are carried out one after another, in bytes as in `Plan`."""

    memory: int
    disk: int
    lens: int


def together(plans: Sequence[Plan]) -> Need:
    """Of a fit with all of its plans: what the earlier ones found and wrote stays until the end."""
    before = [sum(plan.lens for plan in plans[:place]) for place in range(len(plans))]
    return Need(
        memory=max(plan.memory + held for plan, held in zip(plans, before, strict=True)),
        disk=sum(plan.disk for plan in plans),
        lens=sum(plan.lens for plan in plans),
    )


def _finding_axes(clip: Clip, layers: int) -> int:
    """Bytes at the peak while axes are found: effects of a batch in the whole embedding and what
    they are put together from, with the means of the first batch; and those of a layer, centred."""
    effects = clip.neurons * clip.dim
    numbers = layers * effects * (2 * PILOT_BATCH + 1) + 3 * PILOT_BATCH * effects
    numbers += pass_numbers(clip, PILOT_BATCH, clip.dim)
    return numbers * torch.finfo(clip.compute_dtype).bits // 8


def size(count: float | int) -> str:
    """Bytes as people read them, such as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Bytes that one layer takes."""

    z: int
    basis: int
    moments: int
    top: int
    working: int
    """Of every layer of a group at a time."""
    passing: int
    """Of one layer at a time."""
    lens: int

    @property
    def alone(self) -> int:
        """Of one layer at a time, whatever is done with it."""
        return max(self.passing, 2 * self.basis)

    @classmethod
    def of(
        cls,
        clip: Clip,
        layer: int,
        top: int,
        convention: str,
        batch_size: int,
        *,
        sampled: bool,
        axes: int | None = None,
    ) -> "_Shape":
        own = clip.path_count(layer)
        extended = own if convention == "exact" else 3 * own + 3
        rank, neurons = min(extended, clip.dim) if axes is None else axes, clip.neurons
        number = torch.finfo(clip.compute_dtype).bits // 8
        pooled = torch.finfo(pooling_dtype(clip)).bits // 8
        z, basis = neurons * rank * number, neurons * clip.dim * rank * number
        transform, scatter = neurons * rank * (extended + 1) * pooled, neurons * rank**2 * number
        moments = scatter + z + clip.tokens * neurons * number
        ranked = neurons * (SPARE * top if sampled else top) * (rank * pooled + 16)
        ranked += neurons * (8 * len(HISTOGRAM_EDGES) + (rank + 2) * number)  # histograms and sums
        activations = batch_size * clip.tokens * neurons * torch.finfo(clip.dtype).bits // 8
        products = batch_size * neurons * rank * pooled
        if axes is not None:
            # effects come as coordinates, out of a pass that holds all layers
            transform, basis = 0, clip.dim * rank * number
            through = pass_numbers(clip, batch_size, axes) * number
        else:
            # coefficients and coordinates of one layer, centred in the wide precision
            through = batch_size * neurons * (extended * pooled + 2 * rank * number)
            through += batch_size * clip.tokens * clip.heads * clip.layers * (number + pooled)
        return cls(
            z=z,
            basis=basis,
            moments=moments,
            top=ranked,
            # the first stage holds moments, the second top images; what a batch is pooled to takes
            # the place of its activations, layer by layer
            working=transform + max(moments, ranked) + max(activations, products),
            # or moments of two nodes that are merged
            passing=max(through, 3 * scatter),
            lens=neurons * ((2 * clip.dim + clip.tokens) * number + top * 16 + 400),
        )


def _groups(shapes: dict[int, _Shape], memory: int) -> tuple[tuple[int, ...], ...]:
    """Consecutive layers, from the last one on, as many in a group as memory allows."""
    groups: list[list[int]] = []
    for layer in sorted(shapes, reverse=True):
        least = _needed([shapes[layer]])
        if least > memory:
            raise SecondLensError(
                f"layer {layer} needs {size(least)} of memory and {size(memory)} may be used: "
                "choose later layers, fewer top images or a smaller batch"
            )
        if not groups or _needed([shapes[n] for n in (*groups[-1], layer)]) > memory:
            groups.append([])
        groups[-1].append(layer)
    return tuple(tuple(sorted(group)) for group in groups)


def _needed(group: Sequence[_Shape]) -> int:
    """Bytes of layers that share their passes."""
    return sum(shape.working for shape in group) + max(shape.alone for shape in group)


def _shards(
    images: int,
    batch_size: int,
    partial: int,
    z_of_image: int | None,
    asked: int | None,
) -> tuple[range, ...]:
    """Whole batches a shard; few shards where their partial statistics are large."""
    most = max(2, min(MAX_SHARDS, MAX_PARTIALS // partial))
    per_shard = max(IMAGES_PER_SHARD, -(-images // most))
    if z_of_image is not None:
        per_shard = min(per_shard, max(1, BUFFER // z_of_image))
    per_shard = max(batch_size, per_shard // batch_size * batch_size)
    if asked is not None:
        per_shard = -(-asked // batch_size) * batch_size
    return tuple(
        range(start, min(start + per_shard, images)) for start in range(0, images, per_shard)
    )


@lru_cache(maxsize=4)
def _sampled_shards(images: int, sample: int, per_shard: int) -> tuple[Sequence[int], ...]:
    positions = sorted(random.Random(0).sample(range(images), sample))
    return tuple(positions[start : start + per_shard] for start in range(0, sample, per_shard))


def _free(out: str | Path) -> int:
    """Bytes that are free for coordinates where a folder will be."""
    if is_remote(out):
        # to send and fetch coordinates takes longer than to read the pictures again
        return 0
    existing = next(parent for parent in Path(out).absolute().parents if parent.is_dir())
    return shutil.disk_usage(existing).free


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The choices of a plan, for `work.json`."""
    shards = [[shard.start, shard.stop] for shard in plan.shards]
    groups = [list(group) for group in plan.groups]
    sample = [plan.sample, plan.sample_shard]
    return {"groups": groups, "shards": shards, "sample": sample, "store": plan.store}


@dataclass(frozen=True, kw_only=True)
class RecordedPlan:
    """What `work.json` holds of a plan."""

    groups: tuple[tuple[Position, ...], ...]
    shards: tuple[tuple[Position, Position], ...]
    sample: tuple[Position, Position]
    store: Literal["float32", "float16"] | None


def plan_from_json(plan: Plan, recorded: dict[str, Any]) -> Plan:
    """The plan with the choices recorded when the work began: less may be free now.

    Raises
    ------
    ValueError
        They are not choices for this work.
    """
    found = convert(recorded, RecordedPlan, "work.json")
    if sorted(layer for group in found.groups for layer in group) != sorted(plan.layers):
        raise ValueError("its groups are not of the layers")
    starts, ends = [0, *(end for _, end in found.shards)], [start for start, _ in found.shards]
    if starts != [*ends, plan.images] or not all(map(len, found.groups)):
        raise ValueError("its shards are not of the images")
    if any(start >= end for start, end in found.shards):
        raise ValueError("it has a shard without images")
    sample, sample_shard = found.sample
    if not (1 <= sample <= plan.images and sample_shard >= 1):
        raise ValueError("its sample is not of the images")
    return replace(
        plan,
        groups=found.groups,
        shards=tuple(range(*shard) for shard in found.shards),
        sample=sample,
        sample_shard=sample_shard,
        store=found.store,
    )
