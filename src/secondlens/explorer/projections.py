"""Effects as pages show them: along each neuron's direction, by value path."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..effects.capture import Pooled
from ..effects.projections import Projector
from ..effects.value_paths import extended_coefficients, image_scale
from ..lens.lens import Lens
from ..models.view import Clip


class Projections:
    """Effects of a layer on its neurons' directions, less those of the mean, by value path."""

    def __init__(self, clip: Clip, lens: Lens, layer: int) -> None:
        fitted = lens[layer]
        self.layer, self.convention = layer, lens.convention
        projector = Projector(clip, layer, fitted.directions[:, None], lens.convention)
        self.weights = projector.weights[..., 0]
        self.own = clip.path_count(layer)
        """Paths: what comes after them in the official convention all neurons share."""
        self.mean = (fitted.mean * fitted.directions).sum(1).to(self.weights)
        self.mean_parts = torch.zeros_like(self.weights)

    def parts(self, pooled: Pooled) -> Float[Tensor, "images extended neurons"]:
        """What each path adds to the projection, mean not subtracted."""
        coefficients = extended_coefficients(pooled, self.layer, self.convention)
        scale = image_scale(pooled, self.convention)
        return coefficients * self.weights * scale[:, None, None]
