"""How much of the total effect of neurons is direct, second-order and neither."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from ..applications.ablation.budget import PARTS, Budget, budget
from ..effects.ablated_runs import indirect_seconds, sample
from ..formatting import counted
from ..intervals import of_median
from .results import Result, Row, Setting, drawn
from .study import Study


def effect_budget(study: Study) -> Result:
    """How much of the total effect of neurons is direct, second-order and neither.

    Raises
    ------
    SecondLensError
        The study takes official effects, which are no parts of total ones.
    """
    study.check_exact()
    neurons = sample(study.clip, max(1, min(study.sample // 2, study.clip.neurons)))
    pictures = study.budget_pictures
    found = [
        budget(study.clip, study.lens, pictures, layer, neurons, progress=True)
        for layer in study.lens.layers
    ]
    seconds = indirect_seconds(study.clip, study.layer) * study.clip.neurons
    note = f"All neurons of layer {study.layer} would take {seconds:.2g} s a picture here."
    return budgets(found, study.settings(), [note, "Not in the paper."])


def budgets(
    found: Sequence[Budget], settings: Sequence[Setting], notes: Sequence[str] = ()
) -> Result:
    """The budgets of some layers as a result."""
    rows: list[Row] = []
    details: list[Row] = []
    for each in found:
        shares, sizes = each.shares, each.sizes
        row: Row = {"layer": each.layer}
        for i, part in enumerate(PARTS):
            low, high = of_median(shares[:, i].double().cpu().numpy())
            row[f"{part}, %"] = 100 * float(each.of_layer[i])
            row[f"{part}, median neuron"] = 100 * float(shares[:, i].median())
            row[f"{part}, median, 95 %"] = f"{100 * low:.0f} to {100 * high:.0f}"
        rows.append(row | {"norm of the total": float(sizes[:, 3].square().mean().sqrt())})
        for neuron, own, norms in zip(each.neurons, shares.tolist(), sizes.tolist(), strict=True):
            details.append(
                {"layer": each.layer, "neuron": neuron}
                | {f"share {part}": share for part, share in zip(PARTS, own, strict=True)}
                | {f"norm {part}": n for part, n in zip((*PARTS, "total"), norms, strict=True)}
            )
    return Result(
        name="budget",
        title=f"what total effects consist of ({counted(len(found[0].neurons), 'neuron')} a layer, "
        f"{counted(found[0].images, 'picture')})",
        rows=rows,
        settings=settings,
        notes=[
            "Parts of <part, total> / <total, total>: they add up to 100 %, and one that works "
            "against the total is negative. The remainder is what changes through attention "
            "patterns, LayerNorm scales, later MLPs and attention to attention.",
            *notes,
        ],
        picture=_bars(found),
        details=details,
        compact=[{k: v for k, v in row.items() if not k.endswith("95 %")} for row in rows],
    )


def _bars(found: Sequence[Budget]) -> Image.Image:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, part in enumerate(PARTS):
        places = [place + 0.27 * (i - 1) for place in range(len(found))]
        axes.bar(places, [100 * float(each.of_layer[i]) for each in found], 0.25, label=part)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), [str(each.layer) for each in found])
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the total effect, %")
    axes.legend(fontsize=8)
    return drawn(figure)
