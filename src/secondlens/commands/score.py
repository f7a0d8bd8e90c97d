"""`secondlens score`."""

from pathlib import Path
from typing import Any

import click

from ..errors import SecondLensError
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
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@model_options
def score(
    lens: Path,
    texts: str,
    images: str | None,
    referee: str | None,
    referee_pretrained: str | None,
    templates: tuple[str, ...],
    batch_size: int,
    device: str,
    **model: Any,
) -> None:
    """Score the descriptions in a LENS on pictures that were not used to fit, and save the scores.

    A score is the area under the ROC curve with which the words of a neuron find the pictures on
    which its effect is largest.
    """
    from ..clip import load
    from ..lens import Lens
    from ..score import score as score_lens
    from ..score import score_table
    from ..texts import vocabulary

    fitted = Lens.load(lens)
    pool = vocabulary(texts, templates=templates or None)
    clip = load(model.pop("model"), device=device, **model)
    if images is None:
        source, judge = _unseen(clip.name)
    elif referee is None:
        raise SecondLensError("pictures without labels need a referee: name a model with --referee")
    else:
        source = images
    if referee is not None:
        judge = load(referee, referee_pretrained, device)
    scores = score_lens(clip, fitted, pool, source, judge, batch_size=batch_size, progress=True)
    fitted.save(lens)
    console.print(score_table(scores))


def _unseen(name: str) -> tuple[Any, Any]:
    """Scenes that nothing was fitted on, and what is true of them."""
    from ..demo.pictures import SCORE_SEED, Scenes
    from ..demo.scenes import World
    from ..demo.truth import truth

    if not name.startswith("demo"):
        raise SecondLensError(f"{name} has no pictures of its own: name some with --images")
    scenes = Scenes(World(planted=name == "demo"), SCORE_SEED, UNSEEN_SCENES)
    return scenes, truth(scenes)
