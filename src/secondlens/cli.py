"""The command line: parse, call, print."""

import webbrowser
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .errors import SecondLensError

console = Console()


class _Group(click.Group):
    """Prints a user's mistake as one sentence and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SecondLensError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secondlens")
def main() -> None:
    """What single neurons of CLIP do: second-order effects, described in words."""


def _model_options(command: Any) -> Any:
    for option in (
        click.option("--device", default="cpu", show_default=True, help="Where the model runs."),
        click.option("--precision", default="fp32", show_default=True, help="Of the weights."),
        click.option("--pretrained", help="open_clip tag, or the path of a checkpoint."),
        click.option(
            "--model", default="demo", show_default=True, help='"demo", or an open_clip name.'
        ),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--out", type=Path, default=Path("secondlens-demo"), show_default=True)
@click.option("--open", "show", is_flag=True, help="Open the report in the browser.")
@click.option(
    "--images", type=click.IntRange(50), default=1500, show_default=True, help="Scenes to fit on."
)
@click.option(
    "--test-images",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Scenes for the ablations.",
)
@click.option("--twin", is_flag=True, help="The twin, trained without planted cues.")
def demo(out: Path, show: bool, images: int, test_images: int, twin: bool) -> None:
    """Explain the neurons of the embedded CLIP: no network, no data needed."""
    from .clip import load
    from .demo.run import print_summary, run

    found = run(load("demo-twin" if twin else "demo"), out, images=images, test_images=test_images)
    print_summary(found, console)
    if show:
        webbrowser.open(found.report.resolve().as_uri())


@main.command()
@click.argument("images", type=Path)
@click.option("--out", type=Path, required=True, help="A new folder for the lens.")
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option("--top", type=int, help="Top images a neuron; by default 2 %.")
@click.option("--convention", default="exact", show_default=True, help="exact or official.")
@click.option("--keep-coordinates", is_flag=True, help="So that the lens can be merged.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode pictures.",
)
@_model_options
def fit(
    images: Path,
    out: Path,
    layers: str,
    top: int | None,
    convention: str,
    keep_coordinates: bool,
    batch_size: int,
    workers: int,
    model: str,
    pretrained: str | None,
    precision: str,
    device: str,
) -> None:
    """Fit a lens on a folder of IMAGES."""
    from .clip import load
    from .fit import fit as fit_lens
    from .images import Folder
    from .storage import check_empty

    check_empty(out)
    source = Folder(images)
    chosen: Any = "all" if layers == "all" else _numbers(layers)
    lens = fit_lens(
        load(model, pretrained, device, precision),
        source,
        chosen,
        top=top,
        out=out,
        convention=convention,
        keep_coordinates=keep_coordinates,
        batch_size=batch_size,
        workers=workers,
        progress=True,
    )
    console.print(f"{out}: layers {lens.layers} over {len(lens.image_ids)} images")
    if lens.skipped:
        console.print(f"{len(lens.skipped)} pictures could not be read:")
        for name, reason in lens.skipped.items():
            console.print(f"  {name}: {reason}", markup=False, highlight=False)


@main.command()
@click.argument("lens", type=Path)
@click.option("--texts", type=Path, required=True, help="A file with one text a line.")
@click.option("-k", default=128, show_default=True, help="Texts a neuron.")
@click.option("--normalise", "how", default="centred", show_default=True)
@_model_options
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
    from .clip import load
    from .describe import describe as describe_lens
    from .lens import Lens
    from .texts import vocabulary

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


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SecondLensError(
            f"layers must be numbers such as 8,9,10, or all, not {text!r}"
        ) from None
