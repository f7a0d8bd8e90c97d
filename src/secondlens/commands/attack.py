"""`secondlens attack`, and the options that say who does its steps."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import (
    PATH,
    POSITIVE,
    ChosenEngine,
    ChosenModel,
    check_lens,
    check_trained,
    console,
    grouped,
    json_option,
    layer_numbers,
    note,
    option,
    paths_option,
    print_json,
    with_engine,
    with_model,
)
from .together import OF_REFEREE, check_together, idle, missing, when

if TYPE_CHECKING:
    from ..applications.adversarial.judging import RefereeJudge
    from ..applications.adversarial.runs import Report
    from ..data.vocabularies import Vocabulary


@dataclass(frozen=True, kw_only=True)
class AttackSteps:
    """Who filters words, writes captions, draws them and judges pictures."""

    classes: Path | None = option(type=PATH, help="A file with one class a line.")
    sentences: str | None = option(help="A sentence-transformers model that filters words.")
    captioner: str = option(
        default="template",
        help='"template"; "chat:" and a model of transformers; or the address of an '
        "OpenAI-compatible endpoint, whose key is read from OPENAI_API_KEY.",
    )
    captioner_model: str | None = option(help="The endpoint's name of a model.")
    timeout: float = option(default=120.0, type=POSITIVE, help="Seconds a call of the endpoint.")
    image_generator: str = option(
        default="sprites", help='"sprites", or "diffusers:" and a pipeline\'s hub name or folder.'
    )
    image_generator_dtype: str = option(
        default="float32", help="Number format of the pipeline's weights."
    )
    offload: str = option(
        default="none",
        type=click.Choice(["none", "model", "sequential"]),
        help="What of the pipeline stays in main memory until it is needed.",
    )
    steps: int | None = option(
        type=click.IntRange(1), help="Denoising steps; by default the pipeline's own."
    )
    guidance: float | None = option(
        type=click.FloatRange(0), help="Guidance scale; by default the pipeline's own."
    )
    size: int | None = option(type=click.IntRange(8), help="Pixels a side of what is drawn.")
    referee: str | None = option(
        help="Another model that judges pictures; with sprites, what is drawn is known."
    )
    referee_pretrained: str | None = option(help="Its open_clip tag or checkpoint.")

    def wrong(self, model: str) -> tuple[str | None, ...]:
        """What to say of options that are missing, and of options without what they are of."""
        sprites = self.image_generator == "sprites"
        own = missing(
            model,
            "an attack on",
            {
                "--classes": self.classes,
                "--sentences": self.sentences,
                "--image-generator": None if sprites else self.image_generator,
                "--referee": self.referee,
            },
        )
        unseen = _kind(self.image_generator) == "diffusers" and self.referee is None
        nameless = _kind(self.captioner) in ENDPOINTS and self.captioner_model is None
        of_pipeline = {
            "--image-generator-dtype": self.image_generator_dtype != "float32",
            "--offload": self.offload != "none",
            "--steps": self.steps is not None,
            "--guidance": self.guidance is not None,
            "--size": self.size is not None,
        }
        of_endpoint = {"--captioner-model": self.captioner_model is not None}
        of_referee = {"--referee-pretrained": self.referee_pretrained is not None}
        libraries = (
            ("--sentences", self.sentences is not None, "sentence-transformers"),
            ("--captioner chat:", _kind(self.captioner) == "chat", "transformers"),
            ("--captioner http", _kind(self.captioner) in ENDPOINTS, "openai"),
            (
                "--image-generator diffusers:",
                _kind(self.image_generator) == "diffusers",
                "diffusers",
            ),
        )
        return (
            own,
            *(
                when(
                    used and find_spec(library.replace("-", "_")) is None,
                    f"{named} needs {library}: pip install 'secondlens[attack]'",
                )
                for named, used, library in libraries
            ),
            when(unseen and own is None, LOOKED_AT),
            when(
                nameless, f"name the model that {self.captioner} shall use with --captioner-model"
            ),
            idle(
                of_endpoint,
                "of an endpoint: give its address with --captioner",
                unless=_kind(self.captioner) not in WITHOUT_ENDPOINT,
            ),
            idle(
                of_pipeline,
                "of a pipeline: name it with --image-generator",
                unless=not sprites,
            ),
            idle(of_referee, OF_REFEREE, unless=self.referee is not None),
        )

    def make(self, device: str) -> dict[str, Any]:
        """Keyword arguments of `attacker`, with models on the device.

        Raises
        ------
        SecondLensError
            A name that is not registered, or what a step raises.
        """
        from ..applications.adversarial import captioners, image_generators
        from ..data.vocabularies import vocabulary

        made: dict[str, Any] = {}
        if self.classes is not None:
            made["classes"] = vocabulary(self.classes, templates=["a photo of a {}"])
        if self.sentences is not None:
            from ..applications.adversarial.sentences import Sentences

            made["too_close"] = Sentences(self.sentences)
        made["captioner"] = captioners[_kind(self.captioner)](
            self.captioner, device=device, model=self.captioner_model, timeout=self.timeout
        )
        generator = image_generators[_kind(self.image_generator)]
        if self.image_generator != "sprites":
            made["image_generator"] = generator(
                self.image_generator,
                device=device,
                dtype=self.image_generator_dtype,
                offload=self.offload,
                steps=self.steps,
                guidance=self.guidance,
                size=self.size,
            )
        if self.referee is not None:
            made["judge"] = _referee(
                self.referee, self.referee_pretrained, device, made.get("classes")
            )
        return made


with_steps = grouped("steps", AttackSteps)
"""Options that say who does the steps of an attack; the command gets one argument, `steps`."""


ENDPOINTS = ("http", "https")
WITHOUT_ENDPOINT = ("template", "chat")
"""Captioners that need a model's name beside their own, and those that have no use for it."""

LOOKED_AT = (
    "a pipeline does not say what its pictures show: name a model with --referee that looks at them"
)


def _kind(chosen: str) -> str:
    return chosen.partition(":")[0]


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
@paths_option
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
@with_steps
@with_model
def attack(
    lens: Path,
    draw: str | None,
    mistake_for: str | None,
    pairs: str | None,
    among: str | None,
    out: Path,
    by: str,
    paths: str,
    texts: str | None,
    layers: str | None,
    as_json: bool,
    engine: ChosenEngine,
    steps: AttackSteps,
    model: ChosenModel,
    **numbers: Any,
) -> None:
    """Make pictures of one class that the model takes for another, from the neurons of a LENS.

    Selects words, writes captions, draws them, and judges the pictures; an interrupted run goes
    on when the same command is given again. gallery.html in its folder shows what came out.

    
    Example: secondlens attack secondlens-demo/lens --draw dog --mistake-for deer --out attack
    """
    chosen = None if layers is None else layer_numbers(layers)
    check_together(*_wrong_classes(draw, mistake_for, pairs, among), *steps.wrong(model.model))
    check_lens(lens)
    from ..applications.adversarial.attacks import attack_pairs, attacker
    from ..applications.adversarial.earlier import with_old_names
    from ..applications.adversarial.selection import Pair
    from ..lens.lens import Lens

    fitted = Lens.load(lens).over(paths)
    clip = model.load()
    made = attacker(
        clip,
        fitted,
        texts=texts,
        method=by,
        layers=None if chosen == "all" else chosen,
        **steps.make(model.device),
        **numbers,
    )
    left_out: dict[Pair, str] = {}
    if pairs is None:
        assert draw is not None and mistake_for is not None
        reports = [made(Pair(draw=draw, mistake_for=mistake_for), out, progress=True)]
    else:
        names = made.classes.labels if among is None else [n.strip() for n in among.split(",")]
        reports, left_out = attack_pairs(
            made, names, out, engine=engine.make(model.device), progress=True
        )
        for pair, reason in left_out.items():
            line = f"{pair.draw}, {pair.mistake_for} is left out: {reason}"
            note(line)
    page = out / ("gallery.html" if pairs is None else "index.html")
    if as_json:
        skipped = [vars(pair) | {"reason": reason} for pair, reason in left_out.items()]
        made_pairs = [with_old_names(report.as_json()) for report in reports]
        print_json({"pairs": made_pairs, "left_out": skipped, "gallery": page})
        return
    console.print(summary(reports))
    console.print(f"Gallery: {page}", markup=False, highlight=False)


def _wrong_classes(
    draw: str | None, mistake_for: str | None, pairs: str | None, among: str | None
) -> tuple[str | None, ...]:
    """What to say of the options that name classes."""
    one = draw is not None and mistake_for is not None
    return (
        when(
            one == (pairs is not None),
            "name two classes with --draw and --mistake-for, or --pairs all",
        ),
        when(
            pairs not in (None, "all"),
            f"--pairs takes all, not {pairs!r}: list classes with --among",
        ),
        when(
            draw is not None and draw == mistake_for,
            f"{draw} cannot be mistaken for itself: name two classes",
        ),
        idle(
            {"--among": among is not None},
            "of --pairs: add --pairs all",
            unless=pairs is not None,
        ),
    )


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
            f"{len(report.counted)} of {len(report.samples)}",
            *cells,
            escape(", ".join(word.text for word in report.words)),
        )
    return table
