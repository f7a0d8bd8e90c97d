"""What an edit did to a zero-shot classifier: accuracy of either model on the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.labelled import Labelled
from ...data.reader import Batch, Reader, in_parts
from ...devices import undisturbed
from ...errors import SecondLensError
from ...intervals import of_mean
from ...models.view import Clip
from ...progress import tracked


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Accuracies of two models on the same pictures, in shares."""

    pictures: str
    """Name of the set."""
    count: int
    """Pictures that were read."""
    before: float
    after: float
    change: tuple[float, float, float]
    """After minus before, with its 95 % interval over pictures."""


@checked
@undisturbed
@torch.no_grad()
def outcome(
    before: Clip,
    after: Clip,
    pictures: Labelled,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Outcome:
    """Compare the zero-shot accuracy of two image towers with the text tower that both have.

    Raises
    ------
    SecondLensError
        No picture that can be read.
    """
    classifier = pictures.classes.embed(before)
    old, new = (
        predicted(clip, pictures, classifier, batch_size, progress) for clip in (before, after)
    )
    labels = torch.tensor(pictures.labels)
    read = (old >= 0) & (new >= 0)
    if not read.any():
        raise SecondLensError(f"none of the pictures of {pictures.name} could be read")
    right = [(each == labels)[read] for each in (old, new)]
    return Outcome(
        pictures=pictures.name,
        count=int(read.sum()),
        before=_share(right[0]),
        after=_share(right[1]),
        change=_change(*right),
    )


def predicted(
    clip: Clip,
    pictures: Labelled,
    classifier: Float[Tensor, "classes dim"],
    batch_size: int | None,
    progress: bool,
) -> Int[Tensor, " images"]:
    """The class that a model chooses for each picture; -1 for what cannot be read."""
    reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size)
    found = torch.full((len(pictures),), -1)

    def best(batch: Batch) -> Tensor:
        embedding = F.normalize(clip.encode_image(batch.on(clip.device)).to(classifier), dim=-1)
        return (embedding @ classifier.T).argmax(1).cpu()

    for batch, classes in in_parts(tracked(reader, pictures.name, progress), clip, best):
        found[batch.positions] = classes
    return found


def _share(right: Bool[Tensor, " images"]) -> float:
    return float(right.double().mean())


def _change(
    before: Bool[Tensor, " images"], after: Bool[Tensor, " images"]
) -> tuple[float, float, float]:
    difference: Sequence[float] = (after.double() - before.double()).tolist()
    return sum(difference) / len(difference), *of_mean(difference)
