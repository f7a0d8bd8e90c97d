"""Names as others may see them: folders of this machine are in none.

Whoever shares a lens or a page tells what a model, a picture or a file is called, and not where it
lies, for folders are often named after people.
"""

import os
import re
from collections.abc import Iterable

_FOLDERS = re.compile(
    r"""
    (?:^|(?<=[\s:;,'"(=\[]))            # a path begins where a word does
    (?:[A-Za-z]:[\\/]|\\\\|~[\w.-]*[\\/]|\.{0,2}[\\/](?=\S))
    (?:.*[\\/])?                        # with blanks, which end no path
    | (?<=local-dir:).*[\\/]
    | (?:(?<=hf:)|(?<=timm:))(?:[^\\/]+[\\/]){2,}      # names on the hub have two parts
    """,
    re.VERBOSE | re.DOTALL,
)


def shown(text: str) -> str:
    """A name or sentence with the last part alone of each path in it.

    Of what stands between two paths nothing is left: better too little is told than too much.
    """
    return _FOLDERS.sub("", re.sub(r"(?<=[^\\/])[\\/]+$", "", text))


def shown_place(name: str) -> str:
    """What may be a file or folder of this machine, or a name on the hub, as others may see it."""
    return shown(os.path.abspath(name) if os.path.exists(name) else name)  # noqa: PTH100, PTH110


def shown_model(name: str) -> str:
    """The name that a model is loaded by, as others may see it."""
    kind, _, place = name.partition(":")
    return f"{kind}:{shown_place(place)}" if kind in ("hf", "timm", "units") else shown(name)


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order, with a number after those that stood there before."""
    given: dict[str, None] = {}
    for name in names:
        number, free = 2, name
        while free in given:
            number, free = number + 1, f"{name} ({number})"
        given[free] = None
    return list(given)
