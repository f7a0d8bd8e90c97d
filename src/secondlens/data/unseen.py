"""Pictures that a lens must not have been fitted on."""

import warnings
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from ..errors import SecondLensError, SecondLensWarning
from .decoding import digest, upright_rgb
from .sources import FileSource, ImageSource


class Unseen:
    """The pictures of a source, each compared with those of a fit before it is given out.

    A picture is known by what it shows, whatever it is called. Where that was not kept, as in
    lenses of older versions, its id tells. Where contents are known, an id alone is a reason to
    warn: different folders hold different pictures of one name. Lists number theirs from 0, which
    says nothing.

    Parameters
    ----------
    source
        Of the pictures that are read.
    ids, digests
        Of the pictures of the fit, see `decoding.digest`; digests may be missing.

    Raises
    ------
    SecondLensError
        No digests, and some ids are those of the fit. While reading: a picture is one of the fit.
    """

    def __init__(self, source: ImageSource, ids: Sequence[str], digests: Sequence[str]) -> None:
        self.source, self.ids = source, source.ids
        self.known = dict(zip(digests, ids, strict=True)) if digests else {}
        fitted = set(ids)
        same = [each for each in source.ids if each in fitted and not each.isdecimal()]
        if same and not digests:
            raise SecondLensError(
                f"the lens was fitted on {len(same):,} of these pictures, {same[0]!r} first: give "
                "pictures that were not used to fit"
            )
        if same:
            message = (
                f"{len(same):,} of these pictures have ids of the fit, {same[0]!r} first, and are "
                "told apart by what they show: see that they are not copies in another size"
            )
            warnings.warn(message, SecondLensWarning, stacklevel=4)

    @property
    def damaged(self) -> Mapping[str, str]:
        """As of the source."""
        return self.source.damaged if isinstance(self.source, FileSource) else {}

    def sizes(self) -> Sequence[int]:
        """As of the source."""
        return self.source.sizes() if isinstance(self.source, FileSource) else []

    def load(self, index: int) -> Image.Image | Tensor:
        """Picture `index` of the source.

        Raises
        ------
        SecondLensError
            It is one of the fit.
        """
        picture = self.source.load(index)
        if isinstance(picture, Image.Image):
            picture = upright_rgb(picture)
        if (fitted := self.known.get(digest(picture))) is not None:
            raise SecondLensError(
                f"the picture {self.ids[index]!r} shows what {fitted!r} shows, on which the lens "
                "was fitted: give pictures that were not used to fit"
            )
        return picture
