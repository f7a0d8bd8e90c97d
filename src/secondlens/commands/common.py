"""What commands share: options and where they print."""

from typing import Any, Literal

import click
from rich.console import Console

from ..errors import SecondLensError

console = Console()


def model_options(command: Any) -> Any:
    """Options that name a model: model, pretrained, precision, device."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="Where the model runs."),
        click.option("--precision", default="fp32", show_default=True, help="Of the weights."),
        click.option("--pretrained", help="open_clip tag, or the path of a checkpoint."),
        click.option(
            "--model", default="demo", show_default=True, help='"demo", or an open_clip name.'
        ),
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
