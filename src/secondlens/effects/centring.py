"""Coordinates of effects around a centre, for all neurons and images of a batch.

    z - centre = unit * W [f * scale * c ; 1]        W = [transform / f, -centre] / unit

is one product for each neuron: the centre is a column more, so nothing is subtracted afterwards,
and every result is rounded once. `f` and `unit` are 1, except in half precision.

Half precision is that of a model on an accelerator, whose tensor cores add up products of half
precision in float32. Rows A / sigma, coefficients, W and the result are then rounded to it, with a
relative error u (2^-11 in float16, 2^-8 in bfloat16), as activations are already. That leaves, to
first order in u, at most

    |error of z - centre| <= u * ( |centre| + |z - centre| + 3 * sum over paths k of
                                   |transform_k| * scale * sum over tokens of A |p| / sigma )

where |transform_k| is the norm of a column. Parts of a unit embedding that thousands of neurons
share are small; f and unit keep them away from the smallest numbers of float16.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.view import Clip
from .capture import Pass
from .value_paths import image_scale, shared_coefficients

HALF = (torch.float16, torch.bfloat16)
HALF_FACTOR = 64.0
"""By which coefficients are larger in half precision (f)."""
ALIGNED = 8
"""Tensor cores want rows of a multiple of so many numbers of half precision."""


def pooling_dtype(clip: Clip) -> torch.dtype:
    """Return the precision in which a fit pools: the model's on an accelerator, else wider.

    CPUs multiply matrices of half precision many times slower than float32.
    """
    return clip.compute_dtype if clip.device.type == "cpu" else clip.dtype


class ScaledPass:
    """A pass whose rows hold the image's scale, in the precision that is pooled in.

    Its activations are let go as they are pooled, layer by layer.
    """

    def __init__(self, seen: Pass, convention: str, dtype: torch.dtype) -> None:
        self.seen, self.convention, self.dtype = seen, convention, dtype
        self.scale = (image_scale(seen, convention) * _factor(dtype))[:, None]
        self._rows = (seen.all_rows * self.scale[:, None]).to(dtype)

    def coefficients(self, layer: int, columns: int) -> Float[Tensor, "images neurons columns"]:
        """Pool a layer: extended coefficients with the scale and f, then a one, then zeros."""
        rows = self._rows[:, self.seen.first_row(layer) :]
        activation = self.seen.activations.pop(layer).to(self.dtype)
        images, extended, _ = rows.shape
        found = rows.new_empty(images, activation.shape[-1], columns)
        torch.bmm(activation.mT, rows.mT, out=found[..., :extended])
        if self.convention == "official":
            shared = (shared_coefficients(self.seen, layer) * self.scale).to(self.dtype)
            found[..., extended : extended + shared.shape[1]] = shared[:, None]
            extended += shared.shape[1]
        found[..., extended] = 1
        found[..., extended + 1 :] = 0
        return found


class CentredMap:
    """Takes a pass to coordinates around a centre, in units that depend on the weights alone.

    Parameters
    ----------
    transform
        Of the `Isometry` of a layer.
    dtype
        See `pooling_dtype`.
    """

    def __init__(
        self, transform: Float[Tensor, "neurons rank extended"], dtype: torch.dtype
    ) -> None:
        neurons, rank, extended = transform.shape
        factor, columns = _factor(dtype), extended + 1
        self.unit: Float[Tensor, " neurons"] = transform.new_ones(neurons)
        if dtype in HALF:
            largest = transform.abs().amax(dim=(1, 2)) / factor
            self.unit = torch.where(largest > 0, largest, self.unit)
            columns = -(-columns // ALIGNED) * ALIGNED
        self.weights = transform.new_zeros(neurons, rank, columns, dtype=dtype)
        self.weights[..., :extended] = transform / (factor * self.unit)[:, None, None]
        self._column = extended

    def centre_on(self, centre: Float[Tensor, "neurons rank"] | float) -> None:
        """Set the centre, which is zero at first."""
        self.weights[..., self._column] = -centre / self.unit[:, None]

    def __call__(self, scaled: ScaledPass, layer: int) -> Float[Tensor, "neurons images rank"]:
        """(z - centre) / unit of a batch, which lets go of the layer's activations."""
        coefficients = scaled.coefficients(layer, self.weights.shape[-1])
        return torch.bmm(coefficients.transpose(0, 1), self.weights.mT)


def _factor(dtype: torch.dtype) -> float:
    return HALF_FACTOR if dtype in HALF else 1.0
