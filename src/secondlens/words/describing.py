"""Neurons in words: sparse signed texts for directions (section 4 of arXiv 2406.04341)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..data import named_vocabularies
from ..data.embedding import normalise
from ..data.vocabularies import Vocabulary, vocabulary
from ..devices import undisturbed
from ..engine.local import Local
from ..engine.pool import Engine
from ..errors import SecondLensError
from ..lens.codes import WORDS_THAT_COUNT, Codes
from ..lens.lens import Lens
from ..models.view import Clip
from ..progress import tracked
from ..sparse.pursuit import TARGETS_PER_CHUNK, omp_paths

LONGEST = 128
"""Texts in the paper's longest codes (Fig. 4)."""

CONTROLS = 512
"""Random directions that are coded beside the neurons'."""


@checked
@undisturbed
def describe(
    clip: Clip,
    lens: Lens,
    texts: "str | Path | Iterable[str] | Vocabulary",
    k: int | None = None,
    *,
    how: str = "centred",
    engine: Engine | None = None,
    progress: bool = False,
) -> Codes:
    """Write each neuron's direction as a signed sum of `k` texts, by orthogonal matching pursuit.

    The codes are also put into the lens, under the name of the vocabulary. Any direction can be
    rebuilt from enough texts, whether or not they say what it means: `Codes.curve` tells how well
    codes of every size rebuild the neurons' directions, and `Codes.control` how well they rebuild
    random ones.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        What to describe: all fitted layers.
    texts
        A `Vocabulary`, or what `vocabulary` makes one of: a file, a built-in name, texts.
    k
        Texts a neuron; at most the number of texts and `clip.dim`. By default `default_size`.
    how
        `texts.normalise`: "unit", "centred" or "official".
    engine
        Where blocks of neurons are coded, as in `fit`; the codes are the same.
    progress
        Show progress bars.

    Raises
    ------
    SecondLensError
        Another model's lens, `k` out of range, no such normalisation or vocabulary.
    """
    lens.check_model(clip)
    words = vocabulary(texts)
    k = default_size(clip, words) if k is None else k
    if not 1 <= k <= min(len(words), clip.dim):
        raise SecondLensError(
            f"k must lie between 1 and {min(len(words), clip.dim)}, the smaller of the number of "
            f"texts ({len(words)}) and the width of the embedding ({clip.dim}), and it is {k}"
        )
    directions = [lens[layer].directions.to(clip.device) for layer in lens.layers]
    controls = random_directions(CONTROLS, clip.dim).to(directions[0])
    targets = torch.cat([*directions, controls])
    rows = words.embed(clip, progress=progress).to(targets)
    indices, coefficients, brief, cosines = _code(
        _Coding(targets, normalise(rows, how), k), engine or Local(), progress
    )
    counts = [*map(len, directions), CONTROLS]

    def by_layer(rows: Tensor) -> dict[int, Tensor]:
        return dict(zip(lens.layers, rows.split(counts), strict=False))

    codes = Codes(
        labels=words.labels,
        normalise=how,
        indices=by_layer(indices),
        coefficients=by_layer(coefficients),
        brief=by_layer(brief),
        cosine=by_layer(cosines[:, -1]),
        curve={layer: _median(each) for layer, each in by_layer(cosines).items()},
        control=_median(cosines[-CONTROLS:]),
        mean_text=rows.mean(dim=0).cpu(),
    )
    keep(lens, words, codes)
    return codes


def keep(lens: Lens, texts: Vocabulary, codes: Codes) -> None:
    """Put a description into a lens, in place of an earlier one by texts of that name.

    What is known about the earlier one, its scores and its stability, is dropped.
    """
    lens.codes[texts.name] = codes
    for evidence in (lens.scores, lens.stability):
        for name in [name for name, each in evidence.items() if each.vocabulary == texts.name]:
            del evidence[name]


def default_size(clip: Clip, texts: Vocabulary) -> int:
    """Texts a neuron when nobody says: the paper's 128, and at most a quarter of the embedding's
    width, because more rebuild any direction."""
    return max(1, min(LONGEST, clip.dim // 4, len(texts)))


def random_directions(count: int, dim: int) -> Float[Tensor, "count dim"]:
    """Unit rows drawn evenly from the sphere, the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


class _Coding:
    """Codes blocks of targets, each a task named by its first row."""

    def __init__(
        self, targets: Float[Tensor, "targets dim"], atoms: Float[Tensor, "texts dim"], k: int
    ) -> None:
        self.targets, self.atoms, self.k = targets, atoms, k

    @property
    def device(self) -> torch.device:
        """Where targets and atoms are."""
        return self.targets.device

    def to(self, device: torch.device) -> None:
        """Move targets and atoms."""
        self.targets, self.atoms = self.targets.to(device), self.atoms.to(device)

    def __call__(self, first: int) -> tuple[Tensor, ...]:
        """Indices and coefficients of the codes of k texts, the coefficients of the brief codes,
        and the cosines of the codes of 1 to k texts."""
        block = self.targets[first : first + TARGETS_PER_CHUNK]
        (path,) = omp_paths(block, self.atoms, self.k)
        short = min(self.k, WORDS_THAT_COUNT)
        coefficients = path.coefficients(self.k), path.coefficients(short)
        # cloned, because a view would keep the whole path
        return path.indices, *(each.clone() for each in coefficients), path.cosines


def _code(coding: _Coding, engine: Engine, progress: bool) -> tuple[Tensor, ...]:
    """What `_Coding` gives, for all targets, on the CPU."""
    starts = range(0, len(coding.targets), TARGETS_PER_CHUNK)
    with engine.start(coding) as workers:
        done = workers.map(starts)
        found = dict(tracked(done, "codes", progress, len(starts)))
    return tuple(
        torch.cat([part.cpu() for part in parts])
        for parts in zip(*(found[start] for start in starts), strict=True)
    )


def _median(rows: Float[Tensor, "rows k"]) -> Float[Tensor, " k"]:
    return rows.median(dim=0).values


def rebuild(
    indices: Tensor, coefficients: Tensor, atoms: Float[Tensor, "texts dim"]
) -> Float[Tensor, "neurons dim"]:
    """The signed sums of texts that codes stand for."""
    chosen = atoms[indices.clamp(min=0)]
    return torch.bmm(coefficients[:, None], chosen)[:, 0]


def signed(words: Sequence[tuple[str, float]]) -> str:
    """Texts with the signs of their coefficients, such as "+dog +wolf −sea"."""
    return " ".join(f"{'+' if weight > 0 else '−'}{text}" for text, weight in words)


def description_of(lens: Lens, name: str | None = None) -> Codes:
    """The description of a lens of that name, or its first one.

    Raises
    ------
    SecondLensError
        The lens has no such description.
    """
    if not lens.codes:
        raise SecondLensError("this lens has no description yet: run secondlens describe first")
    if name is not None and name not in lens.codes:
        raise SecondLensError(
            f"this lens has no description {name!r}: choose one of {', '.join(lens.codes)}"
        )
    return lens.codes[name or next(iter(lens.codes))]


def described(
    lens: Lens, texts: "str | Path | Iterable[str] | Vocabulary | None" = None
) -> tuple[Vocabulary, Codes]:
    """The texts that a lens was described with, and its description in them.

    Parameters
    ----------
    texts
        The name of a description of the lens, or what `vocabulary` takes; by default its first
        description. The texts of a name are the registered vocabulary of that name if it has the
        same labels, else the labels as they stand. No file is looked for, even if there is one of
        that name.

    Raises
    ------
    SecondLensError
        The lens has no such description, or one by other texts of that name.
    """
    if isinstance(texts, str) and texts in lens.codes:
        return texts_of(texts, lens.codes[texts].labels), lens.codes[texts]
    pool = None if texts is None else vocabulary(texts)
    codes = description_of(lens, None if pool is None else pool.name)
    if pool is None:
        name = next(name for name, each in lens.codes.items() if each is codes)
        return texts_of(name, codes.labels), codes
    if pool.labels != codes.labels:
        raise SecondLensError(
            f"the lens was described with other texts of the name {pool.name}: describe it again"
        )
    return pool, codes


def texts_of(name: str, labels: tuple[str, ...]) -> Vocabulary:
    """The vocabulary that a lens knows by its name and labels: the registered one of that name, or
    its labels as texts."""
    if name in named_vocabularies and (known := named_vocabularies[name]()).labels == labels:
        return known
    return Vocabulary(name=name, labels=labels, prompts=tuple((label,) for label in labels))
