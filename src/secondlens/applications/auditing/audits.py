"""Which cues push a zero-shot classifier towards a class that is not there, by causal effect.

A cue is a word. Its neurons are those whose effects write most along its text. On held-out images
that show the cue and not the class, the second-order effects of these neurons are mean-ablated: how
far the class falls behind the others is what the cue did for it. A cue along whose text pictures
hardly differ is left out. Where pictures can be drawn, the same is asked of pairs of pictures that
differ in the cue alone.
"""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.labelled import check_label_sets
from ...data.reader import Reader
from ...data.sources import as_source
from ...data.vocabularies import Vocabulary, vocabulary
from ...devices import CPU, undisturbed
from ...errors import SecondLensError, SecondLensWarning
from ...intervals import Z
from ...lens.lens import Lens
from ...models.view import Clip
from ...storage.files import read_json, save_csv, save_json
from ...storage.validation import Settings, Texts, check_distinct, convert, reading
from ...words.describing import texts_of
from ...words.judging import check_referee
from .ablated_clip import LayerNeuron, group_effects
from .presence import unshown_cues


@dataclass(frozen=True, kw_only=True, eq=False)
class Exemplars:
    """The images nearest to each cue so far, nearest first, and what its neurons do there."""

    similarity: Float[Tensor, "cues images"]
    positions: Int[Tensor, "cues images"]
    removed: Float[Tensor, "cues images dim"]

    @classmethod
    def none(cls, cues: int, dim: int, like: Tensor) -> "Exemplars":
        """No images yet."""
        return cls(
            similarity=like.new_zeros(cues, 0),
            positions=torch.zeros(cues, 0, dtype=torch.int64, device=like.device),
            removed=like.new_zeros(cues, 0, dim),
        )

    def see(
        self,
        similarity: Float[Tensor, "images cues"],
        removed: Float[Tensor, "images cues dim"],
        positions: Int[Tensor, " images"],
        top: int,
    ) -> "Exemplars":
        """With a batch more; of equal images the earlier ones stay."""
        both = torch.cat([self.similarity, similarity.T], dim=1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :top]
        here = positions.to(both.device).expand(len(both), -1)
        rows = torch.arange(len(both), device=both.device)[:, None]
        return Exemplars(
            similarity=both.gather(1, order),
            positions=torch.cat([self.positions, here], dim=1).gather(1, order),
            removed=torch.cat([self.removed, removed.transpose(0, 1)], dim=1)[rows, order],
        )

    def falls(
        self, classifier: Float[Tensor, "classes dim"], absent: Bool[Tensor, "images classes"]
    ) -> tuple[Float[Tensor, "classes cues"], Float[Tensor, "classes cues"]]:
        """Mean and half 95 % interval of how far each class falls, where it is absent."""
        means, spreads = [], []
        for removed, positions in zip(self.removed, self.positions, strict=True):
            fall = removed @ margins(classifier).T
            counts = absent[positions].to(fall)
            number = counts.sum(0)
            mean = (counts * fall).sum(0) / number
            variance = (counts * (fall - mean).square()).sum(0) / (number - 1)
            means.append(mean)
            spreads.append(Z * (variance / number).sqrt())
        return torch.stack(means, dim=1), torch.stack(spreads, dim=1)


def margins(classifier: Float[Tensor, "classes dim"]) -> Float[Tensor, "classes dim"]:
    """Each class against the mean of the others."""
    return (classifier - classifier.mean(0)) * (len(classifier) / (len(classifier) - 1))


SHARE_OF_NEURONS = 0.04
"""Of all neurons of the lens, that count as a cue's."""
SHARE_OF_IMAGES = 0.05
"""Of the held-out images, that count as showing a cue: those nearest to its text."""
MOST_OTHERS = 500
"""Words of a description that cues are compared with beside the classes."""
ALIKE = 0.9
"""Cosine, mean text subtracted, above which a cue is the class by another name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What each cue does for each class. NaN where the cue is the class, where no image is left,
    and for cues that no image shows; intervals are NaN where a single image is left, too."""

    model: dict[str, Any]
    classes: tuple[str, ...]
    cues: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    """The texts that stand for each cue."""
    effect: Float[Tensor, "classes cues"]
    """How far the class's similarity falls, against the mean of the other classes, when the
    cue's neurons are mean-ablated: its mean over images that show the cue and not the class."""
    spread: Float[Tensor, "classes cues"]
    """Half of its 95 % interval over these images."""
    neurons: tuple[tuple[tuple[int, int], ...], ...]
    """(layer, neuron) of each cue, the one that writes most first."""
    images: tuple[tuple[str, ...], ...]
    """Ids of the images that show each cue, the clearest first."""
    drawn: Float[Tensor, "classes cues"] | None = None
    """How much further ahead the class is when the cue is added to an otherwise equal picture, if
    pictures were drawn."""
    unshown: tuple[str, ...] = ()
    """Cues that no image shows beyond chance."""
    chosen: str = ""
    """How the images of a cue were chosen, in a sentence."""

    def ties(self, count: int | None = None) -> list[tuple[str, str, float, float, float]]:
        """(class, cue, effect, half interval, effect when drawn or NaN).

        Those whose interval excludes zero come first, and of both kinds the largest effects. A
        single image has no interval.
        """
        drawn = torch.full_like(self.effect, torch.nan) if self.drawn is None else self.drawn
        sure = (self.effect.abs() > self.spread).flatten().tolist()
        effects = self.effect.flatten().tolist()
        known = [place for place, effect in enumerate(effects) if not math.isnan(effect)]
        known.sort(key=lambda place: (not sure[place], -effects[place]))
        found = []
        for place in known[:count]:
            row, column = divmod(place, len(self.cues))
            spread, added = float(self.spread[row, column]), float(drawn[row, column])
            found.append((self.classes[row], self.cues[column], effects[place], spread, added))
        return found

    def first_cue(self, name: str) -> str:
        """The cue that does most for a class, of those whose interval excludes zero if there are.

        Raises
        ------
        SecondLensError
            Nothing is known of the class and any cue.
        """
        found = next((cue for row, cue, *_ in self.ties() if row == name), None)
        if found is None:
            raise SecondLensError(f"the audit knows of no cue of {name}: no picture is left")
        return found

    def save(self, folder: str | Path) -> None:
        """Write `audit.json` and `audit.csv` into a folder."""
        folder = Path(folder)
        rows = [
            {
                "class": name,
                "cue": cue,
                "effect": value,
                "low": None if math.isnan(spread) else value - spread,
                "high": None if math.isnan(spread) else value + spread,
                "drawn": None if math.isnan(added) else added,
            }
            for name, cue, value, spread, added in self.ties()
        ]
        save_csv(folder / "audit.csv", rows)
        content = {
            "model": self.model,
            "classes": self.classes,
            "cues": self.cues,
            "prompts": self.prompts,
            **{name: _without_nan(getattr(self, name)) for name in ("effect", "spread", "drawn")},
            "neurons": self.neurons,
            "images": self.images,
            "unshown": self.unshown,
            "chosen": self.chosen,
        }
        save_json(folder / "audit.json", content)

    @classmethod
    def load(cls, folder: str | Path) -> "Audit":
        """What `save` wrote.

        Raises
        ------
        SecondLensError
            No audit there, or a damaged one.
        """
        path = Path(folder) / "audit.json"
        if not path.is_file():
            raise SecondLensError(f"{folder} holds no audit: there is no audit.json in it")
        with reading(f"the audit in {folder}"):
            kept = read_audit(read_json(path), path.name)
            return cls(
                model=kept.model,
                classes=kept.classes,
                cues=kept.cues,
                prompts=kept.prompts,
                neurons=kept.neurons,
                images=kept.images,
                unshown=kept.unshown,
                chosen=kept.chosen,
                effect=_with_nan(kept.effect),
                spread=_with_nan(kept.spread),
                drawn=None if kept.drawn is None else _with_nan(kept.drawn),
            )


Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class StoredAudit:
    """What `audit.json` holds.

    Raises
    ------
    ValueError
        A name twice, or lists that do not fit together.
    """

    model: Settings
    classes: Texts
    cues: Texts
    prompts: tuple[Annotated[Texts, msgspec.Meta(min_length=1)], ...]
    effect: Matrix
    spread: Matrix
    neurons: tuple[tuple[LayerNeuron, ...], ...]
    images: tuple[Texts, ...]
    drawn: Matrix | None = None
    unshown: Texts = ()
    chosen: str = ""

    def __post_init__(self) -> None:
        check_distinct(self.classes, "its classes")
        if not self.classes or not self.cues:
            raise ValueError("it has no classes or no cues")
        for name in ("prompts", "neurons", "images"):
            if len(getattr(self, name)) != len(self.cues):
                raise ValueError(f"it has {len(self.cues)} cues, and {name} of another number")
        for matrix in (self.effect, self.spread, self.drawn):
            if matrix is None:
                continue
            if [len(row) for row in matrix] != [len(self.cues)] * len(self.classes):
                raise ValueError("its numbers are not those of its classes and cues")
            if any(value is not None and math.isinf(value) for row in matrix for value in row):
                raise ValueError("it has a number that is not finite")


def read_audit(content: dict[str, Any], file: str) -> StoredAudit:
    """An `audit.json`, checked; raises `ValueError` if it is damaged."""
    return convert(content, StoredAudit, file)


def _with_nan(matrix: Matrix) -> Float[Tensor, "classes cues"]:
    return torch.tensor([[math.nan if v is None else v for v in row] for row in matrix])


def _without_nan(matrix: Tensor | None) -> list[list[float | None]] | None:
    """For JSON, which has no NaN."""
    if matrix is None:
        return None
    return [[v if v == v else None for v in row] for row in matrix.tolist()]


@checked
@undisturbed
@torch.no_grad()
def audit(
    clip: Clip,
    lens: Lens,
    classes: "str | Path | Iterable[str] | Vocabulary",
    images: Any,
    cues: "str | Path | Iterable[str] | Vocabulary",
    *,
    shown: Sequence[Collection[str]] | None = None,
    referee: Clip | None = None,
    random: int | None = None,
    chance: float = 0.05,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Audit:
    """Measure what each cue does for each class of a zero-shot classifier.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, in the convention "exact"; with `Lens.over("all")`, what is
        taken away are total effects.
    classes, cues
        What `vocabulary` takes. A cue that is a class by another name is not held against it.
    images
        What `fit` takes, but other images than those of the fit.
    shown
        The classes that each image shows; by default the one that the model predicts. Labels that
        are cues say which images show those.
    referee
        Another model, which says what images show of the cues that no label names.
    random
        A seed: choose as many neurons at random instead, as a control.
    chance
        Where neither labels nor a referee say which images show a cue, it counts as shown if
        images fit it better than all null words but this share: texts between two words. With
        labels or a referee, two images must hold it. Others are left out, and a warning names them;
        1 keeps all.

    Raises
    ------
    SecondLensError
        Another model's lens or an "official" one, fewer than two classes, labels that do not fit
        the images, the model itself as a referee, a share that is none, no readable image, or none
        that shows any cue.
    """
    lens.check_model(clip)
    lens.check_exact()
    names, words = vocabulary(classes), vocabulary(cues)
    if not 0 < chance <= 1:
        raise SecondLensError(f"chance must lie above 0 and at most at 1, and it is {chance}")
    if len(names) < 2:
        raise SecondLensError("a classifier needs at least two classes: give more")
    source = as_source(images)
    if shown is not None:
        check_label_sets(shown, len(source.ids), "classes")
    if referee is not None:
        check_referee(referee, clip, source)
    classifier, rows = names.embed(clip), words.embed(clip)
    everything = torch.cat([classifier, rows])
    centred = F.normalize(rows - everything.mean(0), dim=1)
    neurons = cue_neurons(lens, centred, random)
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    top = max(2, round(SHARE_OF_IMAGES * len(source.ids)))
    clearest = Exemplars.none(len(words), clip.dim, like=rows)
    predicted: dict[int, int] = {}
    embeddings: list[Tensor] = []
    for positions, embedding, removed in group_effects(clip, lens, neurons, reader, progress):
        best = (embedding @ classifier.T).argmax(1).tolist()
        predicted |= dict(zip(positions, best, strict=True))
        embeddings.append(embedding.cpu())
        clearest = clearest.see(embedding @ rows.T, removed, torch.tensor(positions), top)
    if not predicted:
        raise SecondLensError("none of the pictures could be read")
    unshown, judged = unshown_cues(
        *(clip, names, words, source, torch.cat(embeddings), list(predicted)),
        labels=shown,
        referee=referee,
        chance=chance,
        others=_described_with(lens),
        batch_size=batch_size,
        workers=workers,
    )
    _tell(unshown, words.labels)
    absent = torch.ones(len(source.ids), len(names), dtype=torch.bool, device=rows.device)
    place = {name: column for column, name in enumerate(names.labels)}
    for position, guess in predicted.items():
        there = [guess] if shown is None else [place[n] for n in shown[position] if n in place]
        absent[position, there] = False
    effect, spread = clearest.falls(classifier, absent)
    left_out = F.normalize(classifier - everything.mean(0), dim=1) @ centred.T > ALIKE
    left_out |= torch.tensor([[n == w for w in words.labels] for n in names.labels]).to(left_out)
    left_out |= torch.tensor([each in unshown for each in words.labels]).to(left_out)
    absence = "by the model's own prediction" if shown is None else "by their labels"
    return Audit(
        model=lens.model,
        classes=names.labels,
        cues=words.labels,
        prompts=words.prompts,
        effect=effect.masked_fill(left_out, torch.nan).cpu(),
        spread=spread.masked_fill(left_out, torch.nan).cpu(),
        neurons=tuple(tuple(each) for each in neurons),
        images=tuple(tuple(source.ids[i] for i in row.tolist()) for row in clearest.positions),
        unshown=unshown,
        chosen=f"The {clearest.positions.shape[1]:,} of {len(predicted):,} pictures that are "
        f"nearest to the text of a cue by {clip.name} itself show the cue; for each class, those "
        f"count that do not show it {absence}.{judged}",
    )


def _described_with(lens: Lens) -> Vocabulary | None:
    """Words of the lens's first description, evenly at most `MOST_OTHERS`."""
    if not lens.codes:
        return None
    name, codes = next(iter(lens.codes.items()))
    texts = texts_of(name, codes.labels)
    step = -(-len(texts) // MOST_OTHERS)
    return replace(texts, labels=texts.labels[::step], prompts=texts.prompts[::step])


def _tell(unshown: Sequence[str], cues: Sequence[str]) -> None:
    """Warn of cues that no image shows.

    Raises
    ------
    SecondLensError
        They are all cues.
    """
    if len(unshown) == len(cues):
        raise SecondLensError(
            f"no picture shows any of the cues beyond chance ({', '.join(unshown[:5])}): give "
            "other cues, or pictures that show them; a chance of 1 keeps all"
        )
    if unshown:
        message = f"left out, since no picture shows them beyond chance: {', '.join(unshown)}"
        warnings.warn(message, SecondLensWarning, stacklevel=4)


def cue_neurons(
    lens: Lens, cues: Float[Tensor, "cues dim"], random: int | None = None
) -> list[list[tuple[int, int]]]:
    """For each cue the neurons that write most along it or against it: |<direction, cue>| times
    the root mean square of their effects. With a seed, as many random ones."""
    lens = lens.to(CPU)
    directions = torch.cat([lens[layer].directions for layer in lens.layers])
    sizes = torch.cat([lens[layer].energy for layer in lens.layers]).sqrt()
    places = [(layer, n) for layer in lens.layers for n in range(len(lens[layer].energy))]
    count = max(1, round(SHARE_OF_NEURONS * len(places)))
    if random is None:
        strength = (cues.to(directions) @ directions.T).abs() * sizes
    else:
        generator = torch.Generator().manual_seed(random)
        strength = torch.rand(len(cues), len(places), generator=generator)
    return [[places[i] for i in row] for row in strength.topk(count, dim=1).indices.tolist()]
