"""From a stream of coordinates to what a lens knows of each layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import statistics

Basis = dict[int, Tensor]
"""Orthonormal basis of each neuron's effects, by layer: [neurons, dim, rank]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerLens:
    """What a fit knows about the neurons of one MLP layer. Norms and energies are of effects
    minus their mean, in units of the normalised embedding (times 100 when official)."""

    mean: Float[Tensor, "neurons dim"]
    """Mean effect over all images (b of the paper)."""
    directions: Float[Tensor, "neurons dim"]
    """Unit first principal component of the top images' effects minus `mean` (r)."""
    energy: Float[Tensor, " neurons"]
    """Mean squared norm over all images."""
    top_images: Int[Tensor, "neurons top"]
    """Positions in `Lens.image_ids`, strongest first."""
    top_norms: Float[Tensor, "neurons top"]
    explained: Float[Tensor, " neurons"]
    """Share of the top images' energy that lies on `directions`."""
    explained_all: Float[Tensor, " neurons"]
    """The first component's share of the energy of all images."""
    explained_null: Float[Tensor, " neurons"]
    """`explained` of a Gaussian with the same covariance."""
    selectivity: Float[Tensor, " neurons"]
    """Share of the energy of all images that the top images have."""
    selectivity_null: Float[Tensor, " neurons"]
    """`selectivity` of a Gaussian with the same covariance."""
    histogram: Int[Tensor, "neurons bins"]
    """Images by norm over root mean square, bins of `statistics.HISTOGRAM_EDGES`."""
    activation_mean: Float[Tensor, "tokens neurons"]
    """Mean activation at every token."""

    @property
    def threshold(self) -> Float[Tensor, " neurons"]:
        """The smallest top norm: above it, an effect is significant."""
        return self.top_norms[:, -1]


class Accumulator:
    """The statistics of some layers while images stream by: first `see` all, then `rank` all."""

    def __init__(self, basis: Basis, top: int) -> None:
        self.basis, self.top = basis, top
        self.moments: dict[int, statistics.Moments] = {}
        self.ranked: dict[int, statistics.TopImages] = {}
        self.histograms: dict[int, Tensor] = {}

    def see(self, layer: int, z: Tensor) -> None:
        """First pass: means and covariances."""
        batch = statistics.Moments.of(z)
        seen = self.moments.get(layer)
        self.moments[layer] = batch if seen is None else seen.merge(batch)

    def rank(self, layer: int, z: Tensor, images: Tensor) -> None:
        """Second pass: norms around the mean."""
        moments = self.moments[layer]
        if layer not in self.ranked:
            self.ranked[layer] = statistics.TopImages.none(moments.mean, self.top)
        centred = z - moments.mean
        norms = centred.norm(dim=-1)
        self.ranked[layer] = self.ranked[layer].add(centred, norms, images)
        counts = statistics.histogram(norms, moments.energy.sqrt())
        self.histograms[layer] = self.histograms.get(layer, 0) + counts

    def result(self, layer: int, activation_mean: Tensor) -> LayerLens:
        """What was seen of a layer."""
        moments, ranked, basis = self.moments[layer], self.ranked[layer], self.basis[layer]
        component, explained = statistics.first_component(ranked.centred)
        covariance = moments.covariance
        selectivity_null, explained_null = statistics.gaussian_null(
            covariance, self.top / moments.count
        )
        energy = moments.energy
        total = (energy * moments.count).clamp(min=torch.finfo(energy.dtype).tiny)
        return LayerLens(
            mean=torch.bmm(basis, moments.mean[:, :, None])[:, :, 0],
            directions=torch.bmm(basis, component[:, :, None])[:, :, 0],
            energy=energy,
            top_images=ranked.images,
            top_norms=ranked.norms,
            explained=explained,
            explained_all=statistics.share_of_first(covariance),
            explained_null=explained_null,
            selectivity=ranked.norms.square().sum(1) / total,
            selectivity_null=selectivity_null,
            histogram=self.histograms[layer],
            activation_mean=activation_mean,
        )
