"""Our descriptions against each control, over many neurons at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from ..intervals import of_median
from ..lens.evidence import CONTROLS, SIDES, Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Descriptions against one control, over the neurons where both have a score."""

    side: str
    control: str
    neurons: int
    ours: float
    """Median, as `theirs`."""
    theirs: float
    difference: float
    """Median of ours minus theirs, neuron by neuron."""
    low: float
    high: float
    """Its 95 % bootstrap interval over the neurons. They share their images: it says nothing
    about other images."""


def compare(scores: Scores, layers: Sequence[int] | None = None) -> list[Comparison]:
    """Ours against every control on either side, over the neurons of some layers (or all).

    A side on which no neuron has words is left out.
    """
    chosen = sorted(scores.auc) if layers is None else layers
    ours = torch.cat([scores.auc[layer] for layer in chosen])
    theirs = torch.cat([scores.controls[layer] for layer in chosen])
    found = []
    for side, name in enumerate(SIDES):
        for which, control in enumerate(CONTROLS):
            both = torch.stack([ours[:, side], theirs[:, side, which]]).numpy()
            both = both[:, np.isfinite(both).all(0)]
            if both.shape[1] == 0:
                continue
            difference = both[0] - both[1]
            low, high = of_median(difference)
            medians = [float(np.median(each)) for each in (*both, difference)]
            found.append(
                Comparison(
                    side=name,
                    control=control,
                    neurons=both.shape[1],
                    ours=medians[0],
                    theirs=medians[1],
                    difference=medians[2],
                    low=low,
                    high=high,
                )
            )
    return found


def score_table(scores: Scores) -> Table:
    """Medians over all neurons, and the differences to every control, for a terminal."""
    table = Table(
        title=f"{scores.vocabulary}, judged by {scores.referee}: area under ROC against the top "
        f"{scores.top} of {scores.images} unseen images"
    )
    for name in ("side", "neurons", "ours", "control", "its median", "difference [95 %]"):
        table.add_column(name, justify="left" if name in ("side", "control") else "right")
    for each in compare(scores):
        difference = f"{each.difference:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
        numbers = f"{each.ours:.3f}", each.control, f"{each.theirs:.3f}", difference
        table.add_row(each.side, str(each.neurons), *numbers)
    return table
