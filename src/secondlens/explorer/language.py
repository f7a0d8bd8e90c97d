"""The text side of the explorer: codes of every size, and what neurons do to class scores."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.embedding import normalise
from ..effects.value_paths import NEURONS_PER_CHUNK, chunks
from ..lens.lens import Lens
from ..models.view import Clip
from ..progress import tracked
from ..words.describing import texts_of
from . import records


def triangles(
    clip: Clip, lens: Lens, name: str, *, progress: bool = False
) -> dict[int, Float[np.ndarray, "neurons numbers"]]:
    """Codes of every size up to `records.SIZES` at once: with texts a_1, a_2, ... in the order of
    the pursuit as the columns of A = Q R, the code of the first m solves R_m c = (Q^T r)_m, and its
    cosine with the direction r is the norm of (Q^T r)_m.

    Returns
    -------
    By layer: Q^T r, [size], then the upper triangle of R, row by row.
    """
    codes = lens.codes[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # describe has told of prompts that were cut
        rows = texts_of(name, codes.labels).embed(clip, progress=progress)
    atoms, found = normalise(rows, codes.normalise).cpu(), {}
    for layer in tracked(lens.layers, "words", progress):
        texts = codes.indices[layer][:, : records.SIZES].clamp(min=0)
        size = texts.shape[1]
        upper = torch.triu_indices(size, size)
        directions = lens[layer].directions.double()
        numbers = torch.empty(len(texts), size + upper.shape[1])
        for some in chunks(len(texts), NEURONS_PER_CHUNK):
            q, r = torch.linalg.qr(atoms[texts[some]].mT.double())
            along = torch.bmm(directions[some, None], q)[:, 0]
            numbers[some] = torch.cat([along, r[:, upper[0], upper[1]]], dim=1).float()
        found[layer] = numbers.numpy()
    return found


def class_changes(
    directions: Float[Tensor, "neurons dim"],
    texts: Float[Tensor, "texts dim"],
    effect: Float[np.ndarray, " neurons"],
) -> tuple[Int[np.ndarray, "neurons classes"], Float[np.ndarray, "neurons classes"]]:
    """The texts whose cosine with an image changes most when a neuron is ablated, and by how much.

    Ablating puts the mean in place of the effect: in the rank-one form x r + b (section 3 of arXiv
    2406.04341), a text's cosine changes by -x <r, text>. What all texts share changes no decision
    and is left out.

    Parameters
    ----------
    effect
        x, of each neuron.
    """
    products = directions @ (texts - texts.mean(0)).T.to(directions)
    change = -torch.from_numpy(np.nan_to_num(effect)).to(products)[:, None] * products
    half = min(records.CLASSES, len(texts)) // 2
    down = change.topk(half, dim=1, largest=False).indices
    up = change.topk(half, dim=1).indices.flip(1)
    classes = torch.cat([down, up], dim=1)
    return classes.int().numpy(), change.gather(1, classes).float().numpy()
