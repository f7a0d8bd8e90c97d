"""Words as the paper finds them: a sum of the active neurons' own codes (appendix A.5 of
arXiv 2406.04341).

    w[j] = sum over active neurons n of  code[n,j] * |effect - mean|

Each code stands for a hundredth of the sum, and what is wrong in each of them adds up too. A
word's weight is linear in the effects: it splits exactly into parts of neurons, heads and tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...effects.capture import Pooled
from ...effects.linearised import linearise
from ...effects.token_effects import Split
from ...effects.total_effects import TotalReader, by_token
from ...effects.value_paths import PathFactors, path_factors
from ...lens.codes import Codes
from ...lens.lens import Lens
from ...models.view import Clip


@dataclass(frozen=True, kw_only=True, eq=False)
class Summed:
    """The heaviest words of an image, heaviest first, and what they are made of."""

    indices: Int[Tensor, " words"]
    weights: Float[Tensor, " words"]
    tokens: Float[Tensor, "words tokens"]
    split: Split


class PaperSum:
    """Sums codes over the active neurons of images.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, on its device.
    codes
        A description of the lens.
    texts
        How many texts it chose from.
    layers
        MLP layers whose neurons count.
    """

    def __init__(
        self, clip: Clip, lens: Lens, codes: Codes, texts: int, layers: Sequence[int]
    ) -> None:
        self.clip, self.lens, self.codes, self.texts = clip, lens, codes, texts
        self._factors: dict[int, PathFactors] = {}
        self.totals: TotalReader | None = None
        if lens.axes is None:
            self._factors = {n: path_factors(clip, n) for n in layers}
        else:
            self.totals = TotalReader(clip, lens.axes.rows, layers)

    def of_pass(self, pooled: Pooled, row: int, top: int) -> Summed:
        """The words of one image of a batch, by second-order effects."""
        effects = self.centred_effects(pooled, row)
        active = self.active(effects)
        indices, weights, functionals = self._heaviest(effects, active, top)
        tokens = weights.new_zeros(len(indices), self.clip.tokens)
        heads: dict[int, Tensor] = {}
        for layer, own in functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            carried = self._along_paths(pooled, row, layer, neurons, own)
            by_path, start = carried.sum(2), 0
            for block, attention in self.clip.attentions(layer).items():
                part = by_path[:, start : start + attention.heads]
                heads[block] = heads.get(block, 0) + part
                start += attention.heads
            tokens += carried.sum(1)
        split = Split(
            neurons=self._shares(effects, active, functionals),
            heads={j: own[None] for j, own in heads.items()},
        )
        return Summed(indices=indices, weights=weights, tokens=tokens, split=split)

    def of_pixels(self, pixels: Float[Tensor, "1 3 height width"], top: int) -> Summed:
        """The words of one preprocessed image, by total effects, which a second pass splits."""
        assert self.totals is not None
        effects = {
            layer: own[:, 0] @ self.totals.axes - self.lens[layer].mean
            for layer, own in self.totals.read(pixels).effects.items()
        }
        active = self.active(effects)
        indices, weights, functionals = self._heaviest(effects, active, top)
        vectors, mean = {}, weights.new_zeros(len(indices))
        for layer, own in functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            vectors[layer] = neurons, own @ self.totals.axes.T
            mean += torch.einsum("nd,nwd->w", self.lens[layer].mean[neurons], own)
        (carried,) = by_token(linearise(self.clip, pixels), self.totals.axes, vectors)
        # the mean effect has no token of its own: it is taken off all of them alike
        tokens = carried.T - mean[:, None] / len(carried)
        split = Split(neurons=self._shares(effects, active, functionals), heads={})
        return Summed(indices=indices, weights=weights, tokens=tokens, split=split)

    def centred_effects(self, pooled: Pooled, row: int) -> dict[int, Float[Tensor, "neurons dim"]]:
        """Effects of all neurons on one image of a batch, minus their means, by layer."""
        effects = {}
        for layer, factors in self._factors.items():
            coefficients = pooled.coefficients[layer][row] * pooled.scale[row]
            heads = factors.inner * coefficients[:, :, None]
            own = heads.transpose(0, 1).flatten(1) @ factors.outer.flatten(0, 1)
            effects[layer] = own - self.lens[layer].mean
        return effects

    def active(
        self, effects: dict[int, Float[Tensor, "neurons dim"]]
    ) -> dict[int, Bool[Tensor, " neurons"]]:
        """Neurons whose effect is farther from its mean than that of all but the top images of
        the fit."""
        return {n: own.norm(dim=1) > self.lens[n].threshold for n, own in effects.items()}

    def _heaviest(
        self,
        effects: dict[int, Tensor],
        active: dict[int, Tensor],
        top: int,
    ) -> tuple[Tensor, Tensor, dict[int, Float[Tensor, "active words dim"]]]:
        """Words, their weights, and by layer what takes an active neuron's effect minus its mean
        to what it adds to each of them."""
        rows, total = {}, next(iter(effects.values())).new_zeros(self.texts)
        for layer, mask in active.items():
            own = effects[layer][mask]
            indices = self.codes.indices[layer][mask].clamp(min=0)
            weights = self.codes.coefficients[layer][mask]
            rows[layer] = own.new_zeros(len(own), self.texts).scatter_add_(1, indices, weights)
            total = total + own.norm(dim=1) @ rows[layer]
        weights, indices = total.topk(top)
        indices, weights = indices[weights > 0], weights[weights > 0]
        functionals = {
            layer: own[:, indices, None]
            * F.normalize(effects[layer][active[layer]], dim=1)[:, None]
            for layer, own in rows.items()
        }
        return indices, weights, functionals

    def _shares(
        self,
        effects: dict[int, Tensor],
        active: dict[int, Tensor],
        functionals: dict[int, Float[Tensor, "active words dim"]],
    ) -> dict[int, Float[Tensor, "1 words neurons"]]:
        """What each neuron adds to each word; those that are not active, nothing."""
        found = {}
        for layer, own in functionals.items():
            found[layer] = own.new_zeros(1, own.shape[1], len(active[layer]))
            chosen = effects[layer][active[layer]]
            found[layer][0, :, active[layer]] = torch.einsum("nd,nwd->wn", chosen, own)
        return found

    def _along_paths(
        self,
        pooled: Pooled,
        row: int,
        layer: int,
        neurons: Int[Tensor, " active"],
        functionals: Float[Tensor, "active words dim"],
    ) -> Float[Tensor, "words paths tokens"]:
        """What each token sends to each word over each path of a layer.

        The mean effect has no token or path of its own: it is taken off all of them alike.
        """
        factors, through = self._factors[layer], self.clip.attentions(layer)
        attention = torch.cat([pooled.attention_over_sigma[j][row] for j in through])
        activation = pooled.activations[layer][row][:, neurons].to(attention)
        carried = []
        for inner, outer, attended in zip(factors.inner, factors.outer, attention, strict=True):
            rows = inner[neurons] @ outer
            reached = torch.einsum("nd,nwd->nw", rows, functionals)
            carried.append(attended * (activation @ reached).T)
        found: Tensor = torch.stack(carried, dim=1) * pooled.scale[row]
        mean = torch.einsum("nd,nwd->w", self.lens[layer].mean[neurons], functionals)
        return found - mean[:, None, None] / (found.shape[1] * found.shape[2])
