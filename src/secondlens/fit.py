"""Fit a lens: stream images through a model and keep what they show about each neuron.

Nothing that is held grows with the number of images, unless coordinates are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track
from torch import Tensor

from . import statistics
from .accumulate import Accumulator
from .capture import Capture
from .effects import Isometry, extended_coefficients, image_scale, isometry, value_paths
from .errors import SecondLensError
from .images import Reader, as_source
from .lens import Coordinates, Lens
from .storage import check_empty
from .view import Clip


def fit(
    clip: Clip,
    images: Any,
    layers: "Sequence[int] | Literal['all']" = "all",
    *,
    top: int | None = None,
    out: str | Path | None = None,
    convention: str = "exact",
    keep_coordinates: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> Lens:
    """Fit a lens: stream images through the model and keep what they show about each neuron.

    Images pass twice, once for means and covariances and once for the top images around the
    mean; with `keep_coordinates` the second pass reads the kept coordinates instead.

    Parameters
    ----------
    clip
        The model.
    images
        A folder of pictures, a list of PIL images, a preprocessed tensor [images, 3, height,
        width], or an `ImageSource`.
    layers
        MLP layers, or "all" that have second-order effects.
    top
        Images that count as a neuron's top images; by default 2 % (the paper: 100 of 5,000).
    out
        A folder to save the lens in; it must not exist or be empty.
    convention
        "exact", or "official" to compare with published numbers.
    keep_coordinates
        Keep every image's coordinates in memory and in the lens, so that it can be merged.
    batch_size
        Images in one forward pass.
    workers
        Processes that decode pictures.
    progress
        Show progress bars.

    Raises
    ------
    SecondLensError
        A layer without second-order effects, no readable image, `top` out of range, or a folder
        that is not empty.
    """
    chosen = range(clip.layers - 1) if layers == "all" else layers
    chosen = sorted({clip.check_layer(layer) for layer in chosen})
    if not chosen:
        raise SecondLensError("no layers to fit: name at least one, or all")
    source = as_source(images)
    top_count = statistics.top_count(top, len(source.ids))
    if out is not None:
        check_empty(out)
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    mapper = _Mapper(clip, chosen, convention, reader, progress)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    positions: list[int] = []
    activations: dict[int, Tensor] = {}
    fitted = Accumulator(mapper.basis, top_count)
    for batch, z_of_layer, activation_sums in mapper.batches("means"):
        positions += batch
        for layer, z in z_of_layer.items():
            fitted.see(layer, z)
            activations[layer] = activations.get(layer, 0) + activation_sums[layer]
            if keep_coordinates:
                kept[layer].append(z)
    if not positions:
        raise SecondLensError("none of the pictures could be read")
    fitted.top = statistics.top_count(top, len(positions))
    new_position = {old: new for new, old in enumerate(positions)}
    z_all = {layer: torch.cat(parts) for layer, parts in kept.items() if parts}
    if keep_coordinates:
        for layer in chosen:
            fitted.rank(layer, z_all[layer], torch.arange(len(positions)))
    else:
        for batch, z_of_layer, _ in mapper.batches("top images"):
            where = torch.tensor([new_position[old] for old in batch])
            for layer, z in z_of_layer.items():
                fitted.rank(layer, z, where)
    lens = Lens(
        model=describe_model(clip),
        convention=convention,
        top=fitted.top,
        image_ids=tuple(source.ids[position] for position in positions),
        skipped=dict(reader.skipped),
        by_layer={
            layer: fitted.result(layer, activations[layer] / len(positions)) for layer in chosen
        },
        coordinates=Coordinates(z=z_all, basis=mapper.basis) if keep_coordinates else None,
    )
    if out is not None:
        lens.save(out)
    return lens


def describe_model(clip: Clip) -> dict[str, Any]:
    """What a lens records about its model."""
    return {
        "name": clip.name,
        "weights": clip.weights_hash,
        "activation": clip.activation,
        "layers": clip.layers,
        "heads": clip.heads,
        "neurons": clip.neurons,
        "dim": clip.dim,
        "grid": list(clip.grid),
    }


class _Mapper:
    """Turns images into coordinates of every wanted layer, one forward pass a batch."""

    def __init__(
        self, clip: Clip, layers: list[int], convention: str, reader: Reader, progress: bool
    ) -> None:
        self.clip, self.layers, self.convention = clip, layers, convention
        self.reader, self.progress = reader, progress
        self.isometries: dict[int, Isometry] = {
            layer: isometry(value_paths(clip, layer, convention)) for layer in layers
        }
        self.basis = {layer: each.basis for layer, each in self.isometries.items()}

    def batches(
        self, purpose: str
    ) -> Iterator[tuple[list[int], dict[int, Tensor], dict[int, Tensor]]]:
        """(positions, coordinates by layer, sums of activations [tokens, neurons] by layer)."""
        progress: Callable = track if self.progress else (lambda batches, **_: batches)
        with Capture(self.clip, self.layers, keep_activations=True) as capture:
            for batch in progress(self.reader, description=purpose, total=len(self.reader)):
                pooled = capture.pool(self.clip.encode_image(batch.pixels))
                scale = image_scale(pooled, self.convention)
                z = {
                    layer: self.isometries[layer].coordinates(
                        extended_coefficients(pooled, layer, self.convention), scale
                    )
                    for layer in self.layers
                }
                sums = {layer: a.sum(0) for layer, a in pooled.activations.items()}
                yield batch.positions, z, sums
