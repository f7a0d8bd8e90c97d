"""Heat-maps: at the patches, in [0, 1] at any size, and as label maps."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def on_grid(
    values: Float[Tensor, "*batch patches"], grid: tuple[int, int]
) -> Float[Tensor, "*batch rows columns"]:
    """What patches hold, where the patches are."""
    return values.reshape(*values.shape[:-1], *grid)


def standardise(
    maps: Float[Tensor, "*batch rows columns"], size: tuple[int, int]
) -> Float[Tensor, "*batch height width"]:
    """Heat-maps bilinearly resized to `size` (height, width), each then scaled to [0, 1].

    A map that is the same everywhere becomes 0.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False).flatten(1)
    low, high = resized.aminmax(dim=1, keepdim=True)
    span = high - low
    # rounding makes a constant map differ from itself a little after resizing
    constant = span <= 1e-6 * high.abs().maximum(low.abs())
    heat = (resized - low) / span.masked_fill(constant, torch.inf)
    return heat.reshape(*maps.shape[:-2], *size)


def label_map(
    heat: Float[Tensor, "texts height width"], threshold: float = 0.5
) -> Int[Tensor, "height width"]:
    """For each pixel, 1 + the text with the largest heat, or 0 if none reaches the threshold."""
    strongest, text = heat.max(dim=0)
    return torch.where(strongest >= threshold, text + 1, 0)
