"""Contestants that say which unit acts on which, [units, units] from rows to columns."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..effects.ablated_runs import resumed
from ..models.view import hooked
from .contestants import Contestant
from .exam import Exam


def virtual_weights() -> Contestant:
    """What one unit's row is to another's input weights, straight and through values."""
    return Contestant(edges=_weights)


def path_edges(exam: Exam) -> Float[Tensor, "units units"]:
    """How much of a unit's effect by class M goes through each later unit.

    E_nm = sum over tokens of u_tm <what n writes and values carry to t, w_m>, with
    u = gelu'(m) * (worth of m) / sigma. Its root mean square over pictures, for the word where
    that is largest.
    """
    tower = exam.linearised
    edges = torch.zeros(len(exam.units), len(exam.units), dtype=torch.float64)
    for layer, own in _layers(exam):
        rows = tower.clip.blocks[layer].neuron_rows[own]
        stream = exam.change(layer)[:, :, own, None] * rows
        for later in range(layer + 1, exam.clip.layers):
            block = tower.blocks[later]
            stream = stream + block.value(block.norm_1.linear(stream))
            read = block.norm_2.linear(stream) @ block.neuron_inputs.T * block.slope[:, :, None]
            for word in range(len(exam.words)):
                found = (read * exam.worths[later][word][:, :, None]).sum(1)
                _raise_to(edges, exam, layer, own, later, found.square().mean(0).sqrt())
    return edges


def _weights(exam: Exam) -> Float[Tensor, "units units"]:
    clip = exam.clip
    edges = torch.zeros(len(exam.units), len(exam.units), dtype=torch.float64)
    for layer, own in _layers(exam):
        rows = clip.blocks[layer].neuron_rows[own]
        rows = rows - rows.mean(1, keepdim=True)
        carried = [rows]
        for later in range(layer + 1, clip.layers):
            block = exam.linearised.blocks[later]
            for head in range(clip.heads):
                value, output = block.block.value[head], block.block.output[head]
                carried.append((rows * block.norm_1.gain) @ value.T @ output)
            for each in carried:
                read = (each * block.norm_2.gain) @ block.neuron_inputs.T
                _raise_to(edges, exam, layer, own, later, read.abs())
    return edges


def correlations(exam: Exam) -> Float[Tensor, "units units"]:
    """Of mean activations over pictures, from earlier layers to later ones."""
    pooled = exam.of_units(lambda layer, own: exam.stopped[layer].activation.mean(1)[:, own])
    centred = pooled - pooled.mean(0)
    length = centred.norm(dim=0)
    # what varies by rounding alone does not vary
    unit = torch.where(length > 1e-6, centred / length.clamp(min=1e-6), 0)
    return _later_only(exam, (unit.T @ unit).abs())


def patched_edges(exam: Exam) -> Float[Tensor, "units units"]:
    """How much each later activation moves when a unit is held at zero, over its own spread."""
    clip = exam.clip
    edges = torch.zeros(len(exam.units), len(exam.units), dtype=torch.float64)
    for layer, own in _layers(exam):
        stopped = exam.stopped[layer]
        for number in own:
            write = stopped.activation[:, :, number, None] * stopped.rows[number]
            seen: dict[int, Tensor] = {}
            with resumed(clip, layer, stopped.stream - write), hooked(_watched(exam, layer, seen)):
                clip.image_tower(torch.zeros_like(exam.pixels[:1]))
            for later, activation in seen.items():
                base = exam.stopped[later].activation
                spread = base.flatten(0, 1).std(0).clamp(min=1e-6)
                moved = (activation - base).square().mean((0, 1)).sqrt() / spread
                _raise_to(edges, exam, layer, [number], later, moved[None])
    return edges


def _watched(
    exam: Exam, layer: int, seen: dict[int, Tensor]
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    for later in range(layer + 1, exam.clip.layers):

        def see(module: nn.Module, inputs: object, output: Tensor, later: int = later) -> None:
            seen[later] = exam.clip.batch_major(output)

        yield exam.clip.blocks[later].activation, see


def _layers(exam: Exam) -> Iterator[tuple[int, list[int]]]:
    """Layers with units, and their numbers."""
    for layer in range(exam.program.layers):
        if own := list(range(len(exam.program.of_layer(layer)))):
            yield layer, own


def _raise_to(
    edges: Tensor, exam: Exam, layer: int, own: list[int], later: int, found: Tensor
) -> None:
    """Put strengths [own, neurons] between units of two layers where they are above what is
    there."""
    to = [exam.units.index(unit) for unit in exam.program.of_layer(later)]
    if not to:
        return
    of_layer = exam.program.of_layer(layer)
    place = [exam.units.index(of_layer[number]) for number in own]
    grid = torch.tensor(place)[:, None], torch.tensor(to)
    edges[grid] = torch.maximum(edges[grid], found[:, : len(to)].to(edges))


def _later_only(exam: Exam, edges: Tensor) -> Tensor:
    layers = torch.tensor([unit.layer for unit in exam.units])
    return edges * (layers[:, None] < layers)
