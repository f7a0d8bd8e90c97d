"""`secondlens describe`."""

from pathlib import Path

import click
from rich.table import Table

from .common import console, model_options


@click.command()
@click.argument("lens", type=Path)
@click.option("--texts", type=Path, required=True, help="A file with one text a line.")
@click.option("-k", default=128, show_default=True, help="Texts a neuron.")
@click.option("--normalise", "how", default="centred", show_default=True)
@model_options
def describe(
    lens: Path,
    texts: Path,
    k: int,
    how: str,
    model: str,
    pretrained: str | None,
    precision: str,
    device: str,
) -> None:
    """Describe every neuron of a LENS with texts, and save the descriptions in it."""
    from ..clip import load
    from ..describe import describe as describe_lens
    from ..lens import Lens
    from ..texts import vocabulary

    fitted = Lens.load(lens)
    words = vocabulary(texts)
    codes = describe_lens(load(model, pretrained, device, precision), fitted, words, k, how=how)
    fitted.save(lens)
    table = Table(title=f"{len(words)} texts, {k} for each neuron")
    for name in ("layer", "median cosine", "example"):
        table.add_column(name)
    for layer in fitted.layers:
        best = int(codes.cosine[layer].argmax())
        example = " ".join(f"{'+' if w > 0 else '−'}{t}" for t, w in codes.words(layer, best, 4))
        cosine = f"{float(codes.cosine[layer].median()):.2f}"
        table.add_row(str(layer), cosine, f"#{best}: {example}")
    console.print(table)
