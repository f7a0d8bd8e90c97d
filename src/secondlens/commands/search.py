"""`secondlens search`."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .common import console, model_options


@click.command()
@click.argument("lens", type=Path)
@click.argument("text", required=False)
@click.option("--neuron", help="Find those like this one, such as 9:123 for layer 9.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Neurons.")
@click.option("--description", help="Whose mean text is subtracted; by default the first.")
@click.option("--json", "out", type=Path, help="Also write the neurons to this file.")
@model_options
def search(
    lens: Path,
    text: str | None,
    neuron: str | None,
    top: int,
    description: str | None,
    out: Path | None,
    model: str,
    **weights: Any,
) -> None:
    """Find the neurons of a LENS that a TEXT, or another neuron, points along or away from."""
    from ..clip import load
    from ..describe import signed
    from ..lens import Lens
    from ..search import description_of, similar
    from ..search import search as search_lens
    from ..storage import save_json

    if (text is None) == (neuron is None):
        raise SecondLensError("give either a text to search for or --neuron, not both or none")
    if out is not None and not out.parent.is_dir():
        raise SecondLensError(f"there is no folder {out.parent} for {out.name}: make it first")
    like = None if neuron is None else _layer_and_neuron(neuron)
    fitted = Lens.load(lens)
    if like is not None:
        found = similar(fitted, *like, top)
    else:
        clip = load(model, **weights)
        found = search_lens(clip, fitted, text or "", top, description=description)
    codes = description_of(fitted, description) if fitted.codes or description else None
    table = Table(
        title=f"Neurons like {neuron}" if text is None else f"Neurons for “{escape(text)}”"
    )
    table.add_column("neuron")
    table.add_column("cosine", justify="right")
    table.add_column("words")
    rows = []
    for match in found:
        words = codes.words(match.layer, match.neuron, 6) if codes else []
        rows.append(vars(match) | {"words": words})
        table.add_row(match.name, f"{match.cosine:+.2f}", escape(signed(words)))
    if out is not None:
        save_json(out, {"text": text, "like": like, "neurons": rows})
    console.print(table)


def _layer_and_neuron(given: str) -> tuple[int, int]:
    layer, _, number = given.partition(":")
    if not (layer.isdecimal() and number.isdecimal()):
        raise SecondLensError(f"--neuron takes a layer and a number such as 9:123, not {given!r}")
    return int(layer), int(number)
