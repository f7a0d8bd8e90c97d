"""What the demo found, in tables that fit a terminal and in numbers."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..demo.world import NAMES
from ..describe.comparison import compare, score_table
from ..describe.summary import Neuron, quartiles
from .demo import Demo
from .highlights import by_subject, clearest, most_polysemous

_SHOWN = ("all", "large", "small", "random", "first component")
"""What is ablated, but for the last: there, all but the first component is."""


def print_summary(demo: Demo, console: Console) -> None:
    """The result in tables that fit a terminal."""
    lens, ablation = demo.lens, demo.ablation
    table = Table(title="Effects of one layer's neurons: medians (of a Gaussian in brackets)")
    for name in ("layer", "energy in the top 2 %", "on one direction", "the same, all images"):
        table.add_column(name, justify="right")
    for layer in lens.layers:
        fitted = lens[layer]
        table.add_row(
            str(layer),
            _with_null(fitted.selectivity, fitted.selectivity_null),
            _with_null(fitted.explained, fitted.explained_null),
            f"{quartiles(fitted.explained_all)[1]:.2f}",
        )
    console.print(table)
    baseline = 100 * ablation.baseline()
    table = Table(
        title=f"Top-1 of {len(NAMES)} names without second-order effects of one layer: "
        f"{baseline:.1f} % with all of them"
    )
    for name in ("layer", *_SHOWN, "significant neurons an image"):
        table.add_column(name, justify="right")
    for layer in lens.layers:
        accuracy = (f"{100 * ablation.accuracy(layer, kind):.1f}" for kind in _SHOWN)
        table.add_row(str(layer), *accuracy, f"{ablation.significant[layer].float().mean():.1f}")
    console.print(table)
    for scores in lens.scores.values():
        console.print(score_table(scores))
    objects, others = by_subject(demo.neurons)
    for title, neurons in (
        (f"Clearest of {len(objects)} selective neurons about objects", clearest(objects, 10)),
        (f"Clearest of {len(others)} about colours and places", clearest(others, 5)),
        ("Most polysemous neurons", most_polysemous(objects, 10)),
    ):
        table = Table(title=title)
        table.add_column("neuron")
        table.add_column("score", justify="right")
        table.add_column("words, strongest first; − pushes away")
        for neuron in neurons:
            table.add_row(neuron.name, f"{neuron.score:.2f}", signed_words(neuron))
        console.print(table)
    console.print(f"Report: {demo.report}", markup=False, highlight=False)


def as_document(demo: Demo) -> dict[str, Any]:
    """The same in numbers."""
    lens, ablation = demo.lens, demo.ablation
    names = ("selectivity", "selectivity_null", "explained", "explained_null", "explained_all")
    objects, others = by_subject(demo.neurons)
    listed = {
        "clearest_about_objects": clearest(objects, 10),
        "clearest_about_colours_and_places": clearest(others, 5),
        "most_polysemous": most_polysemous(objects, 10),
    }
    return {
        "accuracy": ablation.baseline(),
        "layers": [
            {
                "layer": layer,
                "medians": {name: quartiles(getattr(lens[layer], name))[1] for name in names},
                "accuracy_without": {kind: ablation.accuracy(layer, kind) for kind in _SHOWN},
            }
            for layer in lens.layers
        ],
        "scores": [
            {"name": name, "comparisons": [asdict(each) for each in compare(scores)]}
            for name, scores in lens.scores.items()
        ],
        **{
            name: [
                {"neuron": each.name, "score": each.score, "words": signed_words(each)}
                for each in neurons
            ]
            for name, neurons in listed.items()
        },
        "report": str(demo.report),
    }


def _with_null(values: Tensor, null: Tensor) -> str:
    return f"{quartiles(values)[1]:.2f} ({quartiles(null)[1]:.2f})"


def signed_words(neuron: Neuron, count: int = 6) -> str:
    """Words with their signs, such as "+dog +wolf −sea"."""
    return " ".join(f"{'+' if w > 0 else '−'}{text}" for text, w in neuron.words[:count])
