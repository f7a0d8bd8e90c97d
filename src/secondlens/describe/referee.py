"""Who judges descriptions: true labels of the images, or another CLIP."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..clip.view import Clip
from ..effects.projections import embed
from ..errors import SecondLensError
from ..images import ImageSource
from ..texts import Vocabulary, normalise


@dataclass(frozen=True, kw_only=True, eq=False)
class Referee:
    """Says how well words match images: `images[b] . words[t]`."""

    name: str
    images: Float[Tensor, "images features"]
    words: Float[Tensor, "texts features"]


def model_as_referee(
    referee: Clip, clip: Clip, texts: Vocabulary, source: ImageSource, batch_size: int, workers: int
) -> Referee:
    """The cosine of a CLIP's embeddings, its mean text subtracted. `clip` is what is explained."""
    name = referee.name
    if referee.weights_hash == clip.weights_hash:
        name += " itself, without the neuron's own effect"
    rows = embed(referee, source, batch_size=batch_size, workers=workers)
    return Referee(name=name, images=rows, words=normalise(texts.embed(referee), "centred"))


def labels_as_referee(
    labels: Sequence[Collection[str]],
    clip: Clip,
    texts: Vocabulary,
    source: ImageSource,
    related: Clip | None,
) -> Referee:
    """The texts that are true of each image, with credit for `related` ones if a CLIP says how
    much; it must not be `clip`, which is explained.

    Raises
    ------
    SecondLensError
        Labels that do not fit the images, or the explained model to say what is related.
    """
    if len(labels) != len(source.ids):
        raise SecondLensError(
            f"there are {len(source.ids)} images and labels of {len(labels)}: give those of each"
        )
    if any(isinstance(true, str) for true in labels):
        raise SecondLensError(
            "labels are texts, not sets of texts: give a set of texts for each image"
        )
    held = torch.tensor([[text in true for text in texts.labels] for true in labels]).float()
    if related is None:
        return Referee(name="true labels", images=held, words=torch.eye(len(texts)))
    if related.weights_hash == clip.weights_hash:
        raise SecondLensError(
            "the explained model cannot say which words are related: give another one"
        )
    rows = normalise(texts.embed(related), "centred").float()
    name = f"true labels, related words by {related.name}"
    return Referee(name=name, images=held @ rows, words=rows)
