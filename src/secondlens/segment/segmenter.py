"""The encoded pass over images, and the neurons read from it for a text.

An image is encoded once; one more text costs a few small products.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..capture import Capture
from ..clip.resize import interpolated
from ..clip.view import Clip, Images
from ..effects.paths import PathFactors, path_factors
from ..errors import SecondLensError
from ..lens import Lens
from .heat import on_grid
from .recipe import BEST, Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What heat-maps need of some images, whatever the text."""

    activations: Mapping[int, Float[Tensor, "images patches neurons"]]
    """By MLP layer."""
    attention_over_sigma: Mapping[int, Float[Tensor, "images heads patches"]]
    """Of the class token, by block."""
    embedding: Float[Tensor, "images dim"]
    """Unit rows."""


@torch.no_grad()
def encode(clip: Clip, images: Images, layers: Iterable[int]) -> Encoded:
    """One forward pass over images that `Clip.prepare` takes, read at some MLP layers.

    Raises
    ------
    SecondLensError
        Layers that `Clip.check_layer` refuses, or images that `Clip.prepare` refuses.
    """
    with Capture(clip, layers, keep_activations=True) as capture:
        representation = clip.encode_image(images)
        pooled = capture.pool(representation)
    return Encoded(
        activations={layer: a[:, 1:] for layer, a in pooled.activations.items()},
        attention_over_sigma={j: a[:, :, 1:] for j, a in pooled.attention_over_sigma.items()},
        embedding=F.normalize(representation.to(clip.compute_dtype), dim=-1),
    )


def quarter(clip: Clip) -> int:
    """Layers to read where the paper reads three of twelve."""
    return max(1, round(clip.layers / 4))


class Segmenter:
    """Heat-maps of one model, lens and recipe; neurons' directions are put in place once.

    Raises
    ------
    SecondLensError
        Another model's lens, a layer that the lens does not have, or more neurons than there are.
    """

    def __init__(self, clip: Clip, lens: Lens, recipe: Recipe = BEST) -> None:
        lens.check_model(clip)
        self.clip, self.recipe = clip, recipe
        self.layers = list(recipe.layers or lens.layers[-quarter(clip) :])
        fitted = [lens[layer] for layer in self.layers]
        dtype = clip.compute_dtype
        self.directions = torch.cat([each.directions for each in fitted]).to(clip.device, dtype)
        total = len(self.directions)
        self.neurons = recipe.neurons or max(1, round(recipe.share * total))
        if self.neurons > total:
            raise SecondLensError(
                f"layers {self.layers} have {total} neurons, not {self.neurons}: take fewer"
            )
        grid = tuple(lens.model["grid"])
        means = [
            interpolated(each.activation_mean.to(clip.device, dtype), grid, clip.grid)[1:]
            for each in fitted
        ]
        self._means = dict(zip(self.layers, means, strict=True))
        self._factors: dict[int, PathFactors] = (
            {layer: path_factors(clip, layer) for layer in self.layers}
            if recipe.weigh == "effect"
            else {}
        )

    @torch.no_grad()
    def heat_maps(
        self, encoded: Encoded, texts: Float[Tensor, "images texts dim"]
    ) -> Float[Tensor, "images texts rows columns"]:
        """Raw heat-maps at the patches; `standardise` makes them images.

        Parameters
        ----------
        encoded
            From `encode`, with this recipe's layers among those read.
        texts
            Text embeddings for each image.
        """
        if self.recipe.weigh == "effect":
            columns = (texts[:, i] for i in range(texts.shape[1]))
            maps = torch.stack([self._effects(encoded, text) for text in columns], dim=1)
        else:
            maps = self._averages(encoded, self._weights(texts))
        return on_grid(maps, self.clip.grid)

    def chosen(self, texts: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch chosen"]:
        """Neurons for each text, strongest first, numbered through `layers`."""
        return self._strongest(texts @ self.directions.T)

    def _strongest(self, cosine: Tensor) -> Tensor:
        strength = cosine.abs() if self.recipe.choose == "absolute" else cosine
        return strength.topk(self.neurons, dim=-1).indices

    def _weights(self, texts: Tensor) -> Float[Tensor, "*batch neurons"]:
        """Of every neuron, zero where it was not chosen."""
        cosine = texts @ self.directions.T
        chosen = self._strongest(cosine)
        if self.recipe.weigh == "cosine":
            values = cosine.gather(-1, chosen)
        elif self.recipe.weigh == "sign":
            values = cosine.gather(-1, chosen).sign()
        else:
            values = torch.ones_like(chosen, dtype=cosine.dtype)
        return torch.zeros_like(cosine).scatter_(-1, chosen, values / self.neurons)

    def _averages(
        self, encoded: Encoded, weights: Float[Tensor, "images texts neurons"]
    ) -> Float[Tensor, "images texts patches"]:
        """sum over neurons of weight * (activation - mean) / scale."""
        maps: list[Tensor] = []
        for layer, mine in zip(self.layers, weights.split(self.clip.neurons, -1), strict=True):
            scaled = mine / self._size(layer)
            # weights as rows: products with a single column are slow
            read = torch.bmm(scaled, encoded.activations[layer].to(scaled.dtype).mT)
            maps.append(read - scaled @ self._mean(layer).T)
        return torch.stack(maps).sum(0)

    def _effects(
        self, encoded: Encoded, text: Float[Tensor, "images dim"]
    ) -> Float[Tensor, "images patches"]:
        """What the activations of the chosen neurons add to the similarity on all their paths."""
        chosen = self.chosen(text)
        total = text.new_zeros(len(text), self.clip.grid[0] * self.clip.grid[1])
        for position, layer in enumerate(self.layers):
            own = chosen - position * self.clip.neurons
            here = (own >= 0) & (own < self.clip.neurons)
            own = own.clamp(0, self.clip.neurons - 1)
            factors = self._factors[layer]
            # <U[n,k], text>: what one unit of a neuron adds on path k
            to_head = torch.einsum("ked,bd->bke", factors.outer, text)
            scores = torch.einsum("kbce,bke->bkc", factors.inner[:, own], to_head)
            weights = here / (self.neurons * self._size(layer)[own])
            activations = encoded.activations[layer].to(text.dtype)
            read = activations.gather(2, own[:, None].expand(-1, activations.shape[1], -1))
            read = read - self._mean(layer)[:, own].transpose(0, 1)
            later = range(layer + 1, self.clip.layers)
            attention = torch.cat([encoded.attention_over_sigma[j] for j in later], dim=1)
            by_path = torch.bmm(scores * weights[:, None], read.mT)
            total = total + (by_path * attention).sum(1)
        return total

    def _mean(self, layer: int) -> Float[Tensor, "patches neurons"]:
        """What is taken off activations before they are averaged."""
        mean = self._means[layer]
        return torch.zeros_like(mean) if self.recipe.scale == "none" else mean

    def _size(self, layer: int) -> Float[Tensor, " neurons"]:
        """What the activations are divided by."""
        mean = self._means[layer]
        if self.recipe.scale != "standard":
            return mean.new_ones(mean.shape[1])
        return mean.square().mean(0).sqrt().clamp(min=torch.finfo(mean.dtype).eps)
