"""Some pictures of a source, as a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image
from torch import Tensor

from ..errors import SecondLensError
from .source import FileSource, ImageSource


@dataclass(frozen=True)
class Subset:
    """The pictures at some positions of a source, under the ids that they have there.

    For ImageNet as the paper takes it: `Subset(folder, range(0, len(folder.ids), 250))`.
    """

    source: ImageSource
    positions: Sequence[int]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        ids = self.source.ids
        object.__setattr__(self, "ids", [ids[position] for position in self.positions])

    @property
    def damaged(self) -> Mapping[str, str]:
        """As of the whole source."""
        return self.source.damaged if isinstance(self.source, FileSource) else {}

    def sizes(self) -> Sequence[int]:
        """As of the whole source, so that a change of its files is noticed."""
        return self.source.sizes() if isinstance(self.source, FileSource) else []

    def load(self, index: int) -> Image | Tensor:
        """The picture at `positions[index]` of the source."""
        return self.source.load(self.positions[index])


def with_ids(source: ImageSource, ids: Sequence[str]) -> Subset:
    """The pictures of a source that have these ids, in their order.

    Raises
    ------
    SecondLensError
        The source has no such picture.
    """
    place = {each: position for position, each in enumerate(source.ids)}
    if missing := [each for each in ids if each not in place]:
        raise SecondLensError(
            f"there is no picture {missing[0]!r}, which the lens was fitted on: give the pictures "
            "of the fit"
        )
    return Subset(source, [place[each] for each in ids])
