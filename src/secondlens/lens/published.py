"""A lens as strangers get it: without the names of folders on the machine that made it."""

from dataclasses import replace
from typing import TypeVar

from ..naming import distinct, shown
from .folder import Contents

Held = TypeVar("Held", bound=Contents)


def published(lens: Held) -> Held:
    """The lens with the last part alone of what is a path in its names, ids and reasons.

    Ids that are relative to the folder of the pictures stay what they are.
    """
    ids = distinct(map(shown, [*lens.image_ids, *lens.skipped]))
    count = len(lens.image_ids)
    reasons = map(shown, lens.skipped.values())
    names = [
        replace(
            each,
            referee=shown(each.referee),
            image_ids=tuple(distinct(map(shown, each.image_ids))),
        )
        for each in lens.names.values()
    ]
    return replace(
        lens,
        model=lens.model | {"name": shown(str(lens.model["name"]))},
        image_ids=tuple(ids[:count]),
        skipped=dict(zip(ids[count:], reasons, strict=True)),
        names={each.name: each for each in names},
        all_paths=None if lens.all_paths is None else published(lens.all_paths),
    )
