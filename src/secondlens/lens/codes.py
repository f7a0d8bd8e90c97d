"""Sparse signed texts of the neurons of a lens, and the tensors they are kept as."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SecondLensError

WORDS_THAT_COUNT = 8
"""Texts of a description that a person reads, and that it is judged by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Sparse signed texts for the direction of each neuron, by layer, in the order of the pursuit.

    A row that ended early has index -1 and coefficient 0 at its end.
    """

    labels: tuple[str, ...]
    normalise: str
    indices: dict[int, Int[Tensor, "neurons k"]]
    coefficients: dict[int, Float[Tensor, "neurons k"]]
    brief: dict[int, Float[Tensor, "neurons words"]]
    """Coefficients of the code of the first texts alone, at most `WORDS_THAT_COUNT`. A long code
    rebuilds a direction better but says less of it: many of its texts make up for others."""
    cosine: dict[int, Float[Tensor, " neurons"]]
    """Between a direction and its code."""
    curve: dict[int, Float[Tensor, " k"]] = field(default_factory=dict)
    """Median over neurons of the cosine of the codes of 1, 2, ... k texts."""
    control: Float[Tensor, " k"] | None = None
    """The same for random unit directions, which stand for nothing."""
    mean_text: Float[Tensor, " dim"] | None = None
    """Mean embedding of the texts: what every text shares, which `search` subtracts."""

    def __repr__(self) -> str:
        return (
            f"Codes({len(self.labels)} texts, at most {self.size} a neuron, "
            f"layers {', '.join(map(str, sorted(self.indices)))})"
        )

    @property
    def size(self) -> int:
        """Texts of the longest code."""
        return max(each.shape[1] for each in self.indices.values())

    def to(self, device: torch.device) -> "Codes":
        """Return the same on a device; nothing is copied that is there already."""
        moved: dict[str, Any] = {
            name: {layer: tensor.to(device) for layer, tensor in getattr(self, name).items()}
            for name in _OF_LAYERS
        }
        for name in _OF_CODES:
            whole = getattr(self, name)
            moved[name] = None if whole is None else whole.to(device)
        return replace(self, **moved)

    def words(self, layer: int, neuron: int, count: int | None = None) -> list[tuple[str, float]]:
        """(text, coefficient) of a neuron's brief code, strongest first, at most `count`.

        Raises
        ------
        SecondLensError
            No such layer or neuron.
        """
        return self._texts(layer, neuron, self.brief)[:count]

    def code(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """(text, coefficient) of a neuron's whole code, strongest first.

        Raises
        ------
        SecondLensError
            As `words`.
        """
        return self._texts(layer, neuron, self.coefficients)

    def _texts(
        self, layer: int, neuron: int, weights: dict[int, Tensor]
    ) -> list[tuple[str, float]]:
        if layer not in weights:
            described = ", ".join(map(str, sorted(weights)))
            raise SecondLensError(f"layer {layer} is not in this description: it has {described}")
        if not 0 <= neuron < len(weights[layer]):
            raise SecondLensError(
                f"layer {layer} has no neuron {neuron}: choose from 0 to {len(weights[layer]) - 1}"
            )
        own = weights[layer][neuron].tolist()
        texts = self.indices[layer][neuron, : len(own)].tolist()
        found = [(self.labels[i], weight) for i, weight in zip(texts, own, strict=True) if i >= 0]
        return sorted(found, key=lambda pair: -abs(pair[1]))


_OF_LAYERS = ("indices", "coefficients", "brief", "cosine", "curve")
_OF_CODES = ("control", "mean_text")


def codes_to_tensors(codes: Codes) -> dict[str, Tensor]:
    """By name, with the layer at its end where there is a tensor for each layer."""
    tensors = {
        f"{name}-{layer:02}": tensor
        for name in _OF_LAYERS
        for layer, tensor in getattr(codes, name).items()
    }
    whole = {name: getattr(codes, name) for name in _OF_CODES}
    return tensors | {name: tensor for name, tensor in whole.items() if tensor is not None}


def codes_from_tensors(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Codes:
    """What `codes_to_tensors` took apart, with what the manifest says of it."""
    kept: dict[str, Any] = {name: tensors.pop(name) for name in _OF_CODES if name in tensors}
    kept |= {name: {} for name in _OF_LAYERS}
    for key, tensor in tensors.items():
        name, layer = _of_layer(key)
        kept[name][layer] = tensor
    return Codes(labels=tuple(entry["labels"]), normalise=entry["normalise"], **kept)


SIDES = ("positive", "negative")
"""Of a direction: where an effect's projection is large, and where it is most negative."""

CONTROLS = ("random neuron", "random direction", "random words", "most similar word")
"""Descriptions that ours has to beat, see `score`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How well descriptions predict on which unseen images an effect is large, see `score`.

    Areas under the ROC curve: 1/2 is chance. NaN where a description has no words on a side.
    """

    vocabulary: str
    referee: str
    """Who judged what the images hold."""
    images: int
    """How many."""
    top: int
    """Images of each side that had to be found."""
    auc: dict[int, Float[Tensor, "neurons 2"]]
    """By layer; columns as in `SIDES`."""
    low: dict[int, Float[Tensor, "neurons 2"]]
    high: dict[int, Float[Tensor, "neurons 2"]]
    """DeLong's 95 % interval."""
    controls: dict[int, Float[Tensor, "neurons 2 4"]]
    """`auc` of each of `CONTROLS`."""
    pictures: str = ""
    """What the images are called; nothing in scores of older versions."""
    dataset: str = ""
    """Hash of which images they are, see `data.sources.dataset_hash`."""

    @property
    def name(self) -> str:
        """Such as "world by true labels on photos"."""
        where = f" on {self.pictures}" if self.pictures else ""
        return f"{self.vocabulary} by {self.referee}{where}"

    def ranked(self, layer: int, side: int = 0) -> list[int]:
        """The scored neurons of a layer, best description first."""
        auc = self.auc[layer][:, side]
        order = auc.nan_to_num(-1.0).argsort(descending=True, stable=True)
        return order[: int(auc.isfinite().sum())].tolist()


@dataclass(frozen=True, kw_only=True, eq=False)
class Stability:
    """Two lenses of disjoint halves of the images compared, neuron by neuron, see `stability`."""

    vocabulary: str
    images: int
    """In both halves together."""
    cosine: dict[int, Float[Tensor, " neurons"]]
    """Absolute, of the two directions."""
    cosine_null: dict[int, Float[Tensor, " neurons"]]
    """The same for a neuron and its neighbour."""
    overlap: dict[int, Float[Tensor, " neurons"]]
    """Signed words that both have over those that either has, of the strongest of each."""
    overlap_null: dict[int, Float[Tensor, " neurons"]]
    """The same for a neuron and its neighbour."""

    @property
    def name(self) -> str:
        """Of the vocabulary."""
        return self.vocabulary


def split(evidence: Scores | Stability) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What goes into the manifest of a lens, and what into a file of tensors."""
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in vars(evidence).items():
        if isinstance(value, Mapping):
            tensors |= {f"{name}-{layer:02}": tensor for layer, tensor in value.items()}
        else:
            plain[name] = value
    return plain, tensors


def join(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that `split` took apart."""
    joined: dict[str, Any] = dict(plain)
    for key, tensor in tensors.items():
        name, layer = _of_layer(key)
        joined.setdefault(name, {})[layer] = tensor
    return joined


def _of_layer(key: str) -> tuple[str, int]:
    """Name and layer of a tensor in a file."""
    name, _, layer = key.rpartition("-")
    if key != f"{name}-{int(layer):02}":
        raise ValueError(f"there is a tensor {key!r}")
    return name, int(layer)
