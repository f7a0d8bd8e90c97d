"""What papers do to maps of several texts before a pixel gets a class.

Each is a function of maps that keeps their form, so that any method can be followed by any of them.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...models.view import Clip, Images
from .baselines.last_block import inside

SHARP = 100.0
"""What MaskCLIP multiplies cosines with before a softmax: CLIP's own temperature."""


def denoise_prompts(
    maps: Float[Tensor, "images texts *places"], least: float = 0.5
) -> Float[Tensor, "images texts *places"]:
    """MaskCLIP's prompt denoising: a text that is nowhere as likely as `least` gets no pixel.

    Likely by a softmax of the cosines over texts.
    """
    likely = (SHARP * maps).softmax(1).flatten(2).amax(-1)
    lost = (likely < least).unflatten(-1, (-1, *[1] * (maps.dim() - 2)))
    return maps.masked_fill(lost, -SHARP)


@torch.no_grad()
def smooth_by_keys(
    clip: Clip, images: Images, maps: Float[Tensor, "images texts rows columns"]
) -> Float[Tensor, "images texts rows columns"]:
    """MaskCLIP's key smoothing: patches share what they say with those of like keys.

    Each place becomes the sum over patches of cosine of keys times probability of the text; keys
    are those of the last block, all heads side by side.
    """
    (seen,) = inside(clip, images, [-1])
    keys = F.normalize(seen.keys[:, :, clip.prefix :].transpose(1, 2).flatten(2), dim=-1)
    alike = keys @ keys.mT
    likely = (SHARP * maps).softmax(1).flatten(2)
    found: Tensor = (likely @ alike.to(likely).mT).unflatten(-1, tuple(maps.shape[-2:]))
    return found


@torch.no_grad()
def remove_redundance(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "texts dim"],
    maps: Float[Tensor, "images texts *places"],
) -> Float[Tensor, "images texts *places"]:
    """CLIP Surgery's feature surgery: what a place says of all texts alike is taken off.

    Cosines are weighted by how likely the whole image makes each text, w = p / mean(p) with
    p = softmax(2 cosine), and the mean over texts is subtracted.
    """
    unit = F.normalize(clip.encode_image(images).to(texts), dim=-1)
    likely = (2 * unit @ texts.T).softmax(-1)
    weights = likely / likely.mean(-1, keepdim=True)
    weighted = weights.unflatten(-1, (-1, *[1] * (maps.dim() - 2))) * maps
    found: Tensor = weighted - weighted.mean(1, keepdim=True)
    return found


PAMR_STEPS, PAMR_DILATIONS = 10, (8, 16)
"""As NACLIP takes them."""


def fine_dilations(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, ...]:
    """Powers of two up to the side of a patch: distances at which a map of patches finds edges.

    `size` and `grid` are rows and columns of pixels and of patches.
    """
    side = max(1, min(pixels // patches for pixels, patches in zip(size, grid, strict=True)))
    return tuple(2**power for power in range(side.bit_length()))


def followed(
    maps: Float[Tensor, "images texts rows columns"],
    pixels: Float[Tensor, "images 3 height width"],
) -> Float[Tensor, "images texts height width"]:
    """Maps of patches at the images' size that follow their colours: `pamr` down to single pixels.

    `pixels` are images as the model takes them.
    """
    size = (pixels.shape[-2], pixels.shape[-1])
    resized = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    dilations = fine_dilations(size, (maps.shape[-2], maps.shape[-1]))
    return pamr(pixels.to(maps), resized, dilations=dilations)


def pamr(
    pixels: Float[Tensor, "images channels height width"],
    maps: Float[Tensor, "images texts height width"],
    *,
    steps: int = PAMR_STEPS,
    dilations: Sequence[int] = PAMR_DILATIONS,
) -> Float[Tensor, "images texts height width"]:
    """Pixel-adaptive mask refinement (Araslanov & Roth 2020).

    In each step a pixel takes the mean of its eight neighbours at each distance of `dilations`,
    weighted by softmax(-mean over channels of |difference| / (0.1 standard deviation)), where the
    deviation is that of the nine pixels at all distances. Borders are repeated.
    """
    around = torch.stack([*_neighbours(pixels, dilations)], dim=2)
    others = torch.stack([*_neighbours(pixels, dilations, middle=False)], dim=2)
    spread = around.std(2, keepdim=True)
    apart = (others - pixels[:, :, None]).abs() / (1e-8 + 0.1 * spread)
    weights = (-apart.mean(1, keepdim=True)).softmax(2).unbind(2)
    for _ in range(steps):
        # one neighbour of all maps at a time: all of them at once are many times as much memory
        total = torch.zeros_like(maps)
        for weight, each in zip(weights, _neighbours(maps, dilations, middle=False), strict=True):
            total += weight * each
        maps = total
    return maps


def _neighbours(
    values: Float[Tensor, "images channels height width"],
    dilations: Sequence[int],
    *,
    middle: bool = True,
) -> Iterator[Float[Tensor, "images channels height width"]]:
    height, width = values.shape[-2:]
    for far in dilations:
        padded = F.pad(values, [far] * 4, mode="replicate")
        for down, right in product(range(3), repeat=2):
            if middle or (down, right) != (1, 1):
                upper, left = far * down, far * right
                yield padded[..., upper : upper + height, left : left + width]
