"""How long a fit will take, told from small ones on pictures of noise."""

from dataclasses import dataclass

import torch

from ..data.reader import Reader
from ..data.sources import as_source
from ..engine.local import Local
from ..models.view import Clip
from ..progress import bars
from ..storage.checkpoints import Checkpoints
from ..timing import seconds_on
from .fitting import FitRun, fit
from .plan import Plan, make_plan
from .total_shards import FIND_AXES, PILOT_IMAGES, PROBED_IMAGES, PROBES, TotalWork

TIMED_BATCHES = 3
TOTAL_BATCH_ON_CPU = 2
"""Images of a batch over all paths: there, batches do not make an image cheaper."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time that a fit takes."""

    per_image: float
    """Seconds for each image and pass."""
    fixed: float
    """Seconds however many images there are."""

    def seconds(self, plan: Plan) -> float:
        """Return how many a whole fit takes, without the search for axes."""
        reads = plan.passes * plan.images
        reads += len(plan.groups) * plan.sample if plan.sampled else 0
        return self.fixed + reads * self.per_image


def value_pace(clip: Clip, plan: Plan, batch_size: int, convention: str) -> Pace:
    """Return the pace of a fit of value paths at the plan's layers, from two small ones."""

    def run(batches: int) -> float:
        noise = _noise(clip, batch_size).repeat(batches, 1, 1, 1)
        began = seconds_on(clip.device)
        fit(
            clip,
            noise,
            plan.layers,
            top=2,
            store="never",
            convention=convention,
            batch_size=batch_size,
        )
        return seconds_on(clip.device) - began

    return _pace(run(1), run(1 + TIMED_BATCHES), batch_size)


def total_pace(clip: Clip, plan: Plan, batch_size: int) -> Pace:
    """Return the pace of a fit over all paths, whose axes are there already."""
    assert plan.axes is not None
    size = TOTAL_BATCH_ON_CPU if clip.device.type == "cpu" else batch_size
    rows = torch.eye(clip.dim, dtype=clip.compute_dtype)[: plan.axes]
    axes = {"rows": rows, "left_out": torch.zeros(len(plan.layers), dtype=torch.float64)}

    def run(batches: int) -> float:
        source = as_source(_noise(clip, size).repeat(batches, 1, 1, 1))
        small = make_plan(
            clip, size * batches, plan.layers, top=2, batch_size=size, store="never", axes=len(rows)
        )
        parts = Checkpoints(None)
        parts.save(FIND_AXES.name, axes, {})
        reader = Reader(source=source, clip=clip, batch_size=size)
        began = seconds_on(clip.device)
        work = TotalWork(clip, small, reader, parts, lambda images: 2)
        with bars(False) as shown:
            FitRun(work, Local(), shown).fit()
        return seconds_on(clip.device) - began

    return _pace(run(1), run(1 + TIMED_BATCHES), size)


def seconds_for_axes(clip: Clip, plan: Plan, value: Pace, total: Pace) -> float:
    """Return how many seconds the search for axes takes.

    Some images are read in the whole embedding, others along the axes and random directions.

    An axis costs what a fit over all paths takes longer for an image than one of value paths, whose
    time is about that of the forward pass, divided by its axes.
    """
    assert plan.axes is not None
    axis = max(0.0, total.per_image - value.per_image) / plan.axes
    found = value.per_image + clip.dim * axis
    probed = value.per_image + (plan.axes + PROBES) * axis
    return min(plan.images, PILOT_IMAGES) * found + min(plan.images, PROBED_IMAGES) * probed


def _pace(short: float, long: float, batch_size: int) -> Pace:
    # "never" makes two passes, and what both fits have in common drops out
    per_image = max(0.0, long - short) / (2 * TIMED_BATCHES * batch_size)
    return Pace(per_image=per_image, fixed=max(0.0, short - 2 * batch_size * per_image))


def _noise(clip: Clip, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *clip.image_size, generator=generator)
