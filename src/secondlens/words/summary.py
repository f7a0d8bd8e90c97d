"""A described lens in a few words and numbers: what is printed and what reports show."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..lens.codes import Codes
from ..lens.layer import NeuronId
from ..lens.lens import Lens
from ..lens.names import Name


@dataclass(frozen=True, kw_only=True)
class NeuronSummary(NeuronId):
    """One neuron in words."""

    title: str
    """Of `Lens.title`."""
    names: tuple[Name, ...]
    """What it fires on, the most enriched first."""
    words: tuple[tuple[str, float], ...]
    """(text, coefficient) of the code of its direction, strongest first: what it pushes towards,
    and, where the coefficient is negative, away from."""
    clarity: float
    """Share of the code's squared weight on its two strongest words, times the share of the
    effects' energy that lies on the direction they describe."""
    score: float
    """How well the positive words find unseen images, see `score`; NaN if that was not asked."""
    score_interval: tuple[float, float]
    """Its 95 % interval."""

    @property
    def polysemy(self) -> int:
        """Its names: each holds on images that hold none of the earlier ones."""
        return len(self.names)


def neurons_in_words(lens: Lens, codes: Codes) -> list[NeuronSummary]:
    """Every neuron of every fitted layer.

    Parameters
    ----------
    lens
        Its first names, and its first scores of the description, are taken over if it has some.
    codes
        A description of the lens.
    """
    scored = [
        scores for scores in lens.scores.values() if lens.codes.get(scores.vocabulary) is codes
    ]
    found = []
    for layer in lens.layers:
        areas = torch.full((len(codes.indices[layer]), 3), torch.nan)
        if scored:
            each = scored[0]
            areas = torch.stack([a[layer][:, 0] for a in (each.auc, each.low, each.high)], dim=1)
        for neuron, area in enumerate(areas.tolist()):
            words = codes.words(layer, neuron)
            found.append(
                NeuronSummary(
                    layer=layer,
                    neuron=neuron,
                    title=lens.title(layer, neuron),
                    names=tuple(lens.fires_on(layer, neuron)),
                    words=tuple(words),
                    clarity=_clarity(words) * float(lens[layer].explained_all[neuron]),
                    score=area[0],
                    score_interval=(area[1], area[2]),
                )
            )
    return found


def _clarity(words: list[tuple[str, float]]) -> float:
    """The share of the squared weight that the two strongest words have."""
    squares = [weight**2 for _, weight in words]
    return sum(squares[:2]) / max(sum(squares), 1e-12)


PUSHES = 2
"""Words of a code that stand for a name in a lens without names."""


def label(lens: Lens, layer: int, neuron: int) -> str:
    """A neuron in one line, where many are listed: what it fires on, see `Lens.title`.

    In a lens that was not named the line says what the neuron pushes towards, or else away from,
    and that it does; without a description, nothing.
    """
    if title := lens.title(layer, neuron):
        return title
    codes = next(iter(lens.codes.values()), None)
    words = [] if codes is None else codes.words(layer, neuron)
    for where, sign in (("towards", 1), ("away from", -1)):
        if side := [text for text, weight in words if weight * sign > 0][:PUSHES]:
            return f"pushes {where} {', '.join(side)}"
    return ""


def quartiles(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """25th, 50th and 75th percentile."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype, device=values.device)
    low, middle, high = values.quantile(shares).tolist()
    return low, middle, high
