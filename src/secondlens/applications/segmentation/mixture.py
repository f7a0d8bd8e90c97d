"""Neurons, patches and heads together: three readings of one picture that err at different places.

- *neurons*: activations of the neurons that agree with the text, see `segmenter`;
- *patches*: each patch compared with the text after the last block, where patches look at patches
  whose queries and keys are like theirs (`sclip`, without stream and MLP);
- *heads*: what the values of each patch add to the similarity straight at the output (`textspan`).

Each is cut at 0 and made `even`, so that no data are needed to weigh them, and the weighted maps
add up. Maps of several texts can be compared: a text that a picture does not show has weak maps.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip, Images
from .baselines.first_order import textspan
from .baselines.last_block import sclip
from .segmenter import BEST, Recipe, Segmenter, encode


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How much each reading counts.

    Raises
    ------
    SecondLensError
        A weight below 0, or none above it.
    """

    neurons: float = 1.0
    patches: float = 1.0
    heads: float = 0.5
    recipe: Recipe = BEST
    """Of the neurons."""

    def __post_init__(self) -> None:
        weights = (self.neurons, self.patches, self.heads)
        if min(weights) < 0 or not max(weights) > 0:
            raise SecondLensError(
                f"readings count {', '.join(f'{each:g}' for each in weights)}: give weights from 0 "
                "on, and one above it"
            )


class MixedMaps:
    """Heat-maps of one model, lens and mixture.

    Raises
    ------
    SecondLensError
        What `Segmenter` refuses.
    """

    def __init__(self, clip: Clip, lens: Lens, mixture: Mixture | None = None) -> None:
        self.clip, self.mixture = clip, Mixture() if mixture is None else mixture
        self.segmenter = Segmenter(clip, lens, self.mixture.recipe)
        self.layers = self.segmenter.layers

    @torch.no_grad()
    def maps(
        self, images: Images, texts: Float[Tensor, "images texts dim"]
    ) -> Float[Tensor, "images texts rows columns"]:
        """Maps at the patches, 0 and above: the larger, the more, also between texts."""
        pixels, total = self.clip.prepare(images), None
        mixture = self.mixture
        for weight, read in (
            (mixture.neurons, self._neurons),
            (mixture.patches, self._patches),
            (mixture.heads, textspan),
        ):
            if weight:
                scaled = weight * even(read(self.clip, pixels, texts))
                total = scaled if total is None else total + scaled
        assert total is not None
        return total

    def _neurons(self, clip: Clip, images: Images, texts: Tensor) -> Tensor:
        encoded = encode(clip, images, self.segmenter.layers)
        return self.segmenter.heat_maps(encoded, texts)

    @staticmethod
    def _patches(clip: Clip, images: Images, texts: Tensor) -> Tensor:
        return sclip(clip, images, texts, residual=False)


EVENNESS = 0.75
"""Between maps of several texts that keep their strengths, 0, and that are all as strong, 1. Chosen
on development scenes of the embedded world, by multi-class mIoU."""


def even(
    maps: Float[Tensor, "images texts rows columns"],
) -> Float[Tensor, "images texts rows columns"]:
    """Maps cut at 0, over their strength; a map that is nowhere above 0 is 0.

    With r a map's root mean square and R that of all maps of its image,

        even = max(map, 0) / (r^EVENNESS * R^(1 - EVENNESS))

    which is max(map, 0) / r where an image has one map.
    """
    positive = maps.clamp(min=0)
    least = torch.finfo(maps.dtype).tiny ** 0.5
    own = positive.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=least)
    of_image = positive.square().mean((-3, -2, -1), keepdim=True).sqrt().clamp(min=least)
    return positive / own.pow(EVENNESS) / of_image.pow(1 - EVENNESS)


def maps_of(clip: Clip, lens: Lens, recipe: Recipe | Mixture) -> Segmenter | MixedMaps:
    """What makes the maps of a recipe, or of a mixture; it is put in place once.

    Raises
    ------
    SecondLensError
        What `Segmenter` refuses.
    """
    if isinstance(recipe, Mixture):
        return MixedMaps(clip, lens, recipe)
    return Segmenter(clip, lens, recipe)
