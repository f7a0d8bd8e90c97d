"""What commands share: options and where they print."""

from typing import Any, Literal

import click
from rich.console import Console

from ..errors import SecondLensError

console = Console()


def model_options(command: Any) -> Any:
    """Options that name a model: model, pretrained, activation, precision, device."""
    command = click.option(
        "--precision", default="fp32", show_default=True, help="Of the weights."
    )(checkpoint_options(command))
    return click.option(
        "--model",
        default="demo",
        show_default=True,
        help='"demo", an open_clip name, or "hf:" and a transformers name or folder.',
    )(command)


def checkpoint_options(command: Any) -> Any:
    """Options that say which weights of a model, and where: pretrained, activation, device."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="Where the model runs."),
        click.option(
            "--activation",
            type=click.Choice(["gelu", "quick_gelu"]),
            help="What the weights were trained with, if nothing records it.",
        ),
        click.option("--pretrained", help="open_clip tag, or the path of a checkpoint."),
    ):
        command = option(command)
    return command


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
