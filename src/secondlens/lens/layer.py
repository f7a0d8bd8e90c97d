"""What a lens knows of one layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .moments import (
    Centre,
    MomentSums,
    first_component,
    gaussian_null,
    share_of_first,
    spectrum,
)
from .ranking import Ranking, Settled

IMAGES_PER_RANKING = 1024
"""Coordinates in memory that are ranked at a time."""
NULL_SAMPLES = 2000


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
    """The first component's share of the energy of all images, or of a sample of them."""
    explained_null: Float[Tensor, " neurons"]
    """`explained` of a Gaussian with the same covariance."""
    selectivity: Float[Tensor, " neurons"]
    """Share of the energy of all images that the top images have."""
    selectivity_null: Float[Tensor, " neurons"]
    """`selectivity` of a Gaussian with the same covariance."""
    histogram: Int[Tensor, "neurons bins"]
    """Images by norm over root mean square, bins of `HISTOGRAM_EDGES`; both around the mean of the
    sample, where the fit took one."""
    activation_mean: Float[Tensor, "tokens neurons"]
    """Mean activation at every token, over all images or a sample of them."""

    def __repr__(self) -> str:
        neurons, dim = self.directions.shape
        return (
            f"LayerLens({neurons} neurons, {dim} dimensions, top {self.top_images.shape[1]} images)"
        )

    def to(self, device: torch.device) -> "LayerLens":
        """Return the same on a device; nothing is copied that is there already."""
        return LayerLens(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @property
    def threshold(self) -> Float[Tensor, " neurons"]:
        """The smallest top norm: above it, an effect is significant."""
        return self.top_norms[:, -1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coordinates:
    """Isometric coordinates of every image, kept so that lenses can be merged."""

    z: dict[int, Float[Tensor, "images neurons rank"]]
    basis: dict[int, Float[Tensor, "neurons dim rank"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Axes:
    """Axes of the embedding, along which effects over all paths are known."""

    rows: Float[Tensor, "axes dim"]
    """Orthonormal: the principal axes of the effects of all neurons on 32 images, the first one
    first."""
    left_out: Float[Tensor, " layers"]
    """Share of the energy of the effects around their means that lies outside of the axes, by
    layer in ascending order; estimated along 16 random directions on 32 other images."""


def both_stages(
    z: Float[Tensor, "images neurons rank"], top: int
) -> tuple[Float[Tensor, "neurons rank rank"], Settled]:
    """What `layer_lens` takes, over coordinates in memory."""
    sums = MomentSums()
    for part in z.split(64):
        sums.see(part.transpose(0, 1))
    moments = sums.moments()
    centre = Centre(mean=moments.mean, energy=moments.energy)
    ranking = Ranking(centre, top)
    for positions in torch.arange(len(z), device=z.device).split(IMAGES_PER_RANKING):
        ranking.see((z[positions] - centre.mean).transpose(0, 1), positions)
    ranked = ranking.ranked()
    return moments.covariance, Settled(
        images=len(z),
        centre=centre,
        top_images=ranked.top_images.strongest_first(),
        histogram=ranked.histogram,
    )


def layer_lens(
    covariance: Float[Tensor, "neurons rank rank"],
    settled: Settled,
    basis: Float[Tensor, "neurons dim rank"],
    activation_mean: Float[Tensor, "tokens neurons"],
    sample: int | None = None,
) -> LayerLens:
    """What both stages of a layer tell together.

    `covariance` is that of `sample` images, by default of all.
    """
    top_images, centre = settled.top_images, settled.centre
    component, explained = first_component(top_images.centred)
    values = spectrum(covariance)
    # as many draws as images where these are few: few rows look more alike
    selectivity_null, explained_null = gaussian_null(
        values,
        top_images.norms.shape[1] / settled.images,
        min(NULL_SAMPLES, sample or settled.images),
    )
    energy = centre.energy
    total = (energy * settled.images).clamp(min=torch.finfo(energy.dtype).tiny)
    return LayerLens(
        mean=torch.bmm(basis, centre.mean[:, :, None])[:, :, 0],
        directions=torch.bmm(basis, component[:, :, None])[:, :, 0],
        energy=energy,
        top_images=top_images.images,
        top_norms=top_images.norms,
        explained=explained,
        explained_all=share_of_first(values),
        explained_null=explained_null,
        selectivity=top_images.norms.square().sum(1) / total,
        selectivity_null=selectivity_null,
        histogram=settled.histogram,
        activation_mean=activation_mean,
    )


@dataclass(frozen=True, kw_only=True)
class NeuronId:
    """A neuron of an MLP layer."""

    layer: int
    neuron: int

    @property
    def name(self) -> str:
        """Such as "L5 #120"."""
        return f"L{self.layer} #{self.neuron}"
