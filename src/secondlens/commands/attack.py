"""`secondlens attack`, and the options that say who does the steps of an attack."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    PATH,
    POSITIVE,
    ChosenModel,
    check_lens,
    check_trained,
    console,
    json_option,
    layer_numbers,
    note,
    print_json,
    with_engine,
    with_model,
)

if TYPE_CHECKING:
    from ..applications.adversarial.captioning import Captioner
    from ..applications.adversarial.generation import ImageGenerator
    from ..applications.adversarial.judging import RefereeJudge
    from ..applications.adversarial.runs import Report
    from ..data.vocabularies import Vocabulary
    from ..engine.pool import Engine

OPTIONS = (
    click.option("--classes", type=PATH, help="A file with one class a line."),
    click.option("--sentences", help="A sentence-transformers model that filters words."),
    click.option(
        "--writer",
        default="template",
        show_default=True,
        help='"template"; "chat:" and a model of transformers; or the address of an '
        "OpenAI-compatible endpoint, whose key is read from OPENAI_API_KEY.",
    ),
    click.option("--writer-model", help="The endpoint's name of a model."),
    click.option(
        "--timeout", type=POSITIVE, default=120.0, show_default=True, help="Seconds a call."
    ),
    click.option(
        "--drawer",
        default="sprites",
        show_default=True,
        help='"sprites", or "diffusers:" and a pipeline\'s hub name or folder.',
    ),
    click.option("--drawer-dtype", default="float32", show_default=True),
    click.option(
        "--offload",
        type=click.Choice(["none", "model", "sequential"]),
        default="none",
        show_default=True,
        help="Of the pipeline, to main memory.",
    ),
    click.option("--steps", type=click.IntRange(1), help="Of denoising."),
    click.option("--guidance", type=click.FloatRange(0)),
    click.option("--size", type=click.IntRange(8), help="Pixels a side of what is drawn."),
    click.option(
        "--referee",
        help="Another model that checks pictures; with sprites, what is drawn is known.",
    ),
    click.option("--referee-pretrained", help="Its open_clip tag or checkpoint."),
)


def with_parts(command: Callable[..., Any]) -> Any:
    """Options that say who filters, writes, draws and checks.

    The command gets one argument, `parts`: a function of the device that makes keyword arguments
    of `attack` from them.
    """

    @wraps(command)
    def parsed(
        *,
        classes: Path | None,
        sentences: str | None,
        writer: str,
        writer_model: str | None,
        timeout: float,
        drawer: str,
        drawer_dtype: str,
        offload: Any,
        steps: int | None,
        guidance: float | None,
        size: int | None,
        referee: str | None,
        referee_pretrained: str | None,
        **others: Any,
    ) -> Any:
        def parts(device: str) -> dict[str, Any]:
            from ..data.vocabularies import vocabulary

            made: dict[str, Any] = {}
            if classes is not None:
                made["classes"] = vocabulary(classes, templates=["a photo of a {}"])
            if sentences is not None:
                from ..applications.adversarial.sentences import Sentences

                made["too_close"] = Sentences(sentences)
            made["writer"] = _writer(writer, writer_model, timeout, device)
            if drawer != "sprites":
                if referee is None:
                    raise SecondLensError(
                        "a pipeline does not say what its pictures show: name a model with "
                        "--referee that looks at them"
                    )
                options = {"dtype": drawer_dtype, "offload": offload, "steps": steps}
                options |= {"guidance": guidance, "size": size}
                made["drawer"] = _drawer(drawer, device, **options)
            if referee is not None:
                made["check"] = _referee(referee, referee_pretrained, device, made.get("classes"))
            return made

        return command(parts=parts, **others)

    for option in reversed(OPTIONS):
        parsed = option(parsed)
    return parsed


def _writer(writer: str, model: str | None, timeout: float, device: str) -> "Captioner":
    if writer == "template":
        from ..applications.adversarial.captioning import TemplateCaptioner

        return TemplateCaptioner()
    if writer.startswith("chat:"):
        from ..applications.adversarial.chat import ChatModel

        return ChatModel(writer.removeprefix("chat:"), device=device)
    if writer.startswith(("http://", "https://")):
        from ..applications.adversarial.endpoint import Endpoint

        if model is None:
            raise SecondLensError(f"name the model that {writer} shall use with --writer-model")
        return Endpoint(writer, model, timeout=timeout)
    raise SecondLensError(
        f"no writer {writer!r}: take template, chat:MODEL, or the address of an endpoint"
    )


def _drawer(drawer: str, device: str, **options: Any) -> "ImageGenerator":
    from ..applications.adversarial.diffusion import DiffusionGenerator

    kind, _, pipeline = drawer.partition(":")
    if kind != "diffusers" or not pipeline:
        raise SecondLensError(f"no drawer {drawer!r}: take sprites or diffusers:PIPELINE")
    return DiffusionGenerator(pipeline, device=device, **options)


def _referee(
    name: str, pretrained: str | None, device: str, classes: "Vocabulary | None"
) -> "RefereeJudge":
    from ..applications.adversarial.judging import RefereeJudge
    from ..data.vocabularies import object_names
    from ..models.loading import load

    check_trained(name, pretrained, "--referee-pretrained")
    clip = load(name, pretrained, device)
    names = classes or object_names()
    return RefereeJudge(clip, names.labels, names.embed(clip))


METHODS = ("second order", "random neurons", "similar words", "random words")


@click.command()
@click.argument("lens", type=PATH)
@click.option("--draw", help="The class that pictures show.")
@click.option("--mistake-for", help="The class that the model shall see in them.")
@click.option(
    "--pairs",
    help='Instead of two classes: "all" of --among, in every order.',
)
@click.option("--among", help="Classes for --pairs, such as dog,deer,fox; by default all.")
@click.option("--out", type=PATH, required=True, help="The run's folder; a run there goes on.")
@click.option("--by", type=click.Choice(METHODS), default=METHODS[0], show_default=True)
@click.option("--texts", help="Words to choose from; by default those of the first description.")
@click.option("--layers", help="Such as 8,9,10; by default all that are fitted.")
@click.option("--neurons", type=click.IntRange(1), default=100, show_default=True)
@click.option("--whole-codes", is_flag=True, help="All texts of a neuron, as the paper does.")
@click.option("--words", type=click.IntRange(1), help="By default 25, at most 1 in 32 of the pool.")
@click.option("--captions", type=click.IntRange(1), default=10, show_default=True)
@click.option("--images", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
@with_engine
@with_parts
@with_model
def attack(
    lens: Path,
    draw: str | None,
    mistake_for: str | None,
    pairs: str | None,
    among: str | None,
    out: Path,
    by: str,
    texts: str | None,
    layers: str | None,
    as_json: bool,
    engine: Callable[[], "Engine"],
    parts: Callable[[str], dict[str, Any]],
    model: ChosenModel,
    **numbers: Any,
) -> None:
    """Make pictures of one class that the model takes for another, from the neurons of a LENS.

    Selects words, writes captions, draws them, and judges the pictures; an interrupted run goes
    on when the same command is given again. gallery.html in its folder shows what came out.

    
    Example: secondlens attack secondlens-demo/lens --draw dog --mistake-for deer --out attack
    """
    one = draw is not None and mistake_for is not None
    if one == (pairs is not None) or (pairs is None and (draw is None or mistake_for is None)):
        raise SecondLensError("name two classes with --draw and --mistake-for, or --pairs all")
    if pairs not in (None, "all"):
        raise SecondLensError(f"--pairs takes all, not {pairs!r}: list classes with --among")
    if draw is not None and draw == mistake_for:
        raise SecondLensError(f"{draw} cannot be mistaken for itself: name two classes")
    chosen = None if layers is None else layer_numbers(layers)
    check_lens(lens)
    from ..applications.adversarial.attacks import attack_pairs, attacker
    from ..applications.adversarial.selection import Pair
    from ..lens.lens import Lens

    fitted = Lens.load(lens)
    clip = model.load()
    made = attacker(
        clip,
        fitted,
        texts=texts,
        method=by,
        layers=None if chosen == "all" else chosen,
        **parts(model.device),
        **numbers,
    )
    left_out: dict[Pair, str] = {}
    if pairs is None:
        assert draw is not None and mistake_for is not None
        reports = [made(Pair(draw=draw, mistake_for=mistake_for), out, progress=True)]
    else:
        names = made.classes.labels if among is None else [n.strip() for n in among.split(",")]
        reports, left_out = attack_pairs(made, names, out, engine=engine(), progress=True)
        for pair, reason in left_out.items():
            line = f"{pair.draw}, {pair.mistake_for} is left out: {reason}"
            note(line)
    page = out / ("gallery.html" if pairs is None else "index.html")
    if as_json:
        skipped = [vars(pair) | {"reason": reason} for pair, reason in left_out.items()]
        made_pairs = [report.as_json() for report in reports]
        print_json({"pairs": made_pairs, "left_out": skipped, "gallery": page})
        return
    console.print(summary(reports))
    console.print(f"Gallery: {page}", markup=False, highlight=False)


def summary(reports: "list[Report]") -> Table:
    """A row for each pair."""
    table = Table(caption="of the pictures that count; flipped: right without the words; 95 %")
    for name in ("drawn, mistaken for", "count", "flipped", "fooled", "words"):
        table.add_column(name, justify="left" if name == "words" else "right")
    for report in reports:
        rates = report.rates()
        cells = (
            f"{100 * rates[name]['share']:.0f} % "
            f"[{100 * rates[name]['interval'][0]:.0f}, {100 * rates[name]['interval'][1]:.0f}]"
            for name in ("flipped", "fooled")
        )
        table.add_row(
            escape(f"{report.pair.draw}, {report.pair.mistake_for}"),
            f"{len(report.counted)} of {len(report.shots)}",
            *cells,
            escape(", ".join(word.text for word in report.words)),
        )
    return table
