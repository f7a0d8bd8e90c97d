"""Would other images have said the same? Directions and words, refitted on two halves."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..data.sources import Subset, as_source
from ..data.vocabularies import Vocabulary
from ..devices import undisturbed
from ..errors import SecondLensError
from ..lens.codes import Codes, Stability
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..models.view import Clip
from .describing import describe, described


@checked
@undisturbed
def stability(
    clip: Clip,
    lens: Lens,
    texts: Vocabulary,
    images: Any,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Stability:
    """Refit and describe the layers of a lens on two random halves of images, and compare.

    Directions are compared by their absolute cosine: a direction's sign is a convention. Where it
    differs, the words of one half change sign before they are compared. What stands beside both
    numbers is the same comparison between each neuron and the next one of its layer: words and
    directions that all neurons share are not stability. The result is put into the lens.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    texts
        A vocabulary that the lens was described with; `k` and normalisation are those of then.
    images
        Those of the fit.
    seed
        Of the halves.

    Raises
    ------
    SecondLensError
        Another model's lens, no description by these texts, or fewer than 8 images.
    """
    lens.check_model(clip)
    lens.check_value("a comparison of halves")
    _, codes = described(lens, texts)
    source = as_source(images)
    count = len(source.ids)
    if count < 8:
        raise SecondLensError(f"{count} images make no two halves to fit on: give at least 8")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    k = next(iter(codes.indices.values())).shape[1]
    halves = []
    for half in (order[: count // 2], order[count // 2 :]):
        fitted = fit(
            clip,
            Subset(source, sorted(half)),
            lens.layers,
            top=max(2, lens.top // 2),
            convention=lens.convention,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        halves.append((fitted, describe(clip, fitted, texts, k, how=codes.normalise)))
    (one, one_codes), (other, other_codes) = halves
    found: dict[str, dict[int, Tensor]] = {"cosine": {}, "overlap": {}}
    nulls: dict[str, dict[int, Tensor]] = {"cosine": {}, "overlap": {}}
    for layer in lens.layers:
        for shift, into in ((0, found), (1, nulls)):
            partner = torch.arange(clip.neurons).roll(-shift)
            products = one[layer].directions * other[layer].directions[partner]
            cosine = products.sum(1)
            into["cosine"][layer] = cosine.abs()
            into["overlap"][layer] = _overlaps(one_codes, other_codes, layer, partner, cosine)
    result = Stability(
        vocabulary=texts.name,
        images=count,
        cosine=found["cosine"],
        cosine_null=nulls["cosine"],
        overlap=found["overlap"],
        overlap_null=nulls["overlap"],
    )
    lens.stability[result.name] = result
    return result


def _overlaps(
    one: Codes, other: Codes, layer: int, partner: Tensor, cosine: Float[Tensor, " neurons"]
) -> Float[Tensor, " neurons"]:
    """Jaccard's index of the strongest signed words of a neuron and its partner."""
    shares = []
    for neuron, (its, agree) in enumerate(zip(partner.tolist(), cosine >= 0, strict=True)):
        mine = {(word, weight > 0) for word, weight in one.words(layer, neuron)}
        theirs = {(word, (weight > 0) == bool(agree)) for word, weight in other.words(layer, its)}
        shares.append(len(mine & theirs) / max(1, len(mine | theirs)))
    return torch.tensor(shares)
