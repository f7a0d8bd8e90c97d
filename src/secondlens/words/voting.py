"""The words that the tokens of an image speak for.

With c[t] what token t sends and a[w] the unit text embedding of a word around the mean of all,

    weight[w] = sum over tokens t of  share[t,w] * <c[t], a[w]>
    share[t,.] = softmax over words of  cos(c[t], a[w]) / (WARMTH * their standard deviation)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

WARMTH = 0.35
"""How evenly a token votes, in standard deviations of its cosines with the words. From 0.15 to 0.5
the embedded world's words hardly change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes:
    """The heaviest words of an image, heaviest first, and which tokens speak for them."""

    indices: Int[Tensor, " words"]
    weights: Float[Tensor, " words"]
    shares: Float[Tensor, "words tokens"]
    """Of each token's vote; over all words, not only these, they add up to 1."""
    tokens: Float[Tensor, "words tokens"]
    """What each token adds to a weight."""

    def of(self, places: Sequence[int]) -> "Votes":
        """Some of the words."""
        return Votes(**{name: each[list(places)] for name, each in vars(self).items()})


def vote(sent: Float[Tensor, "tokens dim"], atoms: Float[Tensor, "texts dim"], top: int) -> Votes:
    """The words that the tokens of one image speak for.

    Parameters
    ----------
    sent
        What each token sends, c.
    atoms
        Unit text embeddings around their mean, a.
    top
        Words, at most; those with a weight that is not above 0 are none.
    """
    along = sent @ atoms.T
    spread = along.std(dim=1, correction=0, keepdim=True)
    # the standard deviation has the length of c in it, as the cosines have not
    shares = (along / (WARMTH * spread.clamp(min=torch.finfo(along.dtype).tiny))).softmax(dim=1)
    weights, indices = (shares * along).sum(0).topk(top)
    indices, weights = indices[weights > 0], weights[weights > 0]
    chosen = shares[:, indices].T
    return Votes(
        indices=indices, weights=weights, shares=chosen, tokens=chosen * along[:, indices].T
    )
