"""Why a head looked there, as the page of a picture shows it: a sum that a person can read down."""

from collections.abc import Callable
from itertools import product
from typing import Any

from PIL import Image
from torch import Tensor

from ..effects.attention_reasons import AttentionReasons, check_scores, why_attention
from ..errors import SecondLensError
from ..models.view import Clip
from .numbers import hex_digits, short, shortened

PAIRS, RESTS = 6, 6
"""Terms of each kind that are listed; what the others add is a number."""
SINGLE = 4
"""Neurons of each side that are listed with all that is on the other side."""
NEURONS = "all neurons"
Name = Callable[[int, int], str | None]


def refusal(clip: Clip) -> str | None:
    """Why attention of a model cannot be divided, in a sentence; None where it can."""
    if not clip.prefix:
        return f"{clip.name} has no class token, whose attention could be shown"
    try:
        check_scores(clip)
    except SecondLensError as error:
        return str(error)
    return None


def looked(
    clip: Clip,
    picture: Image.Image,
    layer: int,
    head: int,
    patch: int | None = None,
    *,
    contrast: bool = True,
    name: Name,
) -> dict[str, Any]:
    """The class token's attention in a head, and one of its scores as a sum of terms.

    Terms are pairs of neurons, the others of them together, pairs of which one is not a neuron, and
    the others of these together. They add up to the score.

    Parameters
    ----------
    patch
        What is looked at, row by row from 0; by default the whole row, see `why_attention`.
    contrast
        At a patch: less the mean of the row.
    name
        Of a neuron, by layer and number; None for one that has no page.

    Raises
    ------
    SecondLensError
        No such patch, or what `why_attention` raises.
    """
    rows, columns = clip.grid
    if patch is not None and not 0 <= patch < rows * columns:
        raise SecondLensError(
            f"there is no patch {patch}: choose one of 0 to {rows * columns - 1}, row by row"
        )
    found = why_attention(
        clip,
        [picture],
        layer,
        head,
        None if patch is None else clip.prefix + patch,
        contrast=contrast and patch is not None,
    )
    attention = found.attention.double().cpu()
    patches = attention[clip.prefix :]
    return {
        "heat": hex_digits(patches / patches.amax().clamp(min=1e-30)),
        "patches": shortened(patches.numpy()),
        "elsewhere": short(float(attention[: clip.prefix].sum())),
        "score": short(found.score),
        **_pairs(found, name),
        **_rests(found),
        "looking": _single(found, found.by_query, name),
        "looked_at": _single(found, found.by_key, name),
    }


def _single(found: AttentionReasons, by_part: Tensor, name: Name) -> list[list[Any]]:
    """[layer, neuron, name, score] of the neurons of one side that count most, whatever is on the
    other."""
    return [
        [*each.neuron, name(*each.neuron), short(each.score)]
        for each in found.single(by_part, SINGLE)
    ]


def _pairs(found: AttentionReasons, name: Name) -> dict[str, Any]:
    """[[layer, neuron, name] of the query, the same of the key, score], and the others."""
    pairs = found.pairs(PAIRS) if found.layer else []
    count = (found.layer * found.neurons) ** 2 - len(pairs)
    sides = [[[*each, name(*each)] for each in (pair.query, pair.key)] for pair in pairs]
    return {
        "pairs": [[*both, short(pair.score)] for both, pair in zip(sides, pairs, strict=True)],
        "other_pairs": [count, short(found.other_pairs(pairs))],
    }


def _rests(found: AttentionReasons) -> dict[str, Any]:
    """[part of the query, part of the key, score] of pairs that are not of neurons, and the
    others."""
    names = (*found.rests, NEURONS) if found.layer else found.rests
    scores = found.by_kind.tolist()
    terms = [
        [names[i], names[j], scores[i][j]]
        for i, j in product(range(len(names)), repeat=2)
        if (names[i], names[j]) != (NEURONS, NEURONS)
    ]
    terms.sort(key=lambda term: -abs(term[2]))
    return {
        "rests": [[*both, short(score)] for *both, score in terms[:RESTS]],
        "other_rests": [len(terms[RESTS:]), short(sum(term[2] for term in terms[RESTS:]))],
    }
