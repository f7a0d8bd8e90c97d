"""`secondlens score`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..errors import SecondLensError
from ..naming import shown_place
from .options import (
    PATH,
    ChosenModel,
    PictureChoice,
    batch_option,
    check_pictures,
    check_trained,
    json_option,
    paths_option,
    print_json,
    tables,
    with_choice,
    with_model,
    writing_lens,
)
from .together import OF_REFEREE, check_together, idle, idle_choice, missing, when

if TYPE_CHECKING:
    from ..lens.codes import Scores, Stability
    from ..lens.lens import Lens
    from ..models.view import Clip

UNSEEN_SCENES = 2000


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--texts",
    help="The name of a description or of names in the lens, or what it was described with; by "
    "default its first description.",
)
@click.option(
    "--images",
    type=click.Path(),
    help="Pictures that were not used to fit; by default unseen scenes, for a lens that was fitted "
    "on those of an embedded model.",
)
@click.option(
    "--referee",
    help="The model that judges; by default, for unseen scenes, what is true of them.",
)
@click.option("--referee-pretrained", help="Its open_clip tag, or the path of a checkpoint.")
@click.option("--template", "templates", multiple=True, help="As for describe.")
@click.option("--dissect", is_flag=True, help="Score labels from activations beside the words.")
@click.option("--stability", is_flag=True, help="Refit on two halves of the images and compare.")
@click.option(
    "--fit-images",
    type=click.Path(),
    help="Those of the fit, for --dissect and --stability; by default the embedded models' scenes.",
)
@paths_option
@batch_option
@json_option
@with_choice
@with_model
@writing_lens
def score(
    lens: Path,
    texts: str | None,
    images: str | None,
    referee: str | None,
    referee_pretrained: str | None,
    templates: tuple[str, ...],
    dissect: bool,
    stability: bool,
    fit_images: str | None,
    paths: str,
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Score the descriptions or names in a LENS on unseen pictures, and save the scores.

    A score is the area under the ROC curve with which the words of a neuron find the pictures on
    which its effect is largest. Scores on other pictures or by another judge stand beside each
    other in the lens; the same ones measured again replace the earlier ones.

    Example: secondlens score secondlens-demo/lens --dissect
    """
    needed: dict[str, Any] = {"--images": images, "--referee": referee}
    if dissect or stability:
        needed["--fit-images"] = fit_images
    own = missing(model.model, "a score of", needed)
    judged = own is not None or images is None or referee is not None
    of_referee = {"--referee-pretrained": referee_pretrained is not None}
    of_fit = {"--fit-images": fit_images is not None}
    check_together(
        own,
        when(not judged, "pictures without labels need a referee: name a model with --referee"),
        idle(of_referee, OF_REFEREE, unless=referee is not None),
        idle(of_fit, "of --dissect and --stability: add one", unless=dissect or stability),
        idle_choice(choice, fit_images if images is None else images),
    )
    if referee is not None:
        check_trained(referee, referee_pretrained, "--referee-pretrained")
    check_pictures(images, fit_images)
    from ..data.vocabularies import vocabulary
    from ..demo.model import TWIN
    from ..demo.scenes import are_scenes
    from ..lens.lens import Lens
    from ..models.loading import load
    from ..words.describing import described
    from ..words.dissection import by_activation
    from ..words.dissection import dissect as label
    from ..words.halves import stability as refit
    from ..words.scoring import score as score_lens
    from ..words.scoring import score_table

    shown = tables(as_json)
    whole = Lens.load(lens)
    fitted = whole.over(paths)
    if stability:
        fitted.check_value("--stability")
    unnamed = [name for name, value in needed.items() if value is None]
    if unnamed and not are_scenes(fitted.image_ids):
        raise SecondLensError(
            f"a score of {lens} needs {', '.join(unnamed)}: it was fitted on pictures of your own, "
            "and drawn scenes would say nothing about those"
        )
    pool: Any = texts
    if texts not in fitted.names:
        pool, _ = described(fitted, texts)
        if templates:
            pool = vocabulary(pool, templates=templates)
    elif templates or dissect or stability:
        raise SecondLensError(
            "--template, --dissect and --stability are for descriptions: name one with --texts"
        )
    if images is None:
        source, known_words = _unseen(model.model)
        called = f"{len(source.ids):,} unseen scenes"
    else:
        source, known_words = choice.source(images), None
        called = shown_place(images)
    clip = model.load()
    judge: Any = known_words
    if referee is not None:
        judge = load(referee, referee_pretrained, model.device)
    related: list[Clip | None] = (
        [None] if referee is not None else [None, load(TWIN[clip.name], device=clip.device)]
    )
    measured = []
    pools = [pool]
    if dissect or stability:
        known = choice.source(fit_images) if fit_images else _fit_scenes(clip.name, fitted)
    if dissect:
        label(clip, fitted, pool, known, batch_size=batch_size, progress=True)
        pools.append(by_activation(pool))
    for each in pools:
        for other in related:
            scores = score_lens(
                clip,
                fitted,
                each,
                source,
                judge,
                related=other,
                pictures=called,
                batch_size=batch_size,
                progress=True,
            )
            measured.append(scores)
            shown.print(score_table(scores))
    found = None
    if stability:
        found = refit(clip, fitted, pool, known, batch_size=batch_size, progress=True)
        shown.print(_stability_table(found))
    whole.save_held(lens)
    if as_json:
        print_json(
            {
                "scores": [_as_document(scores) for scores in measured],
                "stability": None if found is None else _medians(found),
            }
        )


def _as_document(scores: "Scores") -> dict[str, Any]:
    """Medians over all neurons, and the differences to every control."""
    from ..words.scoring import compare

    names = ("vocabulary", "referee", "pictures", "images", "top")
    facts = {name: getattr(scores, name) for name in names}
    return facts | {"comparisons": [asdict(each) for each in compare(scores)]}


def _unseen(name: str) -> tuple[Any, Any]:
    """Scenes that nothing was fitted on, and what is true of them."""
    from ..demo.scenes import SCORE_SEED, Scenes, World, truth

    if not name.startswith("demo"):
        raise SecondLensError(f"{name} has no pictures of its own: name some with --images")
    scenes = Scenes(World(planted=name == "demo"), SCORE_SEED, UNSEEN_SCENES)
    return scenes, truth(scenes)


def _fit_scenes(name: str, lens: "Lens") -> Any:
    """The embedded scenes that a lens was fitted on."""
    from ..demo.scenes import FIT_SEED, Scenes, World

    scenes = Scenes(World(planted=name == "demo"), FIT_SEED, len(lens.image_ids))
    if scenes.ids != list(lens.image_ids):
        raise SecondLensError("name the images that the lens was fitted on with --fit-images")
    return scenes


def _medians(stability: "Stability") -> list[dict[str, Any]]:
    """Over the neurons of each layer, and of neighbouring neurons beside."""
    names = ("cosine", "cosine_null", "overlap", "overlap_null")
    return [
        {"layer": layer} | {name: getattr(stability, name)[layer].median() for name in names}
        for layer in sorted(stability.cosine)
    ]


def _stability_table(stability: "Stability") -> Table:
    """Medians over the neurons of each layer, of neighbours in brackets."""
    table = Table(
        title=f"Refitted on two halves of {stability.images} images: medians (of two neighbouring "
        "neurons in brackets)"
    )
    for name in ("layer", "|cosine| of directions", "shared words"):
        table.add_column(name, justify="right")
    for row in _medians(stability):
        shown = (f"{row[name]:.2f} ({row[f'{name}_null']:.2f})" for name in ("cosine", "overlap"))
        table.add_row(str(row["layer"]), *shown)
    return table
