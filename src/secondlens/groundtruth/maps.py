"""Contestants that say where a word is: heat-maps for `Program.places`."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..applications.segmentation.baselines import baselines
from ..applications.segmentation.heat_maps import on_grid
from ..applications.segmentation.segmenter import Recipe, Segmenter, encode
from .contestants import Contestant
from .exam import Exam

Maps = Float[Tensor, "images places rows columns"]


def rollout_maps() -> Contestant:
    """Attention rollout (Abnar and Zuidema 2020)."""
    return Contestant(places=_baseline("Rollout"))


def grad_cam_maps() -> Contestant:
    """Grad-CAM on the last block's attention (Selvaraju et al. 2017)."""
    return Contestant(places=_baseline("GradCAM"))


def similarity_maps() -> Contestant:
    """Cosines of patches with the text."""
    return Contestant(places=_baseline("Patch similarity"))


def rows_of_places(exam: Exam) -> Float[Tensor, "places dim"]:
    """Text embeddings of the words whose places are asked for."""
    return exam.clip.encode_text(list(exam.program.places))


def _baseline(name: str) -> Callable[[Exam], Maps]:
    def places(exam: Exam) -> Maps:
        count = len(exam.pixels)
        found = [
            baselines[name](exam.clip, exam.pixels, row.expand(count, -1))
            for row in rows_of_places(exam)
        ]
        return torch.stack([each.detach() for each in found], dim=1)

    return places


attention_maps = _baseline("Raw attention")


def value_maps(exam: Exam) -> Maps:
    """Effects on value paths at each patch, summed over all neurons of the lens."""
    layers = tuple(exam.lens.layers)
    recipe = Recipe(layers=layers, share=1.0, weigh="effect", scale="none")
    segmenter = Segmenter(exam.clip, exam.lens, recipe)
    rows = rows_of_places(exam).expand(len(exam.pixels), -1, -1)
    return segmenter.heat_maps(encode(exam.clip, exam.pixels, layers), rows)


def all_path_maps(exam: Exam) -> Maps:
    """Effects by all paths of changes from the means at each patch, summed over all neurons."""
    return _summed(exam, exam.change)


def gradient_maps(exam: Exam) -> Maps:
    """Gradient times activation at each patch, summed over all neurons."""
    return _summed(exam, lambda layer: exam.stopped[layer].activation)


def _summed(exam: Exam, moved: Callable[[int], Tensor]) -> Maps:
    numbers = [exam.words.index(word) for word in exam.program.places]
    total = sum(
        torch.einsum("mbtn,btn->bmt", worth[numbers, :, 1:], moved(layer)[:, 1:])
        for layer, worth in exam.worths.items()
    )
    assert isinstance(total, Tensor)
    return on_grid(total, exam.clip.grid)
