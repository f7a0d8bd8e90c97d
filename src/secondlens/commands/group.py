"""`secondlens`: what all commands have in common, and the list of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.logging import RichHandler

from ..errors import SecondLensError
from ..terminal import notes, one_line, reopen_notes, say_mistake
from .ablate import ablate
from .attack import attack
from .audit import audit
from .bench import bench
from .budget import budget
from .circuit import circuit
from .defend import defend
from .demo import demo
from .describe import describe
from .diff import diff
from .discover import discover
from .edit import edit
from .explore import explore
from .export import export
from .fit import fit
from .groundtruth import groundtruth
from .harden import harden
from .list import list_members
from .name import name
from .options import Group, note
from .plan import plan
from .pool import pool
from .process import keep_freed_memory, quiet_libraries, told
from .reproduce import reproduce
from .score import score
from .search import search
from .segment import segment
from .share import pull, share
from .steer import steer
from .verify import verify
from .why_attention import why_attention

EPILOG = """--quiet and --verbose may stand before the command or after it.

\b
Exit codes:
  0    done
  1    a fault of this program, or verify found one in the model
  2    a mistake in what was given; the message says what to do
  130  interrupted with Ctrl-C; the same command goes on where it was

\b
Completion of commands, options and files by the shell:
  bash  eval "$(_SECONDLENS_COMPLETE=bash_source secondlens)"
  zsh   eval "$(_SECONDLENS_COMPLETE=zsh_source secondlens)"
  fish  _SECONDLENS_COMPLETE=fish_source secondlens | source
"""

EVERYWHERE = ("--quiet", "--verbose")
"""Options that may stand after the command too."""


RENAMED = {
    "--drawer": "--image-generator",
    "--drawer-dtype": "--image-generator-dtype",
    "--writer": "--captioner",
    "--writer-model": "--captioner-model",
}
"""Options of version 0.1, which are understood until 0.3."""


def _new_name(argument: str) -> str:
    """An argument with today's name of its option, and a note if that is another one."""
    option, equals, value = argument.partition("=")
    if option not in RENAMED:
        return argument
    note(f"{option} is called {RENAMED[option]} now; the old name ends with 0.3")
    return RENAMED[option] + equals + value


@contextmanager
def _visible() -> Iterator[None]:
    """Inside it, what click finds wrong is told in one visible line, whatever it repeats."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = one_line(error.message)
        raise


class _Group(Group):
    """Says a user's mistake and an interruption in one sentence each."""

    def make_context(self, *given: Any, **extra: Any) -> click.Context:
        with _visible():
            return super().make_context(*given, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        args = [*map(_new_name, args[:end]), *args[end:]]
        first = [each for each in args[:end] if each in EVERYWHERE]
        others = [each for each in args[:end] if each not in EVERYWHERE]
        return super().parse_args(ctx, [*first, *others, *args[end:]])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with told(), _visible():
                return super().invoke(ctx)
        except SecondLensError as error:
            say_mistake(error)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option("--quiet", is_flag=True, help="No progress and no notes: results and errors only.")
@click.option("--verbose", is_flag=True, help="Also what the libraries log.")
@click.version_option(package_name="secondlens")
@click.pass_context
def main(context: click.Context, quiet: bool, verbose: bool) -> None:
    """What single neurons of CLIP do: second-order effects, described in words.

    Example: secondlens demo --open
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    reopen_notes(quiet=quiet)
    if verbose:
        logging.basicConfig(
            level=logging.INFO,
            format="%(name)s: %(message)s",
            handlers=[RichHandler(console=notes(), show_path=False)],
        )
    else:
        context.with_resource(quiet_libraries(note, bars=not quiet))
    if context.invoked_subcommand != explore.name:  # a server gives back what it does not need
        keep_freed_memory()


COMMANDS = (
    *(demo, plan, fit, describe, name, score, search, bench, verify, segment, discover, attack),
    *(audit, defend, edit, harden, diff, ablate, budget, steer, why_attention, circuit, pool),
    *(reproduce, groundtruth),
    *(explore, export, share, pull, list_members),
)
for command in COMMANDS:
    main.add_command(command)
