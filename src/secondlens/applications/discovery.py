"""What an image shows, in words, and the neurons, heads and patches that say so.

The effects of the active neurons, each on its neuron's direction, are added up, and their sum is
written as a few words (the task of appendix A.5 of arXiv 2406.04341). Lengths and angles are those
that neurons have: where many neurons point one way, more has to lie that way to mean something.

The paper adds up the neurons' own codes instead, weighted by the norms of their effects. Each code
stands for a hundredth of the sum, and what is wrong in each of them adds up too; `paper=True` does
that, to compare.

Either way a word's weight is linear in the effects, so it splits exactly into parts of single
neurons, of later heads and of tokens. Total effects, of a lens over all paths, go through several
heads each, and split into parts of neurons and tokens alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import checked
from ..data.sources import pictures_of
from ..data.vocabularies import Vocabulary, vocabulary
from ..devices import undisturbed, wide
from ..effects.capture import Capture, Pooled
from ..effects.linearised import linearise
from ..effects.total_effects import TotalReader, by_token
from ..effects.value_paths import PathFactors, path_factors
from ..errors import SecondLensError
from ..lens.codes import Codes
from ..lens.layer import NeuronId
from ..lens.lens import Lens
from ..models.view import Clip
from ..sparse.pursuit import omp
from ..words.describing import described

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
    chosen = wide(atoms[indices])
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
    directions = wide(torch.cat([lens[layer].directions for layer in lens.layers]))
    moment = directions.T @ directions
    values, vectors = torch.linalg.eigh(moment / moment.trace() * len(moment))
    scale: Tensor = vectors * (values.clamp(min=0) + RIDGE).rsqrt() @ vectors.T
    return scale.to(lens[lens.layers[0]].directions)


def group(similarity: Sequence[Sequence[float]], threshold: float) -> list[list[int]]:
    """Words in groups, by agglomerative clustering with average linkage.

    The two groups with the highest mean similarity between their words are joined until it is not
    above `threshold`. Groups and their words keep the order of their first words.

    Parameters
    ----------
    similarity
        Of each word with each, [words][words].
    """

    def mean_similarity(pair: tuple[int, int]) -> float:
        one, other = groups[pair[0]], groups[pair[1]]
        return sum(similarity[i][j] for i in one for j in other) / (len(one) * len(other))

    groups = [[word] for word in range(len(similarity))]
    while len(groups) > 1:
        closest = max(combinations(range(len(groups)), 2), key=mean_similarity)
        if mean_similarity(closest) <= threshold:
            break
        groups[closest[0]] = sorted(groups[closest[0]] + groups.pop(closest[1]))
    return groups


@dataclass(frozen=True, kw_only=True)
class Carrier(NeuronId):
    """What a neuron adds to the weight of a word."""

    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundWord:
    """A word that an image shows; unpacks as (text, weight, neurons)."""

    text: str
    synonyms: tuple[str, ...]
    """Words so alike that they count as this one."""
    weight: float
    neurons: tuple[Carrier, ...]
    """The active neurons, the one that adds most first; their weights add up to the word's."""
    heads: Float[Tensor, "blocks heads"]
    """What arrives through each attention head; adds up to the weight. A pool is the last block.
    There are none over all paths, which go through several."""
    patches: Float[Tensor, "rows columns"]
    """What comes from each patch; with `class_token`, adds up to the weight."""
    class_token: float
    """And from registers, where there are any; zero without either."""

    def __repr__(self) -> str:
        return f"Word({self.text!r}, {self.weight:.3g}, {len(self.neurons)} neurons)"

    def __iter__(self) -> Iterator[object]:
        return iter((self.text, self.weight, self.neurons))


SYNONYM = 0.9
"""Cosine of texts, mean text subtracted, above which two of the words found are one."""


@checked
@undisturbed
def discover(
    clip: Clip,
    lens: Lens,
    image: Any,
    top: int = 10,
    *,
    texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
    paper: bool = False,
) -> list[FoundWord]:
    """The words that an image shows, heaviest first, found by its active neurons.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, in the convention "exact"; with `Lens.over("all")`, effects
        are total ones.
    image
        A PIL image, the path of one, or a preprocessed one [3, height, width].
    top
        Words to find, at most.
    texts
        What `vocabulary` takes: the words to choose from; by default those of the lens's first
        description.
    paper
        Weigh words as the paper does, by the norms of effects above the threshold of the fit times
        the neurons' codes (A.5); the lens must then be described with `texts`.

    Raises
    ------
    SecondLensError
        Another model's lens or an "official" one, no words to choose from, `top` out of range, or
        something else than one image that `Clip.prepare` takes.
    """
    pictures = pictures_of(image[None] if isinstance(image, Tensor) else image)
    if len(pictures) != 1:
        raise SecondLensError(
            f"discover takes one image, and these are {len(pictures)}: call it for each"
        )
    return Discoverer(clip, lens, texts, paper=paper)(pictures, top)[0]


class Discoverer:
    """`discover` for many images: what does not depend on the image is computed once."""

    def __init__(
        self,
        clip: Clip,
        lens: Lens,
        texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
        *,
        paper: bool = False,
    ) -> None:
        lens.check_model(clip)
        lens.check_exact()
        lens = lens.to(clip.device)
        self.clip, self.lens, self.paper = clip, lens, paper
        self.codes: Codes | None = None
        if texts is None or paper:
            self.texts, codes = described(lens, texts)
            self.codes = codes if paper else None
        else:
            self.texts = vocabulary(texts)
        self.factors: dict[int, PathFactors] = {}
        self.totals: TotalReader | None = None
        if lens.axes is None:
            self.factors = {n: path_factors(clip, n) for n in lens.layers}
        else:
            self.totals = TotalReader(clip, lens.axes.rows, lens.layers)
        self.scale = metric(lens)
        rows = self.texts.embed(clip).to(self.scale)
        self.centred = F.normalize(rows - rows.mean(0), dim=1)
        self.atoms = F.normalize((rows - rows.mean(0)) @ self.scale, dim=1)

    @torch.no_grad()
    def __call__(self, images: Any, top: int = 10) -> list[list[FoundWord]]:
        """The words of each of a few images that `Clip.prepare` takes."""
        self._check(top)
        if self.totals is not None:
            pixels = self.clip.prepare(images)
            return [self._over_all_paths(self.totals, each, top) for each in pixels.split(1)]
        with Capture(self.clip, self.lens.layers, keep_activations=True) as capture:
            pooled = capture.pool(self.clip.encode_image(images))
        found = []
        for row in range(len(pooled.scale)):
            effects = self.centred_effects(pooled, row)
            active = self.active(effects)
            code = self.code(effects, active, top)
            found.append(
                self._words(effects, active, code, *self._carried(pooled, row, active, code))
            )
        return found

    def _over_all_paths(
        self, totals: TotalReader, pixels: Float[Tensor, "1 3 height width"], top: int
    ) -> list[FoundWord]:
        """The words of one image by total effects, which a second pass splits by token."""
        effects = {
            layer: own[:, 0] @ totals.axes - self.lens[layer].mean
            for layer, own in totals.read(pixels).effects.items()
        }
        active = self.active(effects)
        code = self.code(effects, active, top)
        vectors, mean = {}, self.scale.new_zeros(len(code.indices))
        for layer, functionals in code.functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            vectors[layer] = neurons, functionals @ totals.axes.T
            mean += torch.einsum("nd,nwd->w", self.lens[layer].mean[neurons], functionals)
        (carried,) = by_token(linearise(self.clip, pixels), totals.axes, vectors)
        # the mean effect has no token of its own: it is taken off all of them alike
        tokens = carried.T - mean[:, None] / len(carried)
        return self._words(effects, active, code, self.scale.new_empty(len(tokens), 0, 0), tokens)

    def centred_effects(self, pooled: Pooled, row: int) -> dict[int, Float[Tensor, "neurons dim"]]:
        """Effects of all neurons on one image of a batch, minus their means, by layer."""
        effects = {}
        for layer, factors in self.factors.items():
            coefficients = pooled.coefficients[layer][row] * pooled.scale[row]
            heads = factors.inner * coefficients[:, :, None]
            own = heads.transpose(0, 1).flatten(1) @ factors.outer.flatten(0, 1)
            effects[layer] = own - self.lens[layer].mean
        return effects

    def active(
        self, effects: dict[int, Float[Tensor, "neurons dim"]]
    ) -> dict[int, Bool[Tensor, " neurons"]]:
        """Neurons whose effect is farther from its mean than their root mean square; in the
        paper's form, than that of all but the top images of the fit."""
        found = {}
        for layer, own in effects.items():
            fitted = self.lens[layer]
            limit = fitted.threshold if self.paper else fitted.energy.sqrt()
            found[layer] = own.norm(dim=1) > limit
        return found

    def code(
        self,
        effects: dict[int, Float[Tensor, "neurons dim"]],
        active: dict[int, Bool[Tensor, " neurons"]],
        top: int,
    ) -> Code:
        """The heaviest words of the active neurons, all with positive weights."""
        self._check(top)
        chosen = {layer: own[active[layer]] for layer, own in effects.items()}
        if self.codes is None:
            directions = {layer: self.lens[layer].directions[active[layer]] for layer in chosen}
            return code_of_sum(chosen, directions, self.atoms, self.scale, top)
        rows = {}
        for layer, own in chosen.items():
            indices = self.codes.indices[layer][active[layer]].clamp(min=0)
            weights = self.codes.coefficients[layer][active[layer]]
            rows[layer] = own.new_zeros(len(own), len(self.texts)).scatter_add_(1, indices, weights)
        return sum_of_codes(chosen, rows, top)

    def _carried(
        self, pooled: Pooled, row: int, active: dict[int, Tensor], code: Code
    ) -> tuple[Float[Tensor, "words blocks heads"], Float[Tensor, "words tokens"]]:
        """What arrives at each word through each head, and from each token."""
        clip, count = self.clip, len(code.indices)
        through = clip.attentions(0)
        most = max(attention.heads for attention in through.values())
        heads = self.scale.new_zeros(count, max(through) + 1, most)
        tokens = self.scale.new_zeros(count, clip.tokens)
        for layer, functionals in code.functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            carried = self._along_paths(pooled, row, layer, neurons, functionals)
            by_path, start = carried.sum(2), 0
            for block, attention in clip.attentions(layer).items():
                own = by_path[:, start : start + attention.heads]
                heads[:, block, : attention.heads] += own
                start += attention.heads
            tokens += carried.sum(1)
        return heads, tokens

    def _words(
        self,
        effects: dict[int, Tensor],
        active: dict[int, Tensor],
        code: Code,
        heads: Float[Tensor, "words blocks heads"],
        tokens: Float[Tensor, "words tokens"],
    ) -> list[FoundWord]:
        clip = self.clip
        parts: list[tuple[int, int]] = []
        shares = []
        for layer, functionals in code.functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            parts += [(layer, n) for n in neurons.tolist()]
            shares.append(torch.einsum("nd,nwd->wn", effects[layer][neurons], functionals))
        by_neuron = torch.cat(shares, dim=1)
        words = []
        for members in self._synonyms(code):
            own = by_neuron[members].sum(0)
            order = own.argsort(descending=True, stable=True).tolist()
            values = own.tolist()
            from_tokens = tokens[members].sum(0)
            words.append(
                FoundWord(
                    text=self.texts.labels[code.indices[members[0]]],
                    synonyms=tuple(self.texts.labels[code.indices[i]] for i in members[1:]),
                    weight=float(code.weights[members].sum()),
                    neurons=tuple(
                        Carrier(layer=parts[i][0], neuron=parts[i][1], weight=values[i])
                        for i in order
                    ),
                    heads=heads[members].sum(0).cpu(),
                    patches=from_tokens[clip.prefix :].reshape(clip.grid).cpu(),
                    class_token=float(from_tokens[: clip.prefix].sum()),
                )
            )
        return sorted(words, key=lambda word: -word.weight)

    def _along_paths(
        self,
        pooled: Pooled,
        row: int,
        layer: int,
        neurons: Int[Tensor, " active"],
        functionals: Float[Tensor, "active words dim"],
    ) -> Float[Tensor, "words paths tokens"]:
        """What each token sends to each word over each path of a layer.

        The mean effect has no token or path of its own: it is taken off all of them alike.
        """
        factors, through = self.factors[layer], self.clip.attentions(layer)
        attention = torch.cat([pooled.attention_over_sigma[j][row] for j in through])
        activation = pooled.activations[layer][row][:, neurons].to(attention)
        carried = []
        for inner, outer, attended in zip(factors.inner, factors.outer, attention, strict=True):
            rows = inner[neurons] @ outer
            reached = torch.einsum("nd,nwd->nw", rows, functionals)
            carried.append(attended * (activation @ reached).T)
        found: Tensor = torch.stack(carried, dim=1) * pooled.scale[row]
        mean = torch.einsum("nd,nwd->w", self.lens[layer].mean[neurons], functionals)
        return found - mean[:, None, None] / (found.shape[1] * found.shape[2])

    def _synonyms(self, code: Code) -> list[list[int]]:
        """Places in the code of words that are one, the heaviest word first."""
        rows = self.centred[code.indices]
        return group((rows @ rows.T).tolist(), SYNONYM)

    def _check(self, top: int) -> None:
        most = min(len(self.texts), self.clip.dim)
        if not 1 <= top <= most:
            raise SecondLensError(
                f"top must lie between 1 and {most}, the smaller of the number of words and the "
                f"width of the embedding, and it is {top}"
            )
