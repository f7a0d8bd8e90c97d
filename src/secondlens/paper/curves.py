"""Accuracy without effects, layer by layer, as Figures 3 and 9 to 12 show it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..applications.ablation.accuracy import BASELINE, Ablation
from ..formatting import counted
from .results import Result, Row, Setting, drawn

LABELS = {
    "all": "w/o all neurons",
    "large": "w/o large norm",
    "small": "w/o small norm",
    "random": "w/o equally many random",
    "first component": "rec. from PC #1",
    "unsigned": "rec. from PC #1, by size",
    "from the first": "w/o attention up to here",
    "alone": "w/o this attention layer",
}
"""What each kind is called, in the paper where it is there."""

INTERVALS = "The CSV has 95 % intervals, bootstrapped over pictures, and top-5."
NEURONS = "neurons: significant ones of a picture, in the mean."


def curves(
    name: str,
    title: str,
    found: Ablation,
    settings: Sequence[Setting],
    printed: Mapping[tuple[int, str], float] = MappingProxyType({}),
) -> Result:
    """Accuracy by layer and kind as a result; `printed` has the paper's numbers, in %."""
    rows = [accuracy_row(found, *BASELINE, None)]
    for layer in found.layers:
        for kind in found.kinds:
            rows.append(accuracy_row(found, layer, kind, printed.get((layer, kind))))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw_curves(figure.subplots(), found)
    return Result(
        name=name,
        title=f"top-1, %, {title} ({counted(len(found.ranks[BASELINE]), 'picture')}; "
        f"{100 * found.baseline():.1f} with nothing ablated)",
        rows=rows,
        settings=settings,
        notes=[
            INTERVALS,
            *([NEURONS] if found.significant else []),
            *(f"not counted: {name}: {reason}" for name, reason in found.skipped.items()),
        ],
        picture=drawn(figure),
        compact=[_compact(found, layer, printed) for layer in found.layers],
    )


def accuracy_row(found: Ablation, layer: int, kind: str, paper: float | None) -> Row:
    """One point of a curve, in %."""
    low, high = found.interval(layer, kind)
    cost, (least, most) = found.cost(layer, kind)
    counts = found.significant.get(layer)
    return {
        "layer": None if (layer, kind) == BASELINE else layer,
        "ablated": "nothing" if (layer, kind) == BASELINE else LABELS.get(kind, kind),
        "top-1 %": 100 * found.accuracy(layer, kind),
        "95 %": f"{100 * low:.1f} to {100 * high:.1f}",
        "top-5 %": 100 * found.accuracy(layer, kind, top=5),
        "lost": 100 * cost,
        "lost, 95 %": f"{100 * least:.1f} to {100 * most:.1f}",
        "significant neurons a picture": None if counts is None else float(counts.double().mean()),
        "paper": paper,
    }


def draw_curves(axes: Axes, found: Ablation) -> None:
    """Accuracy by layer, a line for each kind, with its interval as a band."""
    for kind in found.kinds:
        accuracies = [100 * found.accuracy(layer, kind) for layer in found.layers]
        low, high = 100 * np.array([found.interval(layer, kind) for layer in found.layers]).T
        few = "o-" if len(found.layers) < 30 else "-"
        style = ":" if kind in ("random", "unsigned") else few
        (line,) = axes.plot(
            found.layers, accuracies, style, label=LABELS.get(kind, kind), markersize=4
        )
        axes.fill_between(found.layers, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
    axes.axhline(100 * found.baseline(), color="black", linestyle="--", label="baseline")
    axes.set_xlabel("layer")
    axes.set_ylabel("top-1 accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _compact(found: Ablation, layer: int, paper: Mapping[tuple[int, str], float]) -> Row:
    """A layer on one line."""
    row: Row = {"layer": layer}
    for kind in found.kinds:
        row[LABELS.get(kind, kind)] = 100 * found.accuracy(layer, kind)
        if any(kind == each for _, each in paper):
            row[f"paper, {LABELS[kind].removesuffix(' neurons')}"] = paper.get((layer, kind))
    if layer in found.significant:
        row["neurons"] = float(found.significant[layer].double().mean())
    return row


def span(layers: Sequence[int]) -> str:
    """The first and the last of some layers, as a setting says it."""
    return f"{layers[0]} to {layers[-1]}"
