"""A described lens in a few words and numbers: what is printed and what reports show."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.vocabularies import Vocabulary
from ..lens.codes import Codes
from ..lens.layer import NeuronId
from ..lens.lens import Lens
from ..models.view import Clip
from .concepts import Concept, concepts_of, effective_number, same_concept


@dataclass(frozen=True, kw_only=True)
class NeuronSummary(NeuronId):
    """One neuron in words."""

    words: tuple[tuple[str, float], ...]
    """(text, coefficient), strongest first."""
    concepts: tuple[Concept, ...]
    """Groups of related words, heaviest first; those with negative weights push away."""
    clarity: float
    """Share of the code's squared weight on its two strongest words, times the share of the
    effects' energy that lies on the direction they describe."""
    polysemy: float
    """The effective number of positive concepts: exp of the entropy of their weights."""
    score: float
    """How well the positive words find unseen images, see `score`; NaN if that was not asked."""
    score_interval: tuple[float, float]
    """Its 95 % interval."""


def neurons_in_words(
    clip: Clip, lens: Lens, codes: Codes, texts: Vocabulary
) -> list[NeuronSummary]:
    """Every neuron of every fitted layer.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        Its first scores of the vocabulary are taken over, if it has some.
    codes
        A description of the lens with the vocabulary `texts`.
    """
    rows = texts.embed(clip).cpu()
    rows = F.normalize(rows - rows.mean(0), dim=1)
    threshold = same_concept(rows)
    scored = [scores for scores in lens.scores.values() if scores.vocabulary == texts.name]
    found = []
    for layer in lens.layers:
        areas = torch.full((len(codes.indices[layer]), 3), torch.nan)
        if scored:
            each = scored[0]
            areas = torch.stack([a[layer][:, 0] for a in (each.auc, each.low, each.high)], dim=1)
        found += [
            _in_words(lens, codes, rows, threshold, layer, neuron, area)
            for neuron, area in enumerate(areas)
        ]
    return found


def _in_words(
    lens: Lens,
    codes: Codes,
    rows: Float[Tensor, "texts dim"],
    threshold: float,
    layer: int,
    neuron: int,
    area: Float[Tensor, "3"],
) -> NeuronSummary:
    weights = codes.brief[layer][neuron]
    strongest = weights.abs().argsort(descending=True)
    strongest = strongest[codes.indices[layer][neuron][strongest] >= 0]
    texts = codes.indices[layer][neuron][strongest]
    words = tuple(
        (codes.labels[text], weight)
        for text, weight in zip(texts.tolist(), weights[strongest].tolist(), strict=True)
    )
    concepts = concepts_of(words, rows[texts], threshold)
    share = weights[strongest[:2]].square().sum() / weights.square().sum().clamp(min=1e-12)
    score, low, high = area.tolist()
    return NeuronSummary(
        layer=layer,
        neuron=neuron,
        words=words,
        concepts=concepts,
        clarity=float(share * lens[layer].explained_all[neuron]),
        polysemy=effective_number([c.weight for c in concepts if c.weight > 0]),
        score=score,
        score_interval=(low, high),
    )


def quartiles(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """25th, 50th and 75th percentile."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype, device=values.device)
    low, middle, high = values.quantile(shares).tolist()
    return low, middle, high
