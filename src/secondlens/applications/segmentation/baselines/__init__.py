"""Earlier ways to say where in an image a CLIP sees a text: the rows of Table 4 of the paper.

Every method is a function

    heat_maps(clip, images, texts) -> [images, rows, columns]

of images that `Clip.prepare` takes and one text embedding for each. Maps are raw values at the
patches, the larger the more. Formulas are those of the papers that each module names; settings that
a paper leaves open are keyword arguments, and their defaults are the paper's. Blocks that the model
does not have raise `SecondLensError`.
"""

from collections.abc import Callable

from torch import Tensor

from .attention import raw_attention, rollout
from .first_order import textspan
from .gradients import chefer, grad_cam
from .relevance import lrp, partial_lrp
from .similarity import patch_similarity

HeatMaps = Callable[..., Tensor]
"""`heat_maps(clip, images, texts)`, see above."""

METHODS: dict[str, HeatMaps] = {
    "Partial-LRP": partial_lrp,
    "Rollout": rollout,
    "LRP": lrp,
    "GradCAM": grad_cam,
    "Chefer et al.": chefer,
    "Raw attention": raw_attention,
    "TextSpan": textspan,
    "Patch similarity": patch_similarity,
}
"""By the name in the paper's Table 4, in its order; the last one is not in it."""

__all__ = [
    "METHODS",
    "HeatMaps",
    "chefer",
    "grad_cam",
    "lrp",
    "partial_lrp",
    "patch_similarity",
    "raw_attention",
    "rollout",
    "textspan",
]
