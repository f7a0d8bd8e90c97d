"""`secondlens demo`."""

import webbrowser
from pathlib import Path

import click

from .options import DEVICE_HELP, PATH, check_new, console, hold, json_option, print_json


@click.command()
@click.option("--out", type=PATH, default=Path("secondlens-demo"), show_default=True)
@click.option("--open", "show", is_flag=True, help="Open the report in the browser.")
@click.option(
    "--images", type=click.IntRange(50), default=1200, show_default=True, help="Scenes to fit on."
)
@click.option(
    "--test-images",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Scenes for the ablations.",
)
@click.option("--twin", is_flag=True, help="The twin, trained without planted cues.")
@click.option("--device", default="cpu", show_default=True, help=DEVICE_HELP)
@json_option
def demo(
    out: Path,
    show: bool,
    images: int,
    test_images: int,
    twin: bool,
    device: str,
    as_json: bool,
) -> None:
    """Explain the neurons of the embedded CLIP: no network, no data needed.

    Example: secondlens demo --open
    """
    hold(out)
    if not (out / "lens" / "lens.json").is_file():  # else what is there is used again
        check_new(out)
    from ..models.loading import load
    from ..paper.demo import as_document, print_summary, run

    clip = load("demo-twin" if twin else "demo", device=device)
    found = run(clip, out, images=images, test_images=test_images)
    if as_json:
        print_json(as_document(found))
    else:
        print_summary(found, console)
    if show:
        webbrowser.open(found.report.resolve().as_uri())
