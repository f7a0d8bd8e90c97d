"""Are descriptions any good? How well a few words predict on which unseen images a neuron acts.

The top 2 % of unseen images by the projection of a neuron's effect on its direction have to be
told from the others, given the words of the description alone. A referee says how well each word
matches each image: the true labels of the images, alone or with credit for related words, or
another CLIP. The explained model must not be the judge, because the effect is part of the embedding
that it would judge by. The words are those of the code of 8 texts, what a person would read: the
coefficients of longer codes mostly make up for each other.

The two sides of a direction are two claims, scored on their own: positive words are to find the
largest projections, negative words the most negative ones.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..arguments import checked
from ..data.embedding import normalise
from ..data.labelled import check_label_sets
from ..data.sources import ImageSource, as_source, dataset_hash, name_of
from ..data.unseen import Unseen
from ..data.vocabularies import Vocabulary
from ..devices import CPU, undisturbed
from ..effects.projections import embed, project
from ..effects.value_paths import NEURONS_PER_CHUNK, OFFICIAL_SCALE, chunks
from ..errors import SecondLensError, SecondLensWarning
from ..intervals import Z, of_median
from ..lens.codes import CONTROLS, SIDES, Scores
from ..lens.lens import Lens, projectors
from ..lens.moments import top_count
from ..lens.names import Names
from ..models.view import Clip
from ..sparse.pursuit import omp
from .describing import described, texts_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Area:
    """Areas under ROC curves, and their 95 % intervals over the images."""

    auc: Float[Tensor, " predictors"]
    low: Float[Tensor, " predictors"]
    high: Float[Tensor, " predictors"]


def area_under_roc(
    positives: Float[Tensor, "predictors positives"],
    negatives: Float[Tensor, "predictors negatives"],
    z: float = Z,
) -> Area:
    """The chance that a positive is predicted above a negative, ties counted half.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988): it is exact in what it
    counts and draws nothing, so that thousands of neurons cost two sorts. It is cut at 0 and 1,
    and has no width where positives and negatives separate perfectly.

    Parameters
    ----------
    positives, negatives
        What is predicted for images of either class; at least two of each.
    z
        Half width of the interval in standard errors; 95 % by default.
    """
    of_positives = _share_below(positives, negatives)
    of_negatives = 1 - _share_below(negatives, positives)
    auc = of_positives.mean(1)
    variance = of_positives.var(1) / positives.shape[1] + of_negatives.var(1) / negatives.shape[1]
    spread = z * variance.sqrt()
    return Area(auc=auc, low=(auc - spread).clamp(min=0), high=(auc + spread).clamp(max=1))


def _share_below(
    values: Float[Tensor, "predictors values"], others: Float[Tensor, "predictors others"]
) -> Float[Tensor, "predictors values"]:
    """For each value the share of the others that lie below it; equal ones count half."""
    ordered, values = others.sort(dim=1).values, values.contiguous()
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above).to(values.dtype) / (2 * others.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Referee:
    """Says how well words match images: `images[b] . words[t]`; on the CPU."""

    name: str
    images: Float[Tensor, "images features"]
    words: Float[Tensor, "texts features"]


def model_as_referee(
    referee: Clip,
    clip: Clip,
    texts: Vocabulary,
    source: ImageSource,
    batch_size: int | None,
    workers: int,
) -> Referee:
    """The cosine of a CLIP's embeddings, its mean text subtracted. `clip` is what is explained."""
    name = referee.name
    if referee.weights_hash == clip.weights_hash:
        name += " itself, without the neuron's own effect"
    rows = embed(referee, source, batch_size=batch_size, workers=workers)
    words = normalise(texts.embed(referee), "centred")
    return Referee(name=name, images=rows.cpu(), words=words.cpu())


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
    check_label_sets(labels, len(source.ids), "texts")
    held = torch.tensor([[text in true for text in texts.labels] for true in labels]).float()
    if related is None:
        return Referee(name="true labels", images=held, words=torch.eye(len(texts)))
    if related.weights_hash == clip.weights_hash:
        raise SecondLensError(
            "the explained model cannot say which words are related: give another one"
        )
    rows = normalise(texts.embed(related), "centred").float().cpu()
    name = f"true labels, related words by {related.name}"
    return Referee(name=name, images=held @ rows, words=rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class WordSides:
    """The words that speak for either side of each neuron's direction."""

    texts: Int[Tensor, "neurons words"]
    weights: Float[Tensor, "neurons 2 words"]
    """Not negative; a word speaks for one side."""

    def rows(self, words: Float[Tensor, "texts features"]) -> Float[Tensor, "neurons 2 features"]:
        """Weighted sums of what stands for the words."""
        return torch.bmm(self.weights.to(words), words[self.texts])


@checked
@undisturbed
def score(
    clip: Clip,
    lens: Lens,
    texts: str | Path | Vocabulary,
    images: Any,
    referee: Clip | Sequence[Collection[str]],
    *,
    related: Clip | None = None,
    pictures: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Score the descriptions or the names of all neurons, and put the scores into the lens.

    A neuron's prediction for an image is the sum of its description's weights times the referee's
    matches, over the words of one side; of names, all are of the positive side, each weighted by
    its area above one half. Its score is the area under the ROC curve of that
    prediction against the top 2 % of the images on that side. Four controls are scored alike: the
    description of another neuron of the layer; the code of a random direction; random words with
    the neuron's weights; and the one text most similar to the direction.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        With a description, or names, by `texts`.
    texts
        The name of the description, or its vocabulary; or the name of names, as in `Lens.names`.
    images
        What `fit` takes, but other images than those of the fit, whatever they are called; for
        names, also other ones than those that the neurons were named on.
    referee
        The texts that are true of each image; or another CLIP, which matches by the cosine of its
        embeddings, its mean text subtracted. The explained model itself is accepted too: each
        neuron's own effect is then subtracted from the embedding, and the scores are labelled so.
    related
        With true labels: another CLIP, whose texts say how much a word that is not true of an image
        is like one that is (cosine, mean text subtracted). Few images hold any given object, so
        without it a description that names a neuron's objects in part finds hardly anything.
    pictures
        What the images are called wherever the scores are shown; by default the name of their
        folder or file. Scores of other images under the same name get a number after it.
    seed
        Of the controls.

    Raises
    ------
    SecondLensError
        Another model's lens, a lens without that description or these names, labels that do
        not fit the images, too few readable images, images of the fit or of the names, or the
        explained model as `related`.
    """
    lens.check_model(clip)
    fitted = lens.to(CPU)
    names = lens.names.get(texts) if isinstance(texts, str) else None
    found = as_source(images)
    called = name_of(images, found) if pictures is None else pictures
    if names is None:
        texts, codes = described(fitted, texts)
        how = codes.normalise
        ours = {n: sides(codes.indices[n], codes.brief[n]) for n in lens.layers}
    else:
        _check_other_images(names, found)
        texts, how = texts_of(names.vocabulary, names.labels), "centred"
        ours = {n: sides(names.texts[n], _weights(names, n)) for n in sorted(names.texts)}
    source = Unseen(found, lens.image_ids, lens.digests)
    if isinstance(referee, Clip):
        judge = model_as_referee(referee, clip, texts, source, batch_size, workers)
    else:
        judge = labels_as_referee(referee, clip, texts, source, related)
    itself = isinstance(referee, Clip) and referee.weights_hash == clip.weights_hash
    rivals = _descriptions(clip, fitted, ours, texts, how, seed)
    vectors = {}
    for layer, descriptions in rivals.items():
        vectors[layer] = fitted[layer].directions[:, None]
        if itself:
            own = [description.rows(judge.words) for description in descriptions]
            vectors[layer] = torch.cat([vectors[layer], *own], dim=1)
    seen = project(
        clip,
        source,
        projectors(clip, lens, vectors),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    count = len(seen.positions)
    if count < 4:
        raise SecondLensError(f"{count} readable images are too few to score on: give at least 4")
    top = top_count(None, count)
    unit = OFFICIAL_SCALE if lens.convention == "official" else 1.0
    areas = {
        layer: _areas(judge, descriptions, seen.positions, seen.products[layer], unit, top)
        for layer, descriptions in rivals.items()
    }
    scores = Scores(
        vocabulary=texts.name if names is None else names.name,
        referee=judge.name,
        images=count,
        top=top,
        auc={layer: of[0][:, :, 0] for layer, of in areas.items()},
        low={layer: of[1][:, :, 0] for layer, of in areas.items()},
        high={layer: of[2][:, :, 0] for layer, of in areas.items()},
        controls={layer: of[0][:, :, 1:] for layer, of in areas.items()},
        pictures=called,
        dataset=dataset_hash(found),
    )
    return keep_scores(lens, scores)


def keep_scores(lens: Lens, scores: Scores) -> Scores:
    """Put scores into a lens, and return them under the name that they have there.

    A warning says if they replace earlier ones: by the same judge, on the same images. Those on
    other images of that name stay, and the new ones get a number.
    """
    called, number = scores.pictures, 2
    while (held := lens.scores.get(scores.name)) and held.dataset != scores.dataset:
        scores = replace(scores, pictures=f"{called} ({number})")
        number += 1
    if held is not None:
        message = f"the earlier scores of {scores.name} are replaced: they were on the same images"
        warnings.warn(message, SecondLensWarning, stacklevel=3)
    lens.scores[scores.name] = scores
    return scores


def _check_other_images(names: Names, source: ImageSource) -> None:
    """Raise `SecondLensError` for images that the neurons were named on; numbers are no ids."""
    known = set(names.image_ids)
    same = [each for each in source.ids if each in known and not each.isdecimal()]
    if same:
        raise SecondLensError(
            f"the neurons were named on {len(same):,} of these pictures, {same[0]!r} first: give "
            "other ones to score the names on"
        )


def _weights(names: Names, layer: int) -> Float[Tensor, "neurons names"]:
    """What each name of a neuron counts for; nothing where there is none."""
    return (names.auc[layer] - 0.5).nan_to_num(0.0).float()


def _descriptions(
    clip: Clip,
    lens: Lens,
    ours: Mapping[int, WordSides],
    texts: Vocabulary,
    how: str,
    seed: int,
) -> dict[int, list[WordSides]]:
    """By layer ours, then the controls in the order of `CONTROLS`; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    like = lens[lens.layers[0]].directions
    neurons, words = len(like), next(iter(ours.values())).texts.shape[1]
    rows = normalise(texts.embed(clip), how)
    atoms = rows.to(like)
    gaussian = torch.randn(like.shape, generator=generator).to(rows.device, like.dtype)
    # one set for all layers: sparse coding is the most expensive part of scoring
    found = omp(F.normalize(gaussian, dim=1), rows.to(like.dtype), words)
    of_random_directions = sides(*(each.cpu() for each in found))

    def of_layer(layer: int) -> list[WordSides]:
        own = ours[layer]
        order = torch.randperm(neurons, generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        any_texts = torch.randint(len(atoms), own.texts.shape, generator=generator)
        similarity = lens[layer].directions @ F.normalize(atoms, dim=1).T
        ends = torch.stack([similarity.argmax(1), similarity.argmin(1)], dim=1)
        return [
            own,
            WordSides(texts=own.texts[other], weights=own.weights[other]),
            of_random_directions,
            WordSides(texts=any_texts, weights=own.weights),
            WordSides(texts=ends, weights=torch.eye(2).expand(neurons, 2, 2)),
        ]

    return {layer: of_layer(layer) for layer in ours}


def sides(
    indices: Int[Tensor, "neurons k"], coefficients: Float[Tensor, "neurons words"]
) -> WordSides:
    """The words of brief codes, each for the side that its sign names."""
    return WordSides(
        texts=indices[:, : coefficients.shape[1]].clamp(min=0),
        weights=torch.stack([coefficients.clamp(min=0), (-coefficients).clamp(min=0)], dim=1),
    )


def _areas(
    judge: Referee,
    descriptions: Sequence[WordSides],
    positions: list[int],
    products: Float[Tensor, "images neurons vectors"],
    unit: float,
    top: int,
) -> Float[Tensor, "3 neurons 2 descriptions"]:
    """Area, low and high end of its interval, of every description of a layer."""
    images = judge.images[positions]
    projection, own = products[:, :, 0], products[:, :, 1:] / unit
    areas = torch.empty(3, projection.shape[1], 2, len(descriptions))
    for side, chunk in _work(projection.shape[1]):
        largest_first = projection[:, chunk] * (1 - 2 * side)
        order = largest_first.argsort(dim=0, descending=True, stable=True).T
        for which, description in enumerate(descriptions):
            rows = description.rows(judge.words)[chunk, side]
            predicted = images @ rows.T
            if own.shape[2]:
                predicted = predicted - own[:, chunk, 2 * which + side].to(predicted)
            ranked = predicted.T.gather(1, order)
            area = area_under_roc(ranked[:, :top], ranked[:, top:])
            found = torch.stack([area.auc, area.low, area.high]).float()
            wordless = description.weights[chunk, side].sum(-1) == 0
            areas[:, chunk, side, which] = found.masked_fill(wordless, torch.nan)
    return areas


def _work(neurons: int) -> Iterator[tuple[int, slice]]:
    return ((side, chunk) for side in range(2) for chunk in chunks(neurons, NEURONS_PER_CHUNK))


@dataclass(frozen=True, kw_only=True)
class ControlComparison:
    """Descriptions against one control, over the neurons where both have a score."""

    side: str
    control: str
    neurons: int
    ours: float
    """Median, as `theirs`."""
    theirs: float
    difference: float
    """Median of ours minus theirs, neuron by neuron."""
    low: float
    high: float
    """Its 95 % bootstrap interval over the neurons. They share their images: it says nothing
    about other images."""


def compare(scores: Scores, layers: Sequence[int] | None = None) -> list[ControlComparison]:
    """Ours against every control on either side, over the neurons of some layers (or all).

    A side on which no neuron has words is left out.
    """
    chosen = sorted(scores.auc) if layers is None else layers
    ours = torch.cat([scores.auc[layer] for layer in chosen])
    theirs = torch.cat([scores.controls[layer] for layer in chosen])
    found = []
    for side, name in enumerate(SIDES):
        for which, control in enumerate(CONTROLS):
            both = torch.stack([ours[:, side], theirs[:, side, which]]).numpy()
            both = both[:, np.isfinite(both).all(0)]
            if both.shape[1] == 0:
                continue
            difference = both[0] - both[1]
            low, high = of_median(difference)
            medians = [float(np.median(each)) for each in (*both, difference)]
            found.append(
                ControlComparison(
                    side=name,
                    control=control,
                    neurons=both.shape[1],
                    ours=medians[0],
                    theirs=medians[1],
                    difference=medians[2],
                    low=low,
                    high=high,
                )
            )
    return found


def score_table(scores: Scores) -> Table:
    """Medians over all neurons, and the differences to every control, for a terminal."""
    where = f" of {scores.pictures}" if scores.pictures else ""
    table = Table(
        title=escape(
            f"{scores.vocabulary}, judged by {scores.referee}: area under ROC against the top "
            f"{scores.top} of {scores.images} unseen images{where}"
        )
    )
    for name in ("side", "neurons", "ours", "control", "its median", "difference [95 %]"):
        table.add_column(name, justify="left" if name in ("side", "control") else "right")
    for each in compare(scores):
        difference = f"{each.difference:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
        numbers = f"{each.ours:.3f}", each.control, f"{each.theirs:.3f}", difference
        table.add_row(each.side, str(each.neurons), *numbers)
    return table
