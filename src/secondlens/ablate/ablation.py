"""What an ablation shows: how well a zero-shot classifier still does, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..classify import ranks
from ..errors import SecondLensError
from ..intervals import of_mean
from ..storage.files import load_tensors, save_tensors

BASELINE = (-1, "nothing")
"""The key of what was left alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """How many classes scored above the true one, without ablation and with each kind of it."""

    ranks: dict[tuple[int, str], Int[Tensor, " images"]]
    """By (layer, kind), and `BASELINE`: 0 is right."""
    significant: dict[int, Int[Tensor, " images"]]
    """Neurons of each image whose effect is above their threshold, by layer."""

    @property
    def layers(self) -> list[int]:
        """The layers that were ablated."""
        return sorted({layer for layer, _ in self.ranks} - {BASELINE[0]})

    @property
    def kinds(self) -> list[str]:
        """What was ablated, in order."""
        return list(dict.fromkeys(kind for _, kind in self.ranks if kind != BASELINE[1]))

    def correct(self, layer: int, kind: str, top: int = 1) -> np.ndarray:
        """Whether the true class is among the `top` best, for each image."""
        return (self.ranks[layer, kind] < top).cpu().numpy()

    def accuracy(self, layer: int, kind: str, top: int = 1) -> float:
        """Top-1, or top-`top`, as a share."""
        return float(self.correct(layer, kind, top).mean())

    def baseline(self, top: int = 1) -> float:
        """The accuracy with nothing ablated."""
        return self.accuracy(*BASELINE, top)

    def interval(self, layer: int, kind: str, top: int = 1) -> tuple[float, float]:
        """95 % bootstrap interval of an accuracy, over images."""
        return of_mean(self.correct(layer, kind, top))

    def cost(self, layer: int, kind: str, top: int = 1) -> tuple[float, tuple[float, float]]:
        """Baseline minus accuracy, on the same images, and its 95 % bootstrap interval."""
        paired = self.correct(*BASELINE, top).astype(float) - self.correct(layer, kind, top)
        return float(paired.mean()), of_mean(paired)

    def merge(self, other: "Ablation") -> "Ablation":
        """Both, where they are of the same images."""
        return Ablation(
            ranks={**self.ranks, **other.ranks},
            significant={**self.significant, **other.significant},
        )

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        ranked = {f"ranks/{layer}/{kind}": found for (layer, kind), found in self.ranks.items()}
        counts = {f"significant/{layer}": found for layer, found in self.significant.items()}
        save_tensors(path, ranked | counts)

    @classmethod
    def load(cls, path: Path) -> "Ablation":
        """What `save` wrote."""
        ranked, counts = {}, {}
        for key, tensor in load_tensors(path).items():
            what, layer, *kind = key.split("/", 2)
            if what == "ranks":
                ranked[int(layer), kind[0]] = tensor
            else:
                counts[int(layer)] = tensor
        return cls(ranks=ranked, significant=counts)


class Tally:
    """Collects the ranks of true classes, batch by batch."""

    def __init__(self, labels: Sequence[int], classifier: Float[Tensor, "classes dim"]) -> None:
        self.labels, self.classifier = torch.tensor(labels), classifier
        self._ranks: dict[tuple[int, str], list[Tensor]] = {}
        self._significant: dict[int, list[Tensor]] = {}

    def see(self, key: tuple[int, str], embedding: Tensor, positions: Sequence[int]) -> None:
        """The embeddings of a batch after one kind of ablation."""
        labels = self.labels[positions].to(embedding.device)
        found = ranks(embedding, self.classifier.to(embedding), labels)
        self._ranks.setdefault(key, []).append(found)

    def see_significant(self, layer: int, counts: Int[Tensor, " images"]) -> None:
        """How many neurons are significant in each image of a batch."""
        self._significant.setdefault(layer, []).append(counts)

    def ablation(self) -> Ablation:
        """All that was seen.

        Raises
        ------
        SecondLensError
            Nothing.
        """
        if not self._ranks:
            raise SecondLensError("none of the pictures could be read")
        return Ablation(
            ranks={key: torch.cat(parts) for key, parts in self._ranks.items()},
            significant={layer: torch.cat(parts) for layer, parts in self._significant.items()},
        )
