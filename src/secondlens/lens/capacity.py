"""How long a fit on many workers takes, and what it moves: a simulation from rates.

A fit is a row of stages, one for each level of its trees (see `nodes`). The tasks of a stage go to
whichever worker is free, in order, and a stage begins when the one before it has ended. What slows
many workers down is in it: the driver hands out one task at a time, a store has so much bandwidth
for all, tasks differ in length, and a level of a tree has fewer tasks than the one below.
"""

import heapq
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from ..data.decoding import decode
from ..data.reader import default_batch
from ..effects.centring import pooling_dtype
from ..models.view import Clip
from ..timing import seconds_on
from .moments import Moments
from .nodes import FAN_IN, MEANS, TOP_IMAGES, levels
from .plan import SPARE, Plan, make_plan

SHARDS_PER_WORKER: Final = 4
"""So that workers end at about the same time, though shards differ."""
SPREAD: Final = 0.1
"""Standard deviation of the logarithm of a task's time."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one worker does in a second, and what all of them share."""

    flops: float | int
    """Floating-point operations a second in the image tower."""
    decode: float | int
    """Pictures decoded a second, by all cores that a worker has for it."""
    network: float | int
    """Bytes a second between a worker and the store."""
    store: float | int
    """Bytes a second between the store and all workers together."""
    merge: float | int
    """Bytes of partial statistics merged a second."""
    eigen: float | int
    """Seconds for the spectrum of one matrix of rank 100; it grows with the cube of the rank."""
    dispatch: float | int
    """Seconds of the driver for each task."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fit as the simulation sees it; everything in bytes, operations and counts."""

    images: int
    shards: int
    sample: int
    """Images that the first stage reads."""
    sample_shards: int
    groups: int
    image_bytes: float | int
    first_flops: float | int
    """Of an image in the first pass of one group."""
    second_flops: float | int
    means_bytes: float | int
    """Of one node of the means."""
    ranked_bytes: float | int
    """Of one node of the top images."""
    centres_bytes: float | int
    """What every worker reads between the passes."""
    spectra: float | int
    """Of the finished lens, as matrices of rank 100."""
    model_bytes: float | int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Tasks that may run side by side. Reading overlaps with computing, writing does not."""

    name: str
    tasks: int
    seconds: float | int
    """Of computing, for each task."""
    read: float | int
    """Bytes for each task."""
    written: float | int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A stage as it ran."""

    stage: Stage
    seconds: float | int
    idle: float | int
    """Share of the workers' time in which they did nothing."""


def job(clip: Clip, plan: Plan, top: int, image_bytes: float | int) -> Job:
    """What a fit by this plan does; the model may have shapes only, on the device "meta"."""
    forward = forward_flops(clip)
    shapes = [_LayerShape(clip, layer) for layer in plan.layers]
    groups = len(plan.groups)
    number = torch.finfo(clip.compute_dtype).bits // 8
    pooled = torch.finfo(pooling_dtype(clip)).bits // 8
    kept = min(plan.images, SPARE * top) if plan.sampled else top
    read = sum(shape.pooled + shape.coordinates for shape in shapes) / groups
    moments = sum(clip.neurons * (shape.rank**2 + shape.rank) for shape in shapes)
    activations = len(shapes) * clip.tokens * clip.neurons
    ranked = sum(clip.neurons * kept * (shape.rank * pooled + number + 8) for shape in shapes)
    weights = sum(each.nbytes for each in clip.model.parameters())
    return Job(
        images=plan.images,
        shards=len(plan.shards),
        sample=plan.sample,
        sample_shards=len(plan.sampled_shards),
        groups=groups,
        image_bytes=image_bytes,
        first_flops=forward + read + sum(shape.scatter for shape in shapes) / groups,
        second_flops=forward + read,
        means_bytes=number * (moments + activations) / groups,
        ranked_bytes=ranked / groups,
        centres_bytes=number * sum(clip.neurons * (shape.rank + 1) for shape in shapes) / groups,
        # of all images, of the Gaussian's draws, and of the top images
        spectra=sum(3 * clip.neurons * (shape.rank / 100) ** 3 for shape in shapes),
        model_bytes=weights,
    )


def forward_flops(clip: Clip) -> float:
    """Operations of one picture's forward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        clip.encode_image(clip.noise(1).to(clip.device))
    return float(counter.get_total_flops())


class _LayerShape:
    """Operations for one picture and layer, in the convention "exact"."""

    def __init__(self, clip: Clip, layer: int) -> None:
        paths = clip.path_count(layer)
        self.rank = min(paths, clip.dim)
        self.pooled = 2.0 * clip.neurons * clip.tokens * paths
        self.coordinates = 2.0 * clip.neurons * self.rank * paths
        self.scatter = 2.0 * clip.neurons * self.rank**2


def stages(job: Job, rates: Rates, workers: int) -> list[Stage]:
    """All stages of a fit, in order."""
    found = [
        Stage(name="start", tasks=workers, seconds=0, read=job.model_bytes, written=0),
    ]
    for group in range(job.groups):
        of = f" {group + 1}/{job.groups}" if job.groups > 1 else ""
        for name, images, shards, flops, part in (
            (MEANS, job.sample, job.sample_shards, job.first_flops, job.means_bytes),
            (TOP_IMAGES, job.images, job.shards, job.second_flops, job.ranked_bytes),
        ):
            centres = job.centres_bytes if name == TOP_IMAGES else 0
            per_shard = images / shards
            found.append(
                Stage(
                    name=name + of,
                    tasks=shards,
                    seconds=per_shard * max(flops / rates.flops, 1 / rates.decode),
                    read=per_shard * job.image_bytes + centres,
                    written=part,
                )
            )
            found += _merging(f"merge {name}{of}", shards, part, rates)
    root = job.groups * (job.means_bytes + job.ranked_bytes)
    spectra = job.spectra * rates.eigen
    found.append(Stage(name="finish", tasks=1, seconds=spectra, read=root, written=0))
    return found


def _merging(name: str, shards: int, part: float | int, rates: Rates) -> list[Stage]:
    counts = levels(shards)
    return [
        Stage(
            name=f"{name}, level {level}" if len(counts) > 2 else name,
            tasks=nodes,
            seconds=min(FAN_IN, below / nodes) * part / rates.merge,
            read=min(FAN_IN, below / nodes) * part,
            written=part,
        )
        for level, (below, nodes) in enumerate(pairwise(counts), 1)
    ]


def simulate(row: list[Stage], rates: Rates, workers: int, seed: int = 0) -> list[Timing]:
    """Run the stages, one after another, on so many workers."""
    chance = random.Random(seed)
    return [_run(stage, rates, workers, chance) for stage in row]


def _run(stage: Stage, rates: Rates, workers: int, chance: random.Random) -> Timing:
    active = min(workers, stage.tasks)
    bandwidth = min(rates.network, rates.store / active)
    free = [0.0] * active
    end = busy = 0.0
    for number in range(stage.tasks):
        seconds = stage.seconds * chance.lognormvariate(0, SPREAD)
        seconds = max(seconds, stage.read / bandwidth) + stage.written / bandwidth
        # the driver hands out one task after another
        start = max(heapq.heappop(free), (number + 1) * rates.dispatch)
        heapq.heappush(free, start + seconds)
        end, busy = max(end, start + seconds), busy + seconds
    return Timing(stage=stage, seconds=end, idle=1 - busy / (workers * end) if end else 0.0)


def total(timings: list[Timing]) -> float | int:
    """Seconds of the whole fit."""
    return sum(timing.seconds for timing in timings)


def spread_plan(
    clip: Clip,
    images: int,
    layers: list[int],
    *,
    workers: int,
    top: int,
    memory: int,
    batch_size: int | None = None,
    shard_size: int | None = None,
) -> Plan:
    """A plan for many workers: coordinates are not stored, a few shards for each worker."""
    batch_size = batch_size or default_batch(clip)
    wanted = shard_size or max(batch_size, images // (SHARDS_PER_WORKER * workers))
    plan = make_plan(
        clip,
        images,
        layers,
        top=top,
        batch_size=batch_size,
        store="never",
        memory=memory,
        shard_size=wanted,
    )
    # bases are needed by the driver alone
    return replace(plan, keep_basis=False)


SIDE: Final = 1024
NEURONS, RANK = 512, 100
PICTURES: Final = 16
DISPATCH: Final = 0.005
"""Seconds of the driver for each task of Ray actors: `python benchmarks/engine.py dispatch`."""


def measured(
    device: str,
    dtype: torch.dtype,
    *,
    tflops: float | None,
    network: float,
    store: float,
    decoders: int,
    decoded: float | None,
) -> tuple[Rates, dict[str, str]]:
    """The rates of a worker like this machine, and where each comes from.

    Parameters
    ----------
    device, dtype
        Where and in what precision the model would run, if `tflops` is not given.
    tflops
        What a worker's GPU reaches, in 10^12 floating-point operations a second.
    network, store
        Bytes a second of one worker, and of the store for all of them.
    decoders
        Cores of a worker that decode.
    decoded
        Pictures that one core decodes a second, if it is not to be measured.
    """
    here = "measured here"
    flops = 1e12 * tflops if tflops is not None else _flops(device, dtype)
    rates = Rates(
        flops=flops,
        decode=decoders * (decoded if decoded is not None else _decoded()),
        network=network,
        store=store,
        merge=_merged(),
        eigen=_eigen(),
        dispatch=DISPATCH,
    )
    sources = {
        "flops": "given"
        if tflops is not None
        else f"a {str(dtype)[6:]} product, {here} on {device}",
        "decode": f"{'given' if decoded is not None else here}, times {decoders} cores",
        "network": "given, or assumed",
        "store": "given, or assumed",
        "merge": here,
        "eigen": here,
        "dispatch": "benchmarks/engine.py dispatch",
    }
    return rates, sources


def _seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """The shortest of a few runs, which others on the machine disturbed least."""
    clock = partial(seconds_on, torch.device(device))
    work()
    runs = []
    for _ in range(3):
        began = clock()
        work()
        runs.append(clock() - began)
    return min(runs)


def _flops(device: str, dtype: torch.dtype) -> float:
    a = torch.randn(SIDE, SIDE, device=device).to(dtype)
    return 2 * SIDE**3 / _seconds(lambda: a @ a, device)


def _decoded() -> float:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")

    def run() -> None:
        for _ in range(PICTURES):
            picture = decode(io.BytesIO(file.getvalue()))
            torch.from_numpy(np.asarray(picture.resize((299, 224), Image.Resampling.BICUBIC)) / 255)

    return PICTURES / _seconds(run)


def _merged() -> float:
    moments = Moments(
        count=2, mean=torch.randn(NEURONS, RANK), scatter=torch.randn(NEURONS, RANK, RANK)
    )
    return moments.scatter.nbytes / _seconds(lambda: moments.merge(moments))


def _eigen() -> float:
    matrices = torch.randn(8, RANK, RANK, dtype=torch.float64)
    symmetric = matrices @ matrices.mT
    return _seconds(lambda: torch.linalg.eigvalsh(symmetric)) / len(symmetric)
