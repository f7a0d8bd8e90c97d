"""What differs between two sets of pictures through one model: a shift in the data, by neuron.

Each neuron's effect is read along its direction, one number a picture. How far its mean over one
set is from that over the other is told in standard deviations, with an interval, and a test that
keeps false discoveries at 5 % over all neurons.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.projections import project
from ...errors import SecondLensError
from ...intervals import Z
from ...lens.layer import NeuronId
from ...lens.lens import Lens, projectors
from ...models.view import Clip
from ...words.naming import FALSE_DISCOVERIES, benjamini_hochberg


@dataclass(frozen=True, kw_only=True)
class Shifted(NeuronId):
    """A neuron that acts otherwise on the other pictures."""

    shift: float
    """How much more its effect lies along its direction on the other pictures, in standard
    deviations over both sets."""
    low: float
    """Its 95 % interval."""
    high: float
    q: float
    """Of the two-sided test of no shift, after Benjamini and Hochberg over all neurons."""
    images: tuple[str, ...]
    """Ids of the other pictures on which it acts most in the direction of the shift."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """Two sets of pictures through one model. Tensors are on the CPU."""

    model: str
    counts: tuple[int, int]
    """Pictures that were read."""
    skipped: dict[str, str]
    """Why pictures are missing, by id."""
    shift: dict[int, Float[Tensor, " neurons"]]
    """As in `Shifted`, by layer, as what follows."""
    spread: dict[int, Float[Tensor, " neurons"]]
    """Half the 95 % interval."""
    q: dict[int, Float[Tensor, " neurons"]]
    image_ids: tuple[str, ...]
    """Of the other pictures."""
    values: dict[int, Float[Tensor, "images neurons"]]
    """Effects along directions on the other pictures."""

    @property
    def certain(self) -> int:
        """How many neurons pass the test."""
        return sum(int((q <= FALSE_DISCOVERIES).sum()) for q in self.q.values())

    def shifted(self, count: int | None = None) -> list[Shifted]:
        """Return neurons that pass the test, the largest shift first."""
        found = [
            (-abs(float(self.shift[layer][n])), layer, n)
            for layer, q in self.q.items()
            for n in (q <= FALSE_DISCOVERIES).nonzero()[:, 0].tolist()
        ]
        return [self._shifted(layer, n) for _, layer, n in sorted(found)[:count]]

    def _shifted(self, layer: int, neuron: int) -> Shifted:
        shift, spread = float(self.shift[layer][neuron]), float(self.spread[layer][neuron])
        own = self.values[layer][:, neuron]
        order = own.argsort(descending=shift > 0, stable=True)[:TOP_IMAGES].tolist()
        return Shifted(
            layer=layer,
            neuron=neuron,
            shift=shift,
            low=shift - spread,
            high=shift + spread,
            q=float(self.q[layer][neuron]),
            images=tuple(self.image_ids[i] for i in order),
        )

    def document(self, count: int | None = None) -> dict[str, Any]:
        """What is written as JSON."""
        return {
            "model": self.model,
            "images": self.counts,
            "skipped": self.skipped,
            "certain": self.certain,
            "neurons": [vars(each) for each in self.shifted(count)],
        }


TOP_IMAGES = 8
LEAST_IMAGES = 8
"""In a set: with fewer, the interval of a mean is no more than a guess."""


@checked
@undisturbed
@torch.no_grad()
def shift(
    clip: Clip,
    lens: Lens,
    images: Any,
    others: Any,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Shift:
    """Find neurons whose effects differ between two sets of pictures.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    images, others
        What `fit` takes; a shift is of the others against the images.
    batch_size
        Images in a forward pass.

    Raises
    ------
    SecondLensError
        Another model's lens, or fewer than 8 pictures of a set that can be read.
    """
    lens.check_model(clip)
    along = projectors(clip, lens, {at: lens[at].directions[:, None] for at in lens.layers})
    found = [
        project(clip, each, along, batch_size=batch_size, progress=progress)
        for each in (images, others)
    ]
    for each in found:
        if len(each.positions) < LEAST_IMAGES:
            raise SecondLensError(
                f"a set has {len(each.positions)} pictures that can be read: give at least "
                f"{LEAST_IMAGES} of each"
            )
    shifts: dict[int, Tensor] = {}
    spreads: dict[int, Tensor] = {}
    ps = []
    for layer in lens.layers:
        one, other = (each.products[layer][..., 0].double() for each in found)
        # of both together around the mean of each, so that the shift itself is not in it
        within = torch.cat([one - one.mean(0), other - other.mean(0)]).square().mean(0).sqrt()
        within = within.clamp(min=torch.finfo(torch.float32).tiny)
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        apart = other.mean(0) - one.mean(0)
        shifts[layer], spreads[layer] = apart / within, Z * error / within
        t = apart.abs() / error.clamp(min=torch.finfo(torch.float32).tiny)
        ps.append(torch.erfc(t / 2**0.5))
    qs = benjamini_hochberg(torch.cat(ps)).split([len(each) for each in ps])
    ids = as_source(others).ids
    return Shift(
        model=clip.name,
        counts=(len(found[0].positions), len(found[1].positions)),
        skipped={**found[0].skipped, **found[1].skipped},
        shift=shifts,
        spread=spreads,
        q=dict(zip(lens.layers, qs, strict=True)),
        image_ids=tuple(ids[i] for i in found[1].positions),
        values={layer: found[1].products[layer][..., 0] for layer in lens.layers},
    )
