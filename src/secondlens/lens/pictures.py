"""The pictures that a lens knows: those of its fit, and those that its neurons were named on."""

from collections.abc import Iterable, Iterator

from ..data.sources import ImageSource, with_ids
from .lens import Lens


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
    for own, use, some in (
        (source, "the lens was fitted on", [each for each in wanted if each < beyond]),
        (named_on, "its neurons were named on", [each for each in wanted if each >= beyond]),
    ):
        if own is not None and some:
            yield with_ids(own, [lens.picture_ids[each] for each in some], use=use), some
