"""`secondlens list`: what can be named, and so what one can add to."""

import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import console, json_option, print_json

if TYPE_CHECKING:
    from ..catalogue import Entry
    from ..registry import Registry

REGISTRIES = {
    "models": "models:named_models",
    "unit-layouts": "models.units:unit_layouts",
    "vocabularies": "data:named_vocabularies",
    "labelled-sets": "data:labelled_sets",
    "masked-sets": "data:masked_sets",
    "label-sets": "data:label_sets",
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

    Each can be added to in a few lines of Python, see "Contributing" in the documentation. After
    models alone comes every architecture of open_clip: what reads its output, and what of it can be
    explained, or why nothing can. Nothing is downloaded for that; it takes about a minute.

    Example: secondlens list vocabularies
    """
    found = {each: registry(each) for each in ([kinds] if kinds else REGISTRIES)}
    architectures = _architectures() if kinds == "models" else []
    if as_json:
        document: dict[str, Any] = {
            name: {each.name: each.help for each in some} for name, some in found.items()
        }
        if architectures:
            document["open_clip"] = [asdict(each) for each in architectures]
        print_json(document)
        return
    for name, some in found.items():
        table = Table(title=name, title_justify="left", show_header=False, box=None)
        for member in some:
            table.add_row(escape(member.name), escape(member.help))
        console.print(table)
    if architectures:
        _print_architectures(architectures)


def _architectures() -> "list[Entry]":
    """Every architecture of open_clip, with a bar: each is built."""
    import open_clip

    from ..catalogue import entries
    from ..progress import bars

    with bars(True) as shown:
        names = sorted(open_clip.list_models(), key=str.lower)
        task = shown.add_task("architectures of open_clip", total=len(names))
        found = []
        for entry in entries(names):
            found.append(entry)
            shown.advance(task)
    return found


def _print_architectures(architectures: "list[Entry]") -> None:
    covered = [entry for entry in architectures if not entry.refused]
    table = Table(title="open_clip", title_justify="left", box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("tags", "layers"):
        table.add_column(column, justify="right")
    table.add_column("read from", no_wrap=True)
    for column in ("direct", "2nd", "masks", "paths"):
        table.add_column(column)
    for entry in covered:
        defined = (entry.direct, entry.second_order, entry.segmentation, entry.all_paths)
        table.add_row(
            escape(entry.name),
            str(len(entry.tags)),
            str(entry.layers),
            entry.reads,
            *("yes" if each else "no" for each in defined),
        )
    console.print(table)
    for entry in architectures:
        if entry.refused:
            line = f"{entry.name} ({len(entry.tags)} tags) is refused: {entry.refused}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    tags = sum(len(entry.tags) for entry in architectures)
    console.print(
        f"{len(covered)} of {len(architectures)} architectures can be explained, "
        f"{sum(len(entry.tags) for entry in covered)} of {tags} published weights"
    )
