"""A registry: the members of one kind, each with a name, a factory and one line of help.

Help texts, error messages, the documentation and `secondlens list` all read the same registry, so
that a new member shows up in each of them:

    @captioners.register("haiku", help="three lines about the words")
    def haiku(model: str, **options) -> Captioner: ...
"""

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import SecondLensError

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Member(Generic[Made]):
    """One way to make a thing of some kind."""

    name: str
    help: str
    factory: Callable[..., Made] | str
    """A function, or where it is, such as "secondlens.demo.model:load_demo": what is named that way
    is imported when it is first made, so that a list of names needs no torch."""

    def __call__(self, *args: Any, **options: Any) -> Made:
        """What the factory makes of the arguments, which each registry states for its kind."""
        if not isinstance(self.factory, str):
            return self.factory(*args, **options)
        module, _, function = self.factory.partition(":")
        made: Made = getattr(importlib.import_module(module), function)(*args, **options)
        return made


class Registry(Generic[Made]):
    """Members of one kind, in the order in which they were registered.

    Parameters
    ----------
    kind
        What one member is called in messages, such as "vocabulary".
    kinds
        What several are called, as `secondlens list` takes it.
    """

    def __init__(self, kind: str, kinds: str) -> None:
        self.kind, self.kinds = kind, kinds
        self._members: dict[str, Member[Made]] = {}

    def register(
        self, name: str, factory: Callable[..., Made] | str | None = None, *, help: str
    ) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
        """Add a member, by its factory or as the decorator of one.

        Raises
        ------
        SecondLensError
            The name is taken.
        """
        if name in self._members:
            raise SecondLensError(f"there is a {self.kind} {name!r} already: choose another name")

        def add(factory: Callable[..., Made] | str) -> None:
            self._members[name] = Member(name=name, help=help, factory=factory)

        def decorate(factory: Callable[..., Made]) -> Callable[..., Made]:
            add(factory)
            return factory

        if factory is not None:
            add(factory)
        return decorate

    def __getitem__(self, name: str) -> Member[Made]:
        """The member of that name.

        Raises
        ------
        SecondLensError
            There is none; the message lists those that are there.
        """
        if name not in self._members:
            raise SecondLensError(f"no {self.kind} {name!r}{self.near(name)}: {self.choices()}")
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[Member[Made]]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all members."""
        return tuple(self._members)

    def choices(self) -> str:
        """The end of an error message: which members there are."""
        return f"there are {', '.join(self._members) or 'none'}"

    def near(self, name: str) -> str:
        """The names most like a mistaken one, as a question in brackets, or nothing."""
        close = difflib.get_close_matches(name.lower(), self._members)
        return f" (did you mean {', '.join(close)}?)" if close else ""
