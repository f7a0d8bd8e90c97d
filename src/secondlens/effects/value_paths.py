"""Second-order and direct effects by value paths: how each neuron's row reaches the output.

The second-order effect of neuron n is linear in its output row w_n, so it factors exactly:

    effect[b,n] = scale[b] * sum over k=(j,h), j > l, of  c[b,n,k] * U[n,k]
    U[n,k] = (C(((g_j * C(w_n)) W_V^T) W_O^T) * g_post) P

with C(x) = x - mean(x) the centring of a LayerNorm and g its gain. U holds no data; `capture` reads
c. This is Eq. 5 of arXiv 2406.04341, with LayerNorm as in its appendix A.6, in two conventions:

- `exact`: a neuron answers for its own share of each LayerNorm's mean, and biases are nobody's.
  Effects of all neurons, and that of the MLP's bias, add up to what the layer sends through later
  attention.
- `official`: what the code published with the paper computes. No centring; means and biases split
  equally among all contributors, a vector g(image) that all neurons of a layer share; times 100.

g(image) is itself linear in 2K+3 data-independent rows, so both conventions are one product,
extended coefficients [images, K', N] times extended U [N, K', d]: K' = K when exact, 3K+3 when
official.

`second_order` and `direct` materialise effects for images at hand, as section 3 of arXiv 2406.04341
defines them, each divided by the norm of the representation r: they are parts of the unit embedding
that similarities with texts are computed from. `ablated_runs` measures the whole network.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import checked
from ..devices import undisturbed, wide
from ..errors import SecondLensError, SecondLensWarning
from ..models.blocks import Block
from ..models.readers import AttentionPool, ClassToken, normalises
from ..models.view import Clip, hooked
from .capture import Capture, Pass, Pooled, Post, read_post

CONVENTIONS = ("exact", "official")
OFFICIAL_SCALE = 100.0
NEURONS_PER_CHUNK = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class PathFactors:
    """U of one MLP layer as two low-rank factors for each head: all of U is rarely affordable."""

    inner: Float[Tensor, "paths neurons head_width"]
    outer: Float[Tensor, "paths head_width dim"]
    shared: Float[Tensor, "shared dim"]
    """Rows that all neurons have in common: 2K+3 when official, none when exact."""

    @property
    def neurons(self) -> int:
        """How many the layer has."""
        return self.inner.shape[1]

    def rows(
        self, neurons: slice | Sequence[int] = slice(None)
    ) -> Float[Tensor, "_chosen extended dim"]:
        """Extended U of these neurons."""
        own = torch.bmm(self.inner[:, neurons], self.outer).transpose(0, 1)
        return torch.cat([own, self.shared.expand(own.shape[0], -1, -1)], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Isometry:
    """Orthonormal coordinates of each neuron's effects: effect = basis @ z, of rank min(K', d).

    Norms, means, distances and principal components of effects are those of z.
    """

    basis: Float[Tensor, "neurons dim rank"]
    transform: Float[Tensor, "neurons rank extended"]

    def coordinates(
        self,
        coefficients: Float[Tensor, "images extended neurons"],
        scale: Float[Tensor, " images"],
    ) -> Float[Tensor, "images neurons rank"]:
        """z = scale * transform @ c, from `extended_coefficients` and `image_scale`."""
        by_neuron = coefficients.permute(2, 0, 1)
        return torch.bmm(by_neuron, self.transform.mT).transpose(0, 1) * scale[:, None, None]


def path_factors(
    clip: Clip, layer: int, convention: str = "exact", dtype: torch.dtype | None = None
) -> PathFactors:
    """Factors of U for all neurons of an MLP layer.

    Parameters
    ----------
    clip
        The model.
    layer
        MLP layer, 0 to `clip.last_effect_layer`.
    convention
        `"exact"` or `"official"`.
    dtype
        To compute in; by default the model's compute dtype, which is float32 or wider.

    Raises
    ------
    SecondLensError
        No such convention, or a layer without second-order effects.
    """
    check_convention(convention)
    clip.check_layer(layer)
    exact = convention == "exact"
    if not exact and not has_official(clip):
        raise SecondLensError(
            f"{clip.name} does not read a class token behind plain LayerNorms, and the convention "
            "official is that of the published code, which knows nothing else: take exact"
        )
    rows = clip.blocks[layer].neuron_rows.to(dtype or clip.compute_dtype)
    inner, outer = carry(clip, layer, rows, centred=exact)
    shared = outer.new_empty(0, clip.dim) if exact else _official_rows(clip, layer, outer)
    return PathFactors(inner=inner, outer=outer, shared=shared)


def has_official(clip: Clip) -> bool:
    """Whether the convention of the published code says something of a model: it reads the class
    token, and only the norm before its heads and the last one are on the way."""
    if not isinstance(clip.reader, ClassToken) or not clip.normalises:
        return False
    return all(normalises(b.ln_1) and b.inner_norm is None for b in clip.blocks)


def value_paths(
    clip: Clip, layer: int, convention: str = "exact", dtype: torch.dtype | None = None
) -> Float[Tensor, "neurons extended dim"]:
    """Extended U of all neurons of an MLP layer, see `path_factors`."""
    return path_factors(clip, layer, convention, dtype).rows()


def extended_coefficients(
    pooled: Pooled, layer: int, convention: str = "exact"
) -> Float[Tensor, "images extended neurons"]:
    """Coefficients of all rows that `PathFactors.rows` returns, without the image's scale."""
    check_convention(convention)
    own = pooled.coefficients[layer]
    if convention == "exact":
        return own
    shared = torch.cat(
        [pooled.path_scales[layer], pooled.path_means[layer], _constants(pooled)], dim=-1
    )
    return torch.cat([own, shared[:, :, None].expand(-1, -1, own.shape[-1])], dim=1)


def shared_coefficients(seen: Pass, layer: int) -> Float[Tensor, "images shared"]:
    """Coefficients of the rows that all neurons share when official, without the image's scale."""
    return torch.cat([seen.path_scales(layer), seen.path_means(layer), _constants(seen)], dim=-1)


def _constants(seen: Pass | Pooled) -> Float[Tensor, "images 3"]:
    ones = torch.ones_like(seen.post_mean)
    return torch.stack([ones, seen.post_mean, seen.post_sigma], dim=-1)


def image_scale(pooled: Pass | Pooled, convention: str = "exact") -> Float[Tensor, " images"]:
    """The factor that all effects of an image have in common."""
    check_convention(convention)
    return pooled.scale if convention == "exact" else OFFICIAL_SCALE * pooled.scale


def isometry(paths: Float[Tensor, "neurons extended dim"]) -> Isometry:
    """Isometric coordinates from the (extended) U of some neurons, by QR of each U_n^T in float64.

    Basis and transform have the dtype of `paths`, and basis @ transform = U^T.
    """
    neurons, extended, dim = paths.shape
    rank = min(extended, dim)
    basis = paths.new_empty(neurons, dim, rank)
    transform = paths.new_empty(neurons, rank, extended)
    for chunk in chunks(neurons, NEURONS_PER_CHUNK):
        q, r = torch.linalg.qr(wide(paths[chunk].mT))
        basis[chunk], transform[chunk] = q.to(paths), r.to(paths)
    return Isometry(basis=basis, transform=transform)


def check_convention(convention: str) -> None:
    """Raise `SecondLensError` for a convention that does not exist."""
    if convention not in CONVENTIONS:
        raise SecondLensError(f"no convention {convention!r}: choose {' or '.join(CONVENTIONS)}")


def carry(
    clip: Clip, layer: int, rows: Float[Tensor, "rows width"], *, centred: bool
) -> tuple[Float[Tensor, "paths rows head_width"], Float[Tensor, "paths head_width dim"]]:
    """Take rows of the residual stream into every later head, and these heads to the embedding.

    Multiplied over head_width, the two are U for `rows`.
    """
    dtype = rows.dtype
    to_embedding = output_map(clip, dtype, centred=centred)
    centred_rows = rows - rows.mean(dim=-1, keepdim=True) if centred else rows
    inner, outer = [], []
    for attention in clip.attentions(layer).values():
        value = attention.value.to(dtype)
        scaled = rows
        if normalises(attention.ln_1):
            scaled = centred_rows * attention.gain.to(dtype)
        heads = scaled @ value.flatten(0, 1).T
        inner.append(heads.unflatten(-1, value.shape[:2]).transpose(0, 1))
        outer.append(attention.output.to(dtype) @ to_embedding)
    return torch.cat(inner), torch.cat(outer)


def output_map(clip: Clip, dtype: torch.dtype, *, centred: bool) -> Float[Tensor, "width dim"]:
    """diag(g_post) P, after the centring of `ln_post` if `centred`; P where nothing normalises."""
    if not clip.normalises:
        return clip.projection.to(dtype)
    product = clip.post_gain.to(dtype)[:, None] * clip.projection.to(dtype)
    return product - product.mean(dim=0) if centred else product


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `total`."""
    return (slice(start, start + size) for start in range(0, total, size))


def _official_rows(
    clip: Clip, layer: int, outer: Float[Tensor, "paths head_width dim"]
) -> Float[Tensor, "shared dim"]:
    """Rows of g in the order of `extended_coefficients`: means and biases, split equally.

    The published code counts T_j = (1 + 2j) N contributors before block j, and (1 + 2L) T_j at
    the output.
    """
    dtype = outer.dtype
    to_embedding = output_map(clip, dtype, centred=False)
    bias = clip.blocks[layer].mlp_bias.to(dtype)
    inner, _ = carry(clip, layer, torch.stack([bias, torch.ones_like(bias)]), centred=False)
    of_bias, of_ones = torch.bmm(inner, outer).unbind(dim=1)

    later = torch.arange(layer + 1, clip.layers, dtype=dtype, device=clip.device)
    block_shares = 1 / ((1 + 2 * later) * clip.neurons)
    output_share = block_shares.sum() / (1 + 2 * clip.layers)
    biases = torch.stack([_block_bias(block, dtype) for block in clip.blocks[layer + 1 :]])
    constants = [
        block_shares @ biases @ to_embedding,
        -output_share * to_embedding.sum(dim=0),
        output_share * (clip.post_bias.to(dtype) @ clip.projection.to(dtype)),
    ]
    of_ones = -block_shares.repeat_interleave(clip.heads)[:, None] * of_ones
    return torch.cat([of_bias / clip.neurons, of_ones, torch.stack(constants)])


def _block_bias(block: Block, dtype: torch.dtype) -> Float[Tensor, " width"]:
    """What the biases of `ln_1`, values and output make a block's attention add."""
    heads = block.value.to(dtype) @ block.bias.to(dtype) + block.value_bias.to(dtype)
    return torch.einsum("he,hew->w", heads, block.output.to(dtype)) + block.output_bias.to(dtype)


@checked
@undisturbed
def second_order(
    clip: Clip, images: Any, layer: int, convention: str = "exact"
) -> Float[Tensor, "images neurons dim"]:
    """Second-order effects of all neurons of an MLP layer (Eq. 5), materialised for a few images.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        MLP layer, 0 to `clip.last_effect_layer`.
    convention
        `"exact"`, or `"official"` to compare with published numbers.

    Returns
    -------
    Parts of the unit embedding, in its units (times 100 when official).

    Raises
    ------
    SecondLensError
        No such convention, a layer without second-order effects, or images that `Clip.prepare`
        refuses.
    """
    factors = path_factors(clip, layer, convention)
    with Capture(clip, [layer]) as capture:
        pooled = capture.pool(clip.encode_image(images))
    scale = image_scale(pooled, convention)
    coefficients = extended_coefficients(pooled, layer, convention) * scale[:, None, None]
    effects = coefficients.new_empty(len(coefficients), clip.neurons, clip.dim)
    for chunk in chunks(clip.neurons, NEURONS_PER_CHUNK):
        by_neuron = coefficients[:, :, chunk].permute(2, 0, 1)
        effects[:, chunk] = torch.bmm(by_neuron, factors.rows(chunk)).transpose(0, 1)
    return effects


def bias_effect(clip: Clip, pooled: Pooled, layer: int) -> Float[Tensor, "images dim"]:
    """Second-order effect of the MLP's own output bias, `exact`.

    With it, the effects of all neurons add up to that of the whole MLP layer.
    """
    bias = clip.blocks[layer].mlp_bias.to(pooled.scale.dtype)
    inner, outer = carry(clip, layer, bias[None], centred=True)
    paths = torch.bmm(inner, outer)[:, 0]
    return pooled.scale[:, None] * (pooled.path_scales[layer] @ paths)


@checked
@undisturbed
@torch.no_grad()
def direct(clip: Clip, images: Any, layer: int) -> Float[Tensor, "images neurons dim"]:
    """Direct (first-order) effects, the logit lens: scale * (g_post * C(p[b,0,n] w_n)) P.

    Where the output is the mean of the patches, theirs of p / sigma; where an attention pool reads
    them, all are zero. Where an MLP follows the projection, it is replaced by its derivative at
    each image, and a warning says so.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        Any MLP layer; the last one too has direct effects.

    Raises
    ------
    SecondLensError
        No such layer, or images that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    block, dtype = clip.blocks[layer], clip.compute_dtype
    seen: list[Tensor] = []
    post: list[Post] = []
    place: list[Tensor | None] = []

    def see_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        place.append(clip.reader.place(inputs[0]))

    def see_activation(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(clip.batch_major(inputs[0]).to(dtype))

    def see_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        post.append(read_post(clip, inputs[0], output, place[0]))

    before = [(clip.patches, see_input), (block.mlp_output, see_activation)]
    with hooked([(clip.ln_post, see_output)], before):
        representation = clip.encode_image(images).to(dtype)
    if isinstance(clip.reader, AttentionPool):
        return representation.new_zeros(len(representation), clip.neurons, clip.dim)
    activation = clip.reader.direct(seen[0], post[0].token_sigma, place[0])
    activation = activation / (post[0].sigma * representation.norm(dim=-1))[:, None]
    rows = block.neuron_rows.to(dtype) @ output_map(clip, dtype, centred=True)
    effects: Tensor = activation[:, :, None] * rows
    if clip.head is None:
        return effects
    warnings.warn(
        f"the head of {clip.name} is an MLP, and its direct effects go through the derivative of "
        "that at each image: they add up to the embedding to first order only",
        SecondLensWarning,
        stacklevel=2,
    )
    return torch.bmm(effects, clip.head.derivative(post[0].projected))
