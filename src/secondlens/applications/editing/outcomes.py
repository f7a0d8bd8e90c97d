"""What an edit did to a zero-shot classifier: accuracy of either model on the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from ...arguments import checked
from ...data.labelled import Labelled
from ...devices import undisturbed
from ...errors import SecondLensError
from ...intervals import of_mean
from ...models.view import Clip
from ..auditing.groups import check_group, predicted


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
    groups: "tuple[Outcome, ...]" = ()
    """The same of each group, the worst one before the edit first."""


@checked
@undisturbed
@torch.no_grad()
def outcome(
    before: Clip,
    after: Clip,
    pictures: Labelled,
    columns: Sequence[str] = (),
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Outcome:
    """Compare the zero-shot accuracy of two image towers with the text tower that both have.

    Parameters
    ----------
    before, after
        The models.
    pictures
        What both classify.
    columns
        What pictures of a group have in common, as `Labelled.groups` takes it; none for no groups.
    batch_size
        Images in a forward pass.

    Raises
    ------
    SecondLensError
        No picture that can be read, no such column, or a group with a single picture.
    """
    classifier = pictures.classes.embed(before)
    old, new = (
        predicted(clip, pictures, classifier, batch_size, progress) for clip in (before, after)
    )
    labels = torch.tensor(pictures.labels)
    read = (old >= 0) & (new >= 0)
    if not read.any():
        raise SecondLensError(f"none of the pictures of {pictures.name} could be read")
    right = [each == labels for each in (old, new)]
    groups = []
    for name, own in pictures.groups(columns).items() if columns else ():
        there = torch.zeros_like(read)
        there[own] = True
        check_group(name, int((there & read).sum()))
        groups.append(_compared(name, right, there & read))
    whole = _compared(pictures.name, right, read)
    return replace(whole, groups=tuple(sorted(groups, key=lambda each: each.before)))


def _compared(
    name: str, right: Sequence[Bool[Tensor, " images"]], read: Bool[Tensor, " images"]
) -> Outcome:
    old, new = (each[read] for each in right)
    return Outcome(
        pictures=name,
        count=int(read.sum()),
        before=_share(old),
        after=_share(new),
        change=_change(old, new),
    )


def _share(right: Bool[Tensor, " images"]) -> float:
    return float(right.double().mean())


def _change(
    before: Bool[Tensor, " images"], after: Bool[Tensor, " images"]
) -> tuple[float, float, float]:
    difference: Sequence[float] = (after.double() - before.double()).tolist()
    return sum(difference) / len(difference), *of_mean(difference)
