"""Where texts are printed. All printing passes here, so that no name or text steers a terminal.

What a lens, a picture or a server calls itself may hold escape sequences, which move the cursor,
set titles or hide what follows, and characters that no terminal can encode. They are shown in the
spelling of a Python string, such as `\\x1b`.
"""

import re
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but the tab and the end of a line
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # direction, and what has no width
    "\ud800-\udfff]"  # halves of characters, as names of files in another encoding have them
)


def visible(text: str) -> str:
    """A text without characters that act on a terminal; each is spelled out in its place."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Terminal(Console):
    """A console of rich on which every text is visible."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; a text without markup is one line, for a name in it may have ends of lines,
        after which it could say anything in the place of this program."""
        if options.get("markup") is False:
            objects = tuple(_as_line(each) if isinstance(each, str) else each for each in objects)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's; measured as it is printed."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich's; what rich itself tells the terminal stays."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


results = Terminal(emoji=False)  # names are printed as they are, ":smile:" too
"""Where results go: standard output."""

_notes = Terminal(stderr=True, emoji=False)


def notes() -> Terminal:
    """Where notes and progress go: standard error."""
    return _notes


def reopen_notes(*, quiet: bool) -> None:
    """Take the standard error of now for notes; `quiet` drops them."""
    global _notes
    _notes = Terminal(stderr=True, emoji=False, quiet=quiet)


def say_json(document: str) -> None:
    """Print a JSON document on standard output, where programs read it."""
    click.echo(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document))


def say_mistake(error: Exception) -> None:
    """Print what was wrong, on one line."""
    click.echo(f"Error: {one_line(str(error))}", err=True)


def _as_line(text: str) -> str:
    return visible(text.replace("\n", "\\n"))


def one_line(text: str) -> str:
    """A visible text without ends of lines, which may come from names or libraries."""
    return visible(re.sub(r"\s*\n\s*", " ", text))
