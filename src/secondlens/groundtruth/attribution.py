"""Contestants that say what a unit does to the output: ours and their rivals.

All answers are along the words of an exam, [images, words, units]. Formulas are written out here on
the activations p of a layer, their means m, the rows w that units write, and the gradient g of the
similarity's numerator at the residual stream after the block.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..effects.ablated_runs import indirect, resumed
from ..effects.all_paths import CLASSES, VALUE
from ..effects.finite_paths import moved_embeddings
from ..effects.value_paths import direct, second_order
from .contestants import Contestant
from .exam import LEAST_EFFECT, Exam
from .labelling import names_of_activations, names_of_all_paths, names_of_lens
from .maps import all_path_maps, attention_maps, gradient_maps, value_maps
from .wiring import correlations, patched_edges, path_edges

NODES = 4
"""Of integrated gradients."""
NODES_TRIED = (1, 2, 4, 8)
"""Of a unit's finite change, until less than `TOLERANCE` of it is missed."""
TOLERANCE = 0.01


def value_path() -> Contestant:
    """Second-order effects (Eq. 5 of arXiv 2406.04341)."""
    return Contestant(
        effects=_value_effects,
        classes=lambda exam: [CLASSES[VALUE]] * len(exam.units),
        names=names_of_lens,
        places=value_maps,
    )


def all_paths() -> Contestant:
    """Effects of the change from mean to activation, by seven classes of paths."""
    return Contestant(
        effects=lambda exam: finite_classes(exam).sum(-1),
        classes=_strongest_classes,
        names=names_of_all_paths,
        edges=path_edges,
        places=all_path_maps,
    )


def activation() -> Contestant:
    """How active a unit is, on average over tokens."""
    return Contestant(
        effects=partial(_activations, weights="equal"),
        names=names_of_activations,
        edges=correlations,
    )


def direct_effect() -> Contestant:
    """The logit lens on what units write to the class token."""
    return Contestant(effects=_direct_effects)


def zero_ablation() -> Contestant:
    """The indirect effect with zero, and not the mean, in place of the activation."""
    return Contestant(effects=_zero_ablated, edges=patched_edges)


def gradient_activation() -> Contestant:
    """Sum over tokens of p times <w, g>."""
    return Contestant(effects=partial(_by_gradient, baseline="zero"), places=gradient_maps)


def attribution_patching() -> Contestant:
    """Sum over tokens of (p - m) times <w, g> (Nanda 2023)."""
    return Contestant(effects=partial(_by_gradient, baseline="mean"))


def integrated_gradients() -> Contestant:
    """Sum over tokens of (p - m) times <w, g>, g averaged while the whole layer goes from m to p
    (Sundararajan et al. 2017)."""
    return Contestant(effects=_by_integrated_gradient)


def raw_attention() -> Contestant:
    """Activations weighted with the last block's attention from the class token."""
    return Contestant(effects=partial(_activations, weights="attention"), places=attention_maps)


def _value_effects(exam: Exam) -> Tensor:
    last = exam.clip.last_effect_layer

    def answer(layer: int, neurons: list[int]) -> Tensor:
        if layer > last:
            return exam.pixels.new_zeros(len(exam.pixels), len(exam.words), len(neurons))
        effects = second_order(exam.clip, exam.pixels, layer)[:, neurons]
        return torch.einsum("bnd,md->bmn", effects, exam.directions)

    return exam.of_units(answer)


def _direct_effects(exam: Exam) -> Tensor:
    def answer(layer: int, neurons: list[int]) -> Tensor:
        effects = direct(exam.clip, exam.pixels, layer)[:, neurons]
        return torch.einsum("bnd,md->bmn", effects, exam.directions)

    return exam.of_units(answer)


def _zero_ablated(exam: Exam) -> Tensor:
    def answer(layer: int, neurons: list[int]) -> Tensor:
        nothing = torch.zeros_like(exam.means[layer])
        effects = indirect(exam.clip, exam.pixels, layer, neurons, nothing)
        return torch.einsum("bnd,md->bmn", effects, exam.directions)

    return exam.of_units(answer)


def finite_classes(exam: Exam) -> Float[Tensor, "images words units classes"]:
    """What `sl.finite_paths` gives for every unit, computed forward, which costs the same for any
    number of words. Each unit has as many nodes as its own change needs, and what they miss is in
    no class."""
    if "classes" not in exam.kept:
        exam.kept["classes"] = exam.of_units(partial(_finite_classes, exam)).movedim(0, -1)
    found: Tensor = exam.kept["classes"]
    return found


def _finite_classes(exam: Exam, layer: int, neurons: list[int]) -> Tensor:
    stopped = exam.stopped[layer]
    by_unit = []
    for number in neurons:
        write = exam.write(stopped, number)
        total = exam.total(stopped, number)
        found = torch.zeros(len(write), len(CLASSES), exam.clip.dim).to(write)
        if total.abs().max() > LEAST_EFFECT:
            for nodes in NODES_TRIED:
                found = moved_embeddings(stopped, write, nodes)
                if (total - found.sum(1)).norm() <= TOLERANCE * total.norm():
                    break
        by_unit.append(torch.einsum("bcd,md->cbm", found, exam.directions))
    return torch.stack(by_unit, dim=-1)


def _strongest_classes(exam: Exam) -> list[str]:
    """By the spread over images along the word on which a unit's effect varies most."""
    effects = finite_classes(exam)
    words = effects.sum(-1).std(0).argmax(0)
    spread = effects.std(0)[words, torch.arange(len(words))]
    return [CLASSES[number] for number in spread.argmax(-1).tolist()]


def gradient_at(
    exam: Exam, layer: int, streams: Float[Tensor, "images tokens width"]
) -> Float[Tensor, "words images tokens width"]:
    """The gradient of <representation, word> over the representation's length (held as it is) with
    respect to the stream after a block, by automatic differentiation."""
    clip, stopped = exam.clip, exam.stopped[layer]
    length = stopped.representation.norm(dim=-1)
    found = []
    with torch.enable_grad():
        streams = streams.detach().requires_grad_()
        blank = streams.new_zeros(1, 3, *clip.image_size)
        with resumed(clip, layer, streams):
            similarity = clip.image_tower(blank) @ exam.directions.T / length[:, None]
        for number in range(len(exam.words)):
            (gradient,) = torch.autograd.grad(
                similarity[:, number].sum(), streams, retain_graph=True
            )
            found.append(gradient)
    return torch.stack(found)


def _by_gradient(exam: Exam, baseline: str) -> Tensor:
    def answer(layer: int, neurons: list[int]) -> Tensor:
        moved = exam.stopped[layer].activation if baseline == "zero" else exam.change(layer)
        worth = exam.worths[layer][..., neurons]
        return torch.einsum("mbtn,btn->bmn", worth, moved[:, :, neurons])

    return exam.of_units(answer)


def _by_integrated_gradient(exam: Exam) -> Tensor:
    places, weights = np.polynomial.legendre.leggauss(NODES)

    def answer(layer: int, neurons: list[int]) -> Tensor:
        stopped, change = exam.stopped[layer], exam.change(layer)
        write = change @ stopped.rows
        found = exam.pixels.new_zeros(len(exam.pixels), len(exam.words), len(neurons))
        for place, weight in zip((1 + places) / 2, weights / 2, strict=True):
            streams = stopped.stream - (1 - place) * write
            worth = gradient_at(exam, layer, streams) @ stopped.rows[neurons].T
            found += weight * torch.einsum("mbtn,btn->bmn", worth, change[:, :, neurons])
        return found

    return exam.of_units(answer)


def _activations(exam: Exam, weights: str) -> Tensor:
    attention = exam.linearised.blocks[exam.clip.layers - 1].attention[:, :, 0].mean(1)
    if weights == "equal":
        attention = torch.full_like(attention, 1 / attention.shape[1])

    def answer(layer: int, neurons: list[int]) -> Tensor:
        pooled = torch.einsum("bt,btn->bn", attention, exam.stopped[layer].activation)
        return pooled[:, None, neurons].expand(-1, len(exam.words), -1)

    return exam.of_units(answer)
