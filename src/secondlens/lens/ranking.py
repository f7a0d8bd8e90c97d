"""Images of a layer ranked by the norm of their effects around a centre, and sums beside it.

Where the centre is the mean of a sample of the images, the ranking around the mean of all of them
is wanted. It follows in most cases. With m0 the sample's mean, m that of all images and tau the
smallest norm around m0 that was kept, an image that was not kept has

    |z - m0| <= tau        so        |z - m| <= tau + |m - m0|

and if the `top` largest norms around m of those that were kept lie above that, they are the `top`
largest of all images. Some more than `top` are kept, so that they do.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import SecondLensError
from .moments import HISTOGRAM_EDGES, Centre, TopImages, histogram

ROUNDING = 1e-5
"""Relative error of norms in float32 that a proof allows for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """What some images tell of a layer, around a centre."""

    top_images: TopImages
    histogram: Int[Tensor, "neurons bins"]
    """Images by norm, see `HISTOGRAM_EDGES`, over the root mean square that the centre gives."""
    total: Float[Tensor, "neurons rank"]
    """Sum of z - centre."""
    squares: Float[Tensor, " neurons"]
    """Sum of its squared norms."""

    def merge(self, other: "Ranked") -> "Ranked":
        """Return what both tell."""
        return Ranked(
            top_images=self.top_images.merge(other.top_images),
            histogram=self.histogram + other.histogram,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """A batch of a layer before it is ranked, and what has to be known on the host to do so."""

    centred: Float[Tensor, "neurons images rank"]
    norms: Float[Tensor, "neurons images"]
    squares: Float[Tensor, " neurons"]
    """Sums of squared norms."""
    positions: Int[Tensor, " images"]
    entering: Bool[Tensor, "neurons images"]
    counts: Int[Tensor, " 3"]
    """Neurons with norms that are not finite, pairs that enter, and neurons that have some."""


class Ranking:
    """Ranks the images of a layer, batch by batch.

    Parameters
    ----------
    centre
        Around which norms are.
    top
        Images to keep for each neuron.
    unit, dtype
        Of the coordinates that will be seen, see `CentredMap`; by default one, and the centre's.
    """

    def __init__(
        self,
        centre: Centre,
        top: int,
        unit: Float[Tensor, " neurons"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        mean = centre.mean
        self._rms = centre.energy.sqrt()
        self._unit = torch.ones_like(centre.energy) if unit is None else unit
        self._top_images = TopImages.none(self._unit, top, mean.shape[1], dtype)
        bins = len(HISTOGRAM_EDGES) - 1
        self._histogram = torch.zeros(len(mean), bins, dtype=torch.int64, device=mean.device)
        self._total, self._squares = torch.zeros_like(mean), torch.zeros_like(centre.energy)

    def offer(
        self, centred: Float[Tensor, "neurons images rank"], positions: Int[Tensor, " images"]
    ) -> Offer:
        """Return what `take` needs of some images, from (z - centre) / unit."""
        unit = self._unit[:, None]
        norms = torch.linalg.vector_norm(centred, dim=-1, dtype=unit.dtype) * unit
        entering = self._top_images.entering(norms, positions)
        of_neurons = entering.sum(dim=1)
        squares = torch.linalg.vector_norm(norms, dim=1).square()
        broken = (~squares.isfinite()).sum()
        return Offer(
            centred=centred,
            norms=norms,
            squares=squares,
            positions=positions,
            entering=entering,
            counts=torch.stack([broken, of_neurons.sum(), of_neurons.count_nonzero()]),
        )

    def take(self, offer: Offer, entries: int, neurons: int) -> None:
        """Rank the images of an offer, of whose counts the last two are given."""
        self._top_images.take(
            offer.centred, offer.norms, offer.positions, offer.entering, entries, neurons
        )
        self._histogram += histogram(offer.norms, self._rms)
        self._total += offer.centred.sum(dim=1, dtype=self._unit.dtype) * self._unit[:, None]
        self._squares += offer.squares

    def see(
        self, centred: Float[Tensor, "neurons images rank"], positions: Int[Tensor, " images"]
    ) -> None:
        """Rank some images more."""
        offer = self.offer(centred, positions)
        broken, entries, neurons = offer.counts.tolist()
        if broken:
            raise SecondLensError(
                "effects are not finite: fit again in a wider precision, and if parts of a fit are "
                "damaged, without them"
            )
        self.take(offer, entries, neurons)

    def ranked(self) -> Ranked:
        """Return what all images tell."""
        return Ranked(
            top_images=self._top_images,
            histogram=self._histogram,
            total=self._total,
            squares=self._squares,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """A layer's images around their mean, strongest first."""

    images: int
    centre: Centre
    top_images: TopImages
    histogram: Int[Tensor, "neurons bins"]


def settle(ranked: Ranked, centre: Centre, images: int, top: int) -> tuple[Settled, Tensor]:
    """Move from the centre of a sample to the mean of all images, see above.

    Parameters
    ----------
    ranked, centre
        All images, ranked around the centre.
    images
        How many they are.
    top
        Images to keep for each neuron, fewer than were ranked or as many.

    Returns
    -------
    What is known around the mean of all images, and for which neurons the top images are proven to
    be those [neurons].
    """
    shift = ranked.total / images
    kept = ranked.top_images
    moved = kept.around(shift).strongest_first(top)
    dropped = kept.norms.amin(dim=1)
    bound = (dropped + torch.linalg.vector_norm(shift, dim=1)) * (1 + ROUNDING)
    energy = (ranked.squares / images - shift.square().sum(dim=1)).clamp(min=0)
    settled = Settled(
        images=images,
        centre=Centre(mean=centre.mean + shift, energy=energy),
        top_images=moved,
        histogram=ranked.histogram,
    )
    # a place that is still free says that no image was dropped
    return settled, (moved.norms[:, -1] > bound) | (dropped < 0)
