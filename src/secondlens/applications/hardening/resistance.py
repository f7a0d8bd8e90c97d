"""What the pictures of attacks do to two models: the share called the wrong class, first."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ...arguments import checked
from ...data.reader import Batch, Reader, in_parts
from ...devices import undisturbed
from ...errors import SecondLensError
from ...intervals import of_mean, of_ratio
from ...models.view import Clip
from ...progress import tracked
from ..adversarial.runs import Attacked


@dataclass(frozen=True, kw_only=True)
class Success:
    """How often something happens with two models, in shares of the same pictures."""

    before: float
    after: float
    change: tuple[float, float, float]
    """After minus before, with its 95 % interval: over pairs of classes where there are several,
    else over pictures."""


@dataclass(frozen=True, kw_only=True)
class Resistance:
    """What attacks do to a model, before and after it was changed."""

    attacks: str
    """Name of the set."""
    count: int
    """Pictures that were read."""
    pairs: int
    """Pairs of a drawn and a wrong class among them."""
    called_wrong: Success
    """The wrong class is the best of all classes."""
    nearer_wrong: Success
    """The wrong class is ahead of the drawn one: what the paper counts."""
    right: Success
    """The drawn class is the best of all classes."""


@checked
@undisturbed
@torch.no_grad()
def resistance(
    before: Clip,
    after: Clip,
    attacks: Attacked,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Resistance:
    """Compare what the same pictures of attacks do to two image towers with one text tower.

    Parameters
    ----------
    before, after
        The models.
    attacks
        What `attacked` finds: pictures with the class of each, and what it was to be mistaken for.
    batch_size
        Images in a forward pass.

    Raises
    ------
    SecondLensError
        No picture that can be read.
    """
    classifier = attacks.pictures.classes.embed(before)
    drawn, rivals = torch.tensor(attacks.pictures.labels), torch.tensor(attacks.rivals)
    old, new = (
        _cosines(clip, attacks, classifier, batch_size, progress) for clip in (before, after)
    )
    read = ~(old.isnan() | new.isnan()).any(1)
    if not read.any():
        raise SecondLensError(f"none of the pictures of {attacks.pictures.name} could be read")
    pairs = torch.stack([drawn, rivals], dim=1)[read]
    kinds, pair_of = pairs.unique(dim=0, return_inverse=True)

    def success(happens: Callable[[Tensor], Bool[Tensor, " images"]]) -> Success:
        return _success(happens(old)[read], happens(new)[read], pair_of)

    def ahead(cosines: Tensor) -> Bool[Tensor, " images"]:
        wrong, right = (cosines.gather(1, each[:, None])[:, 0] for each in (rivals, drawn))
        return wrong > right

    return Resistance(
        attacks=attacks.pictures.name,
        count=int(read.sum()),
        pairs=len(kinds),
        called_wrong=success(lambda cosines: cosines.argmax(1) == rivals),
        nearer_wrong=success(ahead),
        right=success(lambda cosines: cosines.argmax(1) == drawn),
    )


def _cosines(
    clip: Clip,
    attacks: Attacked,
    classifier: Float[Tensor, "classes dim"],
    batch_size: int | None,
    progress: bool,
) -> Float[Tensor, "images classes"]:
    """With each class, on the CPU; NaN for what cannot be read."""
    reader = Reader(source=attacks.pictures.source, clip=clip, batch_size=batch_size)
    found = torch.full((len(attacks.pictures), len(classifier)), torch.nan, dtype=classifier.dtype)

    def cosines(batch: Batch) -> Tensor:
        unit = F.normalize(clip.encode_image(batch.on(clip.device)).to(classifier), dim=-1)
        return (unit @ classifier.T).cpu()

    shown = tracked(reader, attacks.pictures.name, progress)
    for batch, rows in in_parts(shown, clip, cosines):
        found[batch.positions] = rows
    return found


def _success(
    old: Bool[Tensor, " images"], new: Bool[Tensor, " images"], pair_of: Tensor
) -> Success:
    change = new.double() - old.double()
    counts = pair_of.bincount().double()
    if len(counts) > 1:  # pictures of a pair are alike
        sums = change.new_zeros(len(counts)).index_add(0, pair_of, change)
        low, high = of_ratio(sums.tolist(), counts.tolist())
    else:
        low, high = of_mean(change.tolist())
    return Success(
        before=float(old.double().mean()),
        after=float(new.double().mean()),
        change=(float(change.mean()), low, high),
    )
