"""Whether a text is in a picture at all: a heat-map always has a maximum, and a mask need not be.

Five readings compare the text with other words. Three are log-probabilities, by softmax of cosines:
for the picture as a whole; in the best of overlapping windows, where a small thing is large; and at
the patches that say most for it. Two are of the second-order effects of the picture's tokens, as
`discovery` reads them: the text's share of all weights that tokens vote for, and its share of what
tokens send along words at all, both as logarithms.

A logistic regression on development pictures weighs them, and its level is where a given share of
what is there would be lost. Nothing else is learnt, and no word has weights of its own, so that the
decision holds for words that were not among those it was tuned on.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ...arguments import checked
from ...data.decoding import whole
from ...data.vocabularies import Vocabulary
from ...devices import undisturbed
from ...effects.capture import Capture
from ...effects.token_effects import TokenReader
from ...errors import SecondLensError
from ...intervals import wilson
from ...lens.lens import Lens
from ...models.view import Clip, Images
from ...storage.files import read_json, save_json
from ...words.voting import WARMTH
from .baselines.last_block import nac_clip
from .windows import boxes_of, cut, size_of

READINGS = ("whole", "window", "patches", "votes", "sent")
WINDOWS = 2
"""Along each side, each overlapping half of the next."""
PATCH_SCALE = 40.0
"""Of cosines at patches before a softmax."""
MOST = 0.08
"""Of the patches, those that say most for a text."""
SAME = 1 - 1e-5
"""The cosine from which on another word is the text itself."""
TEMPERATURE = 100.0
"""Of a model that does not say its own; CLIP's."""


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Weights of `READINGS`, and the level from which on a text is there."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    weights: tuple[float, ...]
    level: float
    windows: int = WINDOWS

    def scores(
        self, readings: Float[Tensor, "images texts readings"]
    ) -> Float[Tensor, "images texts"]:
        """Log-odds up to a constant that is the same for all."""
        means, deviations, weights = (
            torch.tensor(each, dtype=readings.dtype, device=readings.device)
            for each in (self.means, self.deviations, self.weights)
        )
        return ((readings - means) / deviations) @ weights

    def present(
        self, readings: Float[Tensor, "images texts readings"]
    ) -> Bool[Tensor, "images texts"]:
        """Whether each text is in each image."""
        return self.scores(readings) >= self.level

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        save_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Presence":
        """Read what `save` wrote.

        Raises
        ------
        SecondLensError
            There is no such file, or another one.
        """
        try:
            given = read_json(path)
            of_readings = [
                tuple(map(float, given[name])) for name in ("means", "deviations", "weights")
            ]
            if any(len(each) != len(READINGS) for each in of_readings):
                raise ValueError("it has other readings")
            means, deviations, weights = of_readings
            return cls(
                means=means,
                deviations=deviations,
                weights=weights,
                level=float(given["level"]),
                windows=int(given["windows"]),
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SecondLensError(
                f"{path} does not say when a text is there: name a file that Presence.save wrote"
            ) from error


WHOLE_WEIGHT, SPOKEN = 0.25, -3.5
"""How much "whole" counts beside "votes", and the level of their sum from which on a picture speaks
for a text. Chosen on development scenes of the embedded world, by multi-class mIoU."""
LEAST = 1e-6
"""Of what all words have, from which on a share has a logarithm."""


class PresenceReader:
    """Reads pictures for one model and lens.

    Raises
    ------
    SecondLensError
        Another model's lens.
    """

    def __init__(self, clip: Clip, lens: Lens) -> None:
        lens.check_model(clip)
        self.clip = clip
        self.layers = lens.late_layers(clip)
        self._tokens = TokenReader(clip, lens.token_means(clip, self.layers))

    @torch.no_grad()
    def __call__(
        self,
        pictures: Images,
        texts: Float[Tensor, "texts dim"],
        among: Float[Tensor, "words dim"],
        windows: int = WINDOWS,
    ) -> Float[Tensor, "images texts readings"]:
        """Readings of texts among other words, see `READINGS`.

        Each text is compared with the words alone, not with the other texts. A word that is the
        text itself does not count. The price is 2 + windows^2 encodings a picture.
        """
        clip = self.clip
        pixels = clip.prepare(whole(clip, pictures))
        boxes = [boxes_of(*size_of(each), windows) for each in pictures]
        seen = clip.prepare(whole(clip, cut(pictures, boxes, clip.image_size)))
        in_whole, votes, sent = self._of_whole(pixels, texts, among)
        same = texts @ among.T >= SAME
        scaled = temperature(clip) * F.normalize(clip.encode_image(seen).to(texts), dim=-1)
        in_windows = _likely(scaled @ texts.T, scaled @ among.T, same)
        rows = torch.cat([texts, among]).expand(len(pixels), -1, -1)
        cosines = PATCH_SCALE * nac_clip(clip, pixels, rows).flatten(2)
        own, others = cosines.split([len(texts), len(among)], dim=1)
        at_patches = _likely(own.mT, others.mT, same).mT
        most = max(1, round(MOST * at_patches.shape[-1]))
        readings = (
            in_whole,
            in_windows.unflatten(0, (len(pixels), -1)).amax(1),
            at_patches.topk(most, dim=-1).values.mean(-1),
            votes,
            sent,
        )
        return torch.stack(readings, dim=-1)

    @torch.no_grad()
    def spoken(
        self, pixels: Float[Tensor, "images 3 height width"], texts: Float[Tensor, "texts dim"]
    ) -> Bool[Tensor, "images texts"]:
        """Texts that preprocessed pictures as a whole speak for, among each other.

        Nothing is tuned for that, and one encoding is enough: it is less sure than a `Presence`.
        """
        whole, votes, _ = self._of_whole(pixels, texts, texts)
        return votes + WHOLE_WEIGHT * whole >= SPOKEN

    def _of_whole(
        self,
        pixels: Float[Tensor, "images 3 height width"],
        texts: Float[Tensor, "texts dim"],
        among: Float[Tensor, "words dim"],
    ) -> tuple[Float[Tensor, "images texts"], ...]:
        """The readings that need one encoding: "whole", "votes" and "sent"."""
        same = texts @ among.T >= SAME
        reading = Capture(self.clip, self.layers, keep_activations=True)
        with self.clip.class_token_only(), reading as capture:
            representation = self.clip.encode_image(pixels)
            sent = self._tokens.read(capture.pool(representation)).sent
        scaled = temperature(self.clip) * F.normalize(representation.to(texts), dim=-1)
        in_whole = _likely(scaled @ texts.T, scaled @ among.T, same)
        return in_whole, *_shares(sent, texts, among, same)


def _likely(
    own: Float[Tensor, "*places texts"],
    others: Float[Tensor, "*places words"],
    same: Bool[Tensor, "texts words"],
) -> Float[Tensor, "*places texts"]:
    """Log-probability of each text among itself and the words that are not the `same`, from logits
    of both."""
    rivals = others[..., None, :].expand(*own.shape, -1)
    rest = rivals.masked_fill(same, -torch.inf).logsumexp(-1)
    found: Tensor = own - torch.logaddexp(own, rest)
    return found


def _shares(
    sent: Float[Tensor, "images tokens dim"],
    texts: Float[Tensor, "texts dim"],
    among: Float[Tensor, "words dim"],
    same: Bool[Tensor, "texts words"],
) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "images texts"]]:
    """Logarithms of what texts have of the words' weights by vote, and of what is sent along words.

    Votes are those of `words.voting.vote`, where the words are those of `among` and the text.
    """
    centre = among.mean(0)
    own, others = (sent @ F.normalize(each - centre, dim=1).T for each in (texts, among))
    spread = others.std(dim=2, correction=0, keepdim=True).clamp(min=torch.finfo(sent.dtype).tiny)
    own_votes = _likely(own / (WARMTH * spread), others / (WARMTH * spread), same).exp()
    votes = (others / (WARMTH * spread)).softmax(-1)
    pairs = (own_votes * own).sum(1), (votes * others).sum(1)
    sums = own.clamp(min=0).sum(1), others.clamp(min=0).sum(1)
    by_vote, along = (
        (mine.clamp(min=0) / all_.clamp(min=0).sum(1, keepdim=True).clamp(min=LEAST**2))
        .clamp(min=LEAST)
        .log()
        for mine, all_ in (pairs, sums)
    )
    return by_vote, along


def temperature(clip: Clip) -> float:
    """What the model multiplies cosines with."""
    learnt = getattr(clip.model, "logit_scale", None)
    return TEMPERATURE if learnt is None else float(learnt.detach().exp())


Told = tuple[Image.Image, set[str]]
"""A picture and the labels of what is in it."""

PICTURES_PER_PASS = 8


@checked
@undisturbed
def tune_presence(
    clip: Clip,
    lens: Lens,
    pictures: "Iterable[Told]",
    words: Vocabulary,
    *,
    lost: float = 0.05,
    windows: int = WINDOWS,
) -> Presence:
    """Weigh the readings on pictures of which it is known what they show.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    pictures
        Pairs of a picture and the labels of what is in it; all other labels are not.
    words
        All labels and their prompts: each is a text, and all others are the words it is compared
        with.
    lost
        The share of what is there that other pictures may miss: the level is lower than where these
        pictures miss as many, so that chance is allowed for, see `most_lost`.
    windows
        Along each side.

    Raises
    ------
    SecondLensError
        Another model's lens, no pictures, a label that is not among the words, or nothing that is
        there or not there.
    """
    readings, there = presence_readings(clip, lens, pictures, words, windows)
    if not 0 < lost < 1:
        raise SecondLensError(f"a share of {lost} cannot be lost: give more than 0 and less than 1")
    if not there.any() or there.all():
        raise SecondLensError("of the words, some must be in pictures and some not")
    flat = readings.flatten(0, 1).double()
    means, deviations = flat.mean(0), flat.std(0).clamp(min=torch.finfo(torch.float32).eps)
    weights = _logistic((flat - means) / deviations, there.flatten())
    found = Presence(
        means=tuple(means.tolist()),
        deviations=tuple(deviations.tolist()),
        weights=tuple(weights.tolist()),
        level=0.0,
        windows=windows,
    )
    scores = found.scores(readings.double())[there].sort().values
    return Presence(**{**asdict(found), "level": float(scores[most_lost(len(scores), lost)])})


def most_lost(there: int, lost: float) -> int:
    """How many of `there` may be lost so that other pictures lose a share of at most `lost`.

    The largest number whose 95 % Wilson interval ends at `lost`, or before; else none.
    """
    return max((k for k in range(there) if wilson(k, there)[1] <= lost), default=0)


def presence_readings(
    clip: Clip, lens: Lens, pictures: Iterable[Told], words: Vocabulary, windows: int = WINDOWS
) -> tuple[Float[Tensor, "images texts readings"], Bool[Tensor, "images texts"]]:
    """Readings of every word in every picture, and whether it is there."""
    read, rows = PresenceReader(clip, lens), words.embed(clip)
    position = {label: number for number, label in enumerate(words.labels)}
    told = list(pictures)
    if not told:
        raise SecondLensError("there are no pictures to tune on: give at least one")
    if unknown := sorted({label for _, labels in told for label in labels} - set(position)):
        raise SecondLensError(f"{unknown[0]!r} is in a picture and not among the words: add it")
    there = torch.zeros(len(told), len(rows), dtype=torch.bool)
    for number, (_, labels) in enumerate(told):
        there[number, [position[label] for label in labels]] = True
    found = [
        read(
            [picture for picture, _ in told[start : start + PICTURES_PER_PASS]], rows, rows, windows
        ).cpu()
        for start in range(0, len(told), PICTURES_PER_PASS)
    ]
    return torch.cat(found), there


def _logistic(
    readings: Float[Tensor, "cases readings"], there: Bool[Tensor, " cases"]
) -> Float[Tensor, " readings"]:
    """Weights of a logistic regression in which both outcomes count alike, with a weak penalty."""
    target = there.to(readings)
    share = target.mean()
    balance = torch.where(there, 0.5 / share, 0.5 / (1 - share))
    weights = torch.zeros(readings.shape[1] + 1, dtype=readings.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = readings @ weights[:-1] + weights[-1]
        wrong = F.binary_cross_entropy_with_logits(logits, target, balance)
        total = wrong + 1e-4 * weights[:-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    return weights.detach()[:-1]
