"""What workers of a fit over all paths do: as `shards`, with total effects along few axes.

The axes come first, and are a part like any other. On a few images, effects are read in the whole
embedding; the axes are the principal ones of all neurons together, each neuron counting alike. On a
few others they are read along the axes and along random directions outside of them, which tells
what share of their energy the axes leave out.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.reader import Reader
from ..devices import wide
from ..effects.total_effects import TotalReader, Totals, outside, principal_axes
from ..errors import SecondLensError
from ..models.view import Clip
from ..storage.checkpoints import Checkpoints
from .layer import Axes
from .moments import Centre
from .nodes import Node
from .passes import CoordinateSums, RankingPass, TotalMeansPass, TotalRankingPass
from .plan import PILOT_BATCH, Plan
from .shards import ShardWork

PILOT_IMAGES, PROBED_IMAGES = 32, 32
"""Chosen at random, for the axes and for what they leave out."""
PROBES = 16
"""Random directions outside of the axes."""

FIND_AXES = Node(group=0, stage="axes", level=0, number=0)
"""The task that comes before the trees."""


class PooledMoment:
    """Second moment of the effects of all neurons, each in units of its own energy.

    The mean and the energy of a neuron are those of the first batch: rough, but then nothing is
    held of an image.
    """

    def __init__(self) -> None:
        self.images = 0
        self.moment: Tensor = torch.zeros(())
        self._usual: dict[int, tuple[Tensor, Tensor]] = {}

    def see(self, totals: Totals) -> None:
        """Add the images of a batch, of effects in the whole embedding."""
        for layer, effects in totals.effects.items():
            if layer not in self._usual:
                mean = effects.mean(dim=1, keepdim=True)
                energy = (effects - mean).square().sum(dim=(1, 2))
                self._usual[layer] = mean, torch.where(energy > 0, energy, torch.inf).rsqrt()
            mean, weight = self._usual[layer]
            rows = ((effects - mean) * weight[:, None, None]).flatten(0, 1)
            product = wide(rows.T @ rows)
            self.moment = product + self.moment.to(product)
        self.images += len(totals.positions)


Seeing = TypeVar("Seeing", PooledMoment, TotalMeansPass, TotalRankingPass)


class TotalWork(ShardWork):
    """Makes the nodes of a fit over all paths.

    Parameters
    ----------
    clip, plan, reader, parts, top
        As `ShardWork` takes them; the plan says how many axes there are.
    """

    def __init__(
        self, clip: Clip, plan: Plan, reader: Reader, parts: Checkpoints, top: Callable[[int], int]
    ) -> None:
        super().__init__(clip, plan, "exact", reader, parts, top)
        self.first = [FIND_AXES]
        self.over = " over all paths"

    @property
    def axes(self) -> Axes:
        """The axes that were found, on the CPU."""
        found = self.parts.tensors(FIND_AXES.name)
        with self.parts.reading(FIND_AXES.name):
            rows, left_out = found["rows"], found["left_out"]
            expected = (self.plan.axes, self.clip.dim), (len(self.plan.layers),)
            if (tuple(rows.shape), tuple(left_out.shape)) != expected:
                raise ValueError("its axes are not those of this fit")
            if not bool(rows.isfinite().all()):
                raise ValueError("it has axes that are not finite")
        return Axes(rows=rows, left_out=left_out)

    def make(self, node: Node) -> None:
        """Make one node, or the axes."""
        if node == FIND_AXES:
            self.find_axes()
        else:
            super().make(node)

    def find_axes(self) -> None:
        """Find the axes, and measure what they leave out."""
        assert self.plan.axes is not None
        images, layers = self.plan.images, self.plan.layers
        sampled = random.Random(0).sample(range(images), min(images, PILOT_IMAGES + PROBED_IMAGES))
        # of few images, all give the axes and say what these leave out
        others = sampled[PILOT_IMAGES:] if len(sampled) >= 2 * PILOT_IMAGES else sampled
        moment = PooledMoment()
        whole = torch.eye(self.clip.dim, dtype=self.clip.compute_dtype, device=self.clip.device)
        self._read(moment, self._some(sampled[:PILOT_IMAGES]), whole, layers)
        if not moment.images:
            raise SecondLensError(
                f"none of the {len(sampled[:PILOT_IMAGES])} pictures chosen at random could be "
                "read, from which the axes of a fit over all paths are"
            )
        axes = principal_axes(moment.moment, self.plan.axes).to(whole)
        found = TotalMeansPass(layers)
        both = torch.cat([axes, outside(axes, PROBES)])
        self._read(found, self._some(others), both, layers)
        left_out = torch.zeros(len(layers), dtype=torch.float64)
        for place, moments in enumerate(found.moments().values()):
            energy = moments.covariance.diagonal(dim1=1, dim2=2).sum(0).cpu().double()
            inside, beyond = energy[: len(axes)].sum(), energy[len(axes) :].mean()
            if len(axes) < self.clip.dim and inside + beyond > 0:
                left_out[place] = beyond / (inside + beyond)
        self.parts.save(FIND_AXES.name, {"rows": axes, "left_out": left_out}, {})

    def basis(self, layer: int) -> Tensor:
        """Of the effects of each neuron, [neurons, dim, axes]: the same for all."""
        return self._rows.T.expand(self.clip.neurons, -1, -1)

    def summed(self, layers: tuple[int, ...], reader: Reader, *, keep: bool) -> CoordinateSums:
        """Return the moments of the images of a reader."""
        return self._read(TotalMeansPass(layers, keep=keep), reader, self._rows, layers)

    def ranked(
        self, centres: dict[int, Centre], top: int, reader: Reader
    ) -> RankingPass | TotalRankingPass:
        """Return the images of a reader ranked around centres."""
        found = TotalRankingPass(centres, top)
        return self._read(found, reader, self._rows, tuple(centres))

    @cached_property
    def _rows(self) -> Float[Tensor, "axes dim"]:
        return self.axes.rows.to(self.clip.device)

    def _read(
        self,
        found: Seeing,
        reader: Reader,
        rows: Float[Tensor, "rows dim"],
        layers: tuple[int, ...],
    ) -> Seeing:
        read = TotalReader(self.clip, rows, layers).through(reader)
        for totals in map(read, reader):
            if totals is not None:
                found.see(totals)
        return found

    def _some(self, positions: list[int]) -> Reader:
        return replace(
            self.reader,
            positions=sorted(positions),
            batch_size=min(PILOT_BATCH, self.reader.images_per_batch),
            skipped={},
            digests={},
        )

    def _save_digests(self, node: Node, read: list[int], reader: Reader) -> None:
        """Those of the fit of the value path are there already."""
