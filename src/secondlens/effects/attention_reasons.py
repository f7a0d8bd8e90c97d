"""Why a head looked there: one attention score, divided over what the tokens are made of.

Before the softmax, a score is the product of what the head reads of two tokens, the one that looks
(query) and the one that is looked at (key). With the scales of LayerNorm as they are, each side is
a sum: over the neurons of all earlier layers, what earlier attention wrote, the embedding of the
patches, and biases. So the score is a sum over pairs of parts,

    score = sum over n, m of  (p_qn / sigma_q) (p_tm / sigma_t) <W_Q (g * C w_n), W_K (g * C w_m)>
            / root of head width  +  the same with parts that are no neurons

where the product in brackets is a virtual weight between two neurons, which no image changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError, UnsupportedModel
from ..models.blocks import Block
from ..models.view import Clip
from .block_inputs import BlockInputs, attention_of, block_inputs, queries_and_keys
from .linearised import LinearNorm
from .patching import check_head, check_token
from .value_paths import chunks

PAIRS_AT_A_TIME = 2**23
"""Products of parts that are held at a time while the strongest are looked for."""

EMBEDDING, BIASES = "embedding", "biases"
"""What enters the first block, with the tokens' positions; and all biases together, which are those
of attention, MLPs, the LayerNorm and the query or key itself."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two neurons, by layer and number, whose product is part of a score."""

    query: tuple[int, int]
    """What the token that looks holds."""
    key: tuple[int, int]
    """What the token that is looked at holds."""
    score: float


@dataclass(frozen=True, kw_only=True)
class Single:
    """A neuron of one side, and what it adds to a score with everything on the other side."""

    neuron: tuple[int, int]
    """By layer and number."""
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionReasons:
    """A score of one head, and what it consists of.

    Parts are numbered: first the neurons of all earlier layers, layer by layer, then `rests`.
    """

    layer: int
    head: int
    query: int
    """The token that looks."""
    scores: Float[Tensor, " tokens"]
    """Of this token with every token, before the softmax."""
    attention: Float[Tensor, " tokens"]
    """After it."""
    weights: Float[Tensor, " tokens"]
    """How much of the score with each token is divided: 1 at a single one, or a mixture."""
    rests: tuple[str, ...]
    """Parts that are no neurons: `EMBEDDING`, `BIASES`, and the attention of each earlier layer."""
    neurons: int
    """Of a layer."""
    query_parts: Float[Tensor, "parts head_width"]
    """What each part of the token that looks adds to the query, over the root of the head width."""
    key_rows: Float[Tensor, "neurons head_width"]
    """What one unit of each neuron adds to a key before it is divided by sigma."""
    key_activations: Float[Tensor, "tokens neurons"]
    """Activations of the neurons over sigma, at every token."""
    key_rests: Float[Tensor, "tokens rests head_width"]
    """What each of the rests adds to the keys."""

    @property
    def score(self) -> float:
        """What is divided, as the head computes it: `scores` weighted by `weights`."""
        return float(self.weights @ self.scores)

    @property
    def key_parts(self) -> Float[Tensor, "parts head_width"]:
        """What each part adds to the key, in the mixture of tokens that `weights` says."""
        neurons = (self.weights @ self.key_activations)[:, None] * self.key_rows
        return torch.cat([neurons, torch.einsum("t,trh->rh", self.weights, self.key_rests)])

    @property
    def by_query(self) -> Float[Tensor, " parts"]:
        """The score by what the token that looks holds; they add up to it."""
        return self.query_parts @ self.key_parts.sum(0)

    @property
    def by_key(self) -> Float[Tensor, " parts"]:
        """The score by what is looked at; they add up to it."""
        return self.key_parts @ self.query_parts.sum(0)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the rests, and of the neurons of each earlier layer."""
        return (*self.rests, *(f"neurons of layer {layer}" for layer in range(self.layer)))

    @property
    def by_group(self) -> Float[Tensor, "groups groups"]:
        """The score by groups of parts, of the query (rows) and of the key; they add up to it."""
        query, key = (self._grouped(parts) for parts in (self.query_parts, self.key_parts))
        return query @ key.T

    @property
    def by_kind(self) -> Float[Tensor, "kinds kinds"]:
        """The score by `rests`, and by all neurons together, which come last, of the query (rows)
        and of the key; they add up to it."""
        rows, kinds = self.by_group, len(self.rests)
        rows = torch.cat([rows[:kinds], rows[kinds:].sum(0, keepdim=True)])
        return torch.cat([rows[:, :kinds], rows[:, kinds:].sum(1, keepdim=True)], dim=1)

    def pairs(self, top: int = 20) -> list[Pair]:
        """The pairs of neurons that count most, by the size of their product.

        Raises
        ------
        SecondLensError
            No pairs are asked for.
        """
        if top < 1:
            raise SecondLensError(f"at least 1 pair must be asked for, not {top}")
        count = self.layer * self.neurons
        found = strongest(self.query_parts[:count], self.key_parts[:count], top)
        return [
            Pair(query=self._name(query), key=self._name(key), score=score)
            for score, query, key in zip(*(each.tolist() for each in found), strict=True)
        ]

    def other_pairs(self, pairs: Sequence[Pair]) -> float:
        """What all pairs of neurons but these add to the score."""
        return float(self.by_kind[-1, -1]) - sum(pair.score for pair in pairs)

    def single(self, by_part: Float[Tensor, " parts"], top: int = 20) -> list[Single]:
        """The neurons of one side that count most, by the size of their part of `by_query` or
        `by_key`."""
        neurons = by_part[: self.layer * self.neurons]
        order = neurons.abs().argsort(descending=True, stable=True)[:top].tolist()
        return [Single(neuron=self._name(each), score=float(neurons[each])) for each in order]

    def over_tokens(self, pair: Pair) -> Float[Tensor, " tokens"]:
        """What a pair of neurons adds to the score with each token."""
        query, key = (layer * self.neurons + neuron for layer, neuron in (pair.query, pair.key))
        product = self.query_parts[query] @ self.key_rows[key]
        return self.key_activations[:, key] * product

    def _name(self, place: int) -> tuple[int, int]:
        return place // self.neurons, place % self.neurons

    def _grouped(self, parts: Tensor) -> Float[Tensor, "groups head_width"]:
        count = self.layer * self.neurons
        by_layer = parts[:count].unflatten(0, (self.layer, self.neurons)).sum(1)
        return torch.cat([parts[count:], by_layer])


def strongest(
    query: Float[Tensor, "queries head_width"], key: Float[Tensor, "keys head_width"], top: int
) -> tuple[Float[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """The products of rows that are largest in size, and the places of their rows.

    Rows go by their norms, so that pairs which cannot reach those found already are never computed.
    """
    reach, queries = query.norm(dim=1).sort(descending=True, stable=True)
    reach_of_keys, keys = key.norm(dim=1).sort(descending=True, stable=True)
    best = query.new_zeros(0)
    places = torch.zeros(2, 0, dtype=torch.int64, device=query.device)
    for some in chunks(len(query), max(1, PAIRS_AT_A_TIME // max(1, len(key)))):
        least = best[-1].abs() if len(best) == top else best.new_tensor(0.0)
        near = int((reach[some][0] * reach_of_keys >= least).sum())
        if not near:
            break
        products = (query[queries[some]] @ key[keys[:near]].T).flatten()
        largest = products.abs().topk(min(top, len(products))).indices
        found = torch.stack([queries[some][largest // near], keys[largest % near]])
        best, places = torch.cat([best, products[largest]]), torch.cat([places, found], dim=1)
        order = best.abs().argsort(descending=True, stable=True)[:top]
        best, places = best[order], places[:, order]
    return best, places[0], places[1]


@checked
@undisturbed
@torch.no_grad()
def why_attention(
    clip: Clip,
    image: Any,
    layer: int,
    head: int,
    token: int | None = None,
    *,
    query: int = 0,
    contrast: bool = False,
) -> AttentionReasons:
    """Divide an attention score over pairs of what the two tokens are made of.

    Tokens are numbered as in `attention`: the class token is 0, where there is one, and patches are
    the last, row by row.
    Memory grows with tokens times neurons, never with pairs of neurons.

    Parameters
    ----------
    clip
        The model.
    image
        One image that `Clip.prepare` takes.
    layer, head
        Of the attention. Layer 0 reads no neurons, only the embedding.
    token
        The token that is looked at. By default all of the row: how much higher scores are where the
        head looks than over all tokens, which is the mean of the scores weighted by attention minus
        their plain mean.
    query
        The token that looks, by default the class token; without one, the first patch.
    contrast
        Subtract from the score with the token the mean over all tokens, weighted by attention: why
        there and not elsewhere. What is the same at every token, such as a key's bias, then drops
        out, as it does in the softmax.

    Raises
    ------
    SecondLensError
        No such layer, head or token; a contrast without a token; not exactly one image; a model
        that turns or normalises queries and keys before it compares them; or an image that
        `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    check_head(clip, layer, head)
    for each in (query, *(() if token is None else (token,))):
        check_token(clip, each)
    if token is None and contrast:
        raise SecondLensError("a row is a contrast already: name the token that is looked at")
    pixels = clip.prepare(image)
    if len(pixels) != 1:
        raise SecondLensError(f"a score is divided for one image at a time, not {len(pixels)}")
    check_scores(clip)
    read, block, dtype = (
        block_inputs(clip, pixels, range(layer + 1)),
        clip.blocks[layer],
        clip.compute_dtype,
    )
    norm = LinearNorm.at(read.before[layer], block.ln_1, dtype)
    queries, keys = queries_and_keys(block, norm)
    attention = attention_of(clip, queries, keys)[0, head, query]
    if token is None:
        weights = attention - 1 / clip.tokens
    else:
        weights = torch.zeros_like(attention)
        weights[token] = 1
        weights = weights - attention if contrast else weights

    gain = block.gain.to(dtype)
    read_query = block.query[head].to(dtype) * gain * block.query.shape[1] ** -0.5
    read_key = block.key[head].to(dtype) * gain
    sigma = norm.sigma[0, :, 0, 0]
    rows = _centred(_neuron_rows(clip.blocks[:layer], clip.width).to(sigma))
    activations = _activations(clip, read, layer).to(sigma) / sigma[:, None]
    rests = _rests(clip, read, layer).to(sigma) / sigma[:, None, None]
    query_rests, key_rests = rests[query] @ read_query.T, rests @ read_key.T
    # the last of the rests are biases, of which some come after the scale
    own = block.query[head].to(dtype) @ block.bias.to(dtype) + block.query_bias[head].to(dtype)
    query_rests[-1] += own * block.query.shape[1] ** -0.5
    key_rests[:, -1] += block.key[head].to(dtype) @ block.bias.to(dtype)
    key_rests[:, -1] += block.key_bias[head].to(dtype)
    return AttentionReasons(
        layer=layer,
        head=head,
        query=query,
        scores=queries[0, head, query] @ keys[0, head].T,
        attention=attention,
        weights=weights,
        rests=(EMBEDDING, *(f"attention of layer {each}" for each in range(layer)), BIASES),
        neurons=clip.neurons,
        query_parts=torch.cat([activations[query, :, None] * (rows @ read_query.T), query_rests]),
        key_rows=rows @ read_key.T,
        key_activations=activations,
        key_rests=key_rests,
    )


def check_scores(clip: Clip) -> None:
    """Raise `UnsupportedModel` if scores are more than products of queries and keys."""
    for number, block in enumerate(clip.blocks):
        if not block.plain_scores:
            raise UnsupportedModel(
                f"attention scores of {clip.name} are not divided: block {number} turns or "
                "normalises queries and keys before it compares them"
            )


def _neuron_rows(blocks: tuple[Block, ...], width: int) -> Float[Tensor, "neurons width"]:
    """What the neurons of some layers write, one layer after another."""
    return torch.cat([block.neuron_rows for block in blocks]) if blocks else torch.zeros(0, width)


def _activations(clip: Clip, read: BlockInputs, layer: int) -> Float[Tensor, "tokens neurons"]:
    """Of the neurons of all layers before this one, in one image."""
    found = [read.activations[each][0] for each in range(layer)]
    return torch.cat(found, dim=1) if found else read.before[0].new_zeros(clip.tokens, 0)


def _rests(clip: Clip, read: BlockInputs, layer: int) -> Float[Tensor, "tokens rests width"]:
    """What else the stream before a block is made of, centred: embedding, attention, biases."""
    dtype = clip.compute_dtype
    embedding = _centred(read.before[0][0].to(dtype))
    biases = torch.zeros_like(embedding)
    attended = []
    for each in range(layer):
        block = clip.blocks[each]
        bias = _centred(block.output_bias.to(embedding))
        written = read.between[each][0].to(dtype) - read.before[each][0].to(dtype)
        attended.append(_centred(written) - bias)
        biases = biases + bias + _centred(block.mlp_bias.to(embedding))
    return torch.stack([embedding, *attended, biases], dim=1)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)
