"""Effects of active neurons as a few words, in our form and in the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..lens import Lens
from ..sparse import omp

RIDGE = 0.3
"""Added to every direction of the neurons' metric, in its mean eigenvalue, so that directions in
which there are hardly any neurons do not count without limit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Code:
    """Words, and how their weights follow from effects."""

    indices: Int[Tensor, " words"]
    weights: Float[Tensor, " words"]
    functionals: dict[int, Float[Tensor, "active words dim"]]
    """By layer: a neuron adds <its effect - the mean effect, functional> to a word's weight."""


def code_of_sum(
    effects: Mapping[int, Float[Tensor, "active dim"]],
    directions: Mapping[int, Float[Tensor, "active dim"]],
    atoms: Float[Tensor, "texts dim"],
    scale: Float[Tensor, "dim dim"],
    top: int,
) -> Code:
    """One non-negative sparse code of the sum of the effects, each on its own direction.

    Parameters
    ----------
    effects, directions
        Of the active neurons, by layer.
    atoms
        Texts as the metric sees them, unit rows.
    scale
        The metric.
    top
        Words, at most.
    """
    sums = [(own * directions[layer]).sum(1) @ directions[layer] for layer, own in effects.items()]
    total = torch.stack(sums).sum(0) @ scale
    indices, weights = omp(total[None], atoms, top, nonnegative=True)
    order = weights[0].argsort(descending=True, stable=True)
    order = order[weights[0][order] > 0]
    indices = indices[0][order]
    chosen = atoms[indices].double()
    # the code is the least-squares one on its atoms, which is linear in the sum
    duals = torch.linalg.solve(chosen @ chosen.T, chosen).to(scale) @ scale
    return Code(
        indices=indices,
        weights=weights[0][order],
        functionals={
            layer: (rows @ duals.T)[:, :, None] * rows[:, None]
            for layer, rows in directions.items()
        },
    )


def sum_of_codes(
    effects: Mapping[int, Float[Tensor, "active dim"]],
    rows: Mapping[int, Float[Tensor, "active texts"]],
    top: int,
) -> Code:
    """The paper's: w_j = sum over active neurons of code[n, j] * norm of the effect (A.5).

    Parameters
    ----------
    effects, rows
        Of the active neurons, by layer: effects, and codes with an entry for each text.
    top
        Words, at most.
    """
    total = torch.stack([own.norm(dim=1) @ rows[layer] for layer, own in effects.items()]).sum(0)
    weights, indices = total.topk(top)
    indices, weights = indices[weights > 0], weights[weights > 0]
    return Code(
        indices=indices,
        weights=weights,
        functionals={
            layer: rows[layer][:, indices, None] * F.normalize(own, dim=1)[:, None]
            for layer, own in effects.items()
        },
    )


def metric(lens: Lens) -> Float[Tensor, "dim dim"]:
    """The symmetric W whose length |x W| is that of x as the neurons of a lens see it.

    W^-2 is the mean of r r^T over all directions r, in units of its mean eigenvalue, plus `RIDGE`.
    |x W| is small for what many neurons can write together, and large for what few can.
    """
    directions = torch.cat([lens[layer].directions for layer in lens.layers]).double()
    moment = directions.T @ directions
    values, vectors = torch.linalg.eigh(moment / moment.trace() * len(moment))
    scale: Tensor = vectors * (values.clamp(min=0) + RIDGE).rsqrt() @ vectors.T
    return scale.to(lens[lens.layers[0]].directions)
