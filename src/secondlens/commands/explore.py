"""`secondlens explore`."""

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from ..errors import SecondLensError
from .options import (
    PATH,
    PRECISIONS,
    ChosenModel,
    PictureChoice,
    Weights,
    check_lens,
    console,
    grouped,
    note,
    option,
)
from .process import give_back_memory
from .together import check_together, idle, idle_choice

LONGEST_GOODBYE = 2
"""Seconds that answers and uploads may go on when the server is told to end."""


@dataclass(frozen=True, kw_only=True)
class Opening(Weights, PictureChoice):
    """What is shown beside a lens: its model and pictures, and finished runs."""

    model: str | None = option(help="As for fit; by default, of a demo lens, its own.")
    precision: str = option(default="fp32", type=click.Choice(PRECISIONS), help="As for fit.")
    images: str | None = option(
        type=click.Path(), help="The pictures of the fit; embedded ones are drawn anew."
    )
    named_on: str | None = option(
        type=click.Path(),
        help="The pictures that neurons were named on, to show under the names; embedded ones are "
        "drawn anew.",
    )
    no_model: bool = option(
        default=False, is_flag=True, help="Show what was surveyed, and answer nothing."
    )
    runs: tuple[Path, ...] = option(
        default=(),
        type=PATH,
        multiple=True,
        help="A folder with finished attacks, audits or defences; repeatable.",
    )

    def check(self) -> None:
        """Raise `SecondLensError` for options that need or exclude each other."""
        of_model = {
            "--pretrained": self.pretrained is not None,
            "--activation": self.activation is not None,
            "--precision": self.precision != "fp32",
        }
        live, named = not self.no_model, self.model is not None
        unused = {"--model": named, **of_model}
        check_together(
            idle(unused, "of the model that --no-model leaves out: drop one", unless=live),
            idle(of_model, "of a model: name it with --model", unless=not live or named),
            idle_choice(self, self.images),
        )

    def lens_with_model(self, lens: Path) -> tuple[Any, Any]:
        """The atlas of a lens, and the live model or None."""
        from ..explorer.opening import model_name, open_lens, tower_of

        tower = tower_of(lens)
        source = None if self.images is None else self.source(self.images, tower)
        named_on = None if self.named_on is None else self.source(self.named_on)
        name = None if self.no_model else model_name(lens, self.model)
        if name is None:
            return open_lens(lens, None, source, named_on, say=note)
        weights = {each.name: getattr(self, each.name) for each in fields(Weights)}
        chosen = ChosenModel(model=name, precision=self.precision, tower=tower, **weights)
        return open_lens(lens, chosen.load(), source, named_on, say=note)


with_opening = grouped("opening", Opening)
"""Options that say what is shown beside a lens; the command gets one argument, `opening`."""


@click.command()
@click.argument("lens", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--beside", type=PATH, help="A second lens to compare with.")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@click.option("--address", default="", help="Where visitors find it, for link previews.")
@click.option(
    "--framed-by", multiple=True, help="Address whose pages may show it in a frame; repeatable."
)
@with_opening
def explore(
    lens: Path,
    host: str,
    port: int,
    beside: Path | None,
    show: bool,
    address: str,
    framed_by: tuple[str, ...],
    opening: Opening,
) -> None:
    """Show the neurons of a LENS in the browser, with the model alive if it is there.

    The first time, the pictures of the fit are looked at once more; what is found is kept.

    Example: secondlens explore secondlens-demo/lens --open
    """
    opening.check()
    check_lens(lens, beside)
    with needing_extra():
        import uvicorn

        from ..explorer.app import make_app
        from ..explorer.pages import Pages
        from ..explorer.runs import load_runs
        from ..explorer.safety import served_names

    with _bound(host, port) as listening:
        found = load_runs(opening.runs)
        atlas, live = opening.lens_with_model(lens)
        other = None
        if beside is not None:
            theirs, alive = replace(
                opening, model=None, images=None, named_on=None
            ).lens_with_model(beside)
            other = make_app(Pages(theirs, live=alive is not None), alive)
        pages = Pages(
            atlas,
            live=live is not None,
            beside=other is not None,
            address=address,
            runs=found,
            classes=live.classes if live else (),
        )
        app = make_app(
            pages,
            live,
            other,
            hosts=served_names(listening.getsockname()[0], address),
            address=address,
            framed_by=framed_by,
        )
        name = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
        shown = f"http://{name}:{listening.getsockname()[1]}/"
        console.print(f"{lens}: {shown} (stop with Ctrl+C)", markup=False, highlight=False)
        if show:
            click.launch(shown)
        gc.freeze()  # what is loaded stays: no need to look through it again and again
        give_back_memory()
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, timeout_graceful_shutdown=LONGEST_GOODBYE
        )
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # how it is meant to end
            server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a place where nothing can is told before anything is loaded.

    Raises
    ------
    SecondLensError
        Something else listens there, or it is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        # create_server adds the address, which is said here
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise SecondLensError(
            f"nothing can listen on port {port} of {host} ({reason}): choose others with --port "
            "and --host"
        ) from None


@contextmanager
def needing_extra() -> Iterator[None]:
    """Inside it, a module that is missing is one of the explorer's extra."""
    try:
        yield
    except ImportError as error:
        raise SecondLensError(
            f"the explorer needs {error.name}: pip install 'secondlens[explore]'"
        ) from None
