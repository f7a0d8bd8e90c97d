"""What commands share: options, checks that need no torch, and where they print.

Some mistakes are told before torch is imported, which takes seconds. What is read or written
afterwards is checked there once more, and more thoroughly.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from PIL import Image
from rich.console import Console

from ..errors import SecondLensError
from ..formatting import counted
from ..storage.files import check_empty, unfinished
from ..storage.locks import locked, writing
from ..storage.regular import check_regular
from ..storage.remote import is_remote, remove
from ..terminal import Terminal, notes, results, say_json

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ..data.labelled import Labelled
    from ..data.sources import ImageSource
    from ..engine.pool import Engine
    from ..models.view import Clip

console = results
"""Where results go; notes and progress go to `terminal.notes`."""

PATH = click.Path(path_type=Path)
"""A file or folder, which shells complete."""


class _Place(click.Path):
    """A file or folder of this machine, as a path, or the address of one in a store, as a text."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if is_remote(value) else super().convert(value, param, ctx)


PLACE = _Place(path_type=Path)
"""Of pictures, which may lie in a store, such as "s3://bucket/imagenet"."""

POSITIVE = click.FloatRange(0, min_open=True)
"""Of what is divided by."""

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")
"""Of weights, see `models`."""
STORES = ("auto", "float32", "float16", "never")
"""Dtypes of stored coordinates, see `plan`."""

DEVICE_HELP = "Where the model runs, such as cuda, cuda:1, mps or xpu."

LONGEST_SENTENCE = 1000
"""Characters of a command's first sentence, of which none is cut."""

CONVENTIONS = ("exact", "official")
CONVENTION_HELP = "How effects are computed: exactly, or as the published code does."

convention_option = click.option(
    "--convention",
    type=click.Choice(CONVENTIONS),
    default="exact",
    show_default=True,
    help=CONVENTION_HELP,
)

paths_option = click.option(
    "--paths",
    type=click.Choice(("value", "all")),
    default="value",
    show_default=True,
    help="Whose effects: second-order ones, or total ones of a lens fitted with --paths all.",
)
"""Which part of a lens a command reads and writes, see `Lens.over`."""

batch_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images in a forward pass; by default 32, elsewhere than on a CPU by the free memory.",
)

groups_option = click.option(
    "--groups",
    multiple=True,
    help="Accuracy of each group too: a column of metadata.csv, or class; repeatable, such as "
    "--groups class --groups place.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document in place of tables."
)


def note(text: str) -> None:
    """Say what is no result: on standard error, and not with --quiet."""
    notes().print(text, markup=False, highlight=False, soft_wrap=True)


def note_photo(model: str, picture: "Picture") -> None:
    """Say that an embedded model knows drawn scenes, unless this picture has the size of one."""
    if model.startswith("demo") and picture.size != (64, 64):
        note(
            f"the embedded model {model} knows drawn scenes only: its words for photographs mean "
            "little"
        )


def tables(as_json: bool) -> Console:
    """Where tables go: nowhere if JSON is wanted in their place."""
    return Terminal(quiet=True) if as_json else console


def print_json(content: Any) -> None:
    """Print one document: tensors and tuples as lists, what is no finite number as null."""
    say_json(json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if content is None or isinstance(content, str | int):
        return content
    if hasattr(content, "tolist"):  # tensors, arrays and their scalars
        return _plain(content.tolist())
    return [_plain(each) for each in content] if isinstance(content, Sequence) else str(content)


class Group(click.Group):
    """Commands that are listed with the whole first sentence of their help, on several lines."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line or more for each command."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, each.get_short_help_str(LONGEST_SENTENCE)) for name, each in found if each]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def option(*, help: str, default: Any = None, flag: str | None = None, **settings: Any) -> Any:
    """A field of a group of options, see `grouped`.

    Parameters
    ----------
    help
        What the value is, its unit, and the default where that is not a value.
    default
        Of the field and of the option; shown in the help unless it is empty.
    flag
        The option's name; by default the field's.
    settings
        What `click.option` takes.
    """
    if default not in (None, ()):
        settings |= {"default": default, "show_default": bool(default)}
    return field(default=default, metadata={"flag": flag, "settings": {**settings, "help": help}})


def grouped(argument: str, group: type) -> Callable[[Any], Any]:
    """A decorator that gives a command an option for each field of a dataclass.

    The command gets them as one argument, an instance of the group; what the group refuses in
    `__post_init__` is told as a mistake. Fields of the group itself come before inherited ones.
    """
    own = sorted(fields(group), key=lambda each: each.name not in group.__annotations__)

    def decorate(command: Any) -> Any:
        @wraps(command)
        def parsed(**given: Any) -> Any:
            values = {each.name: given.pop(each.name) for each in own}
            return command(**given, **{argument: group(**values)})

        for each in reversed(own):
            flag = each.metadata["flag"] or f"--{each.name.replace('_', '-')}"
            parsed = click.option(flag, each.name, **each.metadata["settings"])(parsed)
        return parsed

    return decorate


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights of a model, and where they go."""

    pretrained: str | None = option(help="open_clip tag, or the path of a checkpoint.")
    activation: str | None = option(
        type=click.Choice(["gelu", "quick_gelu"]),
        help="What the weights were trained with, if nothing records it.",
    )
    device: str = option(default="cpu", help=DEVICE_HELP)


@dataclass(frozen=True, kw_only=True)
class ChosenModel(Weights):
    """The model that options name. Loading it is left to the command, after cheaper checks."""

    model: str = option(
        default="demo",
        help='"demo", an open_clip name, or "hf:" or "timm:" and a name or folder of that library.',
    )
    precision: str = option(
        default="fp32", type=click.Choice(PRECISIONS), help="Number format of the weights."
    )
    tower: str = option(
        default="image",
        type=click.Choice(["image", "text"]),
        help="Whose neurons: of the image tower, or of the text tower, which reads texts.",
    )

    def load(self, *, untrained: bool = False) -> "Clip":
        """The model itself; `untrained` if its weights may be random.

        Raises
        ------
        SecondLensError
            Its weights would be random, or whatever `clip.load` raises.
        """
        from ..models.loading import load

        if not untrained:
            check_trained(self.model, self.pretrained)
        clip = load(
            self.model,
            pretrained=self.pretrained,
            device=self.device,
            precision=self.precision,
            activation=self.activation,
        )
        return clip.text if self.tower == "text" else clip


with_model = grouped("model", ChosenModel)
"""Options that name a model; the command gets one argument, `model`."""


@dataclass(frozen=True, kw_only=True)
class PictureChoice:
    """Which pictures count where archives or tables hold several."""

    column: str | None = option(
        help="Of pictures or their paths, in Parquet files and datasets; by default the only one."
    )
    extension: str | None = option(
        help="Of pictures in tar archives that have several with one key, such as input.png."
    )
    ids: str | None = option(
        help="What identifies a picture: a column, or of tar archives key or name."
    )

    def source(self, images: str | Path, tower: str = "image") -> "ImageSource":
        """The pictures at a path (of a text tower the texts), and a note of what is left out.

        Raises
        ------
        SecondLensError
            As `as_source`.
        """
        from ..data.sources import Choice, as_source

        choice = Choice(column=self.column, extension=self.extension, ids=self.ids)
        if tower == "text":
            from ..data.texts import texts_in

            choice.refuse_all("texts")
            return texts_in(Path(images))
        return note_left_out(as_source(str(images), choice))


with_choice = grouped("choice", PictureChoice)
"""Options that say which pictures count; the command gets one argument, `choice`."""

MOST_NOTED = 10
"""Lines about what is left out before a command begins."""


def note_left_out(source: "ImageSource") -> "ImageSource":
    """Say what is left out of some pictures, and give them back."""
    from ..data.sources import FileSource

    left_out = dict(source.damaged) if isinstance(source, FileSource) else {}
    for name, reason in list(left_out.items())[:MOST_NOTED]:
        note(f"{name}: {reason}")
    if len(left_out) > MOST_NOTED:
        note(f"and {len(left_out) - MOST_NOTED:,} more")
    return source


def labelled_pictures(
    images: Path | str, classes: Path | None = None, *, all_classes: bool = False
) -> "Labelled":
    """The labelled set at a path, and a note of what is left out.

    Raises
    ------
    SecondLensError
        As `labelled`.
    """
    from ..data.labelled import labelled

    found = labelled(images, classes, all_classes=all_classes)
    note_left_out(found.source)
    return found


@dataclass(frozen=True, kw_only=True)
class ChosenEngine:
    """Where work runs. Making the engine is left to the command, after cheaper checks."""

    engine: str = option(
        default="local",
        type=click.Choice(["local", "ray"]),
        help="Processes of this machine, or a Ray cluster.",
    )
    workers: int | None = option(
        type=click.IntRange(1),
        help="At a time; by default this process, or all that a Ray cluster has room for.",
    )
    address: str | None = option(help='Address of a Ray cluster, such as "auto".')
    worker_cpus: float = option(
        default=1, type=click.FloatRange(0), help="Processors of each Ray worker."
    )
    worker_gpus: float = option(
        default=0, type=click.FloatRange(0), help="GPUs of each Ray worker; by default none."
    )
    retries: int = option(
        default=3,
        type=click.IntRange(0),
        help="Times that a failed task is tried again.",
    )

    def __post_init__(self) -> None:
        if self.engine == "local" and (self.address is not None or self.worker_gpus):
            raise SecondLensError("--address and --worker-gpus are Ray's: add --engine ray")

    def make(self, device: str = "cpu") -> "Engine":
        """The engine itself, whose workers have their models on a kind of device."""
        if self.engine == "local":
            from ..engine.local import Local

            return Local(workers=self.workers or 0, retries=self.retries, device=device)
        from ..engine.ray import Ray

        return Ray(
            address=self.address,
            workers=self.workers,
            cpus=self.worker_cpus,
            gpus=self.worker_gpus,
            retries=self.retries,
        )


with_engine = grouped("engine", ChosenEngine)
"""Options that say where work runs; the command gets one argument, `engine`."""


def check_trained(model: str, pretrained: str | None, option: str = "--pretrained") -> None:
    """Raise `SecondLensError` for a model of open_clip or timm whose weights would be random,
    because `option` was not given."""
    if not _is_random(model, pretrained):
        return
    from ..models.loading import check_name
    from ..models.timm.loading import check_registered

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # a name that is unknown is the worse mistake
        (check_registered if model.startswith("timm:") else check_name)(model, None)
    raise SecondLensError(
        f"{model} has random weights without {option}: name a tag such as openai, or a checkpoint"
    )


@contextmanager
def shape_alone(model: str, pretrained: str | None) -> Iterator[None]:
    """Inside it, a model may be loaded with random weights: one note says so, and no library."""
    if not _is_random(model, pretrained):
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
    note(f"{model} has random weights here: only its shape counts")


def _is_random(model: str, pretrained: str | None) -> bool:
    """Whether open_clip or timm would make up the weights: the embedded models, and those whose
    name says where they are, have their own."""
    kind, _, place = model.partition(":")
    own = set(place) & set("./") if kind == "timm" else model.startswith("demo") or ":" in model
    return pretrained is None and not own


def layer_numbers(text: str) -> "list[int] | Literal['all']":
    """Such as "8,9,10", or "all".

    Raises
    ------
    SecondLensError
        Neither.
    """
    if text == "all":
        return "all"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SecondLensError(
            f"layers must be numbers such as 8,9,10, or all, not {text!r}"
        ) from None


def check_lens(*folders: Path | None) -> None:
    """Raise `SecondLensError` for a folder that holds no lens."""
    for folder in folders:
        if folder is not None and not (folder / "lens.json").is_file():
            raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")


def writing_lens(command: Any) -> Any:
    """Let no other process write the lens of a command meanwhile, from before it is read."""

    @wraps(command)
    def held(*, lens: Path, **others: Any) -> Any:
        check_lens(lens)
        with locked(lens):
            return command(lens=lens, **others)

    return held


def hold(out: Path | None) -> None:
    """Let no other process write an output until this command ends.

    Raises
    ------
    SecondLensError
        Another process writes it, or it cannot be written to.
    """
    if out is not None:
        click.get_current_context().with_resource(writing(out))


def hold_new(out: Path | None) -> None:
    """Hold an output as `hold` does, and check that it is new."""
    hold(out)
    check_new(out)


def check_new(out: Path | None) -> None:
    """Raise `SecondLensError` if `out` is a file, or a folder with something in it; what a command
    has finished there is named."""
    if out is None:
        return
    for record, what in FINISHED.items():
        if (out / record).is_file():
            # what is left of work that was stopped after its last step
            remove(unfinished(out))
            raise SecondLensError(
                f"{out} exists already and holds a finished {what}: name a new folder, or remove "
                "it first"
            )
    check_empty(out)


FINISHED = {
    "lens.json": "lens",
    "audit.json": "audit",
    "defence.json": "defence",
    "edit.json": "edit",
    "harden.json": "training on attacks",
    "diff.json": "comparison",
    "report.json": "attack",
    "masks.json": "set of masks",
    "words.csv": "table of words",
    "words.parquet": "table of words",
    "index.html": "site",
}
"""Files that tell what a folder holds."""


def check_parents(*files: Path | None) -> None:
    """Raise `SecondLensError` for a file that cannot be written because its folder is missing."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise SecondLensError(
                f"there is no folder {file.parent} for {file.name}: make it first"
            )


def check_picture(file: Path) -> None:
    """Raise `SecondLensError` for a file that does not begin as a picture does."""
    try:
        check_regular(file)
        Image.open(file).close()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SecondLensError(f"{file} cannot be read as a picture: {error}") from error


def is_one_photo(photos: Path | str) -> bool:
    """Whether an argument names one file that is no archive, rather than a folder or a pattern."""
    if is_remote(photos) or set(str(photos)) & set("*?{"):
        return False
    path = Path(photos)
    return not path.is_dir() and not {".tar", ".parquet"} & set(path.suffixes)


def say_photos(records: Sequence[Mapping[str, Any]], out: Path, as_json: bool) -> None:
    """Say what was written of many photos: a line of JSON for each, or where it is."""
    unread = [each for each in records if "error" in each]
    for each in unread[:MOST_NOTED]:
        note(f"{each['photo']}: {each['error']}")
    if len(unread) > MOST_NOTED:
        note(f"and {len(unread) - MOST_NOTED:,} more that cannot be read")
    if as_json:
        for each in records:
            say_json(json.dumps(_plain(each), ensure_ascii=False, allow_nan=False))
        return
    read = len(records) - len(unread)
    line = f"{out}: {counted(read, 'photo')}; open {out / 'index.html'}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def check_pictures(*places: Path | str | None) -> None:
    """Raise `SecondLensError` for a place of pictures where nothing is."""
    for images in places:
        if images is None or is_remote(images) or set(str(images)) & set("*?[{"):
            continue
        if not Path(images).exists():
            raise SecondLensError(f"no folder or file {images}: name one that holds pictures")
