"""`secondlens reproduce`: tables and figures of the paper, one subcommand each."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import SecondLensError
from ..paper.registry import results
from .attack import with_parts
from .options import (
    PATH,
    ChosenModel,
    check_class_folders,
    check_lens,
    check_new,
    console,
    convention_option,
    json_option,
    print_json,
    tables,
    with_model,
)

OPTIONS = (
    click.option("--demo", is_flag=True, help="On the embedded world: no data needed."),
    click.option(
        "--images", type=PATH, help="ImageNet, CIFAR-10, or a folder with one for each class."
    ),
    click.option("--shifted", type=PATH, help="Shifted pictures, such as ImageNet-R."),
    click.option(
        "--lens", type=PATH, help="Of the model; fitted on training pictures if not given."
    ),
    click.option("--subset", type=click.IntRange(1), help="Take every so many-th test picture."),
    click.option(
        "--layer",
        type=click.IntRange(0),
        help="By default the paper's; with --demo, the deciding one.",
    ),
    click.option(
        "--neurons",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Drawn at random, whose indirect effects are measured.",
    ),
    click.option(
        "--fit-images",
        type=click.IntRange(50),
        help="To fit a lens on; by default 5000, with --demo 1200.",
    ),
    click.option(
        "--effect-images",
        type=click.IntRange(10),
        default=200,
        show_default=True,
        help="Of these, for statistics of direct and indirect effects.",
    ),
    click.option(
        "--texts",
        "pools",
        multiple=True,
        help="As for describe; repeatable. By default english-30k, with --demo world.",
    ),
    click.option(
        "--follow",
        type=click.Choice(["paper", "code"]),
        default="paper",
        show_default=True,
        help="The paper's text or its published code, where they disagree.",
    ),
    convention_option,
    click.option("--out", type=PATH, default=Path("secondlens-paper"), show_default=True),
)


def with_study(command: Callable[..., Any]) -> Any:
    """The options of a study, which the command gets as one argument, `study`."""

    @wraps(command)
    def parsed(
        *,
        model: ChosenModel,
        demo: bool,
        images: Path | None,
        shifted: Path | None,
        lens: Path | None,
        subset: int | None,
        layer: int | None,
        neurons: int,
        fit_images: int | None,
        effect_images: int,
        pools: tuple[str, ...],
        follow: Literal["paper", "code"],
        convention: str,
        out: Path,
        **others: Any,
    ) -> Any:
        if demo and (images is not None or not model.model.startswith("demo")):
            raise SecondLensError(
                "--demo has its own model and pictures: drop --model and --images"
            )
        if not demo and images is None:
            raise SecondLensError("name pictures with --images, or take --demo")
        check_lens(lens)
        check_class_folders(images, shifted)
        from ..paper.study import DEMO_FIT_IMAGES, FIT_IMAGES, Study

        study = Study(
            model=_called(model),
            load=model.load,
            demo=demo,
            images=images,
            shifted=shifted,
            lens_path=lens,
            out=out,
            subset=subset,
            fit_images=fit_images or (DEMO_FIT_IMAGES if demo else FIT_IMAGES),
            chosen_layer=layer,
            sample=neurons,
            effect_images=effect_images,
            pools=pools or (("world",) if demo else ("english-30k",)),
            follow=follow,
            convention=convention,
        )
        return command(study=study, **others)

    for option in reversed(OPTIONS):
        parsed = option(parsed)
    return with_model(parsed)


def _called(model: ChosenModel) -> str:
    """What results call a model, such as "ViT-B-32 (openai)"."""
    return f"{model.model} ({model.pretrained})" if model.pretrained else model.model


if TYPE_CHECKING:
    from ..paper.results import Result
    from ..paper.study import Study
    from ..registry import Member


class _Results(click.Group):
    """Has a command for each result of the registry, whenever it was registered."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self.complete()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self.complete()
        return super().get_command(ctx, cmd_name)

    def complete(self) -> None:
        """Make the commands of results that have none yet: those that take a study."""
        for member in results:
            if member.name not in self.commands:
                self.add_command(_command(member))


def _command(member: "Member[Result]") -> click.Command:
    example = f"Example: secondlens reproduce {member.name} --demo"

    @click.command(member.name, help=f"{member.help}\n\n{example}")
    @json_option
    @with_study
    def command(study: "Study", as_json: bool) -> None:
        _publish(member(study), study.out, as_json)

    return command


def _publish(result: "Result", out: Path, as_json: bool) -> None:
    """Print a result, as tables or as JSON, and write its files."""
    from ..paper.results import as_document, publish

    publish(result, out, tables(as_json))
    if as_json:
        print_json(as_document(result))


@click.group(cls=_Results)
def reproduce() -> None:
    """Reproduce a table or figure of the paper, with the paper's numbers beside.

    Everything prints a table, says which settings differ from the paper's, and writes CSV, JSON
    and a plot. --demo needs no data; for the paper's own setting give ImageNet with --images and
    --model ViT-B-32 --pretrained openai.

    Example: secondlens reproduce table1 --demo
    """


@reproduce.command("all")
@json_option
@with_study
def everything(study: "Study", as_json: bool) -> None:
    """Everything that there is data for, and a page with all of it.

    Example: secondlens reproduce all --demo
    """
    from ..paper.everything import reproduce_all
    from ..paper.results import as_document

    made, left_out, page = reproduce_all(study, tables(as_json))
    if as_json:
        found = [as_document(result) for result in made]
        print_json({"results": found, "left_out": left_out, "report": page})
    else:
        console.print(f"Report: {page}", markup=False, highlight=False)


def _with_own_options(function: Callable[..., None]) -> click.Command:
    """The command of a result; what its function says goes on from the help of the registry."""
    name = function.__name__
    more = inspect.cleandoc(function.__doc__ or "")
    return reproduce.command(name, help=f"{results[name].help}\n\n{more}")(function)


LAYOUTS = ("imagenet-segmentation", "voc", "imagenet-s", "folder")


@_with_own_options
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
    """Variants and thresholds of every method are tuned on --dev images and measured on
    --test-images others.

    Example: secondlens reproduce table4 --demo
    """
    check_new(out)
    check_lens(lens)
    from ..lens.lens import Lens
    from ..paper.table4 import check_sources, compare, data_work, demo_lens, demo_work

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
    found = compare(clip, fitted, work, model=_called(model), predicted=predicted)
    found = replace(found, earlier={**found.earlier, "files": str(out)})
    _publish(found, out, as_json)


@_with_own_options
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
    """With --demo: the ten pairs of the embedded world that nothing was tuned on. A run that was
    interrupted goes on when the same command is given again.

    Example: secondlens reproduce table3 --demo
    """
    check_lens(lens)
    result = results["table3"](
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
    )
    _publish(result, out, as_json)
