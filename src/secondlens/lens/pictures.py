"""The pictures that a lens knows: those of its fit, and those that its neurons were named on."""

from collections.abc import Iterable, Iterator

from ..data.sources import ImageSource, with_ids
from .lens import Lens

NAMED_ON = "the neurons were named on: give the pictures of the names"
"""For the error of `with_ids`."""


def pictures_at(
    lens: Lens, source: ImageSource, named_on: ImageSource | None, positions: Iterable[int]
) -> Iterator[tuple[ImageSource, list[int]]]:
    """The pictures at some positions in `Lens.picture_ids`, and the position of each.

    Parameters
    ----------
    source
        The pictures of the fit.
    named_on
        Those of `Lens.first_names`; without them, these are left out.

    Yields
    ------
    The pictures of either source that are asked for, where there are some, in order.

    Raises
    ------
    SecondLensError
        A source lacks one of the pictures.
    """
    wanted = sorted(set(positions))
    beyond = len(lens.image_ids)
    if fitted := [each for each in wanted if each < beyond]:
        yield with_ids(source, [lens.image_ids[each] for each in fitted]), fitted
    named = [each for each in wanted if each >= beyond]
    if named and named_on is not None:
        ids = lens.picture_ids
        yield with_ids(named_on, [ids[each] for each in named], these=NAMED_ON), named
