"""Products of effects with vectors, for every neuron and image, without any effect in memory.

An effect is scale * c . U (see `value_paths`), so its product with a vector v is
scale * c . (U v): a neuron needs K numbers for each of its vectors, and an image one product of
K numbers. Total effects are coordinates along axes already (see `total_effects`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.reader import Reader, in_parts
from ..data.texts import source_for
from ..errors import SecondLensError
from ..models.view import Clip
from .capture import Pooled
from .streaming import stream
from .total_effects import TotalProjector, TotalReader
from .value_paths import extended_coefficients, image_scale, path_factors


class Projector:
    """Takes the coefficients of images to <effect, vector>, in units of the convention's effects.

    Parameters
    ----------
    clip, layer, convention
        What `path_factors` takes.
    vectors
        Some for each chosen neuron.
    neurons
        The chosen neurons; by default all of the layer.
    """

    def __init__(
        self,
        clip: Clip,
        layer: int,
        vectors: Float[Tensor, "chosen vectors dim"],
        convention: str = "exact",
        neurons: Sequence[int] | None = None,
    ) -> None:
        factors = path_factors(clip, layer, convention)
        self.layer, self.convention = layer, convention
        self.neurons = list(range(factors.neurons) if neurons is None else neurons)
        vectors = vectors.to(factors.inner)
        own = [
            (vectors @ outer.T * inner[self.neurons, None]).sum(-1)
            for inner, outer in zip(factors.inner, factors.outer, strict=True)
        ]
        shared = (vectors @ factors.shared.T).movedim(-1, 0)
        self.weights = torch.cat([torch.stack(own), shared])

    def __call__(self, pooled: Pooled) -> Float[Tensor, "images chosen vectors"]:
        """The products for a batch of images."""
        coefficients = extended_coefficients(pooled, self.layer, self.convention)
        products = [
            # rows, not bmm: a bmm with a single column is many times slower
            (coefficients[:, :, self.neurons] * weights).sum(1)
            for weights in self.weights.unbind(-1)
        ]
        scale = image_scale(pooled, self.convention)
        return torch.stack(products, dim=-1) * scale[:, None, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Projected:
    """The products of all readable images of a source, on the CPU."""

    positions: list[int]
    """Of the images, in the source."""
    embeddings: Float[Tensor, "images dim"]
    """Unit rows."""
    products: dict[int, Float[Tensor, "images chosen vectors"]]
    """By layer."""
    skipped: Mapping[str, str]
    """Pictures that could not be read: id -> reason."""


Projectors = Mapping[int, Projector] | Mapping[int, TotalProjector]
"""By layer; those of total effects have the same axes."""


def project(
    clip: Clip,
    images: Any,
    projectors: Projectors,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Projected:
    """Stream images through the model once, for projectors of several layers.

    Parameters
    ----------
    clip
        The model.
    images
        What `fit` takes.
    projectors
        By layer.

    Raises
    ------
    SecondLensError
        No readable image.
    """
    reader = Reader(
        source=source_for(clip, images), clip=clip, batch_size=batch_size, workers=workers
    )
    positions: list[int] = []
    embeddings: list[Tensor] = []
    products: dict[int, list[Tensor]] = {layer: [] for layer in projectors}
    for some, embedding, found in _products(clip, reader, projectors, progress):
        positions += some
        embeddings.append(embedding.cpu())
        for layer, of_layer in found.items():
            products[layer].append(of_layer.cpu())
    if not positions:
        raise SecondLensError("none of the pictures could be read")
    return Projected(
        positions=positions,
        embeddings=torch.cat(embeddings),
        products={layer: torch.cat(parts) for layer, parts in products.items()},
        skipped=dict(reader.skipped),
    )


def _products(
    clip: Clip, reader: Reader, projectors: Projectors, progress: bool
) -> Iterator[tuple[list[int], Tensor, dict[int, Tensor]]]:
    """By batch: positions of the images, embeddings, and products by layer."""
    along = {n: each for n, each in projectors.items() if isinstance(each, TotalProjector)}
    if along:
        totals = TotalReader(clip, next(iter(along.values())).axes, list(along))
        for total in totals.stream(reader, "projections", progress):
            found = {layer: each(total.effects[layer]) for layer, each in along.items()}
            yield total.positions, total.embedding, found
        return
    paths = {n: each for n, each in projectors.items() if isinstance(each, Projector)}
    for batch in stream(clip, reader, paths, what="projections", progress=progress):
        found = {layer: each(batch.pooled) for layer, each in paths.items()}
        yield batch.positions, batch.embedding, found


def embed(
    clip: Clip, images: Any, *, batch_size: int | None = None, workers: int = 0
) -> Float[Tensor, "images dim"]:
    """Unit embeddings of all images of a source; zeros for one that cannot be read."""
    source = source_for(clip, images)
    rows = torch.zeros(len(source.ids), clip.dim, dtype=clip.compute_dtype, device=clip.device)
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    for batch, representation in in_parts(
        reader, clip, lambda each: clip.encode_image(each.on(clip.device))
    ):
        rows[batch.positions] = F.normalize(representation.to(rows), dim=-1)
    return rows
