"""Bounds on every score: a contestant that knows nothing, and one that looks at the truth."""

import torch
from torch import Tensor

from ..effects.all_paths import CLASSES
from .contestants import Claim, Contestant
from .exam import Exam
from .pictures import GRID


def random() -> Contestant:
    """Random answers of the right kind, the same for the same seed."""
    return Contestant(
        effects=lambda exam: _noise(exam, len(exam.pixels), len(exam.words), len(exam.units)),
        classes=_random_classes,
        names=_random_names,
        edges=lambda exam: _noise(exam, len(exam.units), len(exam.units)),
        places=lambda exam: _noise(exam, len(exam.pixels), len(exam.program.places), GRID, GRID),
        by_truth=True,
    )


def oracle() -> Contestant:
    """The truth itself."""
    return Contestant(
        effects=lambda exam: exam.ablated,
        classes=lambda exam: [unit.acts or "" for unit in exam.units],
        names=lambda exam: [
            [Claim(feature=each, evidence=1.0) for each in sorted(features)]
            for features in exam.planted
        ],
        edges=true_edges,
        places=true_places,
        by_truth=True,
    )


def true_edges(exam: Exam) -> Tensor:
    """1 for each edge of the program."""
    names = [unit.name for unit in exam.units]
    found = torch.zeros(len(names), len(names), dtype=torch.float64)
    for first, second in exam.program.edges:
        found[names.index(first), names.index(second)] = 1
    return found


def true_places(exam: Exam) -> Tensor:
    """1 where the feature of each place is."""
    where = [exam.testing.has(feature) for feature in exam.program.places.values()]
    there: Tensor = torch.stack(where, dim=1).double().unflatten(2, (GRID, GRID))
    return there


def _generator(exam: Exam) -> torch.Generator:
    return torch.Generator().manual_seed(exam.seed + sum(map(ord, exam.program.name)))


def _noise(exam: Exam, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(exam))


def _random_classes(exam: Exam) -> list[str]:
    chosen = torch.randint(len(CLASSES), (len(exam.units),), generator=_generator(exam))
    return [CLASSES[number] for number in chosen.tolist()]


def _random_names(exam: Exam) -> list[list[Claim]]:
    features = exam.naming.features
    generator = _generator(exam)
    chosen = torch.randint(len(features), (len(exam.units),), generator=generator)
    evidence = torch.rand(len(exam.units), generator=generator)
    return [
        [Claim(feature=features[number], evidence=value)]
        for number, value in zip(chosen.tolist(), evidence.tolist(), strict=True)
    ]
