"""What an image shows, in words, and the neurons, heads and patches that say so.

The effects of the active neurons, each on its neuron's direction, are added up, and their sum is
written as a few words (the task of appendix A.5 of arXiv 2406.04341). Lengths and angles are those
that neurons have: where many neurons point one way, more has to lie that way to mean something.

The paper adds up the neurons' own codes instead, weighted by the norms of their effects. Each code
stands for a hundredth of the sum, and what is wrong in each of them adds up too; `paper=True` does
that, to compare.

Either way a word's weight is linear in the effects, so it splits exactly into parts of single
neurons, of later heads and of tokens.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ..capture import Capture, Pooled
from ..clip.view import Clip, Images
from ..describe.concepts import group
from ..describe.search import description_of
from ..effects.paths import PathFactors, path_factors
from ..errors import SecondLensError
from ..lens import Codes, Lens
from ..texts import Vocabulary, vocabulary
from ..texts.builtin import BUILTIN
from .code import Code, code_of_sum, metric, sum_of_codes
from .words import Carrier, Word

SYNONYM = 0.9
"""Cosine of texts, mean text subtracted, above which two of the words found are one."""


def discover(
    clip: Clip,
    lens: Lens,
    image: "Image.Image | Tensor",
    top: int = 10,
    *,
    texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
    paper: bool = False,
) -> list[Word]:
    """The words that an image shows, heaviest first, found by its active neurons.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, in the convention "exact".
    image
        A PIL image, or a preprocessed one [3, height, width].
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
        an image that `Clip.prepare` refuses.
    """
    discoverer = Discoverer(clip, lens, texts, paper=paper)
    batch = image[None] if isinstance(image, Tensor) else [image]
    return discoverer(batch, top)[0]


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
        self.clip, self.lens, self.paper = clip, lens, paper
        self.texts = _texts_of(lens, texts)
        self.codes = _codes_of(lens, self.texts) if paper else None
        self.factors: dict[int, PathFactors] = {n: path_factors(clip, n) for n in lens.layers}
        self.scale = metric(lens)
        rows = self.texts.embed(clip).to(self.scale)
        self.centred = F.normalize(rows - rows.mean(0), dim=1)
        self.atoms = F.normalize((rows - rows.mean(0)) @ self.scale, dim=1)

    @torch.no_grad()
    def __call__(self, images: Images, top: int = 10) -> list[list[Word]]:
        """The words of each of a few images that `Clip.prepare` takes."""
        self._check(top)
        with Capture(self.clip, self.lens.layers, keep_activations=True) as capture:
            pooled = capture.pool(self.clip.encode_image(images))
        found = []
        for row in range(len(pooled.scale)):
            effects = self.centred_effects(pooled, row)
            active = self.active(effects)
            code = self.code(effects, active, top)
            found.append(self._words(pooled, row, effects, active, code))
        return found

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

    def _words(
        self,
        pooled: Pooled,
        row: int,
        effects: dict[int, Tensor],
        active: dict[int, Tensor],
        code: Code,
    ) -> list[Word]:
        clip, count = self.clip, len(code.indices)
        heads = self.scale.new_zeros(count, clip.layers, clip.heads)
        tokens = self.scale.new_zeros(count, clip.tokens)
        parts: list[tuple[int, int]] = []
        shares = []
        for layer, functionals in code.functionals.items():
            neurons = active[layer].nonzero()[:, 0]
            parts += [(layer, n) for n in neurons.tolist()]
            shares.append(torch.einsum("nd,nwd->wn", effects[layer][neurons], functionals))
            carried = self._carried(pooled, row, layer, neurons, functionals)
            heads[:, layer + 1 :] += carried.sum(2).unflatten(1, (-1, clip.heads))
            tokens += carried.sum(1)
        by_neuron = torch.cat(shares, dim=1)
        words = []
        for members in self._synonyms(code):
            own = by_neuron[members].sum(0)
            order = own.argsort(descending=True, stable=True).tolist()
            values = own.tolist()
            from_tokens = tokens[members].sum(0)
            words.append(
                Word(
                    text=self.texts.labels[code.indices[members[0]]],
                    synonyms=tuple(self.texts.labels[code.indices[i]] for i in members[1:]),
                    weight=float(code.weights[members].sum()),
                    neurons=tuple(
                        Carrier(layer=parts[i][0], neuron=parts[i][1], weight=values[i])
                        for i in order
                    ),
                    heads=heads[members].sum(0),
                    patches=from_tokens[1:].reshape(clip.grid),
                    class_token=float(from_tokens[0]),
                )
            )
        return sorted(words, key=lambda word: -word.weight)

    def _carried(
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
        factors, later = self.factors[layer], range(layer + 1, self.clip.layers)
        attention = torch.cat([pooled.attention_over_sigma[j][row] for j in later])
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


def _texts_of(lens: Lens, texts: "str | Path | Iterable[str] | Vocabulary | None") -> Vocabulary:
    """The vocabulary of that name or content, or that of the lens's first description."""
    if texts is not None:
        return vocabulary(texts)
    codes = description_of(lens)
    name = next(name for name, each in lens.codes.items() if each is codes)
    if name in BUILTIN and (known := BUILTIN[name]()).labels == codes.labels:
        return known
    prompts = tuple((label,) for label in codes.labels)
    return Vocabulary(name=name, labels=codes.labels, prompts=prompts)


def _codes_of(lens: Lens, texts: Vocabulary) -> Codes:
    codes = description_of(lens, texts.name)
    if codes.labels != texts.labels:
        raise SecondLensError(
            f"the lens was described with other texts of the name {texts.name}: describe it again"
        )
    return codes
