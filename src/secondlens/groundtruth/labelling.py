"""Contestants that say what a unit responds to. All of them know the true labels of the pictures
they learn from, so that what is compared is the rule, and not who judges pictures."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.vocabularies import Vocabulary
from ..errors import SecondLensWarning
from ..words.dissection import soft_wpmi
from ..words.judging import by_labels
from ..words.naming import NameSearch, name
from .contestants import Claim, Contestant
from .exam import LEAST_EFFECT, Exam

TOP = 10
"""Pictures that count as a unit's strongest."""
STRONG = 0.005
"""Share of patches on which a unit is strong, as published with Network Dissection."""
OVERLAP = 0.04
"""Intersection over union from which on a unit has a label, as published."""
QUIET = 0.01
"""Share of the network's largest spread of effects below which a unit has none in total."""
SURE, UNSURE = 0.9, 0.1
"""What is left to labels a picture has and has not, shared among them, as p(t | x)."""


def vocabulary(exam: Exam) -> Vocabulary:
    """All features of the pictures, known to the network or not."""
    features = exam.naming.features
    return Vocabulary(name="features", labels=features, prompts=tuple((f,) for f in features))


def names_of_lens(exam: Exam) -> list[list[Claim]]:
    """Our names, as `sl.name` gives them for the lens: of effects on value paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecondLensWarning)
        found = name(exam.clip, exam.lens, exam.naming, vocabulary(exam), exam.naming.labels)
    claims = []
    for unit in exam.units:
        layer, number = exam.program.numbers[unit.name]
        names = found.of(layer, number) if layer in exam.lens.layers else []
        claims.append([Claim(feature=each.text, evidence=each.auc) for each in names])
    return claims


def names_of_all_paths(exam: Exam) -> list[list[Claim]]:
    """The same search on effects by all paths together, along the word where they vary most, with
    the sign that most of the largest have, as in a lens. Units that do next to nothing in total
    have no effect to name."""

    def effects(layer: int, neurons: list[int]) -> Tensor:
        found = []
        for number in neurons:
            along = exam.total(exam.named[layer], number) @ exam.directions.T
            along = along[:, along.std(0).argmax()]
            moved = along - along.mean()
            strongest = moved.abs().topk(TOP).indices
            found.append(along * moved[strongest].sign().sum().sign())
        return torch.stack(found, dim=1)

    return searched(exam, effects, least=QUIET)


def names_by_both(exam: Exam) -> list[list[Claim]]:
    """Names of value-path effects, and those of activations that are not among them."""
    found = []
    for own, more in zip(names_of_lens(exam), names_of_activations(exam), strict=True):
        known = {claim.feature for claim in own}
        found.append([*own, *(claim for claim in more if claim.feature not in known)])
    return found


def names_of_activations(exam: Exam) -> list[list[Claim]]:
    """The same search on activations, the mean over tokens."""
    return searched(exam, partial(mean_activations, exam))


def searched(
    exam: Exam, effects: Callable[[int, list[int]], Tensor], least: float = 0.0
) -> list[list[Claim]]:
    """Names of what `effects` [images, units of the layer] gives for each layer; none for units
    whose effects vary less than a share `least` of the network's largest."""
    words = vocabulary(exam)
    holdings = by_labels(exam.naming.labels, words, list(range(len(exam.naming))))
    search = NameSearch(holdings, len(words), exam.seed)
    counts = {layer: len(exam.program.of_layer(layer)) for layer in range(exam.program.layers)}
    by_layer = {layer: effects(layer, list(range(n))).T for layer, n in counts.items() if n}
    bar = max(LEAST_EFFECT, least * max(float(each.std(dim=1).max()) for each in by_layer.values()))

    def of_layer(layer: int) -> Float[Tensor, "neurons images"]:
        own = by_layer[layer]
        # rounding ranks as well as any effect, and is none
        return own.masked_fill(own.std(dim=1, keepdim=True) < bar, 0).contiguous()

    found, _ = search(of_layer, list(by_layer), "names", False)
    claims: list[list[Claim]] = []
    for unit in exam.units:
        layer, number = exam.program.numbers[unit.name]
        own = [each for each in found[layer] if each.neuron == number]
        claims.append([Claim(feature=words.labels[n.text], evidence=n.auc) for n in own])
    return claims


def activations(exam: Exam, layer: int, neurons: list[int]) -> Float[Tensor, "images tokens some"]:
    """Of the pictures to name on."""
    return exam.named[layer].activation[:, :, neurons]


def mean_activations(exam: Exam, layer: int, neurons: list[int]) -> Float[Tensor, "images some"]:
    """Over tokens."""
    return activations(exam, layer, neurons).mean(1)


def effect_or_activation() -> Contestant:
    """Names that pass our test on value-path effects or on activations."""
    return Contestant(names=names_by_both)


def clip_dissect() -> Contestant:
    """The one label with the largest SoftWPMI (arXiv 2204.10965), by true labels."""
    return Contestant(names=_dissected)


def network_dissection() -> Contestant:
    """The one label whose patches overlap most with a unit's strongest (arXiv 1704.05796)."""
    return Contestant(names=_overlapping)


def top_pictures() -> Contestant:
    """The commonest label of the ten strongest pictures, by how much commoner it is."""
    return Contestant(names=_common)


def _dissected(exam: Exam) -> list[list[Claim]]:
    held = exam.naming.held.double()
    count = held.sum(1, keepdim=True)
    given = torch.where(
        held > 0, SURE / count.clamp(min=1), UNSURE / (held.shape[1] - count).clamp(min=1)
    )
    pooled = exam.of_units(partial(mean_activations, exam)).T
    score = soft_wpmi(given.log(), pooled.topk(TOP, dim=1).indices)
    best = score.topk(2, dim=1).values
    return [
        [Claim(feature=exam.naming.features[label], evidence=float(margin))]
        for label, margin in zip(score.argmax(1).tolist(), best[:, 0] - best[:, 1], strict=True)
    ]


def _overlapping(exam: Exam) -> list[list[Claim]]:
    patches = exam.of_units(lambda layer, own: activations(exam, layer, own)[:, 1:])
    flat = patches.flatten(0, 1)
    bar = flat.quantile(1 - STRONG, dim=0)
    strong = (flat >= bar) & (flat > flat.amin(0))
    labels = torch.stack([exam.naming.has(each).flatten() for each in exam.naming.features], 1)
    both = strong.double().T @ labels.double()
    overlap = both / (strong.sum(0)[:, None] + labels.sum(0) - both).clamp(min=1)
    best = overlap.max(1)
    return [
        [Claim(feature=exam.naming.features[label], evidence=value)] if value > OVERLAP else []
        for value, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _common(exam: Exam) -> list[list[Claim]]:
    pooled = exam.of_units(partial(mean_activations, exam)).T
    held = exam.naming.held.double()
    more = held[pooled.topk(TOP, dim=1).indices].mean(1) - held.mean(0)
    best = more.max(1)
    return [
        [Claim(feature=exam.naming.features[label], evidence=value)]
        for value, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
