"""What effects are like, over the neurons of each layer."""

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..lens.layer import LayerLens
from .results import Result, Row, drawn
from .study import Study

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def distributions(study: Study) -> Result:
    """Quantiles over neurons of what the paper claims of them, with nulls."""
    rows: list[Row] = []
    details: list[Row] = []
    claims = (
        ("energy in top images", "selectivity", "selectivity_null"),
        ("PC #1, top images", "explained", "explained_null"),
        ("PC #1, all images", "explained_all", None),
        ("root mean square norm", "energy", None),
    )
    for layer in study.lens.layers:
        fitted = study.lens[layer]
        for claim, name, null in claims:
            values = getattr(fitted, name).double()
            values = values.sqrt() if name == "energy" else values
            marks = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist()
            expected = None if null is None else getattr(fitted, null).double()
            row: Row = {"layer": layer, "claim": claim}
            row |= {f"{q:.0%}": mark for q, mark in zip(QUANTILES, marks, strict=True)}
            row |= {
                "mean": float(values.mean()),
                "null, median": None if expected is None else float(expected.median()),
                "above null, %": None
                if expected is None
                else 100 * float((values > expected).double().mean()),
            }
            rows.append(row)
        details += [
            {"layer": layer, "neuron": neuron} | values
            for neuron, values in enumerate(by_neuron(fitted))
        ]
    return Result(
        name="distributions",
        title="what effects are like, over the neurons of each layer",
        rows=rows,
        settings=study.settings(),
        notes=[
            "Null: a Gaussian with the neuron's own covariance. Root mean square norm: of "
            "effects minus their mean, in parts of the unit embedding (times 100 when official).",
            "The paper gives means of layer 9 only: see table1.",
        ],
        picture=_violins(study),
        details=details,
    )


def by_neuron(fitted: LayerLens) -> list[dict[str, float]]:
    """Every number that a lens has of a neuron, by name: a row for each."""
    names = [name for name, values in vars(fitted).items() if values.dim() == 1]
    columns = [getattr(fitted, name).tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _violins(study: Study) -> Image.Image:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    layers = study.lens.layers
    for axes, (title, name, null) in zip(
        figure.subplots(1, 3),
        (
            ("energy in top images", "selectivity", "selectivity_null"),
            ("PC #1, top images", "explained", "explained_null"),
            ("variance, log10", "energy", None),
        ),
        strict=True,
    ):

        def values(layer: int, name: str = name) -> Float[Tensor, " neurons"]:
            found: Tensor = getattr(study.lens[layer], name).double().cpu()
            return found.clamp(min=1e-12).log10() if name == "energy" else found

        axes.violinplot([values(layer).numpy() for layer in layers], layers, showmedians=True)
        if null is not None:
            marks = [float(values(layer, null).median()) for layer in layers]
            axes.plot(layers, marks, "k:", label="Gaussian, median")
            axes.legend(fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
    return drawn(figure)
