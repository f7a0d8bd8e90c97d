"""`secondlens search`."""

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    PATH,
    ChosenModel,
    check_lens,
    console,
    json_option,
    paths_option,
    print_json,
    with_model,
)


@click.command()
@click.argument("lens", type=PATH)
@click.argument("text", required=False)
@click.option("--neuron", help="Find those like this one, such as 9:123 for layer 9.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Neurons.")
@click.option("--description", help="Whose mean text is subtracted; by default the first.")
@paths_option
@json_option
@with_model
def search(
    lens: Path,
    text: str | None,
    neuron: str | None,
    top: int,
    description: str | None,
    paths: str,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Find the neurons of a LENS that a TEXT, or another neuron, points along or away from.

    Example: secondlens search secondlens-demo/lens "a ship"
    """
    if (text is None) == (neuron is None):
        raise SecondLensError("give either a text to search for or --neuron, not both or none")
    like = None if neuron is None else layer_and_neuron(neuron)
    check_lens(lens)
    from ..lens.lens import Lens
    from ..words.describing import description_of, signed
    from ..words.searching import search as search_lens
    from ..words.searching import similar

    fitted = Lens.load(lens).over(paths)
    if like is not None:
        found = similar(fitted, *like, top)
    else:
        clip = model.load()
        found = search_lens(clip, fitted, text or "", top, description=description)
    codes = description_of(fitted, description) if fitted.codes or description else None
    words = [codes.words(match.layer, match.neuron, 6) if codes else [] for match in found]
    if as_json:
        rows = [
            vars(match)
            | {"names": [name.text for name in fitted.fires_on(match.layer, match.neuron)]}
            | {"words": each}
            for match, each in zip(found, words, strict=True)
        ]
        print_json({"text": text, "like": like, "neurons": rows})
        return
    table = Table(
        title=f"Neurons like {neuron}" if text is None else f"Neurons for “{escape(text)}”"
    )
    table.add_column("neuron")
    table.add_column("cosine", justify="right")
    if fitted.first_names is not None:
        table.add_column("fires on")
    table.add_column("pushes towards; − away from")
    for match, each in zip(found, words, strict=True):
        title = [escape(fitted.title(match.layer, match.neuron))] if fitted.first_names else []
        table.add_row(match.name, f"{match.cosine:+.2f}", *title, escape(signed(each)))
    console.print(table)


def layer_and_neuron(given: str) -> tuple[int, int]:
    """Such as "9:123".

    Raises
    ------
    SecondLensError
        Not such a text.
    """
    layer, _, number = given.partition(":")
    if not (layer.isdecimal() and number.isdecimal()):
        raise SecondLensError(f"--neuron takes a layer and a number such as 9:123, not {given!r}")
    return int(layer), int(number)
