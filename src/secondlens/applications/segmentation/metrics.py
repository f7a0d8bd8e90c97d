"""Pixel accuracy, mIoU and mAP of foreground against background, as Table 4 of the paper counts.

Masks hold 1 (object), 0 (background) and `IGNORE`, which counts nowhere. Counts of maps add up, so
that a data set, or a bootstrap sample of it, is a sum over its maps:

- pixel accuracy: pixels labelled right over labelled pixels, of the whole data set;
- mIoU: intersection over union of the whole data set, the mean of object and background. A class
  that is in neither masks nor predictions has no union and is left out of the mean: with no
  foreground anywhere, mIoU is that of the background;
- mAP: the mean over maps of the average precision of 2 * pixels decisions: each pixel is scored as
  object with its heat and as background with 1 - heat. As many decisions are right as pixels are
  labelled, so it is defined for masks that are all foreground or all background.

A map without any labelled pixel counts in none. All three are NaN only if no pixel is labelled.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from ...data.masked import IGNORE
from ...errors import SecondLensError

STATISTICS = ("right object", "missed", "invented", "right background", "precision", "maps")
"""Columns of `statistics`: pixel counts, the average precision, and 1 where a pixel is labelled."""


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """Of some maps, as shares."""

    pixel_accuracy: float
    miou: float
    map: float


def check_masks(heat: Float[Tensor, "..."], masks: Int8[Tensor, "..."]) -> None:
    """Raise `SecondLensError` unless each map has a mask of its size that holds 1, 0 and -1."""
    if heat.shape != masks.shape:
        raise SecondLensError(
            f"heat-maps are {list(heat.shape)} and masks {list(masks.shape)}: resize one of them"
        )
    if masks.numel() and not IGNORE <= int(masks.min()) <= int(masks.max()) <= 1:
        raise SecondLensError("masks hold 1 (object), 0 (background) and -1 (ignored) only")


def statistics(
    heat: Float[Tensor, "maps height width"],
    predicted: Bool[Tensor, "maps height width"],
    masks: Int8[Tensor, "..."],
) -> Float[Tensor, "maps statistics"]:
    """What each map adds to the scores, in float64, see `STATISTICS`.

    Raises
    ------
    SecondLensError
        Masks that `check_masks` refuses.
    """
    check_masks(heat, masks)
    counts = confusion(predicted, masks)
    labelled = (counts.sum(1) > 0).double()
    return torch.cat(
        [counts, torch.stack([average_precision(heat, masks), labelled], dim=1)], dim=1
    )


def confusion(
    predicted: Bool[Tensor, "*batch height width"], masks: Int8[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch 4"]:
    """Pixels: object found, missed, invented, background found. `masks` broadcast."""
    pairs = [(True, 1), (False, 1), (True, 0), (False, 0)]
    counts = [((predicted == said) & (masks == true)).sum((-2, -1)) for said, true in pairs]
    return torch.stack(counts, dim=-1).double()


def average_precision(
    heat: Float[Tensor, "maps height width"], masks: Int8[Tensor, "maps height width"]
) -> Float[Tensor, " maps"]:
    """Of object and background scores together, in float64; 0 where no pixel is labelled.

    sum over distinct scores, the highest first, of (recall - the recall before) * precision.
    """
    both = torch.cat([heat.flatten(1), 1 - heat.flatten(1)], dim=1)
    right = torch.cat([(masks == 1).flatten(1), (masks == 0).flatten(1)], dim=1)
    labelled = (masks != IGNORE).flatten(1).repeat(1, 2)
    # what is ignored goes last, and adds nothing there
    scores, order = both.masked_fill(~labelled, -torch.inf).sort(dim=1, descending=True)
    hits = right.gather(1, order).double().cumsum(1)
    seen = labelled.gather(1, order).double().cumsum(1)
    # tied scores are one decision: only the last of them is looked at
    last = torch.ones_like(right)
    last[:, :-1] = scores[:, 1:] != scores[:, :-1]
    # hits at the decision before: they never fall, so a running maximum carries them on
    kept = torch.where(last, hits, 0.0).cummax(1).values
    before = torch.cat([torch.zeros_like(kept[:, :1]), kept[:, :-1]], dim=1)
    precision = hits / seen.clamp(min=1)
    total = torch.where(last, (hits - before) * precision, 0.0).sum(1)
    return total / hits[:, -1].clamp(min=1)


def scores(totals: Float[Tensor, "*batch statistics"]) -> Float[Tensor, "*batch 3"]:
    """Pixel accuracy, mIoU and mAP from summed `statistics`."""
    found, missed, invented, background, precision, maps = totals.unbind(-1)
    union = torch.stack([found + missed + invented, background + missed + invented], dim=-1)
    overlap = torch.stack([found, background], dim=-1) / union.clamp(min=1)
    labelled = found + missed + invented + background
    return torch.stack(
        [(found + background) / labelled, overlap.sum(-1) / (union > 0).sum(-1), precision / maps],
        dim=-1,
    )


def score(maps: Float[Tensor, "maps statistics"]) -> MaskScores:
    """The scores of a data set from the statistics of its maps."""
    accuracy, miou, precision = scores(maps.sum(0)).tolist()
    return MaskScores(pixel_accuracy=accuracy, miou=miou, map=precision)


def paired_differences(
    ours: Float[Tensor, "maps statistics"],
    theirs: Float[Tensor, "maps statistics"],
    images: list[str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Float[Tensor, "3 2"]:
    """95 % bootstrap intervals of ours - theirs in pixel accuracy, mIoU and mAP.

    Whole images are drawn, with all maps of each (`images` names the image of each map), and both
    methods are scored on the same draw. Draws are cheap: a sum of per-image sums.
    """
    position = {name: i for i, name in enumerate(dict.fromkeys(images))}
    index = torch.tensor([position[name] for name in images])
    per_image = torch.zeros(2, len(position), ours.shape[1], dtype=ours.dtype)
    per_image.index_add_(1, index, torch.stack([ours, theirs]))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(position), (samples, len(position)), generator=generator)
    weights = torch.zeros(samples, len(position), dtype=ours.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=ours.dtype))
    both = scores(weights @ per_image)
    ends = torch.tensor([0.025, 0.975], dtype=ours.dtype)
    # a draw of unlabelled images only has no score
    return torch.nanquantile(both[0] - both[1], ends, dim=0).T
