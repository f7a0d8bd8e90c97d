"""Streaming statistics of effects in isometric coordinates, and what follows from them.

Two things are streamed over images. `Moments` merge in any order. `TopImages` rank images by
their distance from a given mean, so they need the final mean first: a second pass over the
coordinates. The rest (directions, shares, nulls) is computed from the two at the end.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..devices import wide
from ..errors import SecondLensError

HISTOGRAM_EDGES = torch.linspace(0, 8, 41)
"""Centred norms over their root mean square, per neuron; the last bin also takes what is beyond."""


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

    @classmethod
    def none(cls, like: Float[Tensor, "neurons rank"], top: int) -> "TopImages":
        """No images yet; neurons, rank, dtype and device as `like`."""
        neurons, rank = like.shape
        return cls(
            norms=like.new_full((neurons, top), -1.0),
            images=torch.full((neurons, top), -1, dtype=torch.int64, device=like.device),
            centred=like.new_zeros(neurons, top, rank),
        )

    def add(
        self,
        z: Float[Tensor, "images neurons rank"],
        mean: Float[Tensor, "neurons rank"],
        norms: Float[Tensor, "images neurons"],
        images: Int[Tensor, " images"],
    ) -> None:
        """See more images, with the norms of z - mean; only those that get in are copied."""
        top = self.norms.shape[1]
        keys = torch.cat([_rank_keys(self.norms, self.images), _rank_keys(norms.T, images)], dim=1)
        stays = torch.zeros_like(keys, dtype=torch.bool)
        stays.scatter_(1, keys.topk(top, dim=1, sorted=False).indices, True)
        # as many get in as go out, neuron by neuron, and both lists are in the order of neurons
        neuron, image = stays[:, top:].nonzero(as_tuple=True)
        out = (~stays[:, :top]).nonzero(as_tuple=True)
        self.norms[out] = norms[image, neuron]
        self.images[out] = images[image]
        self.centred[out] = z[image, neuron] - mean[neuron]

    def merge(self, other: "TopImages") -> None:
        """See the images that `other` saw; none of them may have been seen before."""
        top = self.norms.shape[1]
        both = {
            name: torch.cat([getattr(self, name), getattr(other, name)], dim=1)
            for name in ("norms", "images", "centred")
        }
        keys = _rank_keys(both["norms"], both["images"])
        chosen = keys.topk(top, dim=1, sorted=False).indices
        for name, values in both.items():
            rows = torch.arange(len(values), device=values.device)[:, None]
            getattr(self, name).copy_(values[rows, chosen])

    def strongest_first(self) -> "TopImages":
        """The same images, sorted."""
        order = _rank_keys(self.norms, self.images).argsort(dim=1, descending=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return TopImages(
            norms=self.norms[rows, order],
            images=self.images[rows, order],
            centred=self.centred[rows, order],
        )


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


def centred_norms(
    z: Float[Tensor, "images neurons rank"], mean: Float[Tensor, "neurons rank"]
) -> Float[Tensor, "images neurons"]:
    """Norms of z - mean, a few images at a time: what is subtracted stays in the cache."""
    return torch.cat([torch.linalg.vector_norm(part - mean, dim=-1) for part in z.split(16)])


def share_of_first(covariance: Float[Tensor, "neurons rank rank"]) -> Float[Tensor, " neurons"]:
    """The first eigenvalue's share of a covariance: how rank-one effects are over all images."""
    values = torch.linalg.eigvalsh(wide(covariance)).clamp(min=0)
    total = values.sum(-1)
    return torch.where(total > 0, values[:, -1] / total, 0).to(covariance)


def gaussian_null(
    covariance: Float[Tensor, "neurons rank rank"],
    fraction: float,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " neurons"], Float[Tensor, " neurons"]]:
    """What selectivity and explained variance a Gaussian with the same covariance would show.

    Choosing the strongest images inflates both: a Gaussian has no selectivity, and its share is
    the null that a neuron's must beat.

    Parameters
    ----------
    covariance
        Of each neuron's coordinates.
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
    values = torch.linalg.eigvalsh(wide(covariance)).clamp(min=0).to(covariance)
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
    norms: Float[Tensor, "images neurons"], rms: Float[Tensor, " neurons"]
) -> Int[Tensor, "neurons bins"]:
    """How many images have which centred norm, in units of the root mean square."""
    bins = len(HISTOGRAM_EDGES) - 1
    width = HISTOGRAM_EDGES[1].item()
    relative = norms / rms.clamp(min=torch.finfo(rms.dtype).tiny)
    place = (relative / width).long().clamp(0, bins - 1).T
    counts = torch.zeros(len(rms), bins, dtype=torch.int64, device=norms.device)
    return counts.scatter_add_(1, place, torch.ones_like(place))


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
