"""`secondlens score`."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..errors import SecondLensError
from ..evidence import Stability
from ..lens import Lens
from ..view import Clip
from .common import console, model_options

UNSEEN_SCENES = 2000


@click.command()
@click.argument("lens", type=Path)
@click.option(
    "--texts", default="world", show_default=True, help="What the lens was described with."
)
@click.option(
    "--images",
    help="Pictures that were not used to fit; by default, for the embedded models, unseen scenes.",
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
    help="Those of the fit, for --dissect and --stability; by default the embedded models' scenes.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@model_options
def score(
    lens: Path,
    texts: str,
    images: str | None,
    referee: str | None,
    referee_pretrained: str | None,
    templates: tuple[str, ...],
    dissect: bool,
    stability: bool,
    fit_images: str | None,
    batch_size: int,
    device: str,
    **model: Any,
) -> None:
    """Score the descriptions in a LENS on pictures that were not used to fit, and save the scores.

    A score is the area under the ROC curve with which the words of a neuron find the pictures on
    which its effect is largest. For example: secondlens score secondlens-demo/lens --dissect
    """
    from ..clip import load
    from ..demo.model import TWIN
    from ..dissect import by_activation
    from ..dissect import dissect as label
    from ..score import score as score_lens
    from ..score import score_table
    from ..stability import stability as refit
    from ..texts import vocabulary

    fitted = Lens.load(lens)
    pool = vocabulary(texts, templates=templates or None)
    clip = load(model.pop("model"), device=device, **model)
    source, judge = (images, None) if images else _unseen(clip.name)
    related: list[Clip | None] = [None]
    if referee is not None:
        judge = load(referee, referee_pretrained, device)
    elif judge is None:
        raise SecondLensError("pictures without labels need a referee: name a model with --referee")
    else:
        related.append(load(TWIN[clip.name]))
    pools = [pool]
    if dissect or stability:
        known = fit_images or _fit_scenes(clip.name, fitted)
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
                batch_size=batch_size,
                progress=True,
            )
            console.print(score_table(scores))
    if stability:
        found = refit(clip, fitted, pool, known, batch_size=batch_size, progress=True)
        console.print(_stability_table(found))
    fitted.save(lens)


def _unseen(name: str) -> tuple[Any, Any]:
    """Scenes that nothing was fitted on, and what is true of them."""
    from ..demo.pictures import SCORE_SEED, Scenes
    from ..demo.scenes import World
    from ..demo.truth import truth

    if not name.startswith("demo"):
        raise SecondLensError(f"{name} has no pictures of its own: name some with --images")
    scenes = Scenes(World(planted=name == "demo"), SCORE_SEED, UNSEEN_SCENES)
    return scenes, truth(scenes)


def _fit_scenes(name: str, lens: Lens) -> Any:
    """The embedded scenes that a lens was fitted on."""
    from ..demo.pictures import FIT_SEED, Scenes
    from ..demo.scenes import World

    scenes = Scenes(World(planted=name == "demo"), FIT_SEED, len(lens.image_ids))
    if scenes.ids != list(lens.image_ids):
        raise SecondLensError("name the images that the lens was fitted on with --fit-images")
    return scenes


def _stability_table(stability: Stability) -> Table:
    """Medians over the neurons of each layer, of neighbours in brackets."""
    table = Table(
        title=f"Refitted on two halves of {stability.images} images: medians (of two neighbouring "
        "neurons in brackets)"
    )
    for name in ("layer", "|cosine| of directions", "shared words"):
        table.add_column(name, justify="right")
    pairs = (
        (stability.cosine, stability.cosine_null),
        (stability.overlap, stability.overlap_null),
    )
    for layer in sorted(stability.cosine):
        shown = (f"{ours[layer].median():.2f} ({null[layer].median():.2f})" for ours, null in pairs)
        table.add_row(str(layer), *shown)
    return table
