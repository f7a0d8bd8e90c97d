"""`secondlens list`: what can be named, and so what one can add to."""

import importlib
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import console, json_option, print_json

if TYPE_CHECKING:
    from ..registry import Registry

REGISTRIES = {
    "models": "models:named_models",
    "vocabularies": "data:named_vocabularies",
    "labelled-sets": "data:labelled_sets",
    "masked-sets": "data:masked_sets",
    "baselines": "applications.segmentation.baselines:baselines",
    "captioners": "applications.adversarial:captioners",
    "image-generators": "applications.adversarial:image_generators",
    "pages": "explorer:page_kinds",
    "results": "paper.registry:results",
    "networks": "groundtruth.registry:networks",
    "contestants": "groundtruth.registry:contestants",
}
"""Where each registry is."""


def registry(kinds: str) -> "Registry[Any]":
    """The registry of that name."""
    module, _, name = REGISTRIES[kinds].partition(":")
    found: Registry[Any] = getattr(importlib.import_module(f"secondlens.{module}"), name)
    return found


@click.command("list")
@click.argument("kinds", type=click.Choice(list(REGISTRIES)), required=False)
@json_option
def list_members(kinds: str | None, as_json: bool) -> None:
    """List what has a name: KINDS such as models or vocabularies; without KINDS, all of them.

    Each can be added to in a few lines of Python, see "Contributing" in the documentation.

    Example: secondlens list vocabularies
    """
    found = {each: registry(each) for each in ([kinds] if kinds else REGISTRIES)}
    if as_json:
        print_json({name: {each.name: each.help for each in some} for name, some in found.items()})
        return
    for name, some in found.items():
        table = Table(title=name, title_justify="left", show_header=False, box=None)
        for member in some:
            table.add_row(escape(member.name), escape(member.help))
        console.print(table)
