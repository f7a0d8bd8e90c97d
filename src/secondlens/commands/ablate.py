"""`secondlens ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SecondLensError
from .options import (
    PATH,
    PLACE,
    ChosenModel,
    batch_option,
    check_lens,
    check_pictures,
    console,
    hold_new,
    json_option,
    labelled_pictures,
    layer_numbers,
    note,
    print_json,
    with_model,
)
from .together import check_together, idle, when

if TYPE_CHECKING:
    from ..data.labelled import Labelled
    from ..data.sources import ImageSource

TEST_SCENES, REFERENCE_SCENES = 600, 200
"""Of the embedded world, where no pictures are named."""

OTHER_MEANS = ("direct", "indirect", "attention")
"""Effects whose means are not in a lens."""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("images", type=PLACE, required=False)
@click.option(
    "--effect",
    type=click.Choice(["second-order", "direct", "indirect", "together", "attention"]),
    default="second-order",
    show_default=True,
    help="What is ablated; together: all neurons held at their means at once.",
)
@click.option(
    "--total",
    is_flag=True,
    help="Total effects in place of second-order ones, of a lens fitted with --paths all.",
)
@click.option(
    "--paths",
    is_flag=True,
    help="In place of an effect, what neurons do by one class of paths at a time, such as through "
    "keys: about 32 encodings a picture and layer.",
)
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option(
    "--neurons", type=click.IntRange(1), help="Ablate so many, drawn at random; by default all."
)
@click.option("--texts", "pools", multiple=True, help="Also put codes by these in; repeatable.")
@click.option("--sizes", help="Texts in a code, such as 4,8,16.")
@click.option("--published", is_flag=True, help="Codes made and projected on as published.")
@click.option("--reference", type=PLACE, help="Pictures for means of effects not in the lens.")
@click.option("--classes", type=PATH, help="A file with one class a line, in order.")
@click.option("--all-classes", is_flag=True, help="All 1,000 of ImageNet for its wordnet ids.")
@click.option("--template", "templates", multiple=True, help="A prompt with {}; repeatable.")
@click.option(
    "--subset",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Every so many-th picture.",
)
@batch_option
@click.option(
    "--decoders",
    "workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode pictures.",
)
@click.option("--out", type=PATH, help="A folder for CSV, JSON and a plot.")
@json_option
@with_model
def ablate(
    lens: Path,
    images: Path | str | None,
    effect: str,
    total: bool,
    paths: bool,
    layers: str,
    neurons: int | None,
    pools: tuple[str, ...],
    sizes: str | None,
    published: bool,
    reference: Path | str | None,
    classes: Path | None,
    all_classes: bool,
    templates: tuple[str, ...],
    subset: int,
    batch_size: int | None,
    workers: int,
    out: Path | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Measure what the neurons of a LENS do for zero-shot classification of labelled IMAGES.

    IMAGES is ImageNet, CIFAR-10, a folder with one for each class, or another set of
    `secondlens list labelled-sets`; for the embedded models it is by default unseen scenes.
    Accuracy is top-1 and, in the files, top-5, with 95 % intervals.

    Example: secondlens ablate secondlens-demo/lens --layers 5 --subset 10

    
    Example: secondlens ablate lens imagenet --model ViT-B-32 --pretrained openai --subset 10
    """
    of_codes = {"--sizes": sizes is not None, "--published": published}
    own = model.model.startswith("demo")
    of_images = {"--classes": classes is not None, "--all-classes": all_classes}
    of_neurons = {
        "--layers": layers != "all",
        "--neurons": neurons is not None,
        "--texts": bool(pools),
    }
    check_together(
        when(
            bool(paths) and bool(pools or effect != "second-order"),
            "--paths takes the place of effects: drop --effect and --texts",
        ),
        when(
            total and (paths or effect != "second-order"),
            "--total takes the place of second-order effects: drop --effect and --paths",
        ),
        idle(of_codes, "of codes: name texts with --texts", unless=bool(pools)),
        when(
            images is None and not own,
            f"{model.model} has no pictures of its own: name labelled IMAGES",
        ),
        idle(of_images, "of labelled pictures: name IMAGES", unless=not own or images is not None),
        idle(
            {"--reference": reference is not None},
            f"of no use for {effect} effects: drop it",
            unless=effect in OTHER_MEANS,
        ),
        idle(
            of_neurons,
            "of neurons, of which attention has none: drop what is said of them",
            unless=effect != "attention",
        ),
        idle(
            {"--neurons": neurons is not None, "--texts": bool(pools)},
            "of single neurons: drop what is said of them, or --effect together",
            unless=effect != "together",
        ),
    )
    check_lens(lens)
    check_pictures(images, reference)
    chosen, numbers = layer_numbers(layers), None if sizes is None else _numbers(sizes)
    hold_new(out)
    from ..applications.ablation.accuracy import ablate as ablate_lens
    from ..applications.ablation.all_paths import ablate_paths
    from ..applications.ablation.attention import ablate_attention
    from ..applications.ablation.recoding import TextCodes, all_of
    from ..data.sources import as_source
    from ..data.vocabularies import vocabulary
    from ..effects.ablated_runs import indirect_seconds, sample
    from ..lens.lens import Lens
    from ..paper.curves import curves
    from ..paper.results import as_document, show, write

    vocabularies = [vocabulary(pool) for pool in pools]
    fitted = Lens.load(lens)
    pictures = _pictures(model, images, classes, all_classes)
    if templates:
        pictures = pictures.prompted(templates)
    pictures = pictures.every(subset)
    known = None
    if effect in OTHER_MEANS:
        known = _reference(model, images, reference)
    clip = model.load()
    fitted.check_model(clip)
    if total:
        fitted = fitted.over("all")
    classifier = pictures.classes.embed(clip, progress=True)
    common: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": True}
    some = None if neurons is None else sample(clip, neurons)
    wanted = fitted.layers if chosen == "all" else chosen
    if effect == "attention":
        found = ablate_attention(
            clip, pictures.source, pictures.labels, classifier, known, **common
        )
    elif paths:
        found = ablate_paths(
            *(clip, fitted, pictures.source, pictures.labels, classifier),
            layers=wanted,
            neurons=some,
            **common,
        )
    else:
        if effect == "indirect":
            runs = len(some or range(clip.neurons)) * (len(pictures) + len(as_source(known).ids))
            seconds = sum(indirect_seconds(clip, layer) for layer in wanted) * runs
            note(f"about {seconds:.0f} s of runs of the network")
        codes = [
            TextCodes(
                clip,
                texts,
                numbers or _sizes(clip.dim, len(texts)),
                how="official" if published else "unit",
            )
            for texts in vocabularies
        ]
        found = ablate_lens(
            *(clip, fitted, pictures.source, pictures.labels, classifier),
            effect=effect,
            layers=wanted,
            neurons=some,
            recode=all_of(codes) if codes else None,
            shrunk=published,
            reference=known,
            **common,
        )
    what = "one class of paths" if paths else f"{'total' if total else effect} effects"
    result = curves("ablation", f"{what} ablated, {pictures.name}", found, ())
    files = [] if out is None else write(result, out)
    if as_json:
        print_json(as_document(result))
        return
    show(result, console)
    for path in files:
        console.print(str(path), markup=False, highlight=False)


def _pictures(
    model: ChosenModel, images: Path | str | None, classes: Path | None, all_classes: bool
) -> "Labelled":
    """Those that were named, or unseen scenes of an embedded model."""
    from ..paper.study import TEST_SEED, scenes

    if images is not None:
        return labelled_pictures(images, classes, all_classes=all_classes)
    return scenes(TEST_SEED, TEST_SCENES, planted=model.model == "demo")


def _reference(
    model: ChosenModel, images: Path | str | None, reference: Path | str | None
) -> "ImageSource":
    """Pictures for means of effects that are not in the lens."""
    from ..data.labelled import training_pictures
    from ..data.sources import as_source
    from ..paper.study import LAYER_SEED, scenes

    if reference is not None:
        return as_source(reference)
    if images is not None:
        return training_pictures(images)
    return scenes(LAYER_SEED, REFERENCE_SCENES, planted=model.model == "demo").source


def _numbers(sizes: str) -> list[int]:
    try:
        return [int(size) for size in sizes.split(",")]
    except ValueError:
        raise SecondLensError(
            f"--sizes takes numbers of texts, such as 4,8,16, not {sizes!r}"
        ) from None


def _sizes(dim: int, texts: int) -> list[int]:
    from ..applications.ablation.recoding import SIZES

    return [size for size in SIZES if size <= min(dim, texts)] or [1]
