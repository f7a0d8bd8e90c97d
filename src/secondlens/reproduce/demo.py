"""The demo: fit, describe, check by ablation, and write a report, all on embedded material."""

from dataclasses import dataclass
from pathlib import Path

from ..ablate.ablate import ablate
from ..ablate.ablation import Ablation
from ..clip import load
from ..clip.view import Clip
from ..demo.model import TWIN
from ..demo.pictures import FIT_SEED, SCORE_SEED, TEST_SEED, Scenes
from ..demo.scenes import World
from ..demo.truth import truth
from ..demo.world import NAMES
from ..describe.describe import describe
from ..describe.score import score
from ..describe.summary import Neuron, neurons_in_words, quartiles
from ..errors import SecondLensError
from ..fit.fit import fit
from ..lens import Lens
from ..report.report import Fact, write_report
from ..storage.places import check_empty
from ..texts.world import world_vocabulary
from .highlights import chosen, deciding_layer, selective
from .scenes import scenes

WORDS = 32
"""Texts a neuron: a quarter of the embedding's width. More would rebuild any direction."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found, for printing."""

    lens: Lens
    neurons: list[Neuron]
    """The selective ones of the layer that matters most."""
    ablation: Ablation
    report: Path


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
    if lens is None:
        lens = fit(clip, source, progress=True)
        describe(clip, lens, texts, WORDS)
        unseen = Scenes(World(planted=planted), SCORE_SEED, 2 * test_images)
        twin = load(TWIN[clip.name])
        score(clip, lens, texts, unseen, truth(unseen), related=twin, progress=True)
        lens.save(out / "lens")
    measured = out / f"ranks-{test_images}.safetensors"
    known = measured.is_file()
    ablation = _ablation(clip, lens, measured, test_images)
    neurons = selective(lens, ablation, neurons_in_words(clip, lens, lens.codes[texts.name], texts))
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
            facts=facts(lens, ablation),
            progress=True,
        )
    return Demo(lens=lens, neurons=neurons, ablation=ablation, report=report)


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
    if not same or "world" not in lens.codes:
        raise SecondLensError(
            f"{out} holds a demo of another model or other images: name a new folder with --out, "
            "or remove it first"
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
