"""Step 4: was the model fooled, and does the picture show what it is meant to?

The paper removes by hand pictures that show the wrong class or lack the one to draw. Here a `Check`
does, which never is the attacked model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...effects.ablated_runs import IMAGES_PER_PASS
from ...errors import SecondLensError
from ...models.view import Clip
from .generation import GeneratedImage
from .selection import Pair


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the attacked model says of a picture."""

    margin: float
    """Cosine with the wrong class minus cosine with the drawn one."""
    best: str
    """The class that it chooses from all."""

    @property
    def wrong(self) -> bool:
        """Whether it prefers the wrong class of the two."""
        return self.margin > 0


class Zeroshot:
    """Zero-shot decisions of a model between two classes, and among all.

    Parameters
    ----------
    classes, texts
        Names, and their unit embeddings by this model.

    Raises
    ------
    SecondLensError
        Either class of the pair is none of the classes.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        texts: Float[Tensor, "classes dim"],
        pair: Pair,
    ) -> None:
        self.clip, self.classes, self.texts = clip, classes, texts
        wrong, drawn = (row_of(classes, name) for name in (pair.mistake_for, pair.draw))
        self.v = texts[wrong] - texts[drawn]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """A verdict for each picture."""
        found: list[Verdict] = []
        for start in range(0, len(images), IMAGES_PER_PASS):
            rows = self.clip.encode_image(images[start : start + IMAGES_PER_PASS])
            unit = F.normalize(rows.to(self.texts), dim=-1)
            best = (unit @ self.texts.T).argmax(1).tolist()
            margins = (unit @ self.v).tolist()
            found += [
                Verdict(margin=margin, best=self.classes[row])
                for margin, row in zip(margins, best, strict=True)
            ]
        return found


def row_of(classes: Sequence[str], name: str) -> int:
    """The place of a class.

    Raises
    ------
    SecondLensError
        It is none of the classes.
    """
    if name not in classes:
        some = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        raise SecondLensError(f"there is no class {name!r}: choose one of {some}")
    return list(classes).index(name)


@runtime_checkable
class Judge(Protocol):
    """Whether pictures show the class to draw, and not the wrong one."""

    name: str

    def __call__(self, generated: Sequence[GeneratedImage], pair: Pair) -> list[bool]:
        """For each image."""


class ExactJudge:
    """By what the image generator knows to be visible."""

    name = "exact"

    def __call__(self, generated: Sequence[GeneratedImage], pair: Pair) -> list[bool]:
        """For each image.

        Raises
        ------
        SecondLensError
            An image whose generator does not know what it shows.
        """
        return [
            pair.draw in self._shown(each) and pair.mistake_for not in self._shown(each)
            for each in generated
        ]

    def _shown(self, generated: GeneratedImage) -> tuple[str, ...]:
        if generated.shows is None:
            raise SecondLensError(
                "only the image generator of the embedded world knows what it shows: name a referee"
            )
        return generated.shows


class RefereeJudge:
    """By another CLIP: a picture counts if, of all classes, it finds the one to draw most likely.

    One that shows the wrong class does not count, nor one that shows neither: the paper removes
    such pictures by hand. The referee may be fooled by what fools the attacked model; then too few
    pictures count, never too many of those that it is right about.

    Parameters
    ----------
    classes, texts
        Names, and their unit embeddings by the referee.
    """

    def __init__(
        self, clip: Clip, classes: Sequence[str], texts: Float[Tensor, "classes dim"]
    ) -> None:
        self.name = f"referee:{clip.name}"
        self.facts = {"weights": clip.weights_hash}
        self.clip = clip
        self._classes, self._texts = classes, texts

    def __call__(self, generated: Sequence[GeneratedImage], pair: Pair) -> list[bool]:
        """For each image."""
        judge = Zeroshot(self.clip, self._classes, self._texts, pair)
        return [verdict.best == pair.draw for verdict in judge([each.image for each in generated])]
