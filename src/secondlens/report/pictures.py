"""Pictures of a source as a model sees them, for pages that hold everything they show."""

from collections.abc import Sequence

from ..data.reader import Reader
from ..data.sources import ImageSource, with_ids
from ..models.view import Clip
from .page import data_uri, model_view


def as_seen(clip: Clip, source: ImageSource, ids: Sequence[str]) -> dict[str, str]:
    """Return addresses that hold the pictures, by id; what cannot be read is not there."""
    view, found = model_view(clip), {}
    for batch in Reader(source=with_ids(source, ids), clip=clip, batch_size=16):
        for position, pixels in zip(batch.positions, batch.pixels, strict=True):
            found[ids[position]] = data_uri(view(pixels), "webp", quality=80)
    return found
