"""Zero-shot segmentation from neurons (section 5 of arXiv 2406.04341, Table 4).

The neurons whose directions agree most with a text are read at every patch, and their average is
where the text is. An image is encoded once; one more text costs a few small products.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ..capture import Capture
from ..clip.resize import interpolated
from ..clip.view import Clip, Images
from ..effects.paths import chunks
from ..effects.second_order import PathFactors, path_factors
from ..errors import SecondLensError
from ..images import Unreadable, upright_rgb
from ..lens import Lens
from .windows import boxes_of, cut, joined

PAPER_SHARE = 200 / (3 * 3072)
"""Of the neurons of the layers read: the paper takes 200 of three layers of 3,072."""

SHARE = 5 * PAPER_SHARE
"""The share that did best on development images of the embedded world (`reproduce table4`)."""

IMAGES_PER_PASS = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How neurons make a heat-map. The defaults are what was measured to be best on the embedded
    world (`reproduce table4`); `PAPER` is the form of the paper.

    Raises
    ------
    SecondLensError
        A choice that does not exist, or a number of neurons below one.
    """

    layers: tuple[int, ...] | None = None
    """MLP layers to read; by default the last fitted ones, a quarter of the model's depth."""
    neurons: int | None = None
    """How many, over all layers; by default `share` of them."""
    share: float = SHARE
    """Of the neurons of the layers read, unless `neurons` says how many."""
    choose: Literal["absolute", "positive"] = "absolute"
    """By the largest <direction, text>, in absolute value or as it is."""
    weigh: Literal["equal", "sign", "cosine", "effect"] = "cosine"
    """Chosen neurons count alike; with the sign of <direction, text>; with its value; or, at each
    patch, with what the activation there adds to <image, text> on all second-order paths (Eq. 5).
    """
    scale: Literal["none", "centred", "standard"] = "centred"
    """Activations as they are; minus the training mean of the neuron at that patch; or that over
    the root mean square, over patches, of the training mean."""

    positive: bool = True
    """Whether `segment` makes heat below 0 to 0 before it scales: for weights with signs, 0 is
    where nothing speaks for the text, and the most negative patch says nothing about the rest."""

    def __post_init__(self) -> None:
        for name, known in (
            ("choose", ("absolute", "positive")),
            ("weigh", ("equal", "sign", "cosine", "effect")),
            ("scale", ("none", "centred", "standard")),
        ):
            if (given := getattr(self, name)) not in known:
                raise SecondLensError(f"{name} is {given!r}: choose one of {', '.join(known)}")
        if self.neurons is not None and self.neurons < 1:
            raise SecondLensError(f"{self.neurons} neurons make no heat-map: take at least one")


BEST = Recipe()
PAPER = Recipe(share=PAPER_SHARE, weigh="equal", scale="none", positive=False)
"""Activations averaged as they are, over the paper's share of neurons."""


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
        return maps.unflatten(-1, self.clip.grid)

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


def segment(
    clip: Clip,
    lens: Lens,
    images: "Image.Image | Images",
    texts: str | Sequence[str],
    *,
    against: Sequence[str] = (),
    recipe: Recipe = BEST,
    windows: int = 1,
) -> "Float[Tensor, '*_maps height width'] | list[Float[Tensor, '*_maps height width']]":
    """Where a text is in an image: a heat-map in [0, 1] at the image's own resolution.

    The paper calls a pixel part of the object from 0.5 on. The model sees the whole picture,
    squeezed into its square whatever the picture's shape, as the benchmarks do; give a model from
    `resized` to let it see more pixels. A map that is the same everywhere becomes 0.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    images
        A PIL image, a list of them, or preprocessed images [3, height, width] or [images, 3,
        height, width].
    texts
        One text, such as "a dog", or several.
    against
        Texts whose mean embedding is subtracted from that of each text.
    recipe
        Which neurons, and how they are combined; by default the paper's form.
    windows
        With more than one, the model sees each picture through so many overlapping windows along
        each side, and maps are averaged where windows overlap.

    Returns
    -------
    [height, width] for one text, [texts, height, width] for several; in a list for a list of
    images, since these may differ in size, and stacked for a tensor of images.

    Raises
    ------
    SecondLensError
        No images or texts, an empty text or one longer than the model's context, a picture that
        `whole` refuses, another model's lens, a recipe that the lens cannot follow, or windows
        on a picture with fewer pixels than windows.
    """
    if windows < 1:
        raise SecondLensError(f"{windows} windows show nothing: take at least one")
    single = isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3)
    batch = _as_batch(images, single)
    rows = embed_texts(clip, [texts] if isinstance(texts, str) else texts)
    if against:
        rows = rows - embed_texts(clip, against).mean(0)
    segmenter = Segmenter(clip, lens, recipe)
    maps: list[Tensor] = []
    for some in chunks(len(batch), max(1, IMAGES_PER_PASS // windows**2)):
        pictures = _upright(batch[some])
        sizes = [_size(picture) for picture in pictures]
        boxes = [boxes_of(*size, windows) for size in sizes]
        seen = whole(clip, cut(pictures, boxes, clip.image_size) if windows > 1 else pictures)
        encoded = encode(clip, seen, segmenter.layers)
        raw = segmenter.heat_maps(encoded, rows.expand(len(seen), -1, -1))
        if recipe.positive:
            raw = raw.clamp(min=0)
        for mine, own, size in zip(raw.split(windows**2), boxes, sizes, strict=True):
            heat = standardise(joined(mine, own, size), size)
            maps.append(heat[0] if isinstance(texts, str) else heat)
    if single:
        return maps[0]
    return torch.stack(maps) if isinstance(images, Tensor) else maps


def _as_batch(images: "Image.Image | Images", single: bool) -> Images:
    if len(batch := [images] if isinstance(images, Image.Image) else images) == 0:
        raise SecondLensError("there are no images: give at least one")
    return batch[None] if single and isinstance(batch, Tensor) else batch


def _size(picture: Image.Image | Tensor) -> tuple[int, int]:
    if isinstance(picture, Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width


def whole(clip: Clip, pictures: Images) -> Images:
    """Pictures squeezed into the model's square, so that preprocessing crops nothing away.

    Raises
    ------
    SecondLensError
        A picture cannot be decoded, or is more than a thousand times as long as wide.
    """
    upright = _upright(pictures)
    if isinstance(upright, Tensor):
        return upright
    height, width = clip.image_size
    return [each.resize((width, height), Image.Resampling.BICUBIC) for each in upright]


def _upright(pictures: Images) -> Images:
    if isinstance(pictures, Tensor):
        return pictures
    try:
        return [upright_rgb(picture) for picture in pictures]
    except Unreadable as error:
        raise SecondLensError(f"a picture cannot be used: {error}") from error


def embed_texts(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Unit rows for texts that the model reads to their end.

    Raises
    ------
    SecondLensError
        No texts, an empty one, or one longer than the model's context.
    """
    texts = [text.strip() for text in texts]
    if not texts:
        raise SecondLensError("there are no texts: give at least one")
    if not all(texts):
        raise SecondLensError("one of the texts is empty: say what to look for")
    rows = clip.encode_text(texts)
    # tokenizers cut in silence: where the last letter changes nothing, it was not read
    distances = (rows - clip.encode_text([text[:-1] for text in texts])).norm(dim=1)
    for text, distance in zip(texts, distances.tolist(), strict=True):
        if distance < torch.finfo(clip.dtype).eps ** 0.5:
            raise SecondLensError(
                f"the text {text[:30]!r}… is longer than {clip.name} can read: shorten it"
            )
    return rows


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
