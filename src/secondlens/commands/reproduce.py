"""`secondlens reproduce`: tables of the paper, one subcommand each."""

from pathlib import Path

import click

from .common import console, model_options


@click.group()
def reproduce() -> None:
    """Reproduce a table of the paper, with the paper's numbers beside."""


LAYOUTS = ("imagenet-segmentation", "voc", "imagenet-s", "folder")


@reproduce.command()
@click.option("--demo", is_flag=True, help="On the embedded world: no data needed.")
@click.option("--lens", type=Path, help="Of the model; with --demo, one is fitted if not given.")
@click.option("--data", type=Path, help="A file or folder of images with masks.")
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True)
@click.option("--names", type=Path, help="For imagenet-s: a file with a wnid and name a line.")
@click.option("--ignore", type=int, help="For folder: the value of ignored pixels.")
@click.option("--classes", type=Path, help="A file with one class a line; by default the data's.")
@click.option("--predicted", is_flag=True, help="Segment the class that CLIP predicts.")
@click.option("--out", type=Path, default=Path("secondlens-table4"), show_default=True)
@click.option("--fit-images", type=click.IntRange(50), default=1500, show_default=True)
@click.option(
    "--images", type=click.IntRange(1), default=600, show_default=True, help="To test on."
)
@click.option("--dev", type=click.IntRange(1), default=200, show_default=True, help="To tune on.")
@model_options
def table4(
    demo: bool,
    lens: Path | None,
    data: Path | None,
    layout: str,
    names: Path | None,
    ignore: int | None,
    classes: Path | None,
    predicted: bool,
    out: Path,
    fit_images: int,
    images: int,
    dev: int,
    model: str,
    pretrained: str | None,
    precision: str,
    activation: str | None,
    device: str,
) -> None:
    """Zero-shot segmentation, neurons against every earlier method.

    Variants and thresholds of every method are tuned on --dev images and measured on --images
    others.
    """
    from ..clip import load
    from ..lens import Lens
    from ..segmentation.reproduce import check_sources, data_work, demo_lens, demo_work, run
    from ..storage import check_empty

    check_sources(demo=demo, model=model, data=data, lens=lens)
    check_empty(out)
    if data is None:
        work = demo_work(images=images, dev=dev)
    else:
        work = data_work(
            data, layout, classes=classes, names=names, ignore=ignore, images=images, dev=dev
        )
    fitted = None if lens is None else Lens.load(lens)
    clip = load(model, pretrained, device, precision, activation)
    if fitted is None:
        fitted = demo_lens(clip, fit_images)
    run(clip, fitted, work, out, predicted=predicted, console=console)
