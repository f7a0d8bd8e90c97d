"""Neurons in words: sparse signed texts for directions (section 4 of arXiv 2406.04341)."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .errors import SecondLensError
from .lens import Codes, Lens
from .sparse import omp
from .texts import Vocabulary, normalise, vocabulary
from .view import Clip


def describe(
    clip: Clip,
    lens: Lens,
    texts: "str | Path | Iterable[str] | Vocabulary",
    k: int = 128,
    *,
    how: str = "centred",
) -> Codes:
    """Write each neuron's direction as a signed sum of `k` texts, by orthogonal matching pursuit.

    The codes are also put into the lens, under the name of the vocabulary.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        What to describe: all fitted layers.
    texts
        A text file (one text a line), texts, or a `Vocabulary`.
    k
        Texts a neuron; at most the number of texts and `clip.dim`.
    how
        `texts.normalise`: "unit", "centred" or "official".

    Raises
    ------
    SecondLensError
        Another model's lens, `k` out of range, no such normalisation or file.
    """
    lens.check_model(clip)
    words = vocabulary(texts)
    if not 1 <= k <= min(len(words), clip.dim):
        raise SecondLensError(
            f"k must lie between 1 and {min(len(words), clip.dim)}, the smaller of the number of "
            f"texts ({len(words)}) and the width of the embedding ({clip.dim}), and it is {k}"
        )
    atoms = normalise(words.embed(clip), how).to(lens[lens.layers[0]].directions)
    indices, coefficients, cosine = {}, {}, {}
    for layer in lens.layers:
        targets = lens[layer].directions
        indices[layer], coefficients[layer] = omp(targets, atoms, k)
        rebuilt = rebuild(indices[layer], coefficients[layer], atoms)
        cosine[layer] = F.cosine_similarity(rebuilt, targets, dim=1)
    codes = Codes(
        labels=words.labels,
        normalise=how,
        indices=indices,
        coefficients=coefficients,
        cosine=cosine,
    )
    lens.codes[words.name] = codes
    return codes


def rebuild(
    indices: Tensor, coefficients: Tensor, atoms: Float[Tensor, "texts dim"]
) -> Float[Tensor, "neurons dim"]:
    """The signed sums of texts that codes stand for."""
    chosen = atoms[indices.clamp(min=0)]
    return torch.bmm(coefficients[:, None], chosen)[:, 0]
