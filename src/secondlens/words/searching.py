"""Find neurons: those whose direction a text points along, and those that resemble a neuron.

Every direction of every fitted layer is compared, so that nothing is missed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..data.embedding import embed_texts
from ..devices import undisturbed
from ..errors import SecondLensError
from ..lens.layer import NeuronId
from ..lens.lens import Lens
from ..models.view import Clip
from .describing import description_of


@dataclass(frozen=True, kw_only=True)
class Match(NeuronId):
    """A neuron that was found."""

    cosine: float
    """Below zero if the neuron's direction points away from what was searched for."""


@checked
@undisturbed
def search(
    clip: Clip, lens: Lens, text: str, top: int = 20, *, description: str | None = None
) -> list[Match]:
    """The neurons whose directions point most along a text, or most against it.

    Compared is the text's unit embedding less the mean embedding of the texts that the lens was
    described with. Without that, the part that all texts share would rank neurons alike for every
    text.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        Where to search: all fitted layers. It must have been described, once, with any texts.
    text
        What to search for.
    top
        Neurons to find, at most.
    description
        The name of the vocabulary whose mean is subtracted; by default the first in the lens.

    Returns
    -------
    matches
        By absolute cosine, the largest first; ties by layer and neuron.

    Raises
    ------
    SecondLensError
        Another model's lens, no text or one longer than the model's context, no such description,
        or `top` below 1.
    """
    lens.check_model(clip)
    query = text_direction(clip, lens, text, description)
    return strongest(_directions(lens), query, top)


def text_direction(
    clip: Clip, lens: Lens, text: str, description: str | None = None
) -> Float[Tensor, " dim"]:
    """A text's unit embedding less what all texts of a description share, of unit length.

    Raises
    ------
    SecondLensError
        As `search`.
    """
    mean_text = description_of(lens, description).mean_text
    if mean_text is None:
        raise SecondLensError(
            "this lens was described by an older version, without the mean text: describe it again"
        )
    return F.normalize(embed_texts(clip, text)[0].to(mean_text) - mean_text, dim=0)


@checked
@undisturbed
def similar(lens: Lens, layer: int, neuron: int, top: int = 20) -> list[Match]:
    """The neurons whose directions point most along that of a neuron, or most against it.

    The order and the errors are those of `search`; the neuron itself is left out.

    Raises
    ------
    SecondLensError
        The lens lacks the layer or the neuron, or `top` is below 1.
    """
    directions = lens[layer].directions
    if not 0 <= neuron < len(directions):
        raise SecondLensError(
            f"layer {layer} has no neuron {neuron}: choose one of 0 to {len(directions) - 1}"
        )
    # it comes first or, among equal directions, after others: one more than wanted is enough
    found = strongest(_directions(lens), directions[neuron], top + 1 if top > 0 else top)
    return [match for match in found if (match.layer, match.neuron) != (layer, neuron)][:top]


@torch.no_grad()
def strongest(
    directions: Mapping[int, Float[Tensor, "neurons dim"]], query: Float[Tensor, " dim"], top: int
) -> list[Match]:
    """The rows of each layer that have the largest absolute cosine with a query, all unit vectors.

    The order is that of `search`.

    Raises
    ------
    SecondLensError
        `top` is below 1.
    """
    if top < 1:
        raise SecondLensError(f"at least 1 neuron must be asked for, and top is {top}")
    matches = []
    for layer, rows in sorted(directions.items()):
        cosines = rows @ query.to(rows)
        sizes = cosines.abs()
        # which of equal values topk gives is not defined
        least = sizes.topk(min(top, len(rows))).values[-1]
        for neuron in (sizes >= least).nonzero()[:, 0].tolist():
            matches.append(Match(layer=layer, neuron=neuron, cosine=float(cosines[neuron])))
    return sorted(matches, key=lambda match: -abs(match.cosine))[:top]


def _directions(lens: Lens) -> dict[int, Tensor]:
    return {layer: lens[layer].directions for layer in lens.layers}
