"""`secondlens reproduce`: tables and figures of the paper, one subcommand each."""

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..applications.segmentation.baselines import baselines
from ..data import label_sets, masked_sets
from ..errors import SecondLensError, SecondLensWarning
from ..naming import shown_model, shown_place
from ..paper.registry import results
from .attack import AttackSteps, with_steps
from .options import (
    CONVENTION_HELP,
    CONVENTIONS,
    PATH,
    PLACE,
    ChosenModel,
    Group,
    check_lens,
    check_pictures,
    check_trained,
    console,
    grouped,
    hold,
    hold_new,
    json_option,
    option,
    print_json,
    tables,
    with_model,
)
from .together import check_together, idle, said_by, when

FOLLOWED = ("paper", "code")
"""The paper's text, and the code that was published with it."""

SAMPLE = 64
"""Neurons that are drawn where nobody says how many."""


def neuron_choice(value: str | int) -> int | tuple[tuple[int, int], ...]:
    """How many neurons to draw, or which ones to show: "64", or "9:4,9:391"."""
    text = str(value)
    if text.isdecimal() and int(text) > 0:
        return int(text)
    pairs = [re.fullmatch(r"(\d+):(\d+)", each.strip()) for each in text.split(",")]
    if not all(pairs):
        raise click.BadParameter(
            f"{text!r} is neither a number of neurons nor some of them, such as 9:4,9:391"
        )
    return tuple((int(each[1]), int(each[2])) for each in pairs if each)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What a study of the paper's claims is made with."""

    demo: bool = option(default=False, is_flag=True, help="On the embedded world: no data needed.")
    images: Path | str | None = option(
        type=PLACE, help="ImageNet, CIFAR-10, or another set of `list labelled-sets`."
    )
    shifted: Path | str | None = option(type=PLACE, help="Shifted pictures, such as ImageNet-R.")
    masks: Path | None = option(
        type=PATH, help="For all: a set of `list masked-sets`, which table4 is made from."
    )
    second_model: str | None = option(help="For fig9 and fig12, named as --model is.")
    second_pretrained: str | None = option(help="Its open_clip tag, or the path of a checkpoint.")
    lens: Path | None = option(
        type=PATH, help="Of the model; fitted on training pictures if not given."
    )
    subset: int | None = option(
        type=click.IntRange(1),
        help="Take every N-th test picture; by default the paper's choice, with --follow code "
        "every tenth.",
    )
    layer: int | None = option(
        type=click.IntRange(0), help="By default the paper's; with --demo, the deciding one."
    )
    neurons: int | tuple[tuple[int, int], ...] = option(
        default=SAMPLE,
        type=neuron_choice,
        metavar="NUMBER|LAYER:NEURON,...",
        help="How many are drawn at random, whose indirect effects are measured; or those of one "
        "layer that table2, table5 and fig5 show, such as 9:4,9:391: other results only take the "
        "layer from them.",
    )
    fit_images: int | None = option(
        type=click.IntRange(50),
        help="To fit a lens on; by default 5000, with --follow code every 250th, with --demo 1200.",
    )
    effect_images: int = option(
        default=200,
        type=click.IntRange(10),
        help="Of these, for statistics of direct and indirect effects.",
    )
    pools: tuple[str, ...] = option(
        default=(),
        flag="--texts",
        multiple=True,
        help="As for describe; repeatable. By default english-30k, with --demo world.",
    )
    paper_words: bool = option(
        default=False,
        is_flag=True,
        help="Add to english-10k and english-30k the words of the paper that they lack.",
    )
    follow: Literal["paper", "code"] = option(
        default="paper",
        type=click.Choice(FOLLOWED),
        help="The paper's text or its published code, where they disagree.",
    )
    convention: str = option(default="exact", type=click.Choice(CONVENTIONS), help=CONVENTION_HELP)
    paper_weights: bool = option(
        default=False,
        is_flag=True,
        help="The weights are the paper's (OpenAI's ViT-B-32), though their file is not known.",
    )
    out: Path = option(default=Path("secondlens-paper"), type=PATH, help="Folder of all files.")

    def make(self, model: ChosenModel) -> "Study":
        """The study itself, of a model that is loaded when it is needed.

        Raises
        ------
        SecondLensError
            Options that exclude each other, no pictures, or a folder that holds none.
        """
        mixed = self.images is not None or not model.model.startswith("demo")
        without = not self.demo and self.images is None
        check_together(
            when(
                self.demo and mixed,
                "--demo has its own model and pictures: drop --model and --images",
            ),
            when(without, "name pictures with --images, or take --demo"),
            idle(
                {
                    "--shifted": self.shifted is not None,
                    "--paper-weights": self.paper_weights,
                },
                "of pictures and weights of your own: drop --demo",
                unless=not self.demo,
            ),
            said_by(self._check_neurons),
        )
        check_lens(self.lens)
        check_pictures(self.images, self.shifted, self.masks)
        second = self._second(model)
        from ..models.recognition import published_as
        from ..paper.study import PAPER_MODEL, Study

        published = published_as(model.model, model.pretrained)
        if self.paper_weights and published not in (None, PAPER_MODEL):
            raise SecondLensError(
                f"these weights are known as {published}: drop --paper-weights, or give the paper's"
            )
        if published is None and not (self.demo or self.paper_weights):
            warnings.warn(
                f"the weights of {_called(model)} are not known as published ones: say "
                "--paper-weights if they are the paper's, for its neurons and numbers",
                SecondLensWarning,
                stacklevel=2,
            )
        layer, shown, sample = self._neurons()
        return Study(
            model=_called(model),
            published=PAPER_MODEL if self.paper_weights else published,
            load=model.load,
            demo=self.demo,
            images=self.images,
            shifted=self.shifted,
            lens_path=self.lens,
            out=self.out,
            subset=self.subset,
            fit_images=self.fit_images,
            chosen_layer=layer,
            shown=shown,
            sample=sample,
            effect_images=self.effect_images,
            pools=self.pools or (("world",) if self.demo else ("english-30k",)),
            follow=self.follow,
            convention=self.convention,
            paper_words=self.paper_words,
            masks=self.masks,
            second_model=second,
        )

    def _second(self, first: ChosenModel) -> "SecondModel | None":
        """The second model, on the device of the first and in its precision."""
        if self.second_model is None:
            if self.second_pretrained is not None:
                raise SecondLensError("--second-pretrained is of a model: name it")
            return None
        if self.demo:
            raise SecondLensError("--demo has its own second model: drop --second-model")
        from ..models.recognition import published_as
        from ..paper.study import SecondModel

        check_trained(self.second_model, self.second_pretrained, "--second-pretrained")
        model = replace(
            first, model=self.second_model, pretrained=self.second_pretrained, activation=None
        )
        return SecondModel(
            model=_called(model),
            published=published_as(model.model, model.pretrained),
            load=model.load,
        )

    def _check_neurons(self) -> None:
        """Raise `SecondLensError` unless the neurons to show are of one layer."""
        self._neurons()

    def _neurons(self) -> tuple[int | None, tuple[int, ...], int]:
        """The layer that results are about, its neurons that they show, and how many are drawn."""
        if isinstance(self.neurons, int):
            return self.layer, (), self.neurons
        layers = {layer for layer, _ in self.neurons}
        if self.layer is not None:
            layers.add(self.layer)
        if len(layers) > 1:
            named = ", ".join(map(str, sorted(layers)))
            raise SecondLensError(f"name neurons of one layer, not of {named}")
        return layers.pop(), tuple(neuron for _, neuron in self.neurons), SAMPLE


def with_study(command: Callable[..., Any]) -> Any:
    """Options of a model and a study; the command gets one argument, `study`."""

    @wraps(command)
    def parsed(*, model: ChosenModel, options: StudyOptions, **others: Any) -> Any:
        return command(study=options.make(model), **others)

    return with_model(grouped("options", StudyOptions)(parsed))


def _called(model: ChosenModel) -> str:
    """What results call a model, such as "ViT-B-32 (openai)"."""
    name = shown_model(model.model)
    return f"{name} ({shown_place(model.pretrained)})" if model.pretrained else name


if TYPE_CHECKING:
    from ..models.view import Clip
    from ..paper.results import Result
    from ..paper.study import SecondModel, Study
    from ..registry import Member


class _Results(Group):
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
        hold(study.out)
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

    hold(study.out)
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


def _of_second(name: str | None, pretrained: str | None) -> str | None:
    """What is wrong with the options of ProxyCLIP's second model."""
    if name is None:
        given = {"--second-pretrained": pretrained is not None}
        return idle(given, "of a second model: name it", unless=False)
    return said_by(check_trained, model=name, pretrained=pretrained, option="--second-pretrained")


def _second(first: ChosenModel, name: str | None, pretrained: str | None) -> "Clip | None":
    """ProxyCLIP's second model, on the device of the first and in its precision."""
    if name is None:
        return None
    return replace(first, model=name, pretrained=pretrained, activation=None).load()


@_with_own_options
@click.option("--demo", is_flag=True, help="On the embedded world: no data needed.")
@click.option("--lens", type=PATH, help="Of the model; with --demo, one is fitted if not given.")
@click.option("--images", type=PATH, help="A file or folder of images with masks.")
@click.option(
    "--layout",
    type=click.Choice(masked_sets.names),
    help="How images and masks are laid out, see `list masked-sets`; by default recognised.",
)
@click.option("--names", type=PATH, help="For imagenet-s: a file with a wnid and name a line.")
@click.option("--ignore", type=click.IntRange(0), help="For folder: the value of ignored pixels.")
@click.option("--classes", type=PATH, help="A file with one class a line; by default the data's.")
@click.option(
    "--follow",
    type=click.Choice(FOLLOWED),
    default="paper",
    show_default=True,
    help="Pictures squeezed as their masks, in the classes given, one prompt a class; or, as the "
    "published code, cropped under squeezed masks, in the classes predicted, 80 prompts a class.",
)
@click.option(
    "--predicted",
    is_flag=True,
    help="Segment the class that CLIP predicts, also with --follow paper.",
)
@click.option("--out", type=PATH, default=Path("secondlens-table4"), show_default=True)
@click.option("--fit-images", type=click.IntRange(50), default=1500, show_default=True)
@click.option(
    "--test-images", type=click.IntRange(1), default=600, show_default=True, help="To test on."
)
@click.option("--dev", type=click.IntRange(1), default=200, show_default=True, help="To tune on.")
@click.option("--single", is_flag=True, help="With --demo: test on scenes of one object each.")
@click.option(
    "--baseline",
    "only",
    multiple=True,
    type=click.Choice(baselines.names),
    help="Measure this one, beside neurons; repeatable. By default all.",
)
@click.option(
    "--second-model",
    help="By whose patches ProxyCLIP says what is alike, such as a DINO; by default the twin of an "
    "embedded model, and else the model itself.",
)
@click.option("--second-pretrained", help="Its open_clip tag, or the path of a checkpoint.")
@json_option
@with_model
def table4(
    demo: bool,
    lens: Path | None,
    images: Path | None,
    layout: str | None,
    names: Path | None,
    ignore: int | None,
    classes: Path | None,
    follow: Literal["paper", "code"],
    predicted: bool,
    out: Path,
    fit_images: int,
    test_images: int,
    dev: int,
    single: bool,
    only: tuple[str, ...],
    second_model: str | None,
    second_pretrained: str | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Variants and thresholds of every method are tuned on --dev images and measured on
    --test-images others. A run that was interrupted goes on when the same command is given again.

    Example: secondlens reproduce table4 --demo
    """
    check_lens(lens)
    hold_new(out)
    from ..lens.lens import Lens
    from ..models.recognition import published_as
    from ..paper.table4 import check_sources, compare, data_work, demo_lens, demo_work
    from ..storage.files import unfinished

    of_data = {
        "--layout": layout is not None,
        "--names": names is not None,
        "--ignore": ignore is not None,
        "--classes": classes is not None,
    }
    check_together(
        said_by(check_sources, demo=demo, model=model.model, data=images, lens=lens),
        idle(of_data, "of images with masks: name those with --images", unless=images is not None),
        when(single and not demo, "--single is of --demo: drop it"),
        _of_second(second_model, second_pretrained),
    )
    if images is None:
        work = demo_work(images=test_images, dev=dev, single=single)
    else:
        work = data_work(
            images,
            layout,
            classes=classes,
            names=names,
            ignore=ignore,
            images=test_images,
            dev=dev,
            follow=follow,
        )
    fitted = None if lens is None else Lens.load(lens)
    clip = model.load()
    if fitted is None:
        fitted = demo_lens(clip, fit_images)
    called = published_as(model.model, model.pretrained) or _called(model)
    as_code = follow == "code"
    found = compare(
        *(clip, fitted, work),
        model=called,
        predicted=predicted or as_code,
        cropped=as_code,
        second=_second(model, second_model, second_pretrained),
        only=only,
        kept=unfinished(out),
    )
    found = replace(found, earlier={**found.earlier, "files": str(out)})
    _publish(found, out, as_json)


WORLDS = ("world", "world-objects")
"""The embedded world as a set of label maps: with background as a class, and without."""


@_with_own_options
@click.option("--demo", is_flag=True, help="On the embedded world: no data needed.")
@click.option("--lens", type=PATH, help="Of the model; with --demo, one is fitted if not given.")
@click.option("--images", type=PATH, help="The folder of images with label maps.")
@click.option(
    "--set",
    "label_set",
    type=click.Choice((*label_sets.names, *WORLDS)),
    help="What the folder holds, see `list label-sets`; with --demo, world or world-objects, which "
    "ignores what is behind objects; by default world.",
)
@click.option("--single", is_flag=True, help="With --demo: test on scenes of one object each.")
@click.option(
    "--classes",
    type=PATH,
    help="A file with a line for each class, in the set's order: names for it, between commas.",
)
@click.option(
    "--scale",
    type=click.FloatRange(1),
    help="The short side of a picture, in that of the model, which sees it through overlapping "
    "windows; by default 1.5, for cityscapes 2.5. Scenes are seen whole.",
)
@click.option("--out", type=PATH, default=Path("secondlens-multiclass"), show_default=True)
@click.option("--fit-images", type=click.IntRange(50), default=1500, show_default=True)
@click.option(
    "--test-images", type=click.IntRange(1), default=500, show_default=True, help="To test on."
)
@click.option("--dev", type=click.IntRange(1), default=50, show_default=True, help="To tune on.")
@click.option(
    "--second-model",
    help="By whose patches ProxyCLIP says what is alike, such as a DINO; by default the twin of an "
    "embedded model, and else the model itself.",
)
@click.option("--second-pretrained", help="Its open_clip tag, or the path of a checkpoint.")
@json_option
@with_model
def multiclass(
    demo: bool,
    lens: Path | None,
    images: Path | None,
    label_set: str | None,
    single: bool,
    classes: Path | None,
    scale: float | None,
    out: Path,
    fit_images: int,
    test_images: int,
    dev: int,
    second_model: str | None,
    second_pretrained: str | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Each pixel gets the class whose texts say most there. Every method is tuned alike on --dev
    pictures, and measured on --test-images others, among all classes and among those in the
    picture, beside what its own paper makes of its maps. A run that was interrupted goes on when
    the same command is given again.

    Example: secondlens reproduce multiclass --demo
    """
    check_lens(lens)
    hold_new(out)
    from ..paper.table4 import check_sources, demo_lens

    of_folder = {"--classes": classes is not None, "--scale": scale is not None}
    worlds = label_set in (None, *WORLDS)
    check_together(
        said_by(check_sources, demo=demo, model=model.model, data=images, lens=lens),
        idle(of_folder, "of a folder: name it with --images", unless=images is not None),
        when(demo and not worlds, f"{label_set} is a set in a folder: drop --demo, or --set"),
        when(
            not demo and worlds,
            f"name what the folder holds with --set: one of {', '.join(label_sets.names)}",
        ),
        when(single and not demo, "--single is of --demo: drop it"),
        _of_second(second_model, second_pretrained),
    )
    from ..lens.lens import Lens
    from ..models.recognition import published_as
    from ..paper.multiclass import data_labels, demo_labels
    from ..storage.files import unfinished

    if images is None:
        background = label_set != "world-objects"
        task = demo_labels(images=test_images, dev=dev, background=background, single=single)
    else:
        assert label_set is not None
        task = data_labels(
            images, label_set, images=test_images, dev=dev, expansions=classes, scale=scale
        )
    fitted = None if lens is None else Lens.load(lens)
    clip = model.load()
    if fitted is None:
        fitted = demo_lens(clip, fit_images)
    result = results["multiclass"](
        *(clip, fitted, task),
        model=published_as(model.model, model.pretrained) or _called(model),
        second=_second(model, second_model, second_pretrained),
        work=unfinished(out),
    )
    _publish(result, out, as_json)


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
@with_steps
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
    steps: AttackSteps,
    model: ChosenModel,
) -> None:
    """With --demo: the ten pairs of the embedded world that nothing was tuned on. A run that was
    interrupted goes on when the same command is given again.

    Example: secondlens reproduce table3 --demo
    """
    check_lens(lens)
    from ..paper.table3 import check_sources

    of_baseline = {"--images": images is not None}
    check_together(
        said_by(check_sources, demo=demo, model=model.model, lens=lens),
        idle(of_baseline, "of --effect-images, which is 0: drop one", unless=effect_images > 0),
        *steps.wrong(model.model),
    )
    hold(out)
    result = results["table3"](
        model.load,
        steps.make(model.device),
        demo=demo,
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
