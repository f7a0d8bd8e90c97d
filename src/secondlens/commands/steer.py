"""`secondlens steer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    PATH,
    ChosenModel,
    PictureChoice,
    batch_option,
    console,
    json_option,
    print_json,
    with_choice,
    with_model,
)
from .search import layer_and_neuron
from .together import check_together, missing, when

if TYPE_CHECKING:
    from torch import Tensor

    from ..applications.steering import Steered

SCENES = 64
"""Of the embedded world, where no pictures are named."""


@click.command()
@click.argument("images", type=click.Path(), required=False)
@click.option(
    "--neuron",
    "neurons",
    multiple=True,
    help="What is steered, such as 9:123 for layer 9; repeatable within one layer.",
)
@click.option(
    "--direction",
    type=PATH,
    help="In place of neurons, a .npy file with a number for each channel of the residual stream.",
)
@click.option("--layer", type=click.IntRange(0), help="After which block a direction is added.")
@click.option(
    "--times",
    type=float,
    multiple=True,
    default=(0.0, 2.0),
    show_default=True,
    help="Activations become so many times what they are; so many times a direction is added. "
    "Repeatable.",
)
@click.option("--text", "given", multiple=True, help='Whose scores count, such as "a dog".')
@click.option(
    "--texts",
    help="The same from a file with one a line, table.csv:column, or a built-in vocabulary; by "
    "default, for the embedded models, the objects of their world.",
)
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Texts in a table."
)
@batch_option
@json_option
@with_choice
@with_model
def steer(
    images: str | None,
    neurons: tuple[str, ...],
    direction: Path | None,
    layer: int | None,
    times: tuple[float, ...],
    given: tuple[str, ...],
    texts: str | None,
    top: int,
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Turn neurons up or down, or push a direction, and say what changes for IMAGES.

    What is told is the score of each text, which text is the best for a picture, and how the
    ranking of the pictures changes. For the embedded models, IMAGES are by default unseen scenes.

    Example: secondlens steer --neuron 5:12 --neuron 5:40 --times 0 --times 3
    """
    chosen = [layer_and_neuron(each) for each in neurons]
    where = chosen[0][0] if chosen else layer or 0
    check_together(
        when(
            bool(chosen) == (direction is not None),
            "give either --neuron or --direction, not both or none",
        ),
        when(
            (direction is not None) != (layer is not None),
            "--layer says where a --direction is added: give both or neither",
        ),
        when(bool(given and texts), "give either --text or --texts, not both"),
        when(
            len({number for number, _ in chosen}) > 1,
            "neurons are steered within one layer: name those of one",
        ),
        missing(model.model, "steering", {"IMAGES": images, "--text": given or texts}),
    )
    from ..applications.steering import steer as steered
    from ..data.vocabularies import object_names, vocabulary
    from ..paper.study import TEST_SEED, scenes

    row = None if direction is None else read_direction(direction)
    pool = vocabulary(texts or list(given)) if texts or given else object_names()
    if images is None:
        source = scenes(TEST_SEED, SCENES, planted=model.model == "demo").source
    else:
        source = choice.source(images)
    clip = model.load()
    found = steered(
        *(clip, source, where, times),
        neurons=[neuron for _, neuron in chosen] or None,
        direction=row,
        directions=pool.embed(clip),
        batch_size=batch_size,
        progress=True,
    )
    if as_json:
        print_json(as_document(found, pool.labels))
        return
    console.print(score_table(found, pool.labels, top))
    console.print(ranking_table(found, pool.labels, top))


def read_direction(file: Path) -> "Tensor":
    """The one row of numbers in a .npy file.

    Raises
    ------
    SecondLensError
        It cannot be read, or holds something else.
    """
    import numpy as np
    import torch

    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SecondLensError(f"{file} cannot be read as a .npy file: {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind != "f":
        raise SecondLensError(f"{file} must hold one row of fractional numbers, and holds others")
    return torch.from_numpy(found.astype(found.dtype.newbyteorder("=")))


def as_document(found: "Steered", texts: tuple[str, ...]) -> dict[str, Any]:
    """Scores and places of every picture, and what they come to for each amount."""
    pictures = {"images": found.image_ids, "skipped": found.skipped, "texts": texts}
    rows = zip(
        *(found.times, found.flipped, found.change, found.rank_correlation),
        *(found.after, found.places_after),
        strict=True,
    )
    names = ("times", "flipped", "change", "rank_correlation", "scores", "places")
    before = {"scores": found.before, "places": found.places_before}
    return pictures | {
        "before": before,
        "after": [dict(zip(names, row, strict=True)) for row in rows],
    }


def _most_changed(found: "Steered", top: int) -> list[int]:
    """Texts by how far their mean score moves at most."""
    order = found.change.abs().amax(0).argsort(descending=True, stable=True)
    return [int(each) for each in order[:top]]


def score_table(found: "Steered", texts: tuple[str, ...], top: int) -> Table:
    """Mean scores before and their changes, of the texts that change most."""
    count = len(found.image_ids)
    table = Table(title=f"Mean scores over {count} pictures, and how they change")
    table.add_column("text")
    for name in ("as it is", *(f"{amount:g} times" for amount in found.times)):
        table.add_column(name, justify="right")
    means = found.before.mean(0)
    for text in _most_changed(found, top):
        changes = (f"{change:+.4f}" for change in found.change[:, text].tolist())
        table.add_row(escape(texts[text]), f"{means[text]:.4f}", *changes)
    table.add_section()
    flipped = (f"{100 * share:.1f} %" for share in found.flipped.tolist())
    table.add_row("pictures with another best text", "", *flipped)
    return table


def ranking_table(found: "Steered", texts: tuple[str, ...], top: int) -> Table:
    """How the ranking of the pictures changes, and the picture that climbs and falls most."""
    table = Table(title="Rankings of the pictures (places from 1)")
    for name in ("text", "times", "rank correlation", "climbs most", "falls most"):
        table.add_column(name, justify="right" if name in ("times", "rank correlation") else "left")
    before = found.places_before
    for text in _most_changed(found, top):
        for amount, places, correlation in zip(
            found.times, found.places_after[..., text], found.rank_correlation[:, text], strict=True
        ):
            moved = before[:, text] - places
            most = (
                f"{escape(found.image_ids[i])} ({before[i, text] + 1} to {places[i] + 1})"
                if moved[i]
                else ""
                for i in (int(moved.argmax()), int(moved.argmin()))
            )
            table.add_row(escape(texts[text]), f"{amount:g}", f"{correlation:.3f}", *most)
    return table
