"""Options that need or exclude each other: all that is wrong is told in one message, before a model
is loaded."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import SecondLensError

if TYPE_CHECKING:
    from .options import PictureChoice


def check_together(*wrong: str | None) -> None:
    """Raise `SecondLensError` with all that is wrong, if anything is: None stands for nothing."""
    if said := [each for each in wrong if each is not None]:
        raise SecondLensError("; ".join(said))


def missing(model: str, what: str, options: Mapping[str, Any]) -> str | None:
    """Which options a model needs and did not get, because it has no embedded world to take their
    values from; None if there are none."""
    names = [name for name, value in options.items() if value is None]
    if not names or model.startswith("demo"):
        return None
    return (
        f"{what} {model} needs {', '.join(names)}: only the embedded models have a world of their "
        "own"
    )


def said_by(check: Callable[..., None], **given: Any) -> str | None:
    """What a check finds wrong; None if it finds nothing."""
    try:
        check(**given)
    except SecondLensError as error:
        return str(error)
    return None


def when(wrong: bool, sentence: str) -> str | None:
    """The sentence, or None if nothing is wrong."""
    return sentence if wrong else None


def idle(options: Mapping[str, bool], of: str, *, unless: bool) -> str | None:
    """Which options were given without what they are of; None if there are none.

    Parameters
    ----------
    options
        By name, whether each was given.
    of
        What follows the options: whose they are, and the way out, such as "of a referee: name it
        with --referee".
    unless
        Whether what they are of is there.
    """
    names = [name for name, given in options.items() if given]
    if unless or not names:
        return None
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{listed} {'is' if len(names) == 1 else 'are'} {of}"


OF_REFEREE = "of a referee: name it with --referee"


def idle_choice(choice: "PictureChoice", images: Any) -> str | None:
    """Which options say which pictures count, where no pictures are named."""
    given = {f"--{name}": getattr(choice, name) is not None for name in CHOICE}
    own = "of pictures of your own: name those with --images"
    return idle(given, own, unless=images is not None)


CHOICE = ("column", "extension", "ids")
