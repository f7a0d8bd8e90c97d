"""Accuracy by groups, such as each class in each place: a cue that misleads harms the worst one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.labelled import Labelled
from ...data.reader import Batch, Reader, in_parts
from ...devices import undisturbed
from ...errors import SecondLensError
from ...intervals import wilson
from ...models.view import Clip
from ...progress import tracked


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures that are alike in some columns, and the accuracy on them."""

    name: str
    """Such as "landbird, place=1"."""
    count: int
    """Pictures that were read."""
    accuracy: float
    """A share."""
    low: float
    """Its 95 % interval, Wilson's."""
    high: float


@checked
@undisturbed
@torch.no_grad()
def accuracy_by_group(
    clip: Clip,
    pictures: Labelled,
    columns: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[Group]:
    """Measure zero-shot accuracy in each group of labelled pictures.

    Parameters
    ----------
    clip
        The model.
    pictures
        A set whose attributes have the columns.
    columns
        What pictures of a group have in common: names of attributes, and "class".
    batch_size
        Images in a forward pass.

    Returns
    -------
    The worst group first.

    Raises
    ------
    SecondLensError
        No such column, or a group with a single picture that can be read.
    """
    members = pictures.groups(columns)
    best = predicted(clip, pictures, pictures.classes.embed(clip), batch_size, progress)
    labels = torch.tensor(pictures.labels)
    groups = [_group(name, (best == labels)[own][best[own] >= 0]) for name, own in members.items()]
    return sorted(groups, key=lambda each: (each.accuracy, each.name))


def _group(name: str, right: Tensor) -> Group:
    check_group(name, len(right))
    low, high = wilson(int(right.sum()), len(right))
    return Group(
        name=name, count=len(right), accuracy=float(right.double().mean()), low=low, high=high
    )


def check_group(name: str, count: int) -> None:
    """Raise `SecondLensError` for a group of which nothing can be said."""
    if count < 2:
        raise SecondLensError(
            f"the group {name} has {count or 'no'} picture{'s' if not count else ''} that can be "
            "read, so that its accuracy is 0 or 1: name fewer columns, or give more pictures"
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
