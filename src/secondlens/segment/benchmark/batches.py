"""Maps to make: images, the text to find in each, and where it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from ...clip.view import Clip
from ...errors import SecondLensError
from ...texts import Vocabulary
from ..inputs import whole
from .examples import Example, MaskedImages, iterate

IMAGES_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Maps to make: an image may be in it several times, with another text each time."""

    pixels: Float[Tensor, "maps 3 height width"]
    texts: Mapping[str, Float[Tensor, "maps dim"]]
    """By form: `plain`, and `centred`, with the mean of all classes subtracted."""
    masks: Int8[Tensor, "maps height width"]
    images: list[str]
    """The id of each image."""
    objects: list[int]
    """How many things each image has masks for."""


class Classes:
    """Text embeddings of all classes of a data set.

    Parameters
    ----------
    clip
        The model.
    texts
        Labels as the data set spells them, and their prompts.
    predicted
        Whether to segment the class that CLIP predicts for an image and not the one it has. Images
        of unnamed classes always take the predicted one.
    """

    def __init__(self, clip: Clip, texts: Vocabulary, predicted: bool = False) -> None:
        self.clip, self.predicted = clip, predicted
        self.position = {label: i for i, label in enumerate(texts.labels)}
        self.rows = texts.embed(clip)
        self.mean = self.rows.mean(0)

    def of(
        self, labels: Sequence[str | None], pixels: Float[Tensor, "maps 3 height width"]
    ) -> Float[Tensor, "maps dim"]:
        """The embedding for each map.

        Raises
        ------
        SecondLensError
            A label that is not among the classes.
        """
        if missing := [label for label in labels if label and label not in self.position]:
            raise SecondLensError(f"no text for the class {missing[0]!r}: add it to the classes")
        chosen = torch.tensor([self.position[label] if label else -1 for label in labels])
        chosen = chosen.to(self.rows.device)
        if self.predicted or (chosen < 0).any():
            unit = F.normalize(self.clip.encode_image(pixels).to(self.rows.dtype), dim=-1)
            best = (unit @ self.rows.T).argmax(1)
            chosen = best if self.predicted else torch.where(chosen < 0, best, chosen)
        return self.rows[chosen]


def batches(
    clip: Clip, images: MaskedImages, classes: Classes, size: int = IMAGES_PER_BATCH
) -> Iterator[Batch]:
    """Maps to make, `size` images at a time."""
    examples = iterate(images)
    while some := list(islice(examples, size)):
        yield _batch(clip, some, classes)


def _batch(clip: Clip, examples: list[Example], classes: Classes) -> Batch:
    repeats = torch.tensor([len(example.labels) for example in examples])
    prepared = clip.prepare(whole(clip, [example.image for example in examples]))
    pixels = prepared.repeat_interleave(repeats.to(prepared.device), dim=0)
    plain = classes.of([label for example in examples for label in example.labels], pixels)
    return Batch(
        pixels=pixels,
        texts={"plain": plain, "centred": F.normalize(plain - classes.mean, dim=-1)},
        masks=torch.cat([example.masks_at(clip.image_size) for example in examples]),
        images=[example.id for example in examples for _ in example.labels],
        objects=[len(example.labels) for example in examples for _ in example.labels],
    )
