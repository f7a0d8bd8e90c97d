"""Zero-shot segmentation from neurons (section 5 of arXiv 2406.04341, Table 4).

The neurons whose directions agree most with a text are read at every patch, and their average is
where the text is. An image is encoded once; one more text costs a few small products.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...effects.capture import Capture
from ...effects.value_paths import PathFactors, path_factors
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip, Images
from .heat_maps import on_grid

PAPER_SHARE = 200 / (3 * 3072)
"""Of the neurons of the layers read: the paper takes 200 of three layers of 3,072."""

SHARE = 5 * PAPER_SHARE
"""The share that did best on development images of the embedded world (`reproduce table4`)."""

Choose = Literal["absolute", "positive"]
Weigh = Literal["equal", "sign", "cosine", "effect"]
Scale = Literal["none", "centred", "standard"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How neurons make a heat-map. The defaults are what was measured to be best on the embedded
    world (`reproduce table4`); `PAPER` is the form of the paper.

    Raises
    ------
    SecondLensError
        A choice that does not exist, no layers, fewer than one neuron, or no share of them.
    """

    layers: tuple[int, ...] | None = None
    """MLP layers to read; by default the last fitted ones, a quarter of the model's depth."""
    neurons: int | None = None
    """How many, over all layers; by default `share` of them."""
    share: float = SHARE
    """Of the neurons of the layers read, unless `neurons` says how many."""
    choose: Choose = "absolute"
    """By the largest <direction, text>, in absolute value or as it is."""
    weigh: Weigh = "cosine"
    """Chosen neurons count alike; with the sign of <direction, text>; with its value; or, at each
    patch, with what the activation there adds to <image, text> on all second-order paths (Eq. 5).
    """
    scale: Scale = "centred"
    """Activations as they are; minus the neuron's mean at that patch over the images of the fit; or
    that over the root mean square, over patches, of this mean."""
    positive: bool = True
    """Whether `segment` makes heat below 0 to 0 before it scales: for weights with signs, 0 is
    where nothing speaks for the text, and the most negative patch says nothing about the rest."""

    def __post_init__(self) -> None:
        for name, kind in (("choose", Choose), ("weigh", Weigh), ("scale", Scale)):
            if (given := getattr(self, name)) not in (known := get_args(kind)):
                raise SecondLensError(f"{name} is {given!r}: choose one of {', '.join(known)}")
        if self.layers == ():
            raise SecondLensError("no layers make no heat-map: take at least one")
        if self.neurons is not None and self.neurons < 1:
            raise SecondLensError(f"{self.neurons} neurons make no heat-map: take at least one")
        if not 0 < self.share <= 1:
            raise SecondLensError(
                f"a share of {self.share} of the neurons cannot be taken: give more than 0, at "
                "most 1"
            )


BEST = Recipe()
"""What did best on development images of the embedded world."""

PAPER = Recipe(share=PAPER_SHARE, weigh="equal", scale="none", positive=False)
"""Activations averaged as they are, over the paper's share of neurons."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What heat-maps need of some images, whatever the text."""

    activations: Mapping[int, Float[Tensor, "images patches neurons"]]
    """By MLP layer."""
    attention_over_sigma: Mapping[int, Float[Tensor, "images heads patches"]]
    """Of what is read, by block; an attention pool counts as the one after the last."""
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
        activations={layer: a[:, clip.prefix :] for layer, a in pooled.activations.items()},
        attention_over_sigma={
            j: a[:, :, clip.prefix :] for j, a in pooled.attention_over_sigma.items()
        },
        embedding=F.normalize(representation.to(clip.compute_dtype), dim=-1),
    )


class Segmenter:
    """Heat-maps of one model, lens and recipe; neurons' directions are put in place once.

    Raises
    ------
    SecondLensError
        Another model's lens, a layer that the lens does not have, or more neurons than there are.
    """

    def __init__(self, clip: Clip, lens: Lens, recipe: Recipe = BEST) -> None:
        lens.check_model(clip)
        lens.check_value("segmentation")
        self.clip, self.recipe = clip, recipe
        self.layers = list(recipe.layers or lens.late_layers(clip))
        fitted = [lens[layer] for layer in self.layers]
        directions = torch.cat([each.directions for each in fitted])
        self.directions = directions.to(clip.device, clip.compute_dtype)
        total = len(self.directions)
        self.neurons = recipe.neurons or max(1, round(recipe.share * total))
        if self.neurons > total:
            raise SecondLensError(
                f"layers {self.layers} have {total} neurons, not {self.neurons}: take fewer"
            )
        means = lens.token_means(clip, self.layers)
        self._means = {layer: means[layer][clip.prefix :] for layer in self.layers}
        self._factors: dict[int, PathFactors] = (
            {layer: path_factors(clip, layer) for layer in self.layers}
            if recipe.weigh == "effect"
            else {}
        )

    def maps(
        self, images: Images, texts: Float[Tensor, "images texts dim"]
    ) -> Float[Tensor, "images texts rows columns"]:
        """`heat_maps` of images that `Clip.prepare` takes, cut at 0 if the recipe says so."""
        found = self.heat_maps(encode(self.clip, images, self.layers), texts)
        return found.clamp(min=0) if self.recipe.positive else found

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
            through = self.clip.attentions(layer)
            attention = torch.cat([encoded.attention_over_sigma[j] for j in through], dim=1)
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
