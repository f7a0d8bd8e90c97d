"""The command line: each command in a file of its own, which parses, calls and prints."""

from typing import Any

import click

from ..allocator import keep_freed_memory
from ..errors import SecondLensError
from .ablate import ablate
from .attack import attack
from .audit import audit
from .bench import bench
from .budget import budget
from .defend import defend
from .demo import demo
from .describe import describe
from .discover import discover
from .explore import explore
from .export import export
from .fit import fit
from .plan import plan
from .reproduce import reproduce
from .score import score
from .search import search
from .segment import segment
from .share import pull, share
from .verify import verify


class _Group(click.Group):
    """Prints a user's mistake as one sentence and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SecondLensError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secondlens")
@click.pass_context
def main(context: click.Context) -> None:
    """What single neurons of CLIP do: second-order effects, described in words."""
    if context.invoked_subcommand != explore.name:  # a server gives back what it does not need
        keep_freed_memory()


COMMANDS = (
    *(demo, plan, fit, describe, score, search, bench, verify, segment, discover, attack),
    *(audit, defend, ablate, budget, reproduce, explore, export, share, pull),
)
for command in COMMANDS:
    main.add_command(command)
