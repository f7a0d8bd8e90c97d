"""Whether any picture shows a cue: counted where labels or another model say it, else calibrated.

Along the text of a word that no picture shows, pictures differ too: those of what is like it lie
far out. Hence a word is compared with null words, texts between two words that are alike: no
picture shows one, and pictures of either word lie far out along it. What is compared is by how much
pictures fit a word that fit no word like it better.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...data.sources import ImageSource
from ...data.vocabularies import Vocabulary
from ...formatting import counted
from ...models.view import Clip
from ...words.judging import judge, kinds_of

NULL_WORDS = 500
NEIGHBOURS = 10
"""Of a word, the most alike, towards one of which a null word lies."""
BEYOND = 2.0
"""Standard deviations over the pictures, from which on it counts how well one fits a word."""
RIVALS = 0.2, 0.9
"""Cosines, mean text subtracted, between which two words compete for a picture: below they may both
be in it, above they are one thing by two names."""
MOST_PICTURES = 5000
"""That are looked at, evenly from all."""

BAR, LEAST = 4.0, 2
"""Standard deviations from which on another model sees a word in a picture, and pictures that hold
a cue which counts as shown."""


def unshown_cues(
    clip: Clip,
    classes: Vocabulary,
    cues: Vocabulary,
    source: ImageSource,
    embeddings: Float[Tensor, "images dim"],
    positions: list[int],
    *,
    labels: Sequence[Collection[str]] | None,
    referee: Clip | None,
    chance: float,
    others: Vocabulary | None = None,
    batch_size: int | None = None,
    workers: int = 0,
) -> tuple[tuple[str, ...], str]:
    """The cues that no picture shows, and a sentence on how that was judged.

    Of each cue the first of these that there is decides: the labels that name it, the referee, the
    null words.

    Parameters
    ----------
    embeddings, positions
        Of the pictures that could be read, by the explained model; and their places in the source.
    chance
        The share of null words that may fit as well; with 1 nothing is judged.
    others
        More words, which compete for pictures and which null words lie between: where there are
        few cues and classes, these alone would say little of what words do by chance.
    """
    if chance == 1:
        return (), ""
    labelled = [set(labels[position]) for position in positions] if labels is not None else []
    named = {cue: sum(cue in each for each in labelled) for cue in cues.labels}
    kept = {cue: number >= LEAST for cue, number in named.items() if number}
    judges = ["their labels"] if kept else []
    left = [cue for cue in cues.labels if cue not in kept]
    if left and referee is not None:
        number = seen(referee, clip, cues, classes, source, positions, batch_size, workers)
        enough = dict(zip(cues.labels, (number >= LEAST).tolist(), strict=True))
        kept |= {cue: enough[cue] for cue in left}
        judges.append(referee.name)
    elif left:
        pools = [classes, cues, *([] if others is None else [others])]
        rows = torch.cat([each.embed(clip) for each in pools])
        words = F.normalize(rows - rows.mean(0), dim=1).to(embeddings)
        places = [len(classes) + cues.labels.index(cue) for cue in left]
        shares = shares_of_null(embeddings, words, torch.tensor(places))
        kept |= dict(zip(left, (shares <= chance).tolist(), strict=True))
        judges.append(f"{clip.name} itself against texts between two words")
    unshown = tuple(cue for cue in cues.labels if not kept[cue])
    by = " and ".join(judges)
    all_cues = counted(len(cues), "cue")
    return unshown, f" Of {all_cues}, {len(unshown)} were left out, judged by {by}."


def shares_of_null(
    embeddings: Float[Tensor, "images dim"],
    words: Float[Tensor, "words dim"],
    cues: Int[Tensor, " cues"],
) -> Float[Tensor, " cues"]:
    """The share of null words that pictures fit as well as each cue; 1 if none fits the cue.

    Parameters
    ----------
    words
        Unit texts, mean text subtracted, of all that competes for pictures.
    cues
        Rows of `words`.
    """
    step = -(-len(embeddings) // MOST_PICTURES)
    images = embeddings[::step].to(words)
    cosines = words @ words.T
    fits = _standardised(images @ words.T)
    null = _null_words(words, cosines)
    low, high = RIVALS
    rivals = (cosines[cues] > low) & (cosines[cues] < high)
    # a null word competes with the words that it lies between, however near
    by_null = _fit(_standardised(images @ null.T), fits, null @ words.T > low).sort().values
    below = torch.searchsorted(by_null, _fit(fits[:, cues], fits, rivals))
    return 1 - below / len(null)


def _standardised(cosines: Float[Tensor, "images words"]) -> Float[Tensor, "images words"]:
    spread = cosines.std(dim=0)
    smallest = torch.finfo(cosines.dtype).eps
    return (cosines - cosines.mean(dim=0)) / spread.clamp(min=smallest)


def _fit(
    own: Float[Tensor, "images some"], fits: Float[Tensor, "images words"], rivals: Tensor
) -> Float[Tensor, " some"]:
    """By how much pictures fit each word beyond `BEYOND`, of those that fit no rival better."""
    found = []
    for column, competing in zip(own.T, rivals, strict=True):
        best = fits[:, competing].amax(dim=1) if competing.any() else column - 1
        found.append(((column - BEYOND).clamp(min=0) * (column > best)).sum())
    return torch.stack(found)


def _null_words(words: Float[Tensor, "words dim"], cosines: Tensor) -> Float[Tensor, "null dim"]:
    """Between a word and one that is like it: a third of the way to two thirds."""
    generator = torch.Generator().manual_seed(0)
    count = len(words)
    others = cosines.clone().fill_diagonal_(-torch.inf)
    near = others.topk(min(NEIGHBOURS, count - 1), dim=1).indices
    first = torch.randint(count, (NULL_WORDS,), generator=generator)
    second = near[first, torch.randint(near.shape[1], (NULL_WORDS,), generator=generator)]
    way = (1 + torch.rand(NULL_WORDS, 1, generator=generator)) / 3
    return F.normalize((1 - way.to(words)) * words[first] + way.to(words) * words[second], dim=1)


def seen(
    referee: Clip,
    clip: Clip,
    cues: Vocabulary,
    classes: Vocabulary,
    source: ImageSource,
    positions: list[int],
    batch_size: int | None,
    workers: int,
) -> Int[Tensor, " cues"]:
    """Pictures in which another model sees each cue; cues and classes compete for them.

    Raises
    ------
    SecondLensError
        What `words.judging.judge` raises.
    """
    prompts = dict(zip(classes.labels, classes.prompts, strict=True))
    prompts |= dict(zip(cues.labels, cues.prompts, strict=True))
    texts = Vocabulary(
        name="cues and classes", labels=tuple(prompts), prompts=tuple(prompts.values())
    )
    holdings, first = judge(
        referee, clip, texts, kinds_of(texts, None), source, positions, batch_size, workers
    )
    held = holdings.above(BAR)
    number = torch.bincount(held[held >= 0], minlength=len(texts))
    return number[first[[texts.labels.index(cue) for cue in cues.labels]]]
