"""`secondlens describe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    PATH,
    ChosenEngine,
    ChosenModel,
    check_parents,
    console,
    hold,
    json_option,
    paths_option,
    print_json,
    with_engine,
    with_model,
    writing_lens,
)

if TYPE_CHECKING:
    from ..lens.codes import Codes
    from ..lens.lens import Lens


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--texts",
    "pools",
    type=click.Path(),
    multiple=True,
    required=True,
    help="A text file, table.csv:column, english-10k, english-30k, imagenet or world; repeatable.",
)
@click.option(
    "-k",
    type=click.IntRange(1),
    help="Texts a neuron; by default a quarter of the width, at most 128.",
)
@click.option("--template", "templates", multiple=True, help="A prompt with {}; repeatable.")
@click.option(
    "--normalise",
    "how",
    type=click.Choice(["unit", "centred", "official"]),
    default="centred",
    show_default=True,
)
@paths_option
@click.option("--parquet", "parquet_file", type=PATH, help="Also write a row for each neuron.")
@json_option
@with_engine
@with_model
@writing_lens
def describe(
    lens: Path,
    pools: tuple[str, ...],
    k: int | None,
    templates: tuple[str, ...],
    how: str,
    paths: str,
    parquet_file: Path | None,
    as_json: bool,
    engine: ChosenEngine,
    model: ChosenModel,
) -> None:
    """Describe every neuron of a LENS with texts, and save the descriptions in it.

    Example: secondlens describe secondlens-demo/lens --texts world
    """
    if parquet_file:
        _check_parquet(parquet_file)
    hold(parquet_file)
    from ..data.vocabularies import vocabulary
    from ..lens.lens import Lens
    from ..words.describing import describe as describe_lens

    whole = Lens.load(lens)
    fitted = whole.over(paths)
    vocabularies = [vocabulary(pool, templates=templates or None) for pool in pools]
    names = [texts.name for texts in vocabularies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SecondLensError(f"two vocabularies are called {min(twice)}: rename one of the files")
    clip = model.load()
    runs = engine.make(model.device)
    found = {
        texts.name: describe_lens(clip, fitted, texts, k, how=how, engine=runs, progress=True)
        for texts in vocabularies
    }
    whole.save_held(lens)
    if parquet_file:
        write_parquet(parquet_file, fitted, found)
    if as_json:
        print_json({name: as_document(fitted, codes) for name, codes in found.items()})
        return
    for name, codes in found.items():
        console.print(curve_table(name, fitted, codes, clip.dim))
    console.print(example_table(fitted, found))


def _check_parquet(file: Path) -> None:
    """Raise `SecondLensError` before hours of work if their result could not be written."""
    check_parents(file)
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise SecondLensError(
            "--parquet needs pyarrow: pip install 'secondlens[parquet]'"
        ) from None


def neuron_rows(lens: "Lens", codes: "Codes") -> list[dict[str, Any]]:
    """Layer, neuron, words (strongest first), their coefficients and the cosine of each code."""
    rows = []
    for layer in lens.layers:
        for neuron, cosine in enumerate(codes.cosine[layer].tolist()):
            words = codes.code(layer, neuron)
            rows.append(
                {
                    "layer": layer,
                    "neuron": neuron,
                    "words": [text for text, _ in words],
                    "coefficients": [weight for _, weight in words],
                    "cosine": cosine,
                }
            )
    return rows


def as_document(lens: "Lens", codes: "Codes") -> dict[str, Any]:
    """A description with the curve of each layer, that of random directions, and every neuron."""
    assert codes.control is not None
    return {
        "texts": len(codes.labels),
        "normalise": codes.normalise,
        "curve": {layer: codes.curve[layer].tolist() for layer in lens.layers},
        "control": codes.control.tolist(),
        "neurons": neuron_rows(lens, codes),
    }


def write_parquet(path: Path, lens: "Lens", found: "dict[str, Codes]") -> None:
    """One row for each vocabulary and neuron."""
    import pyarrow
    from pyarrow import parquet

    from ..storage.files import whole

    rows = [
        {"vocabulary": name} | row
        for name, codes in found.items()
        for row in neuron_rows(lens, codes)
    ]
    with whole(path) as partial:
        parquet.write_table(pyarrow.Table.from_pylist(rows), partial)


def curve_table(name: str, lens: "Lens", codes: "Codes", dim: int) -> Table:
    """Median cosine between directions and codes of 1, 2, 4, ... texts."""
    from ..formatting import counted

    assert codes.control is not None
    k = len(codes.control)
    sizes = sorted({2**i for i in range(k.bit_length())} | {k})
    texts = counted(len(codes.labels), "text")
    table = Table(title=f"{escape(name)}: {texts}, cosine of codes by texts a neuron")
    table.add_column("layer")
    for m in sizes:
        table.add_column(str(m), justify="right")
    for layer in lens.layers:
        table.add_row(str(layer), *(f"{codes.curve[layer][m - 1]:.2f}" for m in sizes))
    table.add_section()
    table.add_row("random directions", *(f"{codes.control[m - 1]:.2f}" for m in sizes))
    table.add_row("texts / width", *(f"{m / dim:.2f}" for m in sizes))
    return table


def example_table(lens: "Lens", found: "dict[str, Codes]", each: int = 3) -> Table:
    """The neurons of each layer that the first vocabulary rebuilds best, in every one's words."""
    from ..words.describing import signed

    first = next(iter(found.values()))
    table = Table(title="The best rebuilt neurons; − pushes away")
    table.add_column("neuron")
    for name in found:
        table.add_column(escape(name))
    for layer in lens.layers:
        for neuron in first.cosine[layer].argsort(descending=True)[:each].tolist():
            words = (escape(signed(codes.words(layer, neuron, 4))) for codes in found.values())
            table.add_row(f"L{layer} #{neuron}", *words)
    return table
