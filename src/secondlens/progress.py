"""Progress of long work, on standard error."""

from collections.abc import Iterable
from typing import TypeVar

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from .terminal import notes, visible

Item = TypeVar("Item")


def tracked(
    items: Iterable[Item], what: str, shown: bool, total: int | None = None
) -> Iterable[Item]:
    """The same items, with a bar that counts them if it shall be shown.

    `total` is their number where the items do not know it.
    """
    return track(items, escape(visible(what)), total, console=notes()) if shown else items


def bars(shown: bool) -> Progress:
    """Bars that are advanced by hand; none if they shall not be shown."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notes(),
        disable=not shown,
    )
