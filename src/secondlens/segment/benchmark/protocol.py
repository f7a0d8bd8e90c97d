"""One protocol for all methods: tuned on some images, measured on others, compared in pairs.

Two ways to make a mask of a heat-map are measured side by side:

- `same`: every map is cut at 0 or not, resized bilinearly, scaled to [0, 1] and thresholded, at a
  fixed value or at a multiple of its mean. Which of these, the threshold, the variant and the form
  of the text are chosen for each method on development images, by mIoU.
- `own`: each method as its paper published it, with its own post-processing (`methods.Own`).

Images are squeezed into the model's square and masks follow, as in the papers.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from ...errors import SecondLensError
from ..heat import standardise
from .batches import Batch
from .methods import Method, Own
from .metrics import scores, statistics

BINS = 20
"""Thresholds tried: multiples of 1 / BINS."""

MEANS = 4.0
"""The largest multiple of a map's mean to threshold at, divided into as many."""

FORMS = ("plain", "centred")

POSITIVE = (False, True)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for a method on development images."""

    variant: str
    form: str
    positive: bool
    """Whether values below 0 become 0 before scaling."""
    relative: bool
    """Whether the threshold counts in means of the map."""
    threshold: float
    miou: float
    """On the development images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One method on the test images; a row of statistics for each map, see `metrics`."""

    name: str
    choice: Choice
    same: Float[Tensor, "maps statistics"]
    own: Float[Tensor, "maps statistics"]
    seconds: float
    """For one map, encoding and all, in the chosen variant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """All methods on the same maps."""

    methods: list[Measured]
    images: list[str]
    """The image of each map."""
    objects: list[int]
    """How many things that image has masks for."""


def tune(methods: Sequence[Method], work: Iterable[Batch]) -> dict[str, Choice]:
    """The variant, form of text and threshold with the best mIoU, by name of the method."""
    counts: dict[tuple[str, str, str, bool, bool], Tensor] = {}
    for batch in work:
        for method in methods:
            for form in FORMS if method.reads_text else FORMS[:1]:
                for variant, grid in method.grids(batch, form, method.variants).items():
                    for positive in POSITIVE:
                        heat = heat_of(grid.cpu(), _size(batch), positive)
                        for relative in (False, True):
                            key = (method.name, variant, form, positive, relative)
                            levels = heat / (MEANS * mean(heat)) if relative else heat
                            seen = counts_by_threshold(levels, batch.masks)
                            counts[key] = counts.get(key, 0) + seen
    found: dict[str, Choice] = {}
    for (name, variant, form, positive, relative), confusion in counts.items():
        # precision and maps are not needed for mIoU
        miou = scores(F.pad(confusion, (0, 2), value=1.0))[:, 1]
        best = int(miou.argmax())
        if name not in found or float(miou[best]) > found[name].miou:
            found[name] = Choice(
                variant=variant,
                form=form,
                positive=positive,
                relative=relative,
                threshold=best / BINS * (MEANS if relative else 1),
                miou=float(miou[best]),
            )
    if not found:
        raise SecondLensError("there are no development images with masks: give at least one")
    return found


def counts_by_threshold(
    heat: Float[Tensor, "maps height width"], masks: Int8[Tensor, "maps height width"]
) -> Float[Tensor, "thresholds 4"]:
    """`metrics.confusion` summed over maps, for heat >= 0, 1 / BINS, ... (BINS - 1) / BINS."""
    level = (heat * BINS).floor().clamp(max=BINS - 1).long()
    histograms = [torch.bincount(level[masks == true], minlength=BINS) for true in (1, 0)]
    # from the highest level down: what is found at a threshold
    found, invented = (each.flip(0).cumsum(0).flip(0).double() for each in histograms)
    return torch.stack([found, found[0] - found, invented, invented[0] - invented], dim=-1)


def measure(
    methods: Sequence[Method], choices: dict[str, Choice], work: Iterable[Batch]
) -> Comparison:
    """Every method on every map, both ways, timed."""
    same: dict[str, list[Tensor]] = {method.name: [] for method in methods}
    own: dict[str, list[Tensor]] = {method.name: [] for method in methods}
    seconds = dict.fromkeys(same, 0.0)
    images: list[str] = []
    objects: list[int] = []
    for batch in work:
        images += batch.images
        objects += batch.objects
        for method in methods:
            choice = choices[method.name]
            published = method.variants[0]
            start = time.perf_counter()
            grid = method.grids(batch, choice.form, [choice.variant])[choice.variant]
            seconds[method.name] += time.perf_counter() - start
            heat = heat_of(grid.cpu(), _size(batch), choice.positive)
            cut = choice.threshold * (mean(heat) if choice.relative else 1)
            same[method.name].append(statistics(heat, heat >= cut, batch.masks))
            if (choice.variant, choice.form) != (published, FORMS[0]):
                grid = method.grids(batch, FORMS[0], [published])[published]
            heat, predicted = own_mask(grid.cpu(), _size(batch), method.own)
            own[method.name].append(statistics(heat, predicted, batch.masks))
    if not images:
        raise SecondLensError("there are no test images with masks: give at least one")
    measured = [
        Measured(
            name=name,
            choice=choices[name],
            same=torch.cat(same[name]),
            own=torch.cat(own[name]),
            seconds=seconds[name] / len(images),
        )
        for name in same
    ]
    return Comparison(methods=measured, images=images, objects=objects)


def own_mask(
    grid: Float[Tensor, "maps rows columns"], size: tuple[int, int], own: Own
) -> tuple[Float[Tensor, "maps height width"], Bool[Tensor, "maps height width"]]:
    """Heat-map in [0, 1] and mask as the method's own paper makes them."""
    heat = heat_of(grid, size, own.positive)
    return heat, heat >= 0.5 if own.threshold == "half" else heat > mean(heat)


def heat_of(
    grid: Float[Tensor, "maps rows columns"], size: tuple[int, int], positive: bool
) -> Float[Tensor, "maps height width"]:
    """Heat in [0, 1], after values below 0 became 0 if `positive`."""
    return standardise(grid.clamp(min=0) if positive else grid, size)


def mean(heat: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps 1 1"]:
    """Of each map; a little above 0 for a map that is 0 everywhere, so that nothing reaches it."""
    return heat.mean((-2, -1), keepdim=True).clamp(min=torch.finfo(heat.dtype).eps)


def _size(batch: Batch) -> tuple[int, int]:
    return batch.masks.shape[1], batch.masks.shape[2]
