"""`secondlens segment`."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from .options import (
    PATH,
    PLACE,
    ChosenEngine,
    ChosenModel,
    PictureChoice,
    check_lens,
    check_picture,
    check_pictures,
    console,
    hold_new,
    is_one_photo,
    json_option,
    layer_numbers,
    note_photo,
    print_json,
    say_photos,
    with_choice,
    with_engine,
    with_model,
)
from .together import check_together, idle, when


@click.command()
@click.argument("lens", type=PATH)
@click.argument("photos", type=PLACE)
@click.option("--text", "given", multiple=True, help='Such as "a dog"; repeatable.')
@click.option("--texts", "file", type=PATH, help="A file with one text a line.")
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
@click.option(
    "--mixture",
    is_flag=True,
    help="Neurons together with what patches and heads say: better masks, for three encodings.",
)
@click.option(
    "--colours", is_flag=True, help="Maps follow the colours of the photo, as the model sees it."
)
@click.option(
    "--presence",
    type=PATH,
    help="Of several photos: a file of sl.tune_presence; texts that are not there get no mask.",
)
@click.option(
    "--among", "among", type=PATH, help="Of --presence: a file with other words, one a line."
)
@click.option(
    "--polygons",
    is_flag=True,
    help="Of several photos: polygons without holes in masks.json, in place of run lengths.",
)
@json_option
@with_choice
@with_engine
@with_model
def segment(
    lens: Path,
    photos: Path | str,
    given: tuple[str, ...],
    file: Path | None,
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
    mixture: bool,
    colours: bool,
    presence: Path | None,
    among: Path | None,
    polygons: bool,
    as_json: bool,
    choice: PictureChoice,
    engine: ChosenEngine,
    model: ChosenModel,
) -> None:
    """Find texts in PHOTOS with the neurons of a LENS: heat-maps, masks and overlays.

    PHOTOS is one picture; with several texts, labels.png then tells them apart: its pixels are 0
    where none is, 1 for the first text, and so on. Or PHOTOS is a folder, archives or whatever else
    fit takes: the result is such a label map for each, a COCO file, a table and a page.

    \b
    Example: secondlens segment secondlens-demo/lens photo.png --text "a dog" --out masks
    """
    single = is_one_photo(photos)
    check_together(
        when(not given and file is None, "nothing to find: name texts with --text or --texts"),
        when(paper and mixture, "--paper takes neurons alone: drop it, or --mixture"),
        when(single and polygons, "--polygons is of several photos: drop it"),
        when(single and presence is not None, "--presence is of several photos: drop it"),
        when(presence is not None and among is None, "--presence needs words to compare: --among"),
        idle({"--among": among is not None}, "of --presence: name it", unless=presence is not None),
    )
    check_lens(lens)
    if single:
        assert isinstance(photos, Path)
        check_picture(photos)
    check_pictures(photos)
    chosen = None if layers is None else layer_numbers(layers)
    hold_new(out)
    from ..applications.segmentation.mixture import Mixture
    from ..applications.segmentation.segmenter import PAPER, Recipe
    from ..data.texts import texts_in
    from ..lens.lens import Lens
    from ..models.resizing import resized

    texts = (*given, *(texts_in(file).ids if file is not None else ()))
    fitted = Lens.load(lens)
    form = PAPER
    if not paper:
        form = Recipe(choose=choose, weigh=weigh, scale=scale, positive=positive)
    recipe = replace(
        form,
        layers=None if chosen is None else tuple(fitted.layers if chosen == "all" else chosen),
        neurons=neurons,
    )
    chosen_maps = Mixture(recipe=recipe) if mixture else recipe
    source = None if single else choice.source(photos)
    clip = model.load()
    if size is not None:
        clip = resized(clip, size)
    if source is not None:
        from ..applications.segmentation.photo_masks import MaskSettings, write_masks
        from ..applications.segmentation.presence import Presence

        settings = MaskSettings(
            texts=texts,
            against=against,
            recipe=chosen_maps,
            colours=colours,
            threshold=threshold,
            windows=windows,
            presence=None if presence is None else Presence.load(presence),
            among=() if among is None else tuple(texts_in(among).ids),
            polygons=polygons,
        )
        found = write_masks(
            clip, fitted, source, settings, out, engine=engine.make(model.device), progress=True
        )
        say_photos(found, out, as_json)
        return
    assert isinstance(photos, Path)
    from ..applications.segmentation.heat_maps import (
        grey,
        label_map,
        label_picture,
        outlined,
        overlay,
        save_all,
        with_names,
        with_scale,
    )
    from ..applications.segmentation.segmenting import segment as find
    from ..data.decoding import open_picture
    from ..lens.lens import Lens
    from ..models.resizing import resized

    picture = open_picture(photos)
    (heat,) = find(
        *(clip, fitted, [picture], texts),
        against=against,
        recipe=chosen_maps,
        colours=colours,
        windows=windows,
    )
    heat = heat.float().cpu()
    note_photo(model.model, picture)
    labels = label_map(heat, threshold)
    pictures = {}
    for number, (text, each) in enumerate(zip(texts, heat, strict=True), start=1):
        pictures[f"{number}-heat"] = grey(each)
        pictures[f"{number}-mask"] = grey((each >= threshold).float())
        pictures[f"{number}-overlay"] = with_scale(overlay(picture, each), text)
    pictures["outlines"] = with_names(outlined(picture, labels), texts)
    if len(texts) > 1:
        pictures["labels"] = label_picture(labels)
    save_all(pictures, out)
    shares = [(each >= threshold).float().mean().item() for each in heat]
    if as_json:
        found = [{"text": text, "share": each} for text, each in zip(texts, shares, strict=True)]
        print_json(
            {"photo": photos, "texts": found, "pictures": [out / f"{n}.png" for n in pictures]}
        )
        return
    for number, (text, share) in enumerate(zip(texts, shares, strict=True), start=1):
        line = f"{number}: {text}: {share:.0%} of the picture"
        console.print(line, markup=False, highlight=False)
    console.print(f"{out}: {len(pictures)} pictures", markup=False, highlight=False)
