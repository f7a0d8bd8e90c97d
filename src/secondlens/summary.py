"""A described lens in a few words and numbers: what is printed and what reports show."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .lens import Codes, Lens
from .texts import Vocabulary
from .view import Clip

WORDS_THAT_COUNT = 8
SAME_CONCEPT = 0.5
"""Cosine between two texts, their mean subtracted, above which they count as one concept."""


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """One neuron in words."""

    layer: int
    neuron: int
    words: tuple[tuple[str, float], ...]
    """(text, coefficient), strongest first."""
    concepts: tuple[tuple[str, ...], ...]
    """Groups of related positive words, strongest first."""
    clarity: float
    """Share of the code's squared weight on its two strongest words, times the share of the
    effects' energy that lies on the direction they describe."""
    polysemy: float
    """The effective number of concepts: exp of the entropy of their weights."""

    @property
    def name(self) -> str:
        """Such as "L5 #120"."""
        return f"L{self.layer} #{self.neuron}"


def neurons_in_words(clip: Clip, lens: Lens, codes: Codes, texts: Vocabulary) -> list[Neuron]:
    """Every neuron of every fitted layer.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    codes
        A description of the lens with the vocabulary `texts`.
    """
    rows = texts.embed(clip)
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    related = rows @ rows.T > SAME_CONCEPT
    return [
        _in_words(lens, codes, related, layer, neuron)
        for layer in lens.layers
        for neuron in range(len(codes.indices[layer]))
    ]


def _in_words(
    lens: Lens, codes: Codes, related: Bool[Tensor, "texts texts"], layer: int, neuron: int
) -> Neuron:
    weights = codes.coefficients[layer][neuron]
    strongest = weights.abs().argsort(descending=True)[:WORDS_THAT_COUNT]
    texts = codes.indices[layer][neuron][strongest].tolist()
    pairs = [
        (text, weight)
        for text, weight in zip(texts, weights[strongest].tolist(), strict=True)
        if text >= 0
    ]
    groups = group([pair for pair in pairs if pair[1] > 0], related)
    share = weights[strongest[:2]].square().sum() / weights.square().sum().clamp(min=1e-12)
    return Neuron(
        layer=layer,
        neuron=neuron,
        words=tuple((codes.labels[text], weight) for text, weight in pairs),
        concepts=tuple(tuple(codes.labels[text] for text in texts) for texts, _ in groups),
        clarity=float(share * lens[layer].explained_all[neuron]),
        polysemy=effective_number([weight for _, weight in groups]),
    )


def group(
    words: list[tuple[int, float]], related: Bool[Tensor, "texts texts"]
) -> list[tuple[list[int], float]]:
    """Texts in groups, each with its summed weight: a text joins the first group that it is
    related to."""
    groups: list[tuple[list[int], float]] = []
    for text, weight in words:
        for i, (members, total) in enumerate(groups):
            if any(related[text, member] for member in members):
                groups[i] = ([*members, text], total + weight)
                break
        else:
            groups.append(([text], weight))
    return sorted(groups, key=lambda each: -each[1])


def effective_number(weights: list[float]) -> float:
    """exp of the entropy of positive weights: 1 if one has it all, n if n share it equally."""
    if not weights:
        return 0.0
    shares = torch.tensor(weights) / sum(weights)
    return float(torch.exp(-(shares * shares.log()).sum()))


def quartiles(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """25th, 50th and 75th percentile."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype, device=values.device)
    low, middle, high = values.quantile(shares).tolist()
    return low, middle, high
