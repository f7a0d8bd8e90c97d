"""What directions alone tell of all neurons together: their neighbours, and a map of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from ..effects.value_paths import chunks
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..storage.checkpoints import load_tensors, save_tensors
from ..storage.regular import check_regular
from ..storage.validation import DAMAGED, check_positions, check_tensors
from .records import NEIGHBOURS, fingerprint

COMPONENTS = 30
"""Principal components that the map is made from."""
ITERATIONS = 500
NEURONS_PER_CHUNK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Neurons are numbered through the fitted layers."""

    place: Float[Tensor, "neurons 2"]
    """On the map, 0 to 1."""
    neighbours: Int[Tensor, "neurons neighbours"]
    """The directions most along or against a neuron's own, by absolute cosine."""
    cosines: Float[Tensor, "neurons neighbours"]

    def save(self, path: Path, lens: Lens) -> None:
        """Write it to a safetensors file."""
        save_tensors(path, vars(self), {"lens": fingerprint(lens)})


def load_layout(path: Path, lens: Lens) -> Layout | None:
    """The layout in a file; None if there is none, or one of another lens."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("lens") != fingerprint(lens):
                return None
        found, total = (
            Layout(**load_tensors(path)),
            sum(len(lens[layer].directions) for layer in lens.layers),
        )
        check_tensors(found, {"neighbours": NEIGHBOURS}, tuple(vars(found)), neurons=total)
        check_positions(found.neighbours, total, "neighbours")
    except DAMAGED:
        return None
    return found


def lay_out(lens: Lens) -> Layout:
    """Neighbours and the map of all neurons of a lens.

    The map is t-SNE (van der Maaten and Hinton 2008) of the leading principal components of the
    directions, with the signs they have.

    Raises
    ------
    SecondLensError
        scikit-learn is missing.
    """
    directions = torch.cat([lens[layer].directions for layer in lens.layers]).float()
    neighbours, cosines = nearest(directions)
    return Layout(place=_tsne(directions), neighbours=neighbours, cosines=cosines)


def nearest(
    directions: Float[Tensor, "neurons dim"],
) -> tuple[Int[Tensor, "neurons neighbours"], Float[Tensor, "neurons neighbours"]]:
    """The rows with the largest absolute cosines with each unit row, itself left out."""
    count = min(NEIGHBOURS, len(directions) - 1)
    neighbours = torch.empty(len(directions), count, dtype=torch.int32)
    cosines = torch.empty(len(directions), count)
    for some in chunks(len(directions), NEURONS_PER_CHUNK):
        products = directions[some] @ directions.T
        own = torch.arange(len(directions))[some]
        products[torch.arange(len(own)), own] = 0
        found = products.abs().topk(count, dim=1).indices
        neighbours[some], cosines[some] = found.int(), products.gather(1, found)
    return neighbours, cosines


def _tsne(directions: Float[Tensor, "neurons dim"]) -> Float[Tensor, "neurons 2"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise SecondLensError(
            "the map of neurons needs scikit-learn: pip install 'secondlens[explore]'"
        ) from None
    centred = (directions - directions.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    leading = centred @ vectors[:, -COMPONENTS:]
    perplexity = min(30.0, (len(directions) - 1) / 3)
    made = TSNE(perplexity=perplexity, max_iter=ITERATIONS, init="pca", random_state=0)
    place = torch.from_numpy(made.fit_transform(leading.numpy())).float()
    low, high = place.aminmax(dim=0)
    return (place - low) / (high - low).clamp(min=1e-12)


def layer_offsets(lens: Lens) -> Mapping[int, int]:
    """The number of each layer's first neuron when neurons are numbered through the layers."""
    found, total = {}, 0
    for layer in lens.layers:
        found[layer] = total
        total += len(lens[layer].directions)
    return found
