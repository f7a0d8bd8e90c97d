"""The documentation site: `make docs`. The build reads this repository and nothing else."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

import click
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "secondlens"
author = "The secondlens authors"
copyright = f"2026, {author}"
release = installed("secondlens")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "fields",
    "members",
    "mathml",
    "programs",
]
MARKUP = re.compile(r"[*|`]|_(?=\W)")
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# docstrings put names of the library between single backticks
default_role = "py:obj"
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False

smartquotes = False  # two hyphens are two hyphens
html_theme = "furo"
html_title = f"secondlens {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Show the help of commands as it is: as texts, and examples as code."""
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _as_text)


def _as_text(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        before, example, command = line.partition("Example: ")
        if example:
            lines[number] = f"{before}{example}``{command}``"
        elif not line.startswith((".. ", "   :", "| ")):
            lines[number] = MARKUP.sub(r"\\\g<0>", line)
