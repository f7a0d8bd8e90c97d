"""What an image shows, in words, and the neurons, heads and patches that say so.

The paper adds up the codes of the active neurons (appendix A.5 of arXiv 2406.04341; `paper=True`).
Here the tokens of the image vote (`words.voting`): c[t] are the second-order effects of all neurons
at token t, minus what is usual at that token (see `token_effects`).

A token speaks for the few words it is nearest to, so that a small object is not drowned in the
sum, and a word that is a little like everything gets little. Once the shares are given, a weight is
linear in the effects and splits exactly into parts of neurons, of later heads and of tokens. Total
effects, of a lens over all paths, go through several heads each, and split into parts of neurons
and tokens alone.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...arguments import checked
from ...data.decoding import SUFFIXES
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import pictures_of
from ...data.texts import source_for
from ...data.vocabularies import Vocabulary, vocabulary
from ...devices import undisturbed
from ...effects.capture import Capture, Pooled
from ...effects.streaming import of_finite, stream
from ...effects.token_effects import (
    Split,
    TokenEffects,
    TokenReader,
    TotalTokenEffects,
    TotalTokenReader,
)
from ...errors import SecondLensError, SecondLensWarning
from ...lens.lens import Lens
from ...models.view import Clip
from ...progress import tracked
from ...words.describing import described
from ...words.voting import Votes, vote
from .paper_sum import PaperSum, Summed
from .words import SYNONYM, FoundWord, carried, group

CANDIDATES = 2
"""Words that are looked at for each that is wanted: some are synonyms of others."""


@checked
@undisturbed
def discover(
    clip: Clip,
    lens: Lens,
    image: Any,
    top: int = 10,
    *,
    texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
    layers: Sequence[int] | None = None,
    paper: bool = False,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> list[FoundWord] | list[list[FoundWord]]:
    """The words that an image shows, heaviest first, found by its neurons.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, in the convention "exact"; with `Lens.over("all")`, effects
        are total ones.
    image
        A PIL image, the path of one, or a preprocessed one [3, height, width]; or several: what
        `fit` takes.
    top
        Words to find, at most.
    texts
        What `vocabulary` takes: the words to choose from; by default those of the lens's first
        description.
    layers
        MLP layers whose neurons count; by default the last fitted ones, a quarter of the model's
        depth, or in the paper's form all fitted ones.
    paper
        Weigh words as the paper does, by the norms of effects above the threshold of the fit times
        the neurons' codes (A.5); the lens must then be described with `texts`.
    batch_size, workers, progress
        As of `fit`, for several images.

    Returns
    -------
    The words of one image; or of several, a list for each in the order of the source, empty for one
    that cannot be read, which a warning names.

    Raises
    ------
    SecondLensError
        Another model's lens or an "official" one, fewer than two words to choose from, `top` out of
        range, or no images that can be read.
    """
    discoverer = Discoverer(clip, lens, texts, layers=layers, paper=paper)
    if isinstance(image, Tensor) and image.dim() == 3:
        return discoverer(image[None], top)[0]
    if isinstance(image, Image.Image) or _is_one_file(image):
        return discoverer(pictures_of(image), top)[0]
    reader = Reader(
        source=source_for(clip, image), clip=clip, batch_size=batch_size, workers=workers
    )
    found: list[list[FoundWord]] = [[] for _ in reader.source.ids]
    for position, words in discoverer.stream(reader, top, progress=progress):
        found[position] = words
    if reader.skipped:
        name, reason = next(iter(reader.skipped.items()))
        rest = f", and {len(reader.skipped) - 1} more" if len(reader.skipped) > 1 else ""
        warnings.warn(
            f"no words for {name} ({reason}){rest}: they were left out",
            SecondLensWarning,
            stacklevel=2,
        )
    return found


def _is_one_file(image: Any) -> bool:
    """Whether a path names one picture, and no folder, archive or pattern."""
    if not isinstance(image, str | Path):
        return False
    path = Path(image)
    return (
        path.suffix.lower() in SUFFIXES and not path.is_dir() and not set(str(image)) & set("*?{")
    )


class Discoverer:
    """`discover` for many images: what does not depend on the image is computed once.

    Raises
    ------
    SecondLensError
        What `discover` says of lenses and texts.
    """

    def __init__(
        self,
        clip: Clip,
        lens: Lens,
        texts: "str | Path | Iterable[str] | Vocabulary | None" = None,
        *,
        layers: Sequence[int] | None = None,
        paper: bool = False,
    ) -> None:
        lens.check_model(clip)
        lens.check_exact()
        lens = lens.to(clip.device)
        self.clip, self.lens, self.paper = clip, lens, paper
        default = lens.layers if paper else lens.late_layers(clip)
        self.layers = list(default if layers is None else layers)
        if not self.layers:
            raise SecondLensError("no layers have no neurons to ask: name at least one")
        self.source: PaperSum | TokenReader | TotalTokenReader
        if texts is None or paper:
            self.texts, codes = described(lens, texts)
        else:
            self.texts = vocabulary(texts)
        if len(self.texts) < 2:
            raise SecondLensError("one word leaves nothing to choose from: give at least two")
        if paper:
            self.source = PaperSum(clip, lens, codes, len(self.texts), self.layers)
        elif lens.axes is None:
            self.source = TokenReader(clip, lens.token_means(clip, self.layers))
        else:
            means = lens.token_means(clip, self.layers)
            self.source = TotalTokenReader(clip, means, lens.axes.rows)
        rows = self.texts.embed(clip).to(clip.compute_dtype)
        self.atoms: Float[Tensor, "texts dim"] = F.normalize(rows - rows.mean(0), dim=1)

    @torch.no_grad()
    def __call__(self, images: Any, top: int = 10) -> list[list[FoundWord]]:
        """The words of each of a few images that `Clip.prepare` takes."""
        self.check_top(top)
        return self._of_pixels(self.clip.prepare(images), top)

    def stream(
        self, reader: Reader, top: int = 10, *, progress: bool = False
    ) -> Iterator[tuple[int, list[FoundWord]]]:
        """The words of all images of a reader that can be read: (position in its source, words).

        The reader lists what it skipped.

        Raises
        ------
        SecondLensError
            `top` out of range, or what `streaming.stream` raises.
        """
        self.check_top(top)
        if self.lens.axes is not None:
            work = partial(of_finite, reader, partial(self._of_batch, top))
            for _, found in in_parts(tracked(reader, "words", progress), self.clip, work):
                yield from found or []
            return
        for batch in stream(
            self.clip,
            reader,
            self.layers,
            keep_activations=True,
            class_token_only=True,
            what="words",
            progress=progress,
        ):
            yield from zip(batch.positions, self._of_pass(batch.pooled, top), strict=True)

    def _of_batch(self, top: int, batch: Batch) -> list[tuple[int, list[FoundWord]]]:
        pixels = batch.on(self.clip.device)
        return list(zip(batch.positions, self._of_pixels(pixels, top), strict=True))

    def _of_pixels(self, pixels: Tensor, top: int) -> list[list[FoundWord]]:
        """The words of preprocessed images."""
        if self.lens.axes is not None:
            return [self._over_all_paths(each, top) for each in pixels.split(1)]
        reading = Capture(self.clip, self.layers, keep_activations=True)
        with self.clip.class_token_only(), reading as capture:
            return self._of_pass(capture.pool(self.clip.encode_image(pixels)), top)

    def _of_pass(self, pooled: Pooled, top: int) -> list[list[FoundWord]]:
        if isinstance(self.source, PaperSum):
            images = range(len(pooled.scale))
            return [self._summed(self.source.of_pass(pooled, each, top)) for each in images]
        assert isinstance(self.source, TokenReader)
        return self._voted(self.source.read(pooled), top)

    def _over_all_paths(self, pixels: Tensor, top: int) -> list[FoundWord]:
        """The words of one preprocessed image by total effects."""
        if isinstance(self.source, PaperSum):
            return self._summed(self.source.of_pixels(pixels, top))
        assert isinstance(self.source, TotalTokenReader)
        return self._voted(self.source.read(pixels), top)[0]

    def _summed(self, found: Summed) -> list[FoundWord]:
        return self._words(found, found.split, 0, self._synonyms(found.indices))

    def _voted(self, effects: TokenEffects | TotalTokenEffects, top: int) -> list[list[FoundWord]]:
        most = min(CANDIDATES * top, len(self.texts))
        votes, groups = [], []
        for sent in effects.sent:
            found = vote(sent, self.atoms, most)
            groups.append(self._synonyms(found.indices)[:top])
            votes.append(found.of([each for members in groups[-1] for each in members]))
        # images with fewer words get some that no token speaks for
        shares = pad_sequence([each.shares for each in votes], batch_first=True)
        vectors = pad_sequence([self.atoms[each.indices] for each in votes], batch_first=True)
        split = effects.split(shares, vectors)
        words = []
        for image, (found, own) in enumerate(zip(votes, groups, strict=True)):
            places = iter(range(len(found.indices)))
            renumbered = [[next(places) for _ in members] for members in own]
            words.append(self._words(found, split, image, renumbered))
        return words

    def _words(
        self, found: Votes | Summed, split: Split, image: int, groups: list[list[int]]
    ) -> list[FoundWord]:
        """Words of an image, from what they and their synonyms have."""
        clip = self.clip
        of = torch.zeros(len(groups), len(found.indices)).to(found.weights)
        for row, members in enumerate(groups):
            of[row, members] = 1
        heads = torch.zeros(len(groups), 0, 0)
        if split.heads:
            most = max(own.shape[2] for own in split.heads.values())
            heads = torch.zeros(len(groups), max(split.heads) + 1, most)
            for block, own in split.heads.items():
                heads[:, block, : own.shape[2]] = of @ own[image, : of.shape[1]]
        tokens = (of @ found.tokens).cpu()
        weights = (of @ found.weights).tolist()
        neurons = {n: own[image, : of.shape[1]] for n, own in split.neurons.items()}
        parts = carried({n: of @ own for n, own in neurons.items()})
        labels = [self.texts.labels[i] for i in found.indices.tolist()]
        words = [
            FoundWord(
                text=labels[members[0]],
                synonyms=tuple(labels[i] for i in members[1:]),
                weight=weights[row],
                neurons=parts[row].neurons,
                others=parts[row].others,
                active=parts[row].active,
                heads=heads[row],
                patches=tokens[row, clip.prefix :].reshape(clip.grid),
                class_token=float(tokens[row, : clip.prefix].sum()),
            )
            for row, members in enumerate(groups)
        ]
        return sorted(words, key=lambda word: -word.weight)

    def _synonyms(self, indices: Int[Tensor, " words"]) -> list[list[int]]:
        """Places of words that are one, the heaviest word first."""
        rows = self.atoms[indices]
        return group((rows @ rows.T).tolist(), SYNONYM)

    def check_top(self, top: int) -> None:
        """Raise `SecondLensError` for a number of words that there are not."""
        most = len(self.texts)
        if not 1 <= top <= most:
            raise SecondLensError(
                f"top must lie between 1 and {most}, the number of words, and it is {top}"
            )
