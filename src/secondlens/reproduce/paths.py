"""Table 1: three lenses on one layer; the effect budget; and distributions over neurons."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..ablate.budget import PARTS, Budget, budget
from ..ablate.reference import Direct, Indirect, lens_of
from ..effects.indirect import indirect_seconds, sample
from ..effects.second_order import second_order
from ..images import Reader
from ..intervals import of_median
from ..lens import LayerLens
from .curves import INTERVALS
from .result import Result, Row, Setting, drawn
from .study import PAPER_LAYER, Study

PAPER = {"indirect": (52.3, 11.0), "second-order": (29.6, 48.2)}
"""Table 1: accuracy after mean-ablation and variance explained by the first component, in %."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def table1(study: Study) -> Result:
    """Accuracy without direct, indirect and second-order effects, and how rank-one they are."""
    layer, pictures = study.layer, study.some(study.test, 1)
    neurons = sample(study.clip, min(study.sample, study.clip.neurons))
    options = {"layers": [layer]}
    found = study.ablation
    together = study.ablate(pictures, effect="together", **options)
    straight = study.ablate(pictures, effect="direct", reference=study.reference, **options)
    # on the same neurons and pictures, or shares could not be compared
    mean = study.lens[layer].activation_mean
    fitted = {
        "direct": Direct(study.clip, layer, neurons, _pixels(study)).fitted,
        "indirect": Indirect(study.clip, layer, neurons, _pixels(study), mean).fitted,
        "second-order": _second_order(study, layer, neurons),
    }
    rows: list[Row] = []
    for name, ablation in (("direct", straight), ("indirect", together), ("second-order", found)):
        accuracy, share = PAPER.get(name, (None, None))
        low, high = ablation.interval(layer, "all")
        own = fitted[name]
        rows.append(
            {
                "effect": name,
                "top-1 % without it": 100 * ablation.accuracy(layer, "all"),
                "95 %": f"{100 * low:.1f} to {100 * high:.1f}",
                "paper, top-1": accuracy,
                "top-5 % without it": 100 * ablation.accuracy(layer, "all", top=5),
                "PC #1, top images, %": 100 * float(own.explained.mean()),
                "the same, of a Gaussian": 100 * float(own.explained_null.mean()),
                "PC #1, all images, %": 100 * float(own.explained_all.mean()),
                "paper, PC #1": share,
                "energy in top images, %": 100 * float(own.selectivity.mean()),
                "that of a Gaussian": 100 * float(own.selectivity_null.mean()),
            }
        )
    details = [
        {"effect": name, "layer": layer, "neuron": neuron} | values
        for name, own in fitted.items()
        for neuron, values in zip(neurons, _by_neuron(own), strict=True)
    ]
    return Result(
        name="table1",
        title=f"effects of layer {layer} ({len(pictures):,} pictures, "
        f"{100 * found.baseline():.1f} % with nothing ablated)",
        rows=rows,
        settings=study.settings(
            pictures,
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                Setting(
                    name="neurons whose shares are averaged",
                    ours=f"{len(neurons)}, drawn at random",
                    paper="not said",
                ),
                Setting(
                    name="pictures for shares",
                    ours=f"{len(study.reference.ids):,} of the fit",
                    paper="not said",
                ),
                Setting(
                    name="indirect effects ablated",
                    ours="all neurons held at their means at once",
                    paper="not said, and not in the published code",
                ),
            ],
        ),
        notes=[
            "PC #1: the share of the first principal component; choosing the strongest pictures "
            "inflates it, as the Gaussian with the same covariance shows.",
            "A neuron's direct effects lie on one line, so theirs is 100 %.",
            INTERVALS,
        ],
        picture=_histograms(fitted),
        details=details,
        compact=[
            {k: v for k, v in row.items() if not k.startswith(("95", "top-5"))} for row in rows
        ],
    )


def effect_budget(study: Study) -> Result:
    """How much of the total effect of neurons is direct, second-order and neither."""
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
        title=f"what total effects consist of ({len(found[0].neurons)} neurons a layer, "
        f"{found[0].images:,} pictures)",
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
            for neuron, values in enumerate(_by_neuron(fitted))
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


def _pixels(study: Study) -> Iterator[Tensor]:
    return (batch.pixels for batch in Reader(source=study.reference, clip=study.clip))


def _second_order(study: Study, layer: int, neurons: list[int]) -> LayerLens:
    """The statistics of second-order effects on the reference pictures."""
    effects = torch.cat(
        [
            second_order(study.clip, some, layer)[:, neurons]
            for pixels in _pixels(study)
            for some in pixels.split(8)
        ]
    )
    identity = torch.eye(study.clip.dim, dtype=effects.dtype, device=effects.device)
    return lens_of(effects, identity.expand(len(neurons), -1, -1))


def _by_neuron(fitted: LayerLens) -> list[dict[str, float]]:
    names = [name for name, values in vars(fitted).items() if values.dim() == 1]
    columns = [getattr(fitted, name).tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _histograms(fitted: dict[str, LayerLens]) -> Image.Image:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (claim, name, null) in zip(
        figure.subplots(1, 2),
        (
            ("share of PC #1, top images", "explained", "explained_null"),
            ("share of PC #1, all images", "explained_all", None),
        ),
        strict=True,
    ):
        for effect in ("indirect", "second-order"):
            values = getattr(fitted[effect], name)
            axes.hist(values.cpu().numpy(), 20, range=(0, 1), alpha=0.6, label=effect)
            if null is not None:
                median = float(getattr(fitted[effect], null).median())
                axes.axvline(median, linestyle=":", color="black", linewidth=1)
        axes.set_xlabel(claim + (" (dotted: Gaussians)" if null else ""))
        axes.set_ylabel("neurons")
        axes.legend(fontsize=8)
    return drawn(figure)


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
            found = getattr(study.lens[layer], name).double().cpu()
            return found.clamp(min=1e-12).log10() if name == "energy" else found

        axes.violinplot([values(layer).numpy() for layer in layers], layers, showmedians=True)
        if null is not None:
            marks = [float(values(layer, null).median()) for layer in layers]
            axes.plot(layers, marks, "k:", label="Gaussian, median")
            axes.legend(fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
    return drawn(figure)
