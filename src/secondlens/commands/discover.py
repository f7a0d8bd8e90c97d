"""`secondlens discover`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import (
    PATH,
    ChosenModel,
    check_lens,
    check_parents,
    check_picture,
    console,
    hold,
    json_option,
    note_photo,
    paths_option,
    print_json,
    with_model,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..applications.discovery.finding import Discoverer
    from ..applications.discovery.words import FoundWord
    from ..lens.lens import Lens
    from ..models.view import Clip

CARRIERS = 6
"""Neurons of a word that are shown and written; all active ones have a part."""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("photo", type=PATH)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Words.")
@click.option("--texts", help="Words to choose from; by default those of the first description.")
@paths_option
@click.option("--paper", is_flag=True, help="Weigh words as the paper does (A.5), to compare.")
@click.option("--page", type=PATH, help="Also write a page with the patches behind each word.")
@json_option
@with_model
def discover(
    lens: Path,
    photo: Path,
    top: int,
    texts: str | None,
    paths: str,
    paper: bool,
    page: Path | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Say what a PHOTO shows, and which neurons, heads and patches of a LENS say so.

    Example: secondlens discover secondlens-demo/lens photo.png
    """
    check_parents(page)
    check_lens(lens)
    check_picture(photo)
    hold(page)
    from ..applications.discovery.finding import Discoverer
    from ..data.decoding import open_picture
    from ..lens.lens import Lens
    from ..report.page import write_page
    from ..words.summary import label

    picture = open_picture(photo)
    fitted = Lens.load(lens).over(paths)
    clip = model.load()
    discoverer = Discoverer(clip, fitted, texts, paper=paper)
    (words,) = discoverer([picture], top)
    note_photo(model.model, picture)
    title = f"What {photo.name} shows"
    if page is not None:
        write_page(page, "discover.html", **_content(discoverer, picture, words), title=title)
    if as_json:
        print_json({"photo": photo, "words": [_entry(fitted, word) for word in words]})
        return
    table = Table(title=escape(title))
    of_heads = ["strongest head"] if fitted.paths == "value" else []
    for name in ("word", "weight", "strongest neurons", *of_heads, "strongest patch"):
        table.add_column(name, justify="right" if name == "weight" else "left")
    for word in words:
        row, column = divmod(int(word.patches.argmax()), clip.grid[1])
        table.add_row(
            escape(", ".join((word.text, *word.synonyms))),
            f"{word.weight:.3f}",
            "\n".join(
                escape(f"{each.name} {label(fitted, each.layer, each.neuron)}")
                for each in word.neurons[:3]
            ),
            *([strongest_head(clip, word)] if of_heads else []),
            f"row {row + 1}, column {column + 1}",
        )
    console.print(table)


def strongest_head(clip: "Clip", word: "FoundWord") -> str:
    """Through which most of a word arrives, such as "block 7, head 2"; an attention pool counts as
    the block after the last."""
    block, head = divmod(int(word.heads.argmax()), word.heads.shape[1])
    return f"{'the pool' if block == clip.layers else f'block {block}'}, head {head}"


def _entry(lens: "Lens", word: "FoundWord") -> dict[str, object]:
    return {
        "text": word.text,
        "synonyms": word.synonyms,
        "weight": word.weight,
        "neurons": [
            vars(each) | {"names": [name.text for name in lens.fires_on(each.layer, each.neuron)]}
            for each in word.neurons[:CARRIERS]
        ],
        "heads": word.heads.tolist(),
        "patches": word.patches.tolist(),
        "class_token": word.class_token,
    }


def _content(
    discoverer: "Discoverer", picture: "Image", words: "list[FoundWord]"
) -> dict[str, Any]:
    """What the page shows."""
    from ..report.page import data_uri, heat_map, model_view
    from ..words.summary import label

    clip, lens = discoverer.clip, discoverer.lens
    seen = model_view(clip)(clip.prepare([picture])[0])
    largest = max((float(word.patches.max()) for word in words), default=1.0)
    shown = []
    for word in words:
        carriers = [
            (each, label(lens, each.layer, each.neuron)) for each in word.neurons[:CARRIERS]
        ]
        # a weak word may come from weak patches, but is to be seen all the same
        scale = max(float(word.patches.max()), 0.1 * largest)
        shown.append(
            {
                "word": word,
                "heat": data_uri(heat_map(word.patches.float().cpu(), scale), "png"),
                "carriers": carriers,
                "head": strongest_head(clip, word) if word.heads.numel() else None,
                "arrived": float(word.heads.max()) if word.heads.numel() else None,
            }
        )
    whose = "second-order" if lens.paths == "value" else "total"
    return {
        "clip": clip,
        "whose": whose,
        "words": shown,
        "picture": data_uri(seen, "webp", quality=90),
    }
