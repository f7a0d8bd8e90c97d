"""`secondlens why-attention`."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
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
    print_json,
    with_model,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..effects.attention_reasons import AttentionReasons
    from ..lens.lens import Lens
    from ..models.view import Clip

WORDS = 3
"""Of a neuron in the table."""


@click.command()
@click.argument("photo", type=PATH)
@click.option("--layer", type=click.IntRange(0), required=True, help="Of the attention.")
@click.option("--head", type=click.IntRange(0), required=True, help="Of the attention.")
@click.option(
    "--token",
    type=click.IntRange(0),
    help="What is looked at: 0 for the class token, patches row by row from 1; by default the "
    "whole row, that is why scores are higher where the head looks than elsewhere.",
)
@click.option(
    "--query",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The token that looks, by default the class token.",
)
@click.option(
    "--contrast", is_flag=True, help="Why at the token and not elsewhere: minus the row's mean."
)
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Pairs of neurons."
)
@click.option("--lens", type=PATH, help="A lens that says what neurons fire on.")
@click.option("--description", help="Show the words of this description of the lens instead.")
@click.option("--heat-map", type=PATH, help="A .png file for where the head looks in the photo.")
@json_option
@with_model
def why_attention(
    photo: Path,
    layer: int,
    head: int,
    token: int | None,
    query: int,
    contrast: bool,
    top: int,
    lens: Path | None,
    description: str | None,
    heat_map: Path | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Say why a head looked where it did in a PHOTO: a score as a sum over pairs of neurons.

    A score is what the softmax of attention gets. It is divided exactly over what the token that
    looks and the token that is looked at hold: neurons of earlier layers, what earlier attention
    wrote, the embedding, and biases.

    Example: secondlens why-attention photo.png --layer 6 --head 0 --token 20
    """
    check_picture(photo)
    check_lens(lens)
    check_parents(heat_map)
    if description is not None and lens is None:
        raise SecondLensError("--description is of a lens: name it with --lens")
    hold(heat_map)
    from ..data.decoding import open_picture
    from ..effects.attention_reasons import why_attention as divide
    from ..lens.lens import Lens
    from ..storage.files import save_picture

    picture = open_picture(photo)
    fitted = None if lens is None else Lens.load(lens)
    clip = model.load()
    if fitted is not None:
        fitted.check_model(clip)
    pixels = clip.prepare([picture])
    found = divide(clip, pixels, layer, head, token, query=query, contrast=contrast)
    words = _words(fitted, description)
    note_photo(model.model, picture)
    if heat_map is not None:
        save_picture(heat_map, _heat(clip, pixels[0], found.attention))
    if as_json:
        print_json(as_document(found, top, token, contrast, words))
        return
    what = _what(clip, found, token, contrast)
    title = f"Head {head} of layer {layer} at {token_name(clip, query)}: {what}"
    console.print(group_table(found, title))
    if layer:
        console.print(neuron_table(found, top, words))
        console.print(pair_table(clip, found, top, words))


def _words(lens: "Lens | None", description: str | None) -> Any:
    """A function that says what a neuron is called, by its layer and number, or gives its words in
    a description."""
    from ..words.describing import description_of, signed
    from ..words.summary import label

    codes = None if lens is None or description is None else description_of(lens, description)

    def words(neuron: tuple[int, int]) -> str:
        if lens is None or neuron[0] not in lens.layers:
            return ""
        return label(lens, *neuron) if codes is None else signed(codes.words(*neuron, WORDS))

    return words


def token_name(clip: "Clip", token: int) -> str:
    """Such as "row 2, column 5"."""
    if token < clip.prefix:
        return f"register {token}" if token else "the class token"
    row, column = divmod(token - clip.prefix, clip.grid[1])
    return f"row {row + 1}, column {column + 1}"


def _what(clip: "Clip", found: "AttentionReasons", token: int | None, contrast: bool) -> str:
    if token is None:
        return f"scores are {found.score:.3f} higher where it looks"
    share = 100 * float(found.attention[token])
    score = "score minus the row's mean" if contrast else "score"
    return f"{share:.1f} % of it at {token_name(clip, token)}, {score} {found.score:.3f}"


def _heat(clip: "Clip", pixels: "Tensor", attention: "Tensor") -> "Image":
    """The photo as the model sees it, the redder the more the head looks there."""
    from ..applications.segmentation.heat_maps import on_grid, overlay, standardise
    from ..report.page import model_view

    heat = standardise(
        on_grid(attention[None, clip.prefix :].float().cpu(), clip.grid), clip.image_size
    )
    return overlay(model_view(clip)(pixels), heat[0])


def as_document(
    found: "AttentionReasons", top: int, token: int | None, contrast: bool, words: Any
) -> dict[str, Any]:
    """The score, its sums by groups, and the strongest pairs with their scores at every token."""
    grouped = found.by_group
    sides = zip(found.groups, grouped.sum(1), grouped.sum(0), strict=True)
    neurons = {
        side: [
            {"neuron": each.neuron, "words": words(each.neuron), "score": each.score}
            for each in found.single(by_part, top)
        ]
        for side, by_part in (("looking", found.by_query), ("looked_at", found.by_key))
    }
    strongest = found.pairs(top)
    pairs = [
        {
            "query": pair.query,
            "query_words": words(pair.query),
            "key": pair.key,
            "key_words": words(pair.key),
            "score": pair.score,
            "over_tokens": found.over_tokens(pair),
        }
        for pair in strongest
    ]
    return {
        "layer": found.layer,
        "head": found.head,
        "query": found.query,
        "token": token,
        "contrast": contrast,
        "score": found.score,
        "scores": found.scores,
        "attention": found.attention,
        "groups": [{"name": n, "as_query": q, "as_key": k} for n, q, k in sides],
        "neurons": neurons,
        "pairs": pairs,
        "other_pairs": found.other_pairs(strongest),
    }


def group_table(found: "AttentionReasons", title: str) -> Table:
    """The score by what the two tokens hold; either column adds up to it."""
    table = Table(title=title)
    table.add_column("what the tokens hold")
    for name in ("looking", "looked at"):
        table.add_column(name, justify="right")
    grouped = found.by_group
    for name, query, key in zip(found.groups, grouped.sum(1), grouped.sum(0), strict=True):
        table.add_row(name, f"{query:+.3f}", f"{key:+.3f}")
    table.add_section()
    table.add_row("score", f"{grouped.sum():+.3f}", f"{grouped.sum():+.3f}")
    return table


def neuron_table(found: "AttentionReasons", top: int, words: Any) -> Table:
    """The strongest neurons on each side."""
    table = Table(title="Strongest neurons, whatever is on the other side")
    for name in ("looking", "score", "looked at", "score"):
        table.add_column(name, justify="right" if name == "score" else "left")
    sides = [found.single(each, top) for each in (found.by_query, found.by_key)]
    for row in zip(*sides, strict=True):
        cells = ((_called(each.neuron, words), f"{each.score:+.4f}") for each in row)
        table.add_row(*chain.from_iterable(cells))
    return table


def _called(neuron: tuple[int, int], words: Any) -> str:
    return " ".join(filter(None, (f"L{neuron[0]} #{neuron[1]}", escape(words(neuron)))))


def pair_table(clip: "Clip", found: "AttentionReasons", top: int, words: Any) -> Table:
    """The strongest pairs of neurons, and the token with which each scores most."""
    table = Table(title="Strongest pairs of neurons")
    for name in ("looking", "looked at", "score", "most with"):
        table.add_column(name, justify="right" if name == "score" else "left")
    pairs = found.pairs(top)
    for pair in pairs:
        sides = (_called(each, words) for each in (pair.query, pair.key))
        most = token_name(clip, int(found.over_tokens(pair).argmax()))
        table.add_row(*sides, f"{pair.score:+.4f}", most)
    count = (found.layer * found.neurons) ** 2 - len(pairs)
    if count:
        table.add_section()
        table.add_row(f"{count:,} other pairs", "", f"{found.other_pairs(pairs):+.4f}", "")
    return table
