"""The demo: fit, describe, name, check by ablation, and report, all on embedded material."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..applications.ablation.accuracy import Ablation, ablate
from ..data.vocabularies import world_vocabulary
from ..demo.model import TWIN
from ..demo.scenes import FIT_SEED, NAME_SEED, SCORE_SEED, TEST_SEED, Scenes, World, truth
from ..demo.world import BACKGROUNDS, NAMES
from ..errors import SecondLensError
from ..formatting import counted
from ..intervals import wilson
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..lens.names import Names
from ..models.loading import load
from ..models.view import Clip
from ..report.neurons import Fact, write_report
from ..storage.files import check_empty, whole_folder
from ..words.describing import describe
from ..words.name_tables import coverage_table
from ..words.naming import name as name_lens
from ..words.scoring import compare, score, score_table
from ..words.summary import NeuronSummary, neurons_in_words, quartiles
from .study import scenes

CARDS = 24
"""In the report, of either kind."""
SELECTIVE = 2
"""How many times a Gaussian's share of the energy the top images of a selective neuron have."""


def deciding_layer(lens: Lens, ablation: Ablation) -> int:
    """The layer without whose second-order effects accuracy is lowest."""
    return min(lens.layers, key=lambda layer: ablation.accuracy(layer, "all"))


def selective(lens: Lens, ablation: Ablation, neurons: list[NeuronSummary]) -> list[NeuronSummary]:
    """Neurons of the deciding layer that are `SELECTIVE`; all neurons if they are few."""
    fitted = lens[layer := deciding_layer(lens, ablation)]
    selective = fitted.selectivity > SELECTIVE * fitted.selectivity_null
    found = [n for n in neurons if n.layer == layer and selective[n.neuron]]
    return found if len(found) >= 2 * CARDS else neurons


def clearest(neurons: list[NeuronSummary], count: int) -> list[NeuronSummary]:
    """The neurons whose strongest pictures hold their first name most often, one neuron for each
    name before the second ones; those without a name come last."""

    def clarity(neuron: NeuronSummary) -> tuple[float, ...]:
        return (-float(neuron.names[0].held), -neuron.names[0].auc) if neuron.names else (1.0,)

    ordered, given = sorted(neurons, key=clarity), Counter[str]()
    turns = []
    for place, each in enumerate(ordered):
        first = each.names[0].text if each.names else ""
        turns.append((not each.names, given[first], place))
        given[first] += 1
    return [ordered[place] for *_, place in sorted(turns)][:count]


def most_polysemous(neurons: list[NeuronSummary], count: int) -> list[NeuronSummary]:
    """The neurons with the most names, the clearest of them first."""
    return sorted(clearest(neurons, len(neurons)), key=lambda n: -n.polysemy)[:count]


def by_subject(neurons: list[NeuronSummary]) -> tuple[list[NeuronSummary], list[NeuronSummary]]:
    """Named neurons whose first name is an object, and those where it is a colour or a place.

    Every picture has one background, but few have any given object: areas of the two are not to be
    compared.
    """
    objects = [n for n in neurons if n.names and n.names[0].text in NAMES]
    return objects, [n for n in neurons if n.names and n.names[0].text not in NAMES]


def pictures_that_are_true(
    names: Names, labels: Sequence[Collection[str]], texts: Collection[str]
) -> tuple[int, int]:
    """Of the pictures under those names that are among some texts: how many hold the name, and how
    many there are.

    Parameters
    ----------
    labels
        What is true of each picture that the neurons were named on.
    """
    place = {text: position for position, text in enumerate(names.labels)}
    holds = torch.zeros(len(labels), len(place), dtype=torch.bool)
    for row, held in zip(holds, labels, strict=True):
        row[[place[text] for text in held if text in place]] = True
    wanted = torch.tensor([label in texts for label in names.labels])
    right = total = 0
    for layer, found in names.texts.items():
        pictures = names.pictures[layer]
        shown = (pictures >= 0) & (wanted[found] & (found >= 0))[..., None]
        right += int(holds[pictures, found[..., None]][shown].sum())
        total += int(shown.sum())
    return right, total


def chosen(neurons: list[NeuronSummary]) -> list[NeuronSummary]:
    """What the report shows: the clearest neurons of either subject, then the most polysemous; if
    few have names, those whose words find their images best besides."""
    objects, others = by_subject(neurons)
    best = clearest(objects, CARDS * 2 // 3) + clearest(others, CARDS // 3)
    best += [n for n in most_polysemous(objects, 2 * CARDS) if n not in best][:CARDS]
    rest = sorted(neurons, key=lambda n: -n.score_interval[0] if n.score == n.score else 1)
    return best + [n for n in rest if n not in best][: 2 * CARDS - len(best)]


NAMED = 2000
"""Scenes, at most, on which neurons are named: about ten for each word of the world."""
WORDS = 32
"""Texts a neuron: a quarter of the embedding's width. More would rebuild any direction."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found, for printing."""

    lens: Lens
    neurons: list[NeuronSummary]
    """The selective ones of the layer that matters most."""
    ablation: Ablation
    report: Path
    true: dict[str, tuple[int, int]]
    """Of the pictures under names, by the kind of name: how many hold it, and how many there are,
    by what is true of the scenes."""


def run(clip: Clip, out: Path, *, images: int, test_images: int) -> Demo:
    """Explain the embedded model into the folder `out`.

    What an earlier run of the same model and images left in `out` is used again.

    Raises
    ------
    SecondLensError
        `out` holds something else.
    """
    planted = clip.name == "demo"
    source = Scenes(World(planted=planted), FIT_SEED, images)
    texts = world_vocabulary()
    lens = _earlier_lens(clip, out, source)
    named_on = Scenes(World(planted=planted), NAME_SEED, min(NAMED, 2 * images))
    if lens is None:
        lens = fit(clip, source, progress=True)
        describe(clip, lens, texts, WORDS)
        unseen = Scenes(World(planted=planted), SCORE_SEED, 2 * test_images)
        twin = load(TWIN[clip.name], device=clip.device)
        score(
            *(clip, lens, texts, unseen, truth(unseen)),
            related=twin,
            pictures=f"{len(unseen.ids):,} unseen scenes",
            progress=True,
        )
        name_lens(clip, lens, named_on, texts, twin, progress=True)
        with whole_folder(out / "lens") as folder:
            lens.save_held(folder)
    measured = out / f"ranks-{test_images}.safetensors"
    known = measured.is_file()
    ablation = _ablation(clip, lens, measured, test_images)
    neurons = selective(lens, ablation, neurons_in_words(lens, lens.codes[texts.name]))
    report = out / "report.html"
    if not (known and report.is_file()):
        write_report(
            report,
            clip,
            lens,
            lens.codes[texts.name],
            source,
            chosen(neurons),
            title=f"The neurons of {clip.name}",
            named_on=named_on,
            facts=facts(lens, ablation),
            progress=True,
        )
    (names,) = lens.names.values()
    labels = truth(named_on)
    true = {
        kind: pictures_that_are_true(names, labels, of_kind)
        for kind, of_kind in (("objects", NAMES), ("colours and places", BACKGROUNDS))
    }
    return Demo(lens=lens, neurons=neurons, ablation=ablation, report=report, true=true)


def _ablation(clip: Clip, lens: Lens, path: Path, images: int) -> Ablation:
    """Accuracies without effects, measured or, where an earlier run did it, read."""
    if path.is_file():
        return Ablation.load(path)
    pictures = scenes(TEST_SEED, images, planted=clip.name == "demo")
    classes = pictures.classes.embed(clip)
    found = ablate(clip, lens, pictures.source, pictures.labels, classes, progress=True)
    found.save(path)
    return found


def _earlier_lens(clip: Clip, out: Path, source: Scenes) -> Lens | None:
    """The lens of an earlier run, None if `out` is new or empty."""
    if not (out / "lens" / "lens.json").is_file():
        check_empty(out)
        return None
    lens = Lens.load(out / "lens")
    same = lens.model["weights"] == clip.weights_hash and list(lens.image_ids) == source.ids
    if not same or "world" not in lens.codes or not lens.names:
        raise SecondLensError(
            f"{out} holds a demo of another model, other images or an older version: name a new "
            "folder with --out, or remove it first"
        )
    return lens


def facts(lens: Lens, ablation: Ablation) -> list[Fact]:
    """The claims of the paper, measured on the layer whose effects matter most."""
    layer = deciding_layer(lens, ablation)
    fitted = lens[layer]
    share = lens.top / len(lens.image_ids)
    return [
        Fact(
            label=f"energy in the top {share:.0%} of images, layer {layer}",
            value=f"{quartiles(fitted.selectivity)[1]:.2f}",
            null=f"{quartiles(fitted.selectivity_null)[1]:.2f}",
            explanation=(
                "Squared norms of a neuron's effects minus their mean, summed over its strongest "
                "images and divided by the sum over all images; the median over neurons. A "
                "Gaussian with the same covariance shows the number beside it."
            ),
        ),
        Fact(
            label=f"share of the top effects on one direction, layer {layer}",
            value=f"{quartiles(fitted.explained)[1]:.2f}",
            null=f"{quartiles(fitted.explained_null)[1]:.2f}",
            explanation=(
                "First eigenvalue of the top effects' scatter around the mean of all images, over "
                "the sum of all eigenvalues; the median over neurons."
            ),
        ),
        Fact(
            label="zero-shot accuracy, nothing ablated",
            value=f"{100 * ablation.baseline():.1f} %",
            null=None,
            explanation=f"Top-1 of {len(NAMES)} object names on unseen single-object scenes.",
        ),
        *(
            Fact(
                label=f"accuracy, {kind} ablated" if kind == "all" else f"accuracy, {kind} only",
                value=f"{100 * ablation.accuracy(layer, kind):.1f} %",
                null=None,
                explanation=explanation,
            )
            for kind, explanation in (
                ("all", f"All second-order effects of layer {layer} replaced by their mean."),
                (
                    "first component",
                    f"All second-order effects of layer {layer} replaced by mean plus projection "
                    "on the neuron's direction.",
                ),
            )
        ),
    ]


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
    (names,) = lens.names.values()
    console.print(coverage_table(names))
    table = Table(title="Pictures under names, by what is true of the scenes")
    for column in ("names", "pictures", "hold the name, %"):
        table.add_column(column, justify="right")
    for kind, (right, total) in demo.true.items():
        low, high = (100 * each for each in wilson(right, total))
        share = f"{100 * right / max(1, total):.1f} [{low:.1f}, {high:.1f}]"
        table.add_row(kind, f"{total:,}", share)
    console.print(table)
    console.print(f"Shuffled effects gave {counted(names.shuffled, 'name')}.", highlight=False)
    objects, others = by_subject(demo.neurons)
    for title, neurons in (
        (
            f"Clearest of {len(objects)} selective neurons on objects",
            clearest(objects, 10),
        ),
        (f"Clearest of {len(others)} on colours and places", clearest(others, 5)),
        ("Most polysemous neurons", most_polysemous(objects, 10)),
    ):
        table = Table(title=title)
        for column in ("neuron", "fires on", "pushes towards; − away from"):
            table.add_column(column)
        for neuron in neurons:
            table.add_row(neuron.name, neuron.title, signed_words(neuron))
        console.print(table)
    console.print(f"Report: {demo.report}", markup=False, highlight=False)


def as_document(demo: Demo) -> dict[str, Any]:
    """The same in numbers."""
    lens, ablation = demo.lens, demo.ablation
    measures = ("selectivity", "selectivity_null", "explained", "explained_null", "explained_all")
    (names,) = lens.names.values()
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
                "medians": {each: quartiles(getattr(lens[layer], each))[1] for each in measures},
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
                {
                    "neuron": each.name,
                    "names": [found.text for found in each.names],
                    "score": each.score,
                    "words": signed_words(each),
                }
                for each in neurons
            ]
            for name, neurons in listed.items()
        },
        "named": {str(layer): share for layer, share in names.coverage().items()},
        "names_of_shuffled_effects": names.shuffled,
        "true_pictures": {
            kind: {"right": right, "of": total} for kind, (right, total) in demo.true.items()
        },
        "report": str(demo.report),
    }


def _with_null(values: Tensor, null: Tensor) -> str:
    return f"{quartiles(values)[1]:.2f} ({quartiles(null)[1]:.2f})"


def signed_words(neuron: NeuronSummary, count: int = 4) -> str:
    """Words with their signs, such as "+dog +wolf −sea"."""
    return " ".join(f"{'+' if w > 0 else '−'}{text}" for text, w in neuron.words[:count])
