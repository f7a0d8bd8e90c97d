"""What neurons fire on: names that are chosen on some images, and tested on others.

The images are split at random. On the first half the texts that a neuron's strongest images hold
more often than others do are its candidates. On the second half each has to find the images of
large effects, and false discoveries are controlled over all neurons and candidates together. The
explained model is no judge of what an image holds, because its effects are part of what it would
judge by.

Names say where a neuron fires; the code of its direction (`describe`) says what it then adds to the
embedding. The two are different claims.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import checked
from ..data.reader import Reader
from ..data.sources import ImageSource, as_source
from ..data.unseen import Unseen
from ..data.vocabularies import Vocabulary, vocabulary
from ..devices import undisturbed
from ..effects.projections import project
from ..effects.streaming import stream
from ..effects.value_paths import chunks
from ..errors import SecondLensError, SecondLensWarning
from ..lens.lens import Lens, projectors
from ..lens.names import EVIDENCE, Names
from ..models.view import Clip
from ..progress import tracked
from .judging import Holdings, Kind, check_referee, judge, kinds_of

MOST_NAMES = 4
"""Of one neuron."""
CANDIDATES = 12
"""Texts of a neuron that are tested, the most enriched ones."""
TOP_SHARE = 0.02
"""Of the images that choose: a neuron's strongest, in which candidates are counted."""
SHOWN = 24
"""Strongest images among which the pictures of a name are looked for; at least so many count."""
MOST_PICTURES, LEAST_PICTURES = 6, 2
"""Of one name. A text with fewer is no name."""
BAR, PICTURE_BAR = 3.0, 4.0
"""Standard deviations from which on an image counts as holding a text, and is shown for it."""
ENRICHED = 0.01
"""Binomial tail below which a text is a candidate."""
FALSE_DISCOVERIES = 0.05
"""Share of names that may be false, after Benjamini and Hochberg."""
LEAST_AREA = 0.7
"""Under the ROC curve, of a name on the images that test it."""
LEAST_HELD = 4
"""Images of the test that hold a text, or else it cannot be tested."""
LEAST_IMAGES = 40
IMAGES_PER_TEXT = 10
FEW = 64
"""Images on which a neuron has to change to be named."""
STILL = 1e-6
"""Change of an activation, over its largest value, up to which it is rounding."""
LEAST_EFFECT = 1e-9
"""Spread of an effect over images, in parts of the unit embedding, below which it is rounding."""
"""Images that a vocabulary needs for each of its texts, by experience."""
NEURONS_PER_CHUNK = 256


@checked
@undisturbed
@torch.no_grad()
def name(
    clip: Clip,
    lens: Lens,
    images: Any,
    texts: "str | Path | Sequence[str] | Vocabulary",
    referee: Clip | Sequence[Clip] | Sequence[Collection[str]],
    *,
    kinds: Sequence[Kind] | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Names:
    """Name what every neuron of a lens fires on, and put the names into the lens.

    Names of the same vocabulary and judge take the place of earlier ones, with a warning.

    A neuron fires on an image as much as its effect there points along its direction. One half of
    the images chooses at most 12 candidates for each neuron: texts that its strongest 2 % of images
    hold more often than the half does. The other half tests them: a name finds the images of large
    effects with an area under the ROC curve of at least 0.7, passes Benjamini and Hochberg's
    control of 5 % false discoveries over all neurons and candidates, and has at least two pictures
    among the 24 strongest images. A further name, of at most four, has to pass on the images that
    hold none of the earlier ones. A neuron with two names is polysemous.

    An image holds a text if the referee's cosine, standardised over the images, is above 3 (above 4
    for a picture that is shown) and no text of the same kind fits better. The effects of every
    image and neuron are held in memory, 4 bytes each.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        All its layers are named.
    images
        What `fit` takes, but other images than those of the fit; about ten for each text.
    texts
        A `Vocabulary`, or what `vocabulary` makes one of.
    referee
        Another CLIP, several that must agree, or the texts that are true of each image.
    kinds
        Texts that compete only with each other; what is in none is a kind of its own. By default
        the backgrounds of the embedded world are one if the vocabulary has them.
    seed
        Of the halves and of the shuffled control.

    Raises
    ------
    SecondLensError
        Another model's lens, images of the fit, too few readable images, the explained model as
        the referee, labels that do not fit the images or name no text, or texts of which the
        referee can tell none apart.
    """
    lens.check_model(clip)
    words = vocabulary(texts)
    source = Unseen(as_source(images), lens.image_ids, lens.digests)
    check_referee(referee, clip, source)
    groups = kinds_of(words, kinds)
    directions = {layer: lens[layer].directions[:, None] for layer in lens.layers}
    seen = project(
        clip,
        source,
        projectors(clip, lens, directions),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    if len(seen.positions) < LEAST_IMAGES:
        raise SecondLensError(
            f"{len(seen.positions)} readable images are too few to name on: give at least "
            f"{max(LEAST_IMAGES, IMAGES_PER_TEXT * len(words))}, about {IMAGES_PER_TEXT} a text"
        )
    holdings, first = judge(
        referee, clip, words, groups, source, seen.positions, batch_size, workers
    )
    search = NameSearch(holdings, len(words), seed)
    if not search.testable.any():
        raise SecondLensError(
            f"none of the {len(words)} texts is held by at least {LEAST_HELD} of the "
            f"{len(search.testing)} images that test: give about {IMAGES_PER_TEXT} images for each "
            "text, and texts of what they show"
        )

    still = still_neurons(clip, source, seen.positions[:FEW], lens.layers, batch_size)
    for layer, products in seen.products.items():
        still[layer] |= products[:, :, 0].std(dim=0).cpu() < LEAST_EFFECT

    def effects(layer: int) -> Float[Tensor, "neurons images"]:
        own = seen.products[layer][:, :, 0].float().T.contiguous()
        return own.masked_fill_(still[layer][:, None].to(own.device), 0)

    def shuffled(layer: int) -> Float[Tensor, "neurons images"]:
        return search.shuffled(effects(layer), seed + layer)

    found, tested = search(effects, lens.layers, "names", progress)
    chance, _ = search(shuffled, lens.layers, "names of shuffled effects", progress)
    leaders = sorted({leader for each, leader in enumerate(first.tolist()) if leader != each})
    tensors = _as_tensors(found, {layer: len(lens[layer].directions) for layer in lens.layers})
    names = Names(
        vocabulary=words.name,
        referee=holdings.judge,
        labels=words.labels,
        image_ids=tuple(source.ids[position] for position in seen.positions),
        shown=search.shown,
        tested=tested,
        shuffled=sum(map(len, chance.values())),
        rare=len(set(first.tolist())) - int(search.testable.sum()),
        constant=sum(int(each.sum()) for each in still.values()),
        alike=tuple(
            tuple(words.labels[each] for each in (first == leader).nonzero()[:, 0].tolist())
            for leader in leaders
        ),
        texts=tensors["texts"],
        auc=tensors["auc"],
        p=tensors["p"],
        q=tensors["q"],
        held=tensors["held"],
        pictures=tensors["pictures"],
    )
    if names.name in lens.names:
        message = f"the earlier names of {names.name} in the lens are replaced"
        warnings.warn(message, SecondLensWarning, stacklevel=2)
    lens.names[names.name] = names
    return names


def still_neurons(
    clip: Clip,
    source: ImageSource,
    positions: Sequence[int],
    layers: Sequence[int],
    batch_size: int | None,
) -> dict[int, Bool[Tensor, " neurons"]]:
    """Return which neurons of each layer have the same activation, at each token, on some images.

    Their effects vary with the scales of LayerNorms and the length of the representation alone,
    which words may find: but they fire on nothing.
    """
    reader = Reader(source=source, clip=clip, batch_size=batch_size, positions=positions)
    low: dict[int, Tensor] = {}
    high: dict[int, Tensor] = {}
    for batch in stream(clip, reader, layers, keep_activations=True):
        for layer, activations in batch.pooled.activations.items():
            least, most = activations.float().aminmax(dim=0)
            low[layer] = torch.minimum(low.get(layer, least), least)
            high[layer] = torch.maximum(high.get(layer, most), most)
    largest = {
        layer: torch.maximum(high[layer].abs(), low[layer].abs()).amax(0) for layer in layers
    }
    return {
        layer: ((high[layer] - low[layer]).amax(0) <= STILL * largest[layer]).cpu()
        for layer in layers
    }


@dataclass(frozen=True, kw_only=True)
class FoundName:
    """A name that passed."""

    neuron: int
    rank: int
    text: int
    auc: float
    p: float
    q: float
    held: int
    pictures: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidates:
    """Texts to test for neurons of a layer, by neuron and then the most enriched first."""

    neuron: Int[Tensor, " candidates"]
    text: Int[Tensor, " candidates"]
    auc: Float[Tensor, " candidates"]
    p: Float[Tensor, " candidates"]
    strongest: Int[Tensor, "neurons top"]
    """Images of each neuron that choose."""


class NameSearch:
    """The same search for effects as they are, and for shuffled ones.

    Parameters
    ----------
    holdings
        Of the images.
    texts
        Their number.
    seed
        Of the halves.
    """

    def __init__(self, holdings: Holdings, texts: int, seed: int) -> None:
        count = len(holdings.texts)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.choosing, self.testing = (half.sort().values for half in order.tensor_split(2))
        held = holdings.above(BAR)
        self.held, self.of_test = held[self.choosing], held[self.testing]
        self.pictured = holdings.above(PICTURE_BAR)[self.choosing]
        self.texts = texts
        chosen = len(self.choosing)
        self.top = max(round(TOP_SHARE * chosen), min(SHOWN, chosen // 4))
        self.shown = min(SHOWN, self.top)
        self.base = _counts(self.held, texts) / chosen
        self.testable = _counts(self.of_test, texts) >= LEAST_HELD

    def shuffled(
        self, effects: Float[Tensor, "neurons images"], seed: int
    ) -> Float[Tensor, "neurons images"]:
        """The effects of each neuron in a random order within either half."""
        generator = torch.Generator().manual_seed(seed)
        mixed = torch.empty_like(effects)
        for half in (self.choosing, self.testing):
            order = torch.rand(len(effects), len(half), generator=generator).argsort(dim=1)
            mixed[:, half] = effects[:, half].gather(1, order)
        return mixed

    def __call__(
        self,
        effects: Callable[[int], Float[Tensor, "neurons images"]],
        layers: Sequence[int],
        what: str,
        progress: bool,
    ) -> tuple[dict[int, list[FoundName]], int]:
        """The names of all neurons by layer, and the number of candidates."""
        candidates = {
            layer: self._candidates(effects(layer))
            for layer in tracked(layers, what, progress, len(layers))
        }
        corrected = benjamini_hochberg(torch.cat([each.p for each in candidates.values()]))
        sizes = [len(each.p) for each in candidates.values()]
        q = dict(zip(layers, corrected.split(sizes), strict=True))
        found = {n: list(self._names(effects(n), candidates[n], q[n])) for n in layers}
        return found, sum(sizes)

    def _candidates(self, effects: Float[Tensor, "neurons images"]) -> _Candidates:
        strongest = effects[:, self.choosing].topk(self.top, dim=1).indices
        held = self.held[strongest]
        keys = torch.arange(len(effects))[:, None, None] * self.texts + held
        pairs, counts = keys[held >= 0].unique(return_counts=True)
        neuron, text = pairs // self.texts, pairs % self.texts
        tail = binomial_tail(counts, self.top, self.base[text])
        kept = (counts >= LEAST_PICTURES) & (tail < ENRICHED) & self.testable[text]
        neuron, text, tail = neuron[kept], text[kept], tail[kept]
        order = tail.argsort(stable=True)
        order = order[neuron[order].argsort(stable=True)]
        neuron, text = neuron[order], text[order]
        place = torch.arange(len(neuron)) - torch.searchsorted(neuron, neuron)
        neuron, text = neuron[place < CANDIDATES], text[place < CANDIDATES]
        tested = effects[:, self.testing]
        auc, p = (torch.empty(len(neuron), dtype=torch.float64) for _ in range(2))
        for chunk in chunks(len(effects), NEURONS_PER_CHUNK):
            mine = ((neuron >= chunk.start) & (neuron < chunk.stop)).nonzero()[:, 0]
            ranks = Ranks.of(tested[chunk])
            for each in text[mine].unique().tolist():
                pair = mine[text[mine] == each]
                rows = ranks.at(neuron[pair] - chunk.start)
                auc[pair], p[pair] = mann_whitney(rows, (self.of_test == each).any(dim=1))
        return _Candidates(neuron=neuron, text=text, auc=auc, p=p, strongest=strongest)

    def _names(
        self, effects: Float[Tensor, "neurons images"], found: _Candidates, q: Tensor
    ) -> Iterator[FoundName]:
        passed = (q <= FALSE_DISCOVERIES) & (found.auc >= LEAST_AREA)
        for neuron in found.neuron[passed].unique().tolist():
            own = (passed & (found.neuron == neuron)).nonzero()[:, 0].tolist()
            by_text = {int(found.text[each]): each for each in own}
            strongest = found.strongest[neuron]
            rank = 0
            for text in self._greedy(effects[neuron, self.testing], self.held[strongest], by_text):
                shown = strongest[: self.shown]
                holding = shown[(self.pictured[shown] == text).any(dim=1)]
                if len(holding) < LEAST_PICTURES:
                    continue
                each = by_text[text]
                yield FoundName(
                    neuron=neuron,
                    rank=rank,
                    text=text,
                    auc=float(found.auc[each]),
                    p=float(found.p[each]),
                    q=float(q[each]),
                    held=len(holding),
                    pictures=self.choosing[holding[:MOST_PICTURES]].tolist(),
                )
                rank += 1

    def _greedy(
        self,
        tested: Float[Tensor, " images"],
        held: Int[Tensor, "top slots"],
        texts: Collection[int],
    ) -> Iterator[int]:
        """The most enriched text, then the most enriched among images that do not hold it, as long
        as it passes on such images alone."""
        left = list(texts)
        free, free_test = torch.ones(len(held)).bool(), torch.ones(len(tested)).bool()
        given = 0
        while left and given < MOST_NAMES:
            has = (held[free, :, None] == torch.tensor(left)).any(dim=1)
            counts = has.sum(dim=0)
            tail = binomial_tail(counts, int(free.sum()), self.base[left])
            tail[counts < LEAST_PICTURES] = 1
            best = int(tail.argmin())
            if tail[best] >= ENRICHED:
                return
            text = left.pop(best)
            holds = (self.of_test == text).any(dim=1)
            if given and not self._passes(tested[free_test], holds[free_test]):
                continue
            yield text
            given += 1
            free &= ~(held == text).any(dim=1)
            free_test &= ~holds

    def _passes(self, tested: Float[Tensor, " images"], holds: Bool[Tensor, " images"]) -> bool:
        if int(holds.sum()) < LEAST_HELD:
            return False
        auc, p = mann_whitney(Ranks.of(tested[None]), holds)
        return bool(auc >= LEAST_AREA) and bool(p < ENRICHED)


def _counts(held: Int[Tensor, "images slots"], texts: int) -> Int[Tensor, " texts"]:
    """Images that hold each text."""
    return torch.bincount(held[held >= 0], minlength=texts)


def binomial_tail(
    counts: Int[Tensor, " pairs"], trials: int, share: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """The chance of at least `counts` successes in so many trials of a share each; float64."""
    share = share.double().clamp(1e-12, 1 - 1e-12)
    successes = torch.arange(trials + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(trials + 1.0, dtype=torch.float64))
    ways = ways - torch.lgamma(successes + 1) - torch.lgamma(trials - successes + 1)
    tails = torch.empty_like(share)
    for some in chunks(len(share), 2**22 // (trials + 1)):
        odds = share[some, None]
        each = (ways + successes * odds.log() + (trials - successes) * (-odds).log1p()).exp()
        tails[some] = each.masked_fill(successes < counts[some, None], 0).sum(dim=1)
    return tails.clamp(max=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """Ranks of values in their row, from 1; equal values share the mean of theirs."""

    ranks: Float[Tensor, "rows values"]
    spread: Float[Tensor, " rows"]
    """Of the ranks around their mean, squared, summed."""

    @classmethod
    def of(cls, values: Float[Tensor, "rows values"]) -> "Ranks":
        """Those of some values."""
        values = values.contiguous()
        ordered = values.sort(dim=1).values
        below = torch.searchsorted(ordered, values)
        ranks = (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2
        return cls(ranks=ranks, spread=(ranks - (values.shape[1] + 1) / 2).square().sum(dim=1))

    def at(self, rows: Int[Tensor, " some"]) -> "Ranks":
        """Those of some rows."""
        return Ranks(ranks=self.ranks[rows], spread=self.spread[rows])


def mann_whitney(
    ranks: Ranks, chosen: Bool[Tensor, " values"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The chance that a chosen value is above another one, and how likely that is without a reason.

    The p value is one-sided and of the normal approximation, corrected for ties. Both are 1/2 where
    all values of a row are equal.
    """
    count, mine = len(chosen), int(chosen.sum())
    others = count - mine
    summed = ranks.ranks[:, chosen].sum(dim=1)
    auc = (summed - mine * (mine + 1) / 2) / (mine * others)
    variance = ranks.spread * mine * others / (count * (count - 1))
    z = (summed - mine * (count + 1) / 2) / variance.clamp(min=1e-12).sqrt()
    return auc, torch.special.ndtr(-z)


def benjamini_hochberg(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """The least share of false discoveries at which each test passes."""
    order = p.argsort(descending=True, stable=True)
    places = torch.arange(len(p), 0, -1, dtype=p.dtype)
    corrected = (p[order] * len(p) / places).clamp(max=1)
    found = torch.empty_like(p)
    found[order] = corrected.cummin(dim=0).values if len(p) else corrected
    return found


def _as_tensors(
    found: dict[int, list[FoundName]], neurons: dict[int, int]
) -> dict[str, dict[int, Tensor]]:
    """The fields of `Names` that are tensors."""
    tensors: dict[str, dict[int, Tensor]] = {key: {} for key in EVIDENCE}
    for layer, count in neurons.items():
        shape = (count, MOST_NAMES)
        own = {key: torch.full(shape, torch.nan, dtype=torch.float64) for key in ("auc", "p", "q")}
        own |= {"texts": torch.full(shape, -1), "held": torch.zeros(shape, dtype=torch.long)}
        own["pictures"] = torch.full((*shape, MOST_PICTURES), -1)
        for each in found[layer]:
            place = each.neuron, each.rank
            for key in ("texts", "auc", "p", "q", "held"):
                own[key][place] = getattr(each, "text" if key == "texts" else key)
            own["pictures"][place][: len(each.pictures)] = torch.tensor(each.pictures)
        for key, tensor in own.items():
            tensors[key][layer] = tensor
    return tensors
