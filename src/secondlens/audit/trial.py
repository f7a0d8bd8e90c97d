"""What a way of cutting does to a zero-shot classifier, measured on two halves of the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..classify import Labelled
from ..intervals import of_mean

Way = tuple[str, int]
"""A method of cutting, and how much it cuts."""

BEFORE = ("nothing", 0, 0.0)
"""Method, count and strength of leaving the model alone."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one way of cutting does, in shares; on the half that decides, then on the other."""

    method: str
    count: int
    """Of neurons, or of text directions."""
    strength: float
    chosen_usual: float
    chosen_cost: float
    """What it may cost on usual pictures: the far end of the 95 % interval of the change."""
    chosen_unusual: float
    usual: float
    unusual: float
    """Accuracy where cues mislead."""
    fooled: float
    """Share of unusual pictures on which the class that the cue belongs to beats the true one; NaN
    if nobody said which class that is."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The way of cutting that a method chose, measured on the other half."""

    point: Point
    usual_change: tuple[float, float, float]
    """Of the accuracy, with its 95 % interval over pictures; so are the next two."""
    unusual_change: tuple[float, float, float]
    fooled_change: tuple[float, float, float]


class Trial:
    """Accuracies of every way of cutting, from embeddings and what is subtracted from them."""

    def __init__(
        self,
        classifier: Float[Tensor, "classes dim"],
        embeddings: Sequence[Tensor],
        removals: Sequence[Mapping[Way, Tensor]],
        pictures: Sequence[Labelled],
        rivals: Sequence[int] | None,
    ) -> None:
        self.classifier, self.embeddings, self.removals = classifier, embeddings, removals
        self.labels = [torch.tensor(each.labels, device=classifier.device) for each in pictures]
        self.rivals = None if rivals is None else torch.tensor(rivals, device=classifier.device)

    def _scores(self, kind: int, method: str, count: int, strength: float) -> Tensor:
        embedding = self.embeddings[kind]
        if strength:
            embedding = embedding - strength * self.removals[kind][method, count]
        return embedding @ self.classifier.T

    def outcomes(
        self, method: str, count: int, strength: float
    ) -> tuple[Bool[Tensor, " usual"], Bool[Tensor, " unusual"], Bool[Tensor, " unusual"]]:
        """Whether each usual and unusual picture is right, and whether its rival wins."""
        usual, unusual = (self._scores(kind, method, count, strength) for kind in (0, 1))
        true = unusual.gather(1, self.labels[1][:, None])
        fooled = torch.zeros_like(self.labels[1], dtype=torch.bool)
        if self.rivals is not None:
            fooled = (unusual.gather(1, self.rivals[:, None]) > true)[:, 0]
        right = [s.argmax(1) == y for s, y in zip((usual, unusual), self.labels, strict=True)]
        return right[0], right[1], fooled

    def point(self, method: str, count: int, strength: float) -> Point:
        """Shares on either half."""
        usual, unusual, fooled = self.outcomes(method, count, strength)
        before, _, _ = self.outcomes(*BEFORE)
        low, _ = of_mean((usual.float() - before.float())[::2].tolist())
        return Point(
            method=method,
            count=count,
            strength=strength,
            chosen_usual=_share(usual[::2]),
            chosen_cost=-low,
            chosen_unusual=_share(unusual[::2]),
            usual=_share(usual[1::2]),
            unusual=_share(unusual[1::2]),
            fooled=_share(fooled[1::2]) if self.rivals is not None else float("nan"),
        )

    def result(self, point: Point) -> Result:
        """Changes on the half that measures, picture by picture."""
        after = self.outcomes(point.method, point.count, point.strength)
        before = self.outcomes(*BEFORE)
        changes = []
        for new, old in zip(after, before, strict=True):
            difference = (new.float() - old.float())[1::2].tolist()
            changes.append((sum(difference) / len(difference), *of_mean(difference)))
        if self.rivals is None:
            changes[2] = (float("nan"),) * 3
        return Result(
            point=point,
            usual_change=changes[0],
            unusual_change=changes[1],
            fooled_change=changes[2],
        )


def _share(right: Bool[Tensor, " images"]) -> float:
    return float(right.float().mean())
