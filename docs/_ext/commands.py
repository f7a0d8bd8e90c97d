"""The directive `commands`: what every command of the command line says with --help."""

from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from secondlens.commands.group import main

WIDTH = 86


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Commands(SphinxDirective):
    """A section for each command, with its help as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        context = click.Context(
            main, info_name="secondlens", terminal_width=WIDTH, **main.context_settings
        )
        return [_section(each) for each in _below(context)]


def _below(context: click.Context) -> Iterator[click.Context]:
    """The command of a context, and all below it in their order."""
    yield context
    if isinstance(command := context.command, click.Group):
        for name in command.list_commands(context):
            below = command.commands[name]
            yield from _below(click.Context(below, parent=context, info_name=name))


def _section(context: click.Context) -> nodes.section:
    name = context.command_path
    title = nodes.title("", "", nodes.literal("", name))
    text = context.get_help()
    shown = nodes.literal_block(text, text, language="text")
    return nodes.section("", title, shown, ids=[nodes.make_id(name)], names=[name])
