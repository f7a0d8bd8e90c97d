"""Methods that let patches look at one another otherwise in the last block, and read their tokens.

The class token looks at what an image shows as a whole, and in the last block patches look there
too. Each method puts other weights in the place of the last block's attention,

- MaskCLIP (Zhou, Loy & Dai 2022): every token takes its own value only;
- SCLIP (Wang, Mei & Yuille 2024): softmax(q q') + softmax(k k');
- ClearCLIP (Lan et al. 2024): softmax(q q');
- NACLIP (Hajimiri, Ben Ayed & Dolz 2025): softmax(k k' + a Gaussian of the distance in the grid);
- ProxyCLIP (Lan et al. 2024): the cosines of another model's patches;

and MaskCLIP and SCLIP add the result to the stream and run the block's MLP, as their published code
does, while the others compare the result itself with the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ....errors import SecondLensError, UnsupportedModel
from ....models.blocks import Block
from ....models.view import Clip, Images, hooked
from ..heat_maps import on_grid
from .similarity import at_output, compared, last_states

GAUSSIAN_STD = 5.0
"""Of NACLIP, in patches."""

SHIFT, SHARPNESS = 1.2, 3.0
"""Of ProxyCLIP: cosines below so many times their mean are cut, and what is left is multiplied."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inside:
    """What one block's attention reads, by head."""

    block: Block
    stream: Float[Tensor, "images tokens width"]
    """Before the block."""
    queries: Float[Tensor, "images heads tokens head_width"]
    """Over the root of the head's width, as `keys` are not."""
    keys: Float[Tensor, "images heads tokens head_width"]
    values: Float[Tensor, "images heads tokens head_width"]

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        return float(self.keys.shape[-1] ** -0.5)

    def written(
        self, heads: Float[Tensor, "images heads tokens head_width"]
    ) -> Float[Tensor, "images tokens width"]:
        """What the block's attention adds to the stream where heads read this."""
        output = self.block.output.to(heads)
        return torch.einsum("bhte,hew->btw", heads, output) + self.block.output_bias.to(heads)


@torch.no_grad()
def inside(clip: Clip, images: Images, blocks: list[int]) -> list[Inside]:
    """What the attention of some blocks reads; negative numbers count from the last.

    Raises
    ------
    UnsupportedModel
        The class token does not make the output, or a norm lies in the attention.
    """
    clip.check_class_token("what patches write for themselves")
    chosen = [clip.blocks[_number(clip, number)] for number in blocks]
    if any(block.inner_norm is not None for block in chosen):
        raise UnsupportedModel(
            f"attention of {clip.name} cannot be replaced: a norm lies between its heads and what "
            "they write"
        )
    seen: list[tuple[Tensor, Tensor]] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        before, after = (
            clip.batch_major(each).to(clip.compute_dtype) for each in (inputs[0], output)
        )
        seen.append((before, after))

    with hooked([(block.ln_1, see) for block in chosen]):
        clip.encode_image(images)
    found = []
    for block, (stream, normalised) in zip(chosen, seen, strict=True):
        queries, keys = block.queries_and_keys(normalised)
        values = torch.einsum("btw,hew->bhte", normalised, block.value.to(normalised))
        values = values + block.value_bias.to(normalised)[:, None]
        found.append(Inside(block=block, stream=stream, queries=queries, keys=keys, values=values))
    return found


def _number(clip: Clip, number: int) -> int:
    return clip.check_layer(number + clip.layers if number < 0 else number, last=True)


def _maps(
    clip: Clip,
    images: Images,
    texts: Tensor,
    read: Callable[[Inside], Tensor],
    *,
    block: int,
    residual: bool,
) -> Float[Tensor, "images *texts rows columns"]:
    """Patches compared with texts after a block whose heads `read` something else."""
    (seen,) = inside(clip, images, [block])
    states = seen.written(read(seen))
    if residual:
        if seen.block.mlp_half is None:
            raise UnsupportedModel(
                f"the last MLP of {clip.name} cannot be run on its own: take residual=False"
            )
        stream = clip.as_module(seen.stream + states).to(clip.dtype)
        states = clip.batch_major(seen.block.mlp_half(stream)).to(states)
    return compared(clip, states[:, clip.prefix :], texts)


@torch.no_grad()
def mask_clip(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    block: int = -1,
    residual: bool = True,
) -> Float[Tensor, "images *texts rows columns"]:
    """MaskCLIP: every token takes its own value only."""
    return _maps(clip, images, texts, lambda seen: seen.values, block=block, residual=residual)


@torch.no_grad()
def sclip(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    block: int = -1,
    residual: bool = True,
) -> Float[Tensor, "images *texts rows columns"]:
    """SCLIP: tokens look where queries are like theirs, and where keys are."""

    def read(seen: Inside) -> Tensor:
        by_queries = _alike(seen.queries / seen.scale, seen.scale)
        return (by_queries.softmax(-1) + _alike(seen.keys, seen.scale).softmax(-1)) @ seen.values

    return _maps(clip, images, texts, read, block=block, residual=residual)


@torch.no_grad()
def clear_clip(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    block: int = -1,
    residual: bool = False,
) -> Float[Tensor, "images *texts rows columns"]:
    """ClearCLIP: tokens look where queries are like theirs; no residual stream and no MLP."""

    def read(seen: Inside) -> Tensor:
        return _alike(seen.queries / seen.scale, seen.scale).softmax(-1) @ seen.values

    return _maps(clip, images, texts, read, block=block, residual=residual)


@torch.no_grad()
def nac_clip(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    block: int = -1,
    residual: bool = False,
    std: float = GAUSSIAN_STD,
) -> Float[Tensor, "images *texts rows columns"]:
    """NACLIP: patches look at their neighbours, and where keys are like theirs.

    `std` is that of the Gaussian, in patches; its largest value is 1.
    """
    if not std > 0:
        raise SecondLensError(f"a standard deviation of {std} patches is none: give more than 0")

    def read(seen: Inside) -> Tensor:
        scores = _alike(seen.keys, seen.scale)
        scores[..., clip.prefix :, clip.prefix :] += neighbours(clip.grid, std).to(scores)
        return scores.softmax(-1) @ seen.values

    return _maps(clip, images, texts, read, block=block, residual=residual)


def neighbours(grid: tuple[int, int], std: float) -> Float[Tensor, "patches patches"]:
    """exp(-distance^2 / (2 std^2)) between all patches of a grid."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    places = torch.cartesian_prod(rows, columns)
    squared = (places[:, None] - places).square().sum(-1)
    return (-squared / (2 * std**2)).exp()


@torch.no_grad()
def proxy_clip(
    clip: Clip,
    images: Images,
    texts: Float[Tensor, "images *texts dim"],
    *,
    second: Clip | None = None,
    block: int = -1,
    shift: float = SHIFT,
    sharpness: float = SHARPNESS,
) -> Float[Tensor, "images *texts rows columns"]:
    """ProxyCLIP: patches take values of the patches that another model sees as alike.

    softmax over patches of sharpness * (cosine - shift * mean cosine of the image), where that is
    at least 0, and for the patch itself. Maps have the grid of `second`, to which values are
    resized bilinearly.

    Parameters
    ----------
    second
        A model whose patches are compared after its last norm, such as a DINO; by default `clip`
        itself.
    """
    other = clip if second is None else second
    prepared = clip.prepare(images)
    states = last_states(other, seen_by(clip, other, prepared))[:, other.prefix :]
    features = at_output(other, states) if other.normalises else states
    features = F.normalize(features.to(clip.device, clip.compute_dtype), dim=-1)
    cosines = features @ features.mT
    scores = sharpness * (cosines - shift * cosines.mean((1, 2), keepdim=True))
    # of an image whose patches are all alike, even a patch's cosine with itself is below the shift
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    weights = scores.masked_fill((scores < 0) & ~itself, -torch.inf).softmax(-1)

    (seen,) = inside(clip, prepared, [block])
    values = _resized(seen.values[:, :, clip.prefix :].transpose(2, 3), clip.grid, other.grid)
    heads = weights[:, None] @ values.transpose(2, 3)
    return compared(clip, seen.written(heads), texts, other.grid)


def _resized(
    values: Float[Tensor, "images *channels patches"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "images *channels places"]:
    """Values at the patches of one grid, bilinearly at those of another."""
    if old == new:
        return values
    flat = on_grid(values, old).flatten(0, -3)[:, None]
    resized = F.interpolate(flat, new, mode="bilinear", align_corners=False)
    return resized.reshape(*values.shape[:-1], new[0] * new[1])


def seen_by(
    clip: Clip, other: Clip, pixels: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images 3 rows columns"]:
    """Pixels as one model takes them, as another one takes them: its colours, size and device."""
    if other is not clip and clip.preprocess is not None and other.preprocess is not None:
        low, span = _colours(clip)
        other_low, other_span = _colours(other)
        shares = (pixels - low.to(pixels)) / span.to(pixels)
        pixels = other_low.to(pixels) + shares * other_span.to(pixels)
    if tuple(pixels.shape[-2:]) != other.image_size:
        pixels = F.interpolate(
            pixels, other.image_size, mode="bilinear", align_corners=False, antialias=True
        )
    return pixels.to(other.device, other.dtype)


def _colours(clip: Clip) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What preprocessing makes of black, and how far white is from it, by channel."""
    assert clip.preprocess is not None
    sides = clip.image_size[::-1]
    black, white = (
        clip.preprocess(Image.new("RGB", sides, colour))[:, :1, :1] for colour in ("black", "white")
    )
    return black, white - black


def _alike(
    vectors: Float[Tensor, "images heads tokens head_width"], scale: float
) -> Float[Tensor, "images heads tokens tokens"]:
    return scale * (vectors @ vectors.mT)
