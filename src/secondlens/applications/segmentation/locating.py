"""Where texts are in pictures, and whether they are there at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ...arguments import checked
from ...data.decoding import upright_rgb, whole
from ...data.embedding import embed_texts
from ...data.sources import pictures_of
from ...devices import undisturbed
from ...effects.value_paths import chunks
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip
from .heat_maps import standardise
from .mixture import MixedMaps, Mixture
from .presence import Presence, PresenceReader
from .refinement import followed

PICTURES_PER_PASS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """What `locate` says of one picture."""

    texts: tuple[str, ...]
    heat: Float[Tensor, "texts height width"]
    """In [0, 1] at the picture's own resolution, on the CPU."""
    present: Bool[Tensor, " texts"]
    """Whether each text is in the picture; where nothing decides that, all are."""

    def masks(self, threshold: float = 0.5) -> Bool[Tensor, "texts height width"]:
        """Pixels of each text: those as hot as `threshold`, none of a text that is not there."""
        return (self.heat >= threshold) & self.present[:, None, None]


@checked
@undisturbed
@torch.no_grad()
def locate(
    clip: Clip,
    lens: Lens,
    images: Any,
    texts: str | Sequence[str],
    *,
    among: Sequence[str] = (),
    presence: Presence | None = None,
    mixture: Mixture | None = None,
    colours: bool = True,
) -> list[Located]:
    """Find texts in pictures with neurons, patches and heads, and leave out what is not there.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    images
        A PIL image or several, the path of a file or of a folder, or what else `fit` takes.
    texts
        One text, such as "a dog", or several.
    among
        Other words for what pictures may show. Their mean embedding is taken off each text, and
        `presence` compares texts with them.
    presence
        Decides whether a text is there, see `tune_presence`; without it, all texts are.
    mixture
        How much neurons, patches and heads count.
    colours
        Whether maps follow the colours of the picture, as the model sees it.

    Returns
    -------
    One for each picture, in their order.

    Raises
    ------
    SecondLensError
        No pictures or texts, `presence` without words to compare with, another model's lens, or a
        picture that cannot be read.
    """
    if presence is not None and not among:
        raise SecondLensError("whether a text is there is told among other words: give among")
    given = [images] if isinstance(images, Image.Image) else images
    pictures = pictures_of(given)
    if isinstance(pictures, Tensor):
        raise SecondLensError("pictures are shown at their own size: give them, and not a tensor")
    names = (texts,) if isinstance(texts, str) else tuple(texts)
    rows = embed_texts(clip, names)
    others = embed_texts(clip, among) if among else rows[:0]
    centred = F.normalize(rows - others.mean(0), dim=-1) if among else rows
    maps = MixedMaps(clip, lens, mixture)
    reader = None if presence is None else PresenceReader(clip, lens)
    found: list[Located] = []
    for some in chunks(len(pictures), PICTURES_PER_PASS):
        batch = [upright_rgb(picture) for picture in pictures[some]]
        pixels = clip.prepare(whole(clip, batch))
        heat = maps.heat_maps(pixels, centred.expand(len(batch), -1, -1))
        if colours:
            heat = followed(heat, pixels)
        there = torch.ones(len(batch), len(names), dtype=torch.bool)
        if presence is not None and reader is not None:
            there = presence.present(reader(batch, rows, others, presence.windows)).cpu()
        for picture, own, present in zip(batch, heat, there, strict=True):
            size = (picture.height, picture.width)
            scaled = standardise(own, size, positive=True).float().cpu()
            found.append(Located(texts=names, heat=scaled, present=present))
    return found
