"""Confidence intervals for the shares and medians that experiments report."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

Z = 1.959964
"""Standard deviations on each side of a normal mean that hold 95 %."""


def wilson(successes: int, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % by default, (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return (centre - spread) / scale, (centre + spread) / scale


def of_median(
    values: Sequence[float] | np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median of `values`; (nan, nan) without any."""
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    # a hundred at a time: fast for few values, small in memory for many
    medians = [
        np.median(rng.choice(values, (min(100, draws - start), len(values))), axis=1)
        for start in range(0, draws, 100)
    ]
    low, high = np.quantile(np.concatenate(medians), [0.025, 0.975])
    return float(low), float(high)


def of_mean(
    values: Sequence[float] | np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`; (nan, nan) without any.

    Fast where few values differ, such as of images that are right or wrong: a resample is then a
    multinomial draw of how often each value comes.
    """
    found, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    if not len(found):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), draws)
    low, high = np.quantile(drawn @ found / counts.sum(), [0.025, 0.975])
    return float(low), float(high)


def of_ratio(
    parts: Sequence[float] | np.ndarray,
    wholes: Sequence[float] | np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of sum(parts) / sum(wholes), which are drawn in pairs;
    (nan, nan) without any."""
    if not len(parts):
        return float("nan"), float("nan")
    upper, lower = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(upper), size=(draws, len(upper)))
    low, high = np.quantile(upper[drawn].sum(1) / lower[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
