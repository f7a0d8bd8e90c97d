"""What a lens knows of one layer, and the second pass that ranks its images."""

from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .moments import (
    HISTOGRAM_EDGES,
    Centre,
    Moments,
    TopImages,
    centred_norms,
    first_component,
    gaussian_null,
    histogram,
    share_of_first,
)

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
    """The first component's share of the energy of all images."""
    explained_null: Float[Tensor, " neurons"]
    """`explained` of a Gaussian with the same covariance."""
    selectivity: Float[Tensor, " neurons"]
    """Share of the energy of all images that the top images have."""
    selectivity_null: Float[Tensor, " neurons"]
    """`selectivity` of a Gaussian with the same covariance."""
    histogram: Int[Tensor, "neurons bins"]
    """Images by norm over root mean square, bins of `HISTOGRAM_EDGES`."""
    activation_mean: Float[Tensor, "tokens neurons"]
    """Mean activation at every token."""

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


class Ranking:
    """Second pass over one layer: its images ranked by norm around the final mean."""

    def __init__(self, centre: Centre, top: int) -> None:
        self.centre = centre
        self.top_images = TopImages.none(centre.mean, top)
        bins = len(HISTOGRAM_EDGES) - 1
        self.histogram = torch.zeros(len(centre.mean), bins, dtype=torch.int64, device="cpu")

    def see(
        self, z: Float[Tensor, "images neurons rank"], positions: Int[Tensor, " images"]
    ) -> None:
        """Rank some images more."""
        norms = centred_norms(z, self.centre.mean)
        self.top_images.add(z, self.centre.mean, norms, positions)
        self.histogram += histogram(norms, self.centre.energy.sqrt()).cpu()


def both_passes(
    z: Float[Tensor, "images neurons rank"], top: int
) -> tuple[Moments, TopImages, Int[Tensor, "neurons bins"]]:
    """What `layer_lens` takes, over coordinates in memory."""
    moments = reduce(Moments.merge, map(Moments.of, z.split(64)))
    ranking = Ranking(Centre(mean=moments.mean, energy=moments.energy), top)
    for positions in torch.arange(len(z), device=z.device).split(1024):
        ranking.see(z[positions], positions)
    return moments, ranking.top_images, ranking.histogram


def layer_lens(
    moments: Moments,
    top_images: TopImages,
    histogram: Int[Tensor, "neurons bins"],
    basis: Float[Tensor, "neurons dim rank"],
    activation_mean: Float[Tensor, "tokens neurons"],
) -> LayerLens:
    """What both passes over a layer tell together."""
    ranked = top_images.strongest_first()
    component, explained = first_component(ranked.centred)
    covariance, energy = moments.covariance, moments.energy
    # as many draws as images where these are few: few rows look more alike
    selectivity_null, explained_null = gaussian_null(
        covariance, ranked.norms.shape[1] / moments.count, min(NULL_SAMPLES, moments.count)
    )
    total = (energy * moments.count).clamp(min=torch.finfo(energy.dtype).tiny)
    return LayerLens(
        mean=torch.bmm(basis, moments.mean[:, :, None])[:, :, 0],
        directions=torch.bmm(basis, component[:, :, None])[:, :, 0],
        energy=energy,
        top_images=ranked.images,
        top_norms=ranked.norms,
        explained=explained,
        explained_all=share_of_first(covariance),
        explained_null=explained_null,
        selectivity=ranked.norms.square().sum(1) / total,
        selectivity_null=selectivity_null,
        histogram=histogram,
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
