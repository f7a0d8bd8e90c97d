"""The directive `members`: a table of the names in a registry, each with its line of help."""

from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive `members`."""
    app.add_directive("members", Members)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Members(SphinxDirective):
    """A row for each member of a registry."""

    required_arguments = 1
    option_spec = {"heading": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].rpartition(".")
        rows = [f"| `{each.name}` | {each.help} |" for each in getattr(import_module(module), name)]
        heading = self.options.get("heading", "what it is, and how it is recognised")
        table = "\n".join([f"| name | {heading} |", "|---|---|", *rows])
        return self.parse_text_to_nodes(table)
