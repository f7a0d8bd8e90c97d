"""Area under the ROC curve for many predictors at once, with DeLong's interval."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Area:
    """Areas under ROC curves, and their 95 % intervals over the images."""

    auc: Float[Tensor, " predictors"]
    low: Float[Tensor, " predictors"]
    high: Float[Tensor, " predictors"]


def area_under_roc(
    positives: Float[Tensor, "predictors positives"],
    negatives: Float[Tensor, "predictors negatives"],
    z: float = 1.959964,
) -> Area:
    """The chance that a positive is predicted above a negative, ties counted half.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988): it is exact in what it
    counts and draws nothing, so that thousands of neurons cost two sorts. It is cut at 0 and 1,
    and has no width where positives and negatives separate perfectly.

    Parameters
    ----------
    positives, negatives
        What is predicted for images of either class; at least two of each.
    z
        Half width of the interval in standard errors; 95 % by default.
    """
    of_positives = _share_below(positives, negatives)
    of_negatives = 1 - _share_below(negatives, positives)
    auc = of_positives.mean(1)
    variance = of_positives.var(1) / positives.shape[1] + of_negatives.var(1) / negatives.shape[1]
    spread = z * variance.sqrt()
    return Area(auc=auc, low=(auc - spread).clamp(min=0), high=(auc + spread).clamp(max=1))


def _share_below(
    values: Float[Tensor, "predictors values"], others: Float[Tensor, "predictors others"]
) -> Float[Tensor, "predictors values"]:
    """For each value the share of the others that lie below it; equal ones count half."""
    ordered, values = others.sort(dim=1).values, values.contiguous()
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above).to(values.dtype) / (2 * others.shape[1])
