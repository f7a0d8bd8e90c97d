"""Streaming statistics of effects in isometric coordinates, and what follows from them.

Two things are streamed over images. `Moments` merge in any order. `TopImages` keep the images
that lie farthest from a given centre (see `ranking`). The rest (directions, shares, nulls) is
computed from the two at the end.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..devices import wide
from ..errors import SecondLensError

HISTOGRAM_EDGES = torch.linspace(0, 8, 41)
"""Centred norms over their root mean square, per neuron; the last bin also takes what is beyond."""
_BIN_WIDTH = HISTOGRAM_EDGES[1].item()


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Count, mean and scatter of z, merged by the update formulas of Chan et al. (1979)."""

    count: int
    mean: Float[Tensor, "neurons rank"]
    scatter: Float[Tensor, "neurons rank rank"]
    """Sum over images of (z - mean)(z - mean)^T."""

    @classmethod
    def of(cls, z: Float[Tensor, "images neurons rank"]) -> "Moments":
        """The moments of one batch."""
        mean = z.mean(dim=0)
        by_neuron = (z - mean).transpose(0, 1)
        scatter = torch.bmm(by_neuron.mT, by_neuron)
        return cls(count=len(z), mean=mean, scatter=scatter)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of images together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        weight = self.count * other.count / count
        outer = delta[:, :, None] * delta[:, None, :]
        return Moments(
            count=count,
            mean=self.mean + delta * (other.count / count),
            scatter=self.scatter + other.scatter + weight * outer,
        )

    @property
    def covariance(self) -> Float[Tensor, "neurons rank rank"]:
        """Scatter over count."""
        return self.scatter / self.count

    @property
    def energy(self) -> Float[Tensor, " neurons"]:
        """Mean squared norm around the mean."""
        return self.scatter.diagonal(dim1=1, dim2=2).sum(-1) / self.count


class MomentSums:
    """Moments of batches, summed in place around the mean of the first one."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._scatter = self._pivot = torch.empty(0)

    def see(self, z: Float[Tensor, "neurons images rank"]) -> None:
        """Add a batch."""
        if not self._count:
            self._pivot = z.mean(dim=1)
            self._sum = torch.zeros_like(self._pivot)
            self._scatter = z.new_zeros(*self._pivot.shape, z.shape[2])
        around = z - self._pivot[:, None]
        self._sum += around.sum(dim=1)
        self._scatter.baddbmm_(around.mT, around)
        self._count += z.shape[1]

    def moments(self) -> Moments:
        """Return those of all batches; nothing may be added afterwards."""
        mean = self._sum / self._count
        self._scatter.baddbmm_(self._sum[:, :, None], mean[:, None], alpha=-1)
        return Moments(count=self._count, mean=self._pivot + mean, scatter=self._scatter)


@dataclass(frozen=True, kw_only=True, eq=False)
class Centre:
    """What ranking needs of the `Moments` of all images."""

    mean: Float[Tensor, "neurons rank"]
    energy: Float[Tensor, " neurons"]
    """Mean squared norm around the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TopImages:
    """For each neuron the images with the largest centred norms, in no particular order.

    Of equal norms the image with the lower position counts as the larger. Before `top` images
    were seen, what is left has norm -1 and image -1.
    """

    norms: Float[Tensor, "neurons top"]
    images: Int[Tensor, "neurons top"]
    centred: Float[Tensor, "neurons top rank"]
    """In `unit`, and in the precision that was pooled in."""
    unit: Float[Tensor, " neurons"]

    @classmethod
    def none(
        cls, unit: Float[Tensor, " neurons"], top: int, rank: int, dtype: torch.dtype | None = None
    ) -> "TopImages":
        """No images yet; norms are in the dtype and on the device of `unit`."""
        neurons = len(unit)
        return cls(
            norms=unit.new_full((neurons, top), -1.0),
            images=torch.full((neurons, top), -1, dtype=torch.int64, device=unit.device),
            centred=unit.new_zeros(neurons, top, rank, dtype=dtype),
            unit=unit,
        )

    def entering(
        self, norms: Float[Tensor, "neurons images"], images: Int[Tensor, " images"]
    ) -> Bool[Tensor, "neurons images"]:
        """Return which of some images are larger than the smallest that is kept."""
        kept, seen = self.norms.float(), norms.float()
        smallest = kept.amin(dim=1, keepdim=True)
        last = torch.where(kept == smallest, self.images, -1).amax(dim=1, keepdim=True)
        return (seen > smallest) | ((seen == smallest) & (images < last))

    def take(
        self,
        centred: Float[Tensor, "neurons images rank"],
        norms: Float[Tensor, "neurons images"],
        images: Int[Tensor, " images"],
        entering: Bool[Tensor, "neurons images"],
        entries: int,
        neurons: int,
    ) -> None:
        """See more images; only those that get in are copied.

        Parameters
        ----------
        centred, norms, images
            Of the images; norms are those of `unit * centred`.
        entering
            What `entering` returned for them.
        entries, neurons
            How many of these there are, and how many neurons have some. Nothing here asks the
            device for a number, so that one question can be asked for many layers.
        """
        if not entries:
            return
        top = self.norms.shape[1]
        rows = _places(entering.any(dim=1), neurons)[:, 0]
        held = _rank_keys(self.norms[rows], self.images[rows])
        keys = torch.cat([held, _rank_keys(norms[rows], images)], dim=1)
        stays = torch.zeros_like(keys, dtype=torch.bool)
        stays.scatter_(1, keys.topk(top, dim=1, sorted=False).indices, True)
        # as many get in as go out, neuron by neuron, and both lists are in the order of neurons;
        # of several that are larger than the smallest not all may stay, so lists end with repeats
        order = torch.arange(entries, device=keys.device).clamp(max=stays[:, top:].sum() - 1)
        row, image = _places(stays[:, top:], entries)[order].unbind(dim=1)
        slot = _places(~stays[:, :top], entries)[order, 1]
        neuron = rows[row]
        self.norms[neuron, slot] = norms[neuron, image]
        self.images[neuron, slot] = images[image]
        self.centred[neuron, slot] = centred[neuron, image]

    def merge(self, other: "TopImages") -> "TopImages":
        """Return those of the images that both saw; no image may have been seen twice."""
        top = self.norms.shape[1]
        both = {
            name: torch.cat([getattr(self, name), getattr(other, name)], dim=1)
            for name in ("norms", "images", "centred")
        }
        keys = _rank_keys(both["norms"], both["images"])
        chosen = keys.topk(top, dim=1, sorted=False).indices
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        return TopImages(
            **{name: each[rows, chosen] for name, each in both.items()}, unit=self.unit
        )

    def strongest_first(self, top: int | None = None) -> "TopImages":
        """Return the same images, or the `top` largest, sorted; the unit is one."""
        order = _rank_keys(self.norms, self.images).argsort(dim=1, descending=True)[:, :top]
        rows = torch.arange(len(order), device=order.device)[:, None]
        return TopImages(
            norms=self.norms[rows, order],
            images=self.images[rows, order],
            centred=self.centred[rows, order].to(self.unit) * self.unit[:, None, None],
            unit=torch.ones_like(self.unit),
        )

    def around(self, shift: Float[Tensor, "neurons rank"]) -> "TopImages":
        """Return the same images with norms around a centre that lies `shift` further."""
        centred = self.centred.to(self.unit) * self.unit[:, None, None] - shift[:, None]
        norms = torch.linalg.vector_norm(centred, dim=-1)
        return TopImages(
            norms=torch.where(self.images < 0, -1.0, norms),
            images=self.images,
            centred=centred,
            unit=torch.ones_like(self.unit),
        )


def _places(mask: Bool[Tensor, "*axes"], count: int) -> Int[Tensor, "places _axes"]:
    """Where a mask holds, row by row, without asking the device how often where that is possible.

    `count` is at least how often; what is returned may be filled up to it.
    """
    if mask.device.type in ("cpu", "cuda"):
        return torch.nonzero_static(mask, size=count)
    return mask.nonzero()


def _rank_keys(
    norms: Float[Tensor, "neurons images"], images: Int[Tensor, "*neurons images"]
) -> Int[Tensor, "neurons images"]:
    """One integer for each (norm as float32, image): larger for larger norms, then lower images.

    The bits of a non-negative float grow with it; those of the norm -1 make a negative key.
    """
    bits = norms.float().contiguous().view(torch.int32).long()
    return (bits << 32) - images


def first_component(
    centred: Float[Tensor, "neurons top rank"],
) -> tuple[Float[Tensor, "neurons rank"], Float[Tensor, " neurons"]]:
    """First principal component of rows that are centred already, and its share of their energy.

    Unit rows. The sign is the one with which most rows project positively; on a tie, the one with
    which the sum of the projections is positive. A neuron whose rows are all zero gets a zero
    component and share.
    """
    values, vectors = torch.linalg.eigh(wide(torch.bmm(centred.mT, centred)))
    component = vectors[..., -1].to(centred)
    energy = values.clamp(min=0).sum(-1)
    share = torch.where(energy > 0, values[:, -1] / energy, 0).to(centred)
    projections = torch.bmm(centred, component[:, :, None])[:, :, 0]
    votes = projections.sign().sum(-1)
    side = torch.where(votes == 0, projections.sum(-1), votes)
    sign = torch.where(side < 0, -1.0, 1.0).to(component)
    return component * (sign * (energy > 0).to(centred))[:, None], share


def spectrum(covariance: Float[Tensor, "neurons rank rank"]) -> Float[Tensor, "neurons rank"]:
    """Eigenvalues of covariances, in rising order and none below zero."""
    values: Tensor = torch.linalg.eigvalsh(wide(covariance)).clamp(min=0)
    return values.to(covariance)


def share_of_first(values: Float[Tensor, "neurons rank"]) -> Float[Tensor, " neurons"]:
    """The largest eigenvalue's share of a `spectrum`: how rank-one effects are over all images."""
    total = values.sum(-1)
    return torch.where(total > 0, values[:, -1] / total, 0)


def gaussian_null(
    values: Float[Tensor, "neurons rank"],
    fraction: float,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " neurons"], Float[Tensor, " neurons"]]:
    """What selectivity and explained variance a Gaussian with the same covariance would show.

    Choosing the strongest images inflates both: a Gaussian has no selectivity, and its share is
    the null that a neuron's must beat.

    Parameters
    ----------
    values
        The `spectrum` of each neuron's covariance.
    fraction
        Of the samples that count as top.
    samples
        Drawn from each Gaussian; all neurons share one draw of standard normals.
    seed
        Of that draw.

    Returns
    -------
    Share of the energy in the top samples, and share of the first component in them, [neurons].
    """
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(samples, values.shape[1], generator=generator).to(values)
    squares = normals.square() @ values.T
    top = squares.topk(max(1, round(fraction * samples)), dim=0)
    selectivity = top.values.sum(0) / squares.sum(0).clamp(min=torch.finfo(values.dtype).tiny)
    shares = torch.empty_like(selectivity)
    for start in range(0, len(values), 256):
        chosen = normals[top.indices[:, start : start + 256].T]
        rows = chosen * values[start : start + 256, None].sqrt()
        _, shares[start : start + 256] = first_component(rows)
    return selectivity, shares


def histogram(
    norms: Float[Tensor, "neurons images"], rms: Float[Tensor, " neurons"]
) -> Int[Tensor, "neurons bins"]:
    """How many images have which centred norm, in units of the root mean square."""
    bins = len(HISTOGRAM_EDGES) - 1
    width = (_BIN_WIDTH * rms).clamp(min=torch.finfo(rms.dtype).tiny)
    place = (norms / width[:, None]).clamp_(max=bins - 1).long()
    counts = torch.zeros(len(rms), bins, dtype=torch.int64, device=norms.device)
    one = torch.ones((), dtype=torch.int64, device=norms.device)
    return counts.scatter_add_(1, place, one.expand_as(place))


def top_count(top: int | None, images: int) -> int:
    """How many top images a fit keeps: by default 2 % of its images, from 2 to 100 (the paper's).

    Raises
    ------
    SecondLensError
        More than there are images, or fewer than 2.
    """
    if images < 2:
        raise SecondLensError(f"ranking needs at least 2 images, and there is {images}: give more")
    count = min(100, max(2, round(0.02 * images))) if top is None else top
    if not 2 <= count <= images:
        raise SecondLensError(
            f"top must lie between 2 and the number of images, {images}, and it is {count}"
        )
    return count
