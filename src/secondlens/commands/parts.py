"""Options that say who filters words, writes, draws and checks in an attack."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SecondLensError
from .common import PATH, POSITIVE, check_trained

if TYPE_CHECKING:
    from ..attack import Referee
    from ..attack.draw import Drawer
    from ..attack.write import Writer
    from ..texts import Vocabulary

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
            from ..texts import vocabulary

            made: dict[str, Any] = {}
            if classes is not None:
                made["classes"] = vocabulary(classes, templates=["a photo of a {}"])
            if sentences is not None:
                from ..attack.sentences import Sentences

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


def _writer(writer: str, model: str | None, timeout: float, device: str) -> "Writer":
    if writer == "template":
        from ..attack import TemplateWriter

        return TemplateWriter()
    if writer.startswith("chat:"):
        from ..attack.chat import ChatModel

        return ChatModel(writer.removeprefix("chat:"), device=device)
    if writer.startswith(("http://", "https://")):
        from ..attack.endpoint import Endpoint

        if model is None:
            raise SecondLensError(f"name the model that {writer} shall use with --writer-model")
        return Endpoint(writer, model, timeout=timeout)
    raise SecondLensError(
        f"no writer {writer!r}: take template, chat:MODEL, or the address of an endpoint"
    )


def _drawer(drawer: str, device: str, **options: Any) -> "Drawer":
    from ..attack.diffusion import DiffusionDrawer

    kind, _, pipeline = drawer.partition(":")
    if kind != "diffusers" or not pipeline:
        raise SecondLensError(f"no drawer {drawer!r}: take sprites or diffusers:PIPELINE")
    return DiffusionDrawer(pipeline, device=device, **options)


def _referee(
    name: str, pretrained: str | None, device: str, classes: "Vocabulary | None"
) -> "Referee":
    from ..attack import Referee
    from ..clip import load
    from ..texts.world import object_names

    check_trained(name, pretrained, "--referee-pretrained")
    clip = load(name, pretrained, device)
    names = classes or object_names()
    return Referee(clip, names.labels, names.embed(clip))
