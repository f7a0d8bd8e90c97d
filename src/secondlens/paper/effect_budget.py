"""How much of the total effect of neurons is direct, second-order and neither."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from ..applications.ablation.budget import PARTS, SPLIT, Budget, budget
from ..effects.ablated_runs import indirect_seconds, sample
from ..formatting import counted
from ..intervals import of_median, of_ratio
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
    split = found[0].split is not None
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
        row["norm of the total"] = float(sizes[:, 3].square().mean().sqrt())
        rows.append(row | (_split_row(each) if split else {}))
        parts: list[Row] = [{} for _ in each.neurons]
        if split:
            own = each.split_shares.tolist()
            parts = [{f"share {p}": x for p, x in zip(SPLIT, row, strict=True)} for row in own]
        for neuron, own, norms, more in zip(
            each.neurons, shares.tolist(), sizes.tolist(), parts, strict=True
        ):
            details.append(
                {"layer": each.layer, "neuron": neuron}
                | {f"share {part}": share for part, share in zip(PARTS, own, strict=True)}
                | {f"norm {part}": n for part, n in zip((*PARTS, "total"), norms, strict=True)}
                | more
            )
    compact = [{k: v for k, v in row.items() if not k.endswith("95 %")} for row in rows]
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
            *((*SPLIT_NOTES, *map(_foretold, found)) if split else ()),
            *notes,
        ],
        picture=_bars(found),
        details=details,
        compact=[_split_compact(row) for row in rows] if split else compact,
    )


SPLIT_NOTES = (
    "Value paths are second-order. The remainder is split by the first edge of a path that is "
    "neither identity nor value: higher has none, and two value edges or more. Missed is what the "
    "classes, which are integrated from mean to activation, leave of it. The CSV has 95 % "
    "intervals, bootstrapped over neurons.",
    "r is the correlation with what a neuron's ablation changes along one direction an image, over "
    "neurons and images.",
)


def _split_row(each: Budget) -> Row:
    """Shares of the remainder's parts in a layer, and how well effects foretell ablations."""
    assert each.split is not None
    row: Row = {}
    energy = each.split[:, 6, 6].double().cpu().numpy()
    for i, part in enumerate(SPLIT):
        low, high = of_ratio(each.split[:, i, 6].double().cpu().numpy(), energy)
        row[f"{part}, %"] = 100 * float(each.split_of_layer[i])
        row[f"{part}, 95 %"] = f"{100 * low:.1f} to {100 * high:.1f}"
        row[f"{part}, median neuron"] = 100 * float(each.split_shares[:, i].median())
    row["r, second-order"], row["r, all paths"] = each.correlations
    return row


def _split_compact(row: Row) -> Row:
    """A layer on one line: signed shares of all parts, the remainder by class."""
    shown = {"direct": row["direct, %"], "value": row["second-order, %"]}
    return {"layer": row["layer"], **shown} | {part: row[f"{part}, %"] for part in SPLIT}


def _foretold(each: Budget) -> str:
    second, everything = each.correlations
    return f"Layer {each.layer}: r {second:.3f} for value paths, {everything:.5f} for all paths."


def _bars(found: Sequence[Budget]) -> Image.Image:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    parts: tuple[str, ...] = PARTS
    shares, step, width = [each.of_layer.tolist() for each in found], 0.27, 0.25
    if found[0].split is not None:
        parts, step, width = (*PARTS[:2], *SPLIT), 0.1, 0.09
        shares = [[*each.of_layer[:2].tolist(), *each.split_of_layer.tolist()] for each in found]
    for i, part in enumerate(parts):
        places = [place + step * (i - (len(parts) - 1) / 2) for place in range(len(found))]
        axes.bar(places, [100 * each[i] for each in shares], width, label=part)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), [str(each.layer) for each in found])
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the total effect, %")
    if len(parts) == len(PARTS):
        axes.legend(fontsize=8)
    else:
        figure.legend(fontsize=8, loc="outside right upper")
    return drawn(figure)
