"""Arguments of public functions, checked against their annotations when they are called.

A value of another kind would fail far inside, in words of a library, or not at all. beartype knows
more about types, and less about what users may give: any number that is whole where an int is
wanted, arrays where a list is, and never a text for a list of texts.
"""

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import (
    Any,
    Literal,
    ParamSpec,
    SupportsFloat,
    SupportsIndex,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from jaxtyping import AbstractArray

from .errors import SecondLensError

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

ALIKE: dict[Any, type] = {bool: SupportsFloat, int: SupportsIndex, float: SupportsFloat}
"""What numbers of other libraries have in common with Python's."""
CALLED = {
    None: "None",
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text",
    "Clip": "a Clip, as load returns it",
    "Lens": "a Lens, as fit returns it or Lens.load reads it",
    "Path": "a path",
    "Vocabulary": "a Vocabulary, as vocabulary makes it",
}
"""Types in words; others are called by their name."""


def checked(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A decorator: the same function, which refuses arguments that its annotations do not allow.

    The first that is of another kind is named in one `SecondLensError`, before anything is done.
    """
    signature = inspect.signature(function)

    @cache
    def hints() -> dict[str, Any]:
        return get_type_hints(function)  # annotations in quotes are known only after import

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise SecondLensError(f"{function.__name__}: {error}") from None
        for name, value in given.items():
            if name in hints() and signature.parameters[name].kind not in UNNAMED:
                _check(function.__name__, name, value, hints()[name])
        return function(*args, **kwargs)

    return call


UNNAMED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _check(function: str, name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        kind = type(value).__name__
        article = "an" if kind[0] in "aeiouAEIOU" else "a"
        raise SecondLensError(
            f"{name} of {function} must be {in_words(hint)}, and this is {article} {kind}"
        )


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in parts)
    if origin is Literal:
        return value in parts
    if origin is not None:
        return _is_collection(value, origin) and _holds(value, origin, parts)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint.array_type)
    kind = ALIKE.get(hint, hint)
    # what is no class says nothing that can be looked at here
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_collection(value: Any, origin: Any) -> bool:
    """Whether it is of that kind, where arrays are lists and a text is none."""
    if isinstance(value, str | bytes):
        return False
    if origin in (Sequence, list, tuple):
        listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        return listed and not isinstance(value, Mapping)
    return isinstance(value, origin)


def _holds(value: Any, origin: Any, parts: tuple[Any, ...]) -> bool:
    """Whether what is in it fits, as far as that can be seen without using it up."""
    if origin is Callable:
        return True
    if isinstance(value, Mapping) and len(parts) == 2:
        return all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, list | tuple | set | frozenset) and parts:
        return all(_fits(each, parts[0]) for each in value)
    return True


def in_words(hint: Any) -> str:
    """What a value must be, for a sentence, such as "a text or None"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(in_words(each) for each in parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Callable:
        return "a function"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and issubclass(origin, Iterable | Collection):
        inner = f" (each {in_words(parts[0])})" if parts and parts[0] is not Any else ""
        return f"a list{inner}"
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f"a {hint.array_type.__name__}"
    hint = None if hint is type(None) else hint
    name = getattr(hint, "__name__", str(hint))
    return CALLED.get(hint) or CALLED.get(name) or f"a {name}"
