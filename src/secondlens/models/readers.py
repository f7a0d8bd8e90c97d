"""How the tokens of a tower become its embedding, and through which heads a neuron gets there.

A reader says which attention carries a neuron's value to the output, and with what weights the
tokens that look are read: the class token's row of every later block; that of the token which ends
a text; the mean over the rows of all patches; or the row of a learned query in an attention pool,
which is then the only way.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import Attention, Block


class Reader(ABC):
    """What reads the last block's tokens."""

    waits = False
    """Whether `rows` needs what `ln_post` divides each token by, known after the last block."""

    def place(self, given: Tensor) -> Int[Tensor, " images"] | None:
        """Return which token of each input is read, where the input says so; else None."""
        return None

    def attentions(self, blocks: Sequence[Block], layer: int) -> Mapping[int, Attention]:
        """Return those that carry a neuron's value from an MLP layer to the output, in order.

        Keys are numbers of blocks.
        """
        return dict(enumerate(blocks[layer + 1 :], start=layer + 1))

    @abstractmethod
    def rows(
        self,
        attention: Attention,
        normalised: Float[Tensor, "images tokens width"],
        dtype: torch.dtype,
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images heads tokens"]:
        """Return how much of each token's value an attention brings to what is read.

        Parameters
        ----------
        attention
            One of `attentions`.
        normalised
            Output of its `ln_1`.
        dtype
            To compute in.
        sigma
            What `ln_post` divides each token by, where it sees tokens before they are averaged.
        place
            What the method of that name returned.
        """

    @abstractmethod
    def pooled(
        self,
        states: Float[Tensor, "images *tokens width"],
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images w"]:
        """Return what is read of all that `ln_post` saw or returned."""

    @abstractmethod
    def direct(
        self,
        states: Float[Tensor, "images tokens width"],
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images width"]:
        """Return what is read of tokens with no attention between, the rest as in `rows`."""


class ClassToken(Reader):
    """Reads the first token."""

    def rows(
        self,
        attention: Attention,
        normalised: Float[Tensor, "images tokens width"],
        dtype: torch.dtype,
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Reader`: the row of the class token."""
        assert isinstance(attention, Block)
        return attention.class_rows(normalised, dtype)

    def pooled(
        self,
        states: Float[Tensor, "images *tokens width"],
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images w"]:
        """See `Reader`: towers pool before `ln_post` or after it."""
        return states[:, 0] if states.dim() == 3 else states

    def direct(
        self,
        states: Float[Tensor, "images tokens width"],
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images width"]:
        """See `Reader`."""
        return states[:, 0]


@dataclass(frozen=True)
class OneToken(Reader):
    """Reads the token that ends a text, or its first or last."""

    find: str
    """Where it is: `"argmax"` (the largest id ends a text), `"eos"`, `"first"` or `"last"`."""
    causal: bool
    """Whether a token sees none that come after it."""
    eos: int | None = None
    """The id that ends a text, where `find` needs it."""

    def place(self, given: Tensor) -> Int[Tensor, " images"] | None:
        """See `Reader`: from ids of tokens."""
        if self.find == "argmax":
            return given.argmax(dim=-1)
        if self.find == "eos":
            return given.eq(self.eos or 0).int().argmax(dim=-1)
        last = given.shape[1] - 1 if self.find == "last" else 0
        return torch.full((len(given),), last, device=given.device)

    def rows(
        self,
        attention: Attention,
        normalised: Float[Tensor, "images tokens width"],
        dtype: torch.dtype,
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Reader`: the row of that token."""
        assert isinstance(attention, Block) and place is not None
        return attention.token_attention(normalised, place, dtype, causal=self.causal)

    def pooled(
        self,
        states: Float[Tensor, "images *tokens width"],
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images w"]:
        """See `Reader`: towers pool before `ln_post` or after it."""
        assert place is not None
        return (
            states
            if states.dim() == 2
            else states[torch.arange(len(states), device=states.device), place]
        )

    def direct(
        self,
        states: Float[Tensor, "images tokens width"],
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images width"]:
        """See `Reader`."""
        return self.pooled(states, place)


@dataclass(frozen=True)
class MeanOfPatches(Reader):
    """Averages all tokens after the first `prefix`, before `ln_post` or after it."""

    prefix: int
    waits: bool = False
    """Whether `ln_post` sees the tokens, and their mean is taken after it."""

    def weights(
        self, like: Float[Tensor, "images tokens"], sigma: Float[Tensor, "images tokens"] | None
    ) -> Float[Tensor, "images tokens"]:
        """Return how much of each token is read."""
        weights = torch.ones_like(like) if sigma is None else 1 / sigma
        weights[:, : self.prefix] = 0
        return weights / (like.shape[1] - self.prefix)

    def rows(
        self,
        attention: Attention,
        normalised: Float[Tensor, "images tokens width"],
        dtype: torch.dtype,
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Reader`: the mean of the rows of all patches."""
        assert isinstance(attention, Block)
        weights = self.weights(normalised[:, :, 0].to(dtype), sigma)
        return attention.weighted_attention(normalised, weights)

    def pooled(
        self,
        states: Float[Tensor, "images *tokens width"],
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images w"]:
        """See `Reader`: what was pooled may still be maps of one place."""
        if states.dim() == 4:
            return states.flatten(2).mean(dim=2)
        return states[:, self.prefix :].mean(dim=1) if states.dim() == 3 else states

    def direct(
        self,
        states: Float[Tensor, "images tokens width"],
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images width"]:
        """See `Reader`."""
        weights = self.weights(states[:, :, 0], sigma)
        return torch.bmm(weights[:, None], states)[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Attention):
    """The heads of an attention pool, which look with a query of their own."""

    @abstractmethod
    def row(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype
    ) -> Float[Tensor, "images heads tokens"]:
        """Return attention of the query that is read to every token, from the output of `ln_1`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedPool(Pool):
    """A pool whose query is a weight of the model."""

    @property
    @abstractmethod
    def query(self) -> Float[Tensor, "heads head_width"]:
        """Over the root of the head's width, so that scores are products with keys."""

    @property
    @abstractmethod
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """From the residual stream to each head; its bias shifts all scores of a head alike."""

    def row(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Pool`: no key is ever computed."""
        folded = torch.einsum("he,hew->hw", self.query.to(dtype), self.key.to(dtype))
        return (folded @ normalised.to(dtype).mT).softmax(dim=-1)


@dataclass(frozen=True)
class AttentionPool(Reader):
    """A pool's query looks at the tokens of the last block: its heads are all paths of value.

    A neuron of any layer, the last one too, reaches the output through them and has no direct
    effect; what goes through attention of the blocks first is of higher order.
    """

    pool: Pool

    def attentions(self, blocks: Sequence[Block], layer: int) -> Mapping[int, Attention]:
        """See `Reader`: the pool, which counts as the block after the last."""
        return {len(blocks): self.pool}

    def rows(
        self,
        attention: Attention,
        normalised: Float[Tensor, "images tokens width"],
        dtype: torch.dtype,
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Reader`: the row of the pool's query."""
        return self.pool.row(normalised, dtype)

    def pooled(
        self,
        states: Float[Tensor, "images *tokens width"],
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images w"]:
        """See `Reader`: of several queries the first is read."""
        return states[:, 0] if states.dim() == 3 else states

    def direct(
        self,
        states: Float[Tensor, "images tokens width"],
        sigma: Float[Tensor, "images tokens"] | None = None,
        place: Int[Tensor, " images"] | None = None,
    ) -> Float[Tensor, "images width"]:
        """See `Reader`: nothing."""
        return torch.zeros_like(states[:, 0])


def normalises(module: nn.Module) -> bool:
    """Whether it is a norm, and not a place in the tower where nothing happens."""
    return isinstance(module, nn.LayerNorm)
