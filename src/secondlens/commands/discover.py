"""`secondlens discover`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table as Grid

from .options import (
    PATH,
    PLACE,
    ChosenEngine,
    ChosenModel,
    PictureChoice,
    check_lens,
    check_parents,
    check_picture,
    check_pictures,
    console,
    hold,
    hold_new,
    is_one_photo,
    json_option,
    layer_numbers,
    note_photo,
    paths_option,
    print_json,
    say_photos,
    with_choice,
    with_engine,
    with_model,
)
from .together import check_together, when

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..applications.discovery.finding import Discoverer
    from ..applications.discovery.photo_words import Table
    from ..applications.discovery.words import FoundWord
    from ..lens.lens import Lens
    from ..models.view import Clip

CARRIERS = 6
"""Neurons of a word that are shown and written; all active ones have a part."""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("photos", type=PLACE)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Words.")
@click.option("--texts", help="Words to choose from; by default those of the first description.")
@click.option(
    "--layers", help="Such as 8,9,10, or all; by default the last quarter, with --paper all."
)
@paths_option
@click.option("--paper", is_flag=True, help="Weigh words as the paper does (A.5), to compare.")
@click.option("--page", type=PATH, help="Of one photo: write a page with the patches of each word.")
@click.option("--out", type=PATH, help="Of several photos: a new folder for tables and a page.")
@click.option(
    "--table",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Form of the table in --out.",
)
@json_option
@with_choice
@with_engine
@with_model
def discover(
    lens: Path,
    photos: Path | str,
    top: int,
    texts: str | None,
    layers: str | None,
    paths: str,
    paper: bool,
    page: Path | None,
    out: Path | None,
    table: "Table",
    as_json: bool,
    choice: PictureChoice,
    engine: ChosenEngine,
    model: ChosenModel,
) -> None:
    """Say what PHOTOS show, and which neurons, heads and patches of a LENS say so.

    PHOTOS is one picture; or a folder, archives or whatever else fit takes, with --out.

    Example: secondlens discover secondlens-demo/lens photo.png
    """
    single = is_one_photo(photos)
    check_together(
        when(single and out is not None, "--out is of several photos: name --page for one"),
        when(not single and page is not None, "--page is of one photo: name --out for several"),
        when(not single and out is None, f"{photos} may hold several photos: name --out for them"),
    )
    check_parents(page)
    check_lens(lens)
    chosen = None if layers is None else layer_numbers(layers)
    if single:
        assert isinstance(photos, Path)
        check_picture(photos)
    check_pictures(photos)
    hold(page)
    hold_new(out)
    from ..applications.discovery.finding import Discoverer
    from ..lens.lens import Lens

    fitted = Lens.load(lens).over(paths)
    numbers = fitted.layers if chosen == "all" else chosen
    source = None if single else choice.source(photos)
    if isinstance(photos, Path) and single:
        from ..data.decoding import open_picture

        picture = open_picture(photos)
    discoverer = Discoverer(model.load(), fitted, texts, layers=numbers, paper=paper)
    if source is None or out is None:
        assert isinstance(photos, Path)
        _one(discoverer, photos, picture, top, page, as_json)
        note_photo(model.model, picture)
        return
    from ..applications.discovery.photo_words import write_words

    found = write_words(
        discoverer,
        source,
        out,
        top=top,
        table=table,
        engine=engine.make(model.device),
        progress=True,
    )
    say_photos(found, out, as_json)


def _one(
    discoverer: "Discoverer",
    photo: Path,
    picture: "Image",
    top: int,
    page: Path | None,
    as_json: bool,
) -> None:
    """Say what one photo shows."""
    from ..report.page import write_page
    from ..words.summary import label

    clip, lens = discoverer.clip, discoverer.lens
    (words,) = discoverer([picture], top)
    title = f"What {photo.name} shows"
    if page is not None:
        write_page(page, "discover.html", **_content(discoverer, picture, words), title=title)
    if as_json:
        print_json({"photo": photo, "words": [_entry(lens, word) for word in words]})
        return
    shown = Grid(title=escape(title))
    of_heads = ["strongest head"] if lens.paths == "value" else []
    for name in ("word", "weight", "strongest neurons", *of_heads, "strongest patch"):
        shown.add_column(name, justify="right" if name == "weight" else "left")
    for word in words:
        row, column = divmod(int(word.patches.argmax()), clip.grid[1])
        shown.add_row(
            escape(", ".join((word.text, *word.synonyms))),
            f"{word.weight:.3f}",
            "\n".join(
                escape(f"{each.name} {label(lens, each.layer, each.neuron)}")
                for each in word.neurons[:3]
            ),
            *([strongest_head(clip, word)] if of_heads else []),
            f"row {row + 1}, column {column + 1}",
        )
    console.print(shown)


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
