"""Other ways to say where in an image a CLIP sees a text: the rows of Table 4 of the paper, and
methods that came after it.

Every method is a function

    heat_maps(clip, images, texts) -> [images, rows, columns]

of images that `Clip.prepare` takes and one text embedding for each. Maps are raw values at the
patches, the larger the more. Those that read texts off the patches alone also take several texts
for each image, [images, texts, dim]. Formulas are those of the papers that each module names;
settings that a paper leaves open are keyword arguments, and their defaults are the paper's. Blocks
that the model does not have raise `SecondLensError`.
"""

from typing import TYPE_CHECKING

from ....registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

baselines: Registry["Tensor"] = Registry("baseline", "baselines")
"""By the name in the paper's Table 4, in its order; then those that are not in it."""

for _name, _function, _help in (
    ("Partial-LRP", "relevance:partial_lrp", "relevance through the last block (Voita et al.)"),
    ("Rollout", "attention:rollout", "products of all blocks' attention (Abnar and Zuidema)"),
    ("LRP", "relevance:lrp", "relevance through all blocks (Binder et al.)"),
    ("GradCAM", "gradients:grad_cam", "gradients times the last attention (Selvaraju et al.)"),
    ("Chefer et al.", "gradients:chefer", "gradients times attention of all blocks"),
    ("Raw attention", "attention:raw_attention", "the last block's attention (Caron et al.)"),
    ("TextSpan", "first_order:textspan", "direct effects of late heads (Gandelsman et al.)"),
    ("Patch similarity", "similarity:patch_similarity", "patches compared with the text"),
    ("MaskCLIP", "last_block:mask_clip", "patches keep their own values (Zhou et al. 2022)"),
    ("CLIP Surgery", "surgery:clip_surgery", "values look at values on a path (Li et al. 2023)"),
    ("SCLIP", "last_block:sclip", "queries look at queries, keys at keys (Wang et al. 2024)"),
    ("ClearCLIP", "last_block:clear_clip", "queries look at queries alone (Lan et al. 2024)"),
    ("LeGrad", "gradients:legrad", "gradients of late attention maps (Bousselham et al. 2024)"),
    ("ProxyCLIP", "last_block:proxy_clip", "a second model says what is alike (Lan et al. 2024)"),
    ("NACLIP", "last_block:nac_clip", "keys look at keys and neighbours (Hajimiri et al. 2025)"),
):
    baselines.register(_name, f"{__name__}.{_function}", help=_help)
