"""Figure 4: accuracy with directions replaced by their sparse text codes."""

from matplotlib.figure import Figure

from ..applications.ablation.accuracy import BASELINE
from ..formatting import counted
from .curves import accuracy_row
from .neurons import pool_setting
from .pools import DESCRIPTIONS, WORDS_10K, WORDS_30K
from .results import Result, Row, Setting, drawn
from .study import PAPER_LAYER, Study

CONTROLS = {"random texts": ":", "random directions": "--"}
"""And how their lines look."""


def fig4(study: Study) -> Result:
    """Accuracy by the number of texts, one line for each vocabulary, and two controls."""
    pictures = study.some(study.test, 10)
    found = study.ablate_codes(study.texts[0], pictures)
    names = [study.texts[0].name]
    for texts in study.texts[1:]:
        found = study.ablate_codes(texts, pictures).merge(found)
        names.append(texts.name)
    layer = study.layer
    lines = [
        ("nothing replaced", BASELINE, "black"),
        ("first component", (layer, "first component"), "grey"),
        ("all ablated", (layer, "all"), "firebrick"),
    ]
    head: Row = {"texts": None, "m": None}
    rows = [head | {"texts": what} | accuracy_row(found, *key, None) for what, key, _ in lines]
    compact: dict[int, Row] = {}
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in (*names, *CONTROLS):
        sizes = sorted(int(kind[len(name) :]) for kind in found.kinds if _is_code(kind, name))
        values = [100 * found.accuracy(layer, f"{name} {m}") for m in sizes]
        for m, value in zip(sizes, values, strict=True):
            row = accuracy_row(found, layer, f"{name} {m}", None)
            rows.append({"texts": name, "m": m} | row)
            compact.setdefault(m, {"m": m})[name] = value
        axes.plot(sizes, values, "o" + CONTROLS.get(name, "-"), label=name, markersize=4)
    for what, key, colour in lines:
        value = 100 * found.accuracy(*key)
        axes.axhline(value, color=colour, linestyle="-.", linewidth=1, label=what)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("texts in a code (m)")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    shrunk = study.follow == "code"
    return Result(
        name="fig4",
        title=f"top-1, %, from sparse text, layer {layer} ({counted(len(pictures), 'picture')}; "
        + ", ".join(f"{what} {100 * found.accuracy(*key):.1f}" for what, key, _ in lines)
        + ")",
        rows=rows,
        compact=[
            {name: row.get(name) for name in ("m", *names, *CONTROLS)} for row in compact.values()
        ],
        settings=study.settings(
            pictures,
            step=10,
            layers=(str(layer), str(PAPER_LAYER)),
            more=[
                pool_setting(
                    "vocabularies",
                    study.texts,
                    f"10,000 and {WORDS_30K}, {DESCRIPTIONS}",
                    [WORDS_10K, WORDS_30K, DESCRIPTIONS],
                ),
                Setting(
                    name="text embeddings",
                    ours="as they are" if study.atoms == "unit" else "centred, columns scaled",
                    paper="as they are",
                ),
                Setting(
                    name="projection",
                    ours="on the code itself" if shrunk else "on the first component",
                    paper="on the first component",
                ),
                Setting(
                    name="size of the projection",
                    ours="with its sign",
                    paper="its norm, in the text; with its sign, in the code",
                    harmless=True,
                ),
            ],
        ),
        notes=[
            "random texts: codes of the same directions by as many random unit vectors; random "
            "directions: codes, by the texts of the first vocabulary, of directions that no "
            "neuron has.",
            "The paper prints no values of these curves: near the original accuracy at m = 128.",
        ],
        picture=drawn(figure),
    )


def _is_code(kind: str, name: str) -> bool:
    return kind.startswith(f"{name} ") and kind[len(name) + 1 :].isdecimal()
