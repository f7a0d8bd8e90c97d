"""The ways to select words that are compared: the paper's, and the baselines, all on one pool."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ablate.reference import Indirect
from ..clip.view import Clip
from ..errors import SecondLensError
from ..images import ImageSource, Reader
from ..lens import Codes, Lens
from ..sparse import omp
from ..texts import Vocabulary, normalise
from .select import NEURONS, Neurons, RandomWords, Selector, SimilarWords

METHODS = ("second order", "random neurons", "similar words", "random words")
"""What `selector` makes; `indirect` makes one more, which needs pictures and time."""

INDIRECT = "indirect effect"

BATCH_SIZE = 16

Coded = dict[int, tuple[Int[Tensor, "neurons k"], Float[Tensor, "neurons k"]]]
"""Positions of words, and their coefficients, for every neuron, by layer."""


def codes_of(codes: Codes, layers: Sequence[int], *, whole: bool = False) -> Coded:
    """The brief codes of a description, or its whole ones, as the paper takes them.

    A brief code holds the few texts that say most of a direction. The other texts of a whole one
    make up for the errors of the first, with weights of either sign that add noise to the sum of
    Eq. 6: with as many texts as the embedding is wide, any direction is rebuilt from any words.
    """
    weights = codes.coefficients if whole else codes.brief
    return {
        layer: (codes.indices[layer][:, : weights[layer].shape[1]], weights[layer])
        for layer in layers
    }


def selector(
    name: str,
    clip: Clip,
    lens: Lens,
    texts: Vocabulary,
    codes: Codes,
    *,
    layers: Sequence[int] | None = None,
    neurons: int = NEURONS,
    whole_codes: bool = False,
    seed: int = 0,
) -> Selector:
    """A method by name; see `METHODS`.

    Parameters
    ----------
    codes
        Of the lens, with the words of `texts`.
    layers
        To take neurons from; by default all that are fitted.
    neurons, whole_codes
        See `Neurons` and `codes_of`.
    seed
        Of what is chosen by chance.

    Raises
    ------
    SecondLensError
        No such method, or a layer that was not fitted.
    """
    if name == "similar words":
        return SimilarWords(texts.labels, texts.embed(clip))
    if name == "random words":
        return RandomWords(texts.labels, seed)
    if name not in METHODS:
        raise SecondLensError(f"no method {name!r}: choose one of {', '.join(METHODS)}")
    chosen = lens.layers if layers is None else list(layers)
    return Neurons(
        {layer: lens[layer].directions for layer in chosen},
        codes.labels,
        codes_of(codes, chosen, whole=whole_codes),
        name=name,
        count=neurons,
        random=seed if name == "random neurons" else None,
    )


@torch.no_grad()
def indirect(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    texts: Vocabulary,
    codes: Codes,
    *,
    layers: Sequence[int] | None = None,
    neurons: int = NEURONS,
    whole_codes: bool = False,
) -> Neurons:
    """The same as `selector` makes, with first principal components of indirect effects.

    The network runs on from each layer once for every neuron and picture of `source`;
    `indirect_seconds` of `secondlens.effects.indirect` tells how long one of these takes.
    """
    reader = Reader(source=source, clip=clip, batch_size=BATCH_SIZE)
    batches = [batch.pixels for batch in reader]
    everyone, directions, coded = list(range(clip.neurons)), {}, {}
    atoms = normalise(texts.embed(clip), codes.normalise)
    for layer in lens.layers if layers is None else layers:
        effects = Indirect(clip, layer, everyone, batches, lens[layer].activation_mean)
        directions[layer] = effects.fitted.directions
        like = codes.coefficients if whole_codes else codes.brief
        coded[layer] = omp(directions[layer], atoms.to(directions[layer]), like[layer].shape[1])
    return Neurons(directions, codes.labels, coded, name=INDIRECT, count=neurons)
