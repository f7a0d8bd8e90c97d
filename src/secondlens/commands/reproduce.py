"""`secondlens reproduce`: tables and figures of the paper, one subcommand each."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .checks import check_lens, check_new
from .common import (
    PATH,
    ChosenModel,
    console,
    json_option,
    print_json,
    tables,
    with_model,
)
from .parts import with_parts
from .study import with_study

if TYPE_CHECKING:
    from ..reproduce.study import Study


@click.group()
def reproduce() -> None:
    """Reproduce a table or figure of the paper, with the paper's numbers beside.

    Everything prints a table, says which settings differ from the paper's, and writes CSV, JSON
    and a plot. --demo needs no data; for the paper's own setting give ImageNet with --images and
    --model ViT-B-32 --pretrained openai.

    Example: secondlens reproduce table1 --demo
    """


TITLES = {
    "table1": "Accuracy without direct, indirect and second-order effects, and their rank.",
    "table2": "The strongest texts of four neurons.",
    "table5": "The strongest texts of four more neurons.",
    "fig3": "Accuracy without second-order effects, layer by layer.",
    "fig4": "Accuracy with directions replaced by sparse texts.",
    "fig5": "The pictures on which the effects of neurons are largest.",
    "fig8": "Concepts in pictures, in words of their active neurons.",
    "fig9": "Figure 3 for a second model: name it; with --demo, the twin.",
    "fig10": "Figure 3 on shifted pictures: name them with --shifted.",
    "fig11": "Accuracy without direct effects of attention layers.",
    "fig12": "Figure 11 for a second model: name it; with --demo, the twin.",
    "distributions": "Quantiles over neurons of what the paper claims of them, with nulls.",
    "budget": "How much of total effects is direct, second-order, and neither.",
}


def _add(name: str, title: str) -> None:
    twin = " --model demo-twin" if name in ("fig9", "fig12") else ""

    @reproduce.command(name, help=f"{title}\n\nExample: secondlens reproduce {name} --demo{twin}")
    @json_option
    @with_study
    def command(study: "Study", as_json: bool) -> None:
        from ..reproduce.reproduce import reproduce as make
        from ..reproduce.result import as_document

        result = make(name, study, tables(as_json))
        if as_json:
            print_json(as_document(result))


for _name, _title in TITLES.items():
    _add(_name, _title)


@reproduce.command("all")
@json_option
@with_study
def everything(study: "Study", as_json: bool) -> None:
    """Everything that there is data for, and a page with all of it.

    Example: secondlens reproduce all --demo
    """
    from ..reproduce.reproduce import reproduce_all
    from ..reproduce.result import as_document

    results, left_out, page = reproduce_all(study, tables(as_json))
    if as_json:
        found = [as_document(result) for result in results]
        print_json({"results": found, "left_out": left_out, "report": page})
    else:
        console.print(f"Report: {page}", markup=False, highlight=False)


LAYOUTS = ("imagenet-segmentation", "voc", "imagenet-s", "folder")


@reproduce.command()
@click.option("--demo", is_flag=True, help="On the embedded world: no data needed.")
@click.option("--lens", type=PATH, help="Of the model; with --demo, one is fitted if not given.")
@click.option("--images", type=PATH, help="A file or folder of images with masks.")
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True)
@click.option("--names", type=PATH, help="For imagenet-s: a file with a wnid and name a line.")
@click.option("--ignore", type=click.IntRange(0), help="For folder: the value of ignored pixels.")
@click.option("--classes", type=PATH, help="A file with one class a line; by default the data's.")
@click.option("--predicted", is_flag=True, help="Segment the class that CLIP predicts.")
@click.option("--out", type=PATH, default=Path("secondlens-table4"), show_default=True)
@click.option("--fit-images", type=click.IntRange(50), default=1500, show_default=True)
@click.option(
    "--test-images", type=click.IntRange(1), default=600, show_default=True, help="To test on."
)
@click.option("--dev", type=click.IntRange(1), default=200, show_default=True, help="To tune on.")
@json_option
@with_model
def table4(
    demo: bool,
    lens: Path | None,
    images: Path | None,
    layout: str,
    names: Path | None,
    ignore: int | None,
    classes: Path | None,
    predicted: bool,
    out: Path,
    fit_images: int,
    test_images: int,
    dev: int,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Zero-shot segmentation, neurons against every earlier method.

    Variants and thresholds of every method are tuned on --dev images and measured on --test-images
    others.

    Example: secondlens reproduce table4 --demo
    """
    check_new(out)
    check_lens(lens)
    from ..lens import Lens
    from ..segment.benchmark.reproduce import check_sources, data_work, demo_lens, demo_work, run

    check_sources(demo=demo, model=model.model, data=images, lens=lens)
    if images is None:
        work = demo_work(images=test_images, dev=dev)
    else:
        work = data_work(
            images,
            layout,
            classes=classes,
            names=names,
            ignore=ignore,
            images=test_images,
            dev=dev,
        )
    fitted = None if lens is None else Lens.load(lens)
    clip = model.load()
    if fitted is None:
        fitted = demo_lens(clip, fit_images)
    found = run(clip, fitted, work, out, predicted=predicted, console=tables(as_json))
    if as_json:
        print_json(found.facts | {"rows": [asdict(row) for row in found.rows], "files": out})


@reproduce.command()
@click.option("--demo", is_flag=True, help="On the embedded world: no data needed.")
@click.option("--lens", type=PATH, help="Described; with --demo, one is fitted if not given.")
@click.option("--images", type=PATH, help="Pictures for the baseline of indirect effects.")
@click.option("--out", type=PATH, default=Path("secondlens-table3"), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs.")
@click.option("--images-a-run", "count", type=click.IntRange(1), default=100, show_default=True)
@click.option("--neurons", type=click.IntRange(1), default=100, show_default=True)
@click.option("--fit-images", type=click.IntRange(50), default=1500, show_default=True)
@click.option(
    "--effect-images",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="For directions of indirect effects; 0 leaves that baseline out.",
)
@json_option
@with_parts
@with_model
def table3(
    demo: bool,
    lens: Path | None,
    images: Path | None,
    out: Path,
    seeds: int,
    count: int,
    neurons: int,
    fit_images: int,
    effect_images: int,
    as_json: bool,
    parts: Callable[[str], dict[str, Any]],
    model: ChosenModel,
) -> None:
    """Semantic adversarial images, second-order effects against every baseline.

    With --demo: the ten pairs of the embedded world that nothing was tuned on. A run that was
    interrupted goes on when the same command is given again.

    Example: secondlens reproduce table3 --demo
    """
    check_lens(lens)
    from ..attack.reproduce import reproduce_table3
    from ..reproduce.result import as_document

    result = reproduce_table3(
        model.load,
        parts(model.device),
        demo=demo,
        model=model.model,
        lens_path=lens,
        images=images,
        out=out,
        seeds=seeds,
        count=count,
        neurons=neurons,
        fit_images=fit_images,
        effect_images=effect_images,
        console=tables(as_json),
    )
    if as_json:
        print_json(as_document(result))
