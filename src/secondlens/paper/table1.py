"""Table 1: direct, indirect and second-order effects of one layer, side by side."""

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..applications.ablation.readings import Direct, Indirect, lens_of
from ..data.reader import Reader
from ..effects.ablated_runs import sample
from ..effects.value_paths import second_order
from ..formatting import counted
from ..lens.layer import LayerLens
from .curves import INTERVALS
from .distributions import by_neuron
from .results import Result, Row, Setting, drawn
from .study import PAPER_LAYER, Study

PAPER = {"indirect": (52.3, 11.0), "second-order": (29.6, 48.2)}
"""Table 1: accuracy after mean-ablation and variance explained by the first component, in %."""
SHOWN = {
    "effect": "effect",
    "top-1 % without it": "top-1",
    "paper, top-1": "paper, top-1",
    "PC #1, top images, %": "PC #1",
    "the same, of a Gaussian": "chance",
    "PC #1, all images, %": "PC #1, all",
    "paper, PC #1": "paper, PC #1",
}
"""What terminals and pages have room for, and what they call it."""


def table1(study: Study) -> Result:
    """Accuracy without direct, indirect and second-order effects, and how rank-one they are."""
    layer, pictures = study.layer, study.some(study.test, 1)
    neurons = sample(study.clip, min(study.sample, study.clip.neurons))
    found = study.ablation
    together = study.ablate(pictures, effect="together", layers=[layer])
    straight = study.ablate(pictures, effect="direct", reference=study.reference, layers=[layer])
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
        for neuron, values in zip(neurons, by_neuron(own), strict=True)
    ]
    return Result(
        name="table1",
        title=f"effects of layer {layer} ({counted(len(pictures), 'picture')}, "
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
                    harmless=True,
                ),
                Setting(
                    name="pictures for shares",
                    ours=f"{len(study.reference.ids):,} of the fit",
                    paper="not said",
                    harmless=True,
                ),
                Setting(
                    name="indirect effects ablated",
                    ours="all neurons held at their means at once",
                    paper="not said, and not in the published code",
                    harmless=True,
                ),
            ],
        ),
        notes=[
            "In %. Top-1: without the effect. PC #1: the share of the first principal component. "
            "Choosing the strongest pictures inflates it: chance is that of a Gaussian.",
            "A neuron's direct effects lie on one line, so theirs is 100 %.",
            INTERVALS,
        ],
        picture=_histograms(fitted),
        details=details,
        compact=[{SHOWN[name]: row[name] for name in SHOWN} for row in rows],
    )


def _pixels(study: Study) -> Iterator[Tensor]:
    return (batch.pixels for batch in Reader(source=study.reference, clip=study.clip))


def _second_order(study: Study, layer: int, neurons: list[int]) -> LayerLens:
    """The statistics of second-order effects on the reference pictures."""
    effects = torch.cat(
        [
            second_order(study.clip, some, layer, study.lens.convention)[:, neurons]
            for pixels in _pixels(study)
            for some in pixels.split(8)
        ]
    )
    identity = torch.eye(study.clip.dim, dtype=effects.dtype, device=effects.device)
    return lens_of(effects, identity.expand(len(neurons), -1, -1))


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
