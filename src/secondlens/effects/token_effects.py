"""What the neurons of some layers send to the output from each token of an image.

The second-order effects of all neurons of the layers, split by the token at which they act:

    c[b,t] = scale[b] * sum over n, k of  A[b,k,t] / sigma[b,k,t] * d[b,t,n] * U[n,k]

with k = (j, h) a head of a block after the neuron's, and d the activation of neuron n at token t,
minus its mean at that token over the images of the fit. Neurons need not be told apart for that:
what a layer adds to a token goes through each head once, and the price is that of a part of an MLP.
Only what a few words are made of is then split by neuron and head, exactly.

Total effects are split the same way, by one reverse pass along each axis of the lens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.readers import normalises
from ..models.view import Clip
from .capture import NotFinite, Pooled
from .linearised import Linearised, linearise
from .total_effects import axes_per_pass, backward
from .value_paths import chunks, output_map

IMAGES_PER_SPLIT = 8
"""What heads do with neurons is read from memory once for so many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """What neurons and heads have of some sums over tokens."""

    neurons: dict[int, Float[Tensor, "images sums neurons"]]
    """By layer; they add up to the sums."""
    heads: dict[int, Float[Tensor, "images sums heads"]]
    """By block, an attention pool as the one after the last; they add up to the sums. There are
    none over all paths, which go through several heads."""


class TokenReader:
    """Takes what a forward pass showed to what each token sends over value paths.

    Parameters
    ----------
    clip
        The model.
    means
        By MLP layer, each of which `Clip.check_layer` must take: mean activations, which are taken
        off those of an image.
    """

    def __init__(self, clip: Clip, means: Mapping[int, Float[Tensor, "tokens neurons"]]) -> None:
        dtype = clip.compute_dtype
        self.clip, self.layers = clip, sorted(means)
        self._means = {layer: mean.to(clip.device, dtype) for layer, mean in means.items()}
        self._rows = {layer: clip.blocks[layer].neuron_rows.to(dtype) for layer in self.layers}
        self._through = clip.attentions(self.layers[0])
        to_embedding = output_map(clip, dtype, centred=True)
        self._into: dict[int, Float[Tensor, "width heads*head_width"]] = {}
        self._outer: dict[int, Float[Tensor, "heads head_width dim"]] = {}
        for j, attention in self._through.items():
            value = attention.value.to(dtype).flatten(0, 1).T
            if normalises(attention.ln_1):
                value = attention.gain.to(dtype)[:, None] * value
                value = value - value.mean(dim=0)
            self._into[j] = value
            self._outer[j] = attention.output.to(dtype) @ to_embedding
        # neurons as columns: products with a few rows are fast then
        self._inner: dict[tuple[int, int], Float[Tensor, "heads head_width neurons"]] = {
            (layer, j): (self._into[j].T @ rows.T).unflatten(0, self._outer[j].shape[:2])
            for layer, rows in self._rows.items()
            for j in clip.attentions(layer)
        }

    @torch.no_grad()
    def read(self, pooled: Pooled) -> "TokenEffects":
        """What the tokens of a batch send; the pass must have kept its activations."""
        dtype = self.clip.compute_dtype
        away = {n: pooled.activations[n].to(dtype) - self._means[n] for n in self.layers}
        waiting = list(self.layers)
        first = away[self.layers[0]]
        added = first.new_zeros(*first.shape[:2], self._rows[self.layers[0]].shape[1])
        sent = first.new_zeros(*first.shape[:2], self.clip.dim)
        heads: dict[int, Tensor] = {}
        for j, attended in pooled.attention_over_sigma.items():
            while waiting and waiting[0] < j:
                layer = waiting.pop(0)
                added = added + away[layer] @ self._rows[layer]
            outer = self._outer[j]
            values = (added @ self._into[j]).unflatten(-1, outer.shape[:2])
            scaled = attended * pooled.scale[:, None, None]
            heads[j] = values * scaled.mT[..., None]
            sent += heads[j].flatten(2) @ outer.flatten(0, 1)
        return TokenEffects(reader=self, away=away, heads=heads, sent=sent, pooled=pooled)

    def split(
        self,
        effects: "TokenEffects",
        shares: Float[Tensor, "images sums tokens"],
        vectors: Float[Tensor, "images sums dim"],
    ) -> Split:
        """See `TokenEffects.split`."""
        parts = [
            self._split(effects, some, shares[some], vectors[some])
            for some in chunks(len(shares), IMAGES_PER_SPLIT)
        ]
        return Split(
            neurons={n: torch.cat([each.neurons[n] for each in parts]) for n in self.layers},
            heads={j: torch.cat([each.heads[j] for each in parts]) for j in self._outer},
        )

    def _split(
        self, effects: "TokenEffects", some: slice, shares: Tensor, vectors: Tensor
    ) -> Split:
        pooled = effects.pooled
        neurons = {
            layer: shares.new_zeros(*shares.shape[:2], away.shape[2])
            for layer, away in effects.away.items()
        }
        heads = {}
        for j, outer in self._outer.items():
            reached = vectors.flatten(0, 1) @ outer.mT  # heads, images x sums, head_width
            by_image = reached.unflatten(1, shares.shape[:2])
            along = by_image @ effects.heads[j][some].permute(2, 0, 3, 1)
            heads[j] = (along * shares).sum(-1).permute(1, 2, 0)
            attended = pooled.attention_over_sigma[j][some] * pooled.scale[some, None, None]
            weights = attended[:, :, None] * shares[:, None]
            for layer, found in neurons.items():
                if (layer, j) not in self._inner:
                    continue
                acting = weights.flatten(1, 2) @ effects.away[layer][some]
                worth = (reached @ self._inner[layer, j]).unflatten(1, shares.shape[:2])
                found += (acting.unflatten(1, weights.shape[1:3]).transpose(0, 1) * worth).sum(0)
        return Split(neurons=neurons, heads=heads)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenEffects:
    """What the tokens of a batch of images send."""

    reader: TokenReader
    away: Mapping[int, Float[Tensor, "images tokens neurons"]]
    """Activations minus their means, by layer."""
    heads: Mapping[int, Float[Tensor, "images tokens heads head_width"]]
    """What each token sends into each head, by block."""
    sent: Float[Tensor, "images tokens dim"]
    """c, in units of the normalised embedding."""
    pooled: Pooled

    @torch.no_grad()
    def split(
        self,
        shares: Float[Tensor, "images sums tokens"],
        vectors: Float[Tensor, "images sums dim"],
    ) -> Split:
        """What neurons and heads have of sum over tokens t of shares[b,w,t] * <c[b,t], v[b,w]>."""
        return self.reader.split(self, shares, vectors)


class TotalTokenReader:
    """Takes images to what each token sends over all paths, along some axes.

    Parameters
    ----------
    clip, means
        As for `TokenReader`; the last layer has total effects too.
    axes
        Orthonormal rows: what effects have outside of their span is left out.
    """

    def __init__(
        self,
        clip: Clip,
        means: Mapping[int, Float[Tensor, "tokens neurons"]],
        axes: Float[Tensor, "axes dim"],
    ) -> None:
        self.clip, self.layers = clip, sorted(means)
        self.axes = axes.to(clip.device, clip.compute_dtype)
        self._means = {n: mean.to(self.axes) for n, mean in means.items()}

    @torch.no_grad()
    def read(self, pixels: Float[Tensor, "1 3 height width"]) -> "TotalTokenEffects":
        """What the tokens of one preprocessed image send.

        Raises
        ------
        NotFinite
            The network is not finite on it.
        """
        tower = linearise(self.clip, pixels)
        finite = tower.representation.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise NotFinite("the output", finite.tolist())
        away = {n: tower.activations[n] - self._means[n] for n in self.layers}
        along = self.axes.new_zeros(1, self.clip.tokens, len(self.axes))
        for some in chunks(len(self.axes), axes_per_pass(self.clip, 1)):
            for layer, worth in backward(tower, self.axes[some], self.layers):
                along[:, :, some] += torch.einsum("btn,btan->bta", away[layer], worth)
        return TotalTokenEffects(tower=tower, axes=self.axes, away=away, sent=along @ self.axes)


@dataclass(frozen=True, kw_only=True, eq=False)
class TotalTokenEffects:
    """What the tokens of one image send over all paths."""

    tower: Linearised
    axes: Float[Tensor, "axes dim"]
    away: Mapping[int, Float[Tensor, "1 tokens neurons"]]
    sent: Float[Tensor, "1 tokens dim"]
    """c, in units of the normalised embedding, in the span of the axes."""

    @torch.no_grad()
    def split(
        self,
        shares: Float[Tensor, "images sums tokens"],
        vectors: Float[Tensor, "images sums dim"],
    ) -> Split:
        """What neurons have of sum over tokens t of shares[b,w,t] * <c[b,t], v[b,w]>."""
        (shared,), within = shares, vectors[0] @ self.axes.T @ self.axes
        neurons = {n: shares.new_zeros(1, len(shared), a.shape[2]) for n, a in self.away.items()}
        for some in chunks(len(within), axes_per_pass(self.tower.clip, 1)):
            for layer, worth in backward(self.tower, within[some], list(self.away)):
                acting = shared[some].T[:, :, None] * self.away[layer][0][:, None]
                neurons[layer][0, some] = (acting * worth[0]).sum(0)
        return Split(neurons=neurons, heads={})
