"""`secondlens segment`."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from .options import (
    PATH,
    ChosenModel,
    check_lens,
    check_picture,
    console,
    hold_new,
    json_option,
    layer_numbers,
    note_photo,
    print_json,
    with_model,
)


@click.command()
@click.argument("lens", type=PATH)
@click.argument("photo", type=PATH)
@click.option("--text", "texts", multiple=True, required=True, help='Such as "a dog"; repeatable.')
@click.option("--out", type=PATH, required=True, help="A new folder for the pictures.")
@click.option("--against", multiple=True, help="A text to contrast with; repeatable.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="The heat from which on a pixel is part of the object.",
)
@click.option("--layers", help="Such as 8,9,10, or all; by default the last quarter.")
@click.option("--neurons", type=click.IntRange(1), help="How many; by default one in nine.")
@click.option(
    "--choose",
    type=click.Choice(["absolute", "positive"]),
    default="absolute",
    show_default=True,
    help="Neurons by |<direction, text>|, or by <direction, text>.",
)
@click.option(
    "--weigh",
    type=click.Choice(["equal", "sign", "cosine", "effect"]),
    default="cosine",
    show_default=True,
    help="What a chosen neuron counts.",
)
@click.option(
    "--scale",
    type=click.Choice(["none", "centred", "standard"]),
    default="centred",
    show_default=True,
    help="Activations by training statistics.",
)
@click.option(
    "--size",
    type=click.IntRange(1),
    help="Pixels a side that the model sees; more show more detail.",
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Overlapping windows along each side through which the model sees the photo.",
)
@click.option(
    "--positive/--signed", default=True, show_default=True, help="Heat below 0 counts as 0."
)
@click.option(
    "--paper",
    is_flag=True,
    help="As the paper does: fewer neurons, averaged as they are, whatever the last four say.",
)
@json_option
@with_model
def segment(
    lens: Path,
    photo: Path,
    texts: tuple[str, ...],
    out: Path,
    against: tuple[str, ...],
    threshold: float,
    layers: str | None,
    neurons: int | None,
    choose: Literal["absolute", "positive"],
    weigh: Literal["equal", "sign", "cosine", "effect"],
    scale: Literal["none", "centred", "standard"],
    size: int | None,
    windows: int,
    positive: bool,
    paper: bool,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Find texts in a PHOTO with the neurons of a LENS: heat-maps, masks and overlays.

    With several texts, labels.png tells them apart: its pixels are 0 where none is, 1 for the
    first text, and so on.

    
    Example: secondlens segment secondlens-demo/lens photo.png --text "a dog" --out masks
    """
    check_lens(lens)
    check_picture(photo)
    chosen = None if layers is None else layer_numbers(layers)
    hold_new(out)
    from ..applications.segmentation.heat_maps import (
        grey,
        label_map,
        label_picture,
        overlay,
        save_all,
    )
    from ..applications.segmentation.segmenter import PAPER, Recipe
    from ..applications.segmentation.segmenter import segment as find
    from ..data.decoding import open_picture
    from ..lens.lens import Lens
    from ..models.resizing import resized

    picture = open_picture(photo)
    fitted = Lens.load(lens)
    form = PAPER
    if not paper:
        form = Recipe(choose=choose, weigh=weigh, scale=scale, positive=positive)
    recipe = replace(
        form,
        layers=None if chosen is None else tuple(fitted.layers if chosen == "all" else chosen),
        neurons=neurons,
    )
    clip = model.load()
    if size is not None:
        clip = resized(clip, size)
    (heat,) = find(clip, fitted, [picture], texts, against=against, recipe=recipe, windows=windows)
    heat = heat.float().cpu()
    note_photo(model.model, picture)
    pictures = {}
    for number, each in enumerate(heat, start=1):
        pictures[f"{number}-heat"] = grey(each)
        pictures[f"{number}-mask"] = grey((each >= threshold).float())
        pictures[f"{number}-overlay"] = overlay(picture, each)
    if len(texts) > 1:
        pictures["labels"] = label_picture(label_map(heat, threshold))
    save_all(pictures, out)
    shares = [(each >= threshold).float().mean().item() for each in heat]
    if as_json:
        found = [{"text": text, "share": each} for text, each in zip(texts, shares, strict=True)]
        print_json(
            {"photo": photo, "texts": found, "pictures": [out / f"{n}.png" for n in pictures]}
        )
        return
    for number, (text, share) in enumerate(zip(texts, shares, strict=True), start=1):
        line = f"{number}: {text}: {share:.0%} of the picture"
        console.print(line, markup=False, highlight=False)
    console.print(f"{out}: {len(pictures)} pictures", markup=False, highlight=False)
