"""The images that show each cue most clearly, and how far classes fall there without it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Z = 1.959964
"""Standard errors in half of a 95 % interval."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clearest:
    """The images nearest to each cue so far, nearest first, and what its neurons do there."""

    similarity: Float[Tensor, "cues images"]
    positions: Int[Tensor, "cues images"]
    removed: Float[Tensor, "cues images dim"]

    @classmethod
    def none(cls, cues: int, dim: int, like: Tensor) -> "Clearest":
        """No images yet."""
        return cls(
            similarity=like.new_zeros(cues, 0),
            positions=torch.zeros(cues, 0, dtype=torch.int64, device=like.device),
            removed=like.new_zeros(cues, 0, dim),
        )

    def see(
        self,
        similarity: Float[Tensor, "images cues"],
        removed: Float[Tensor, "images cues dim"],
        positions: Int[Tensor, " images"],
        top: int,
    ) -> "Clearest":
        """With a batch more; of equal images the earlier ones stay."""
        both = torch.cat([self.similarity, similarity.T], dim=1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :top]
        here = positions.to(both.device).expand(len(both), -1)
        rows = torch.arange(len(both), device=both.device)[:, None]
        return Clearest(
            similarity=both.gather(1, order),
            positions=torch.cat([self.positions, here], dim=1).gather(1, order),
            removed=torch.cat([self.removed, removed.transpose(0, 1)], dim=1)[rows, order],
        )

    def falls(
        self, classifier: Float[Tensor, "classes dim"], absent: Bool[Tensor, "images classes"]
    ) -> tuple[Float[Tensor, "classes cues"], Float[Tensor, "classes cues"]]:
        """Mean and half 95 % interval of how far each class falls, where it is absent."""
        means, spreads = [], []
        for removed, positions in zip(self.removed, self.positions, strict=True):
            fall = removed @ margins(classifier).T
            counts = absent[positions].to(fall)
            number = counts.sum(0)
            mean = (counts * fall).sum(0) / number
            variance = (counts * (fall - mean).square()).sum(0) / (number - 1)
            means.append(mean)
            spreads.append(Z * (variance / number).sqrt())
        return torch.stack(means, dim=1), torch.stack(spreads, dim=1)


def margins(classifier: Float[Tensor, "classes dim"]) -> Float[Tensor, "classes dim"]:
    """Each class against the mean of the others."""
    return (classifier - classifier.mean(0)) * (len(classifier) / (len(classifier) - 1))
