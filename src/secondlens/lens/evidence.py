"""How good descriptions are: the scores and the stability that a lens keeps, by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

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
    top: int
    """Images of each side that had to be found."""
    auc: dict[int, Float[Tensor, "neurons 2"]]
    """By layer; columns as in `SIDES`."""
    low: dict[int, Float[Tensor, "neurons 2"]]
    high: dict[int, Float[Tensor, "neurons 2"]]
    """DeLong's 95 % interval."""
    controls: dict[int, Float[Tensor, "neurons 2 4"]]
    """`auc` of each of `CONTROLS`."""

    @property
    def name(self) -> str:
        """Such as "world by true labels"."""
        return f"{self.vocabulary} by {self.referee}"

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
        name, layer = key.rsplit("-", 1)
        joined.setdefault(name, {})[int(layer)] = tensor
    return joined
