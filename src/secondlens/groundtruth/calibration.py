"""How sure: the probability that a name is true, learnt on other networks.

Evidence of every contestant has a unit of its own. So the bench learns, from all networks but one,
how often names of such evidence are true (isotonic regression, each step with one more name
of the mean, so that nothing is certain), states that for the names of the one, and compares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 5
"""Of stated probabilities, with equally many names each."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Stated probabilities of names and whether they are true, over all networks."""

    stated: tuple[float, ...]
    true: tuple[bool, ...]

    @property
    def gap(self) -> float:
        """Mean stated probability less the share that is true."""
        return float(np.mean(self.stated) - np.mean(self.true))

    @property
    def error(self) -> float:
        """Mean over bins of the difference between what is stated and what is true."""
        order = np.argsort(self.stated, kind="stable")
        parts = [part for part in np.array_split(order, BINS) if len(part)]
        stated, true = np.array(self.stated), np.array(self.true, dtype=float)
        gaps = [abs(stated[part].mean() - true[part].mean()) * len(part) for part in parts]
        return float(sum(gaps) / len(order))


def calibrated(claims: Mapping[str, Sequence[tuple[float, bool]]]) -> Calibration | None:
    """Stated probabilities for the names of each network, learnt on the others.

    Parameters
    ----------
    claims
        By network, the evidence of each name and whether it is true.

    Returns
    -------
    None where there are names in fewer than two networks.
    """
    if sum(bool(own) for own in claims.values()) < 2:
        return None
    stated: list[float] = []
    true: list[bool] = []
    for network, own in claims.items():
        others = [each for name, some in claims.items() if name != network for each in some]
        if not own or not others:
            continue
        levels, shares = isotonic(others)
        for evidence, right in own:
            place = int(np.searchsorted(levels, evidence, side="right")) - 1
            stated.append(float(shares[max(0, place)]))
            true.append(right)
    return Calibration(stated=tuple(stated), true=tuple(true))


def isotonic(claims: Sequence[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """The share of true names as a step function of evidence that never falls: where each step
    begins, and its share (pool adjacent violators)."""
    mean = (sum(right for _, right in claims) + 1) / (len(claims) + 2)
    blocks: list[list[float]] = []
    for evidence in sorted({each for each, _ in claims}):
        own = [right for each, right in claims if each == evidence]
        blocks.append([evidence, sum(own), len(own)])
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            _, right, count = blocks.pop()
            blocks[-1][1] += right
            blocks[-1][2] += count
    starts = np.array([block[0] for block in blocks])
    # one more name at the mean, so that a step of few names is not certain
    shares = np.array([(block[1] + mean) / (block[2] + 1) for block in blocks])
    return starts, shares
