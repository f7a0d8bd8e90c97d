"""The methods of Table 4 as the protocol sees them: variants to tune, and what its paper does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...clip.view import Clip
from ...lens import Lens
from .. import baselines
from ..recipe import PAPER, PAPER_SHARE, Recipe, Scale, Weigh
from ..segmenter import Segmenter, encode, quarter
from .batches import Batch

Grids = dict[str, Float[Tensor, "maps rows columns"]]
"""Raw heat-maps at the patches, by variant."""

OURS = "Neurons"
CEILING = "Patch ceiling"


@dataclass(frozen=True, kw_only=True)
class Own:
    """How a method's own paper, or its published script, turns a heat-map into a mask."""

    threshold: Literal["half", "mean"] = "mean"
    """Of the map scaled to [0, 1]: 0.5, or its mean."""
    positive: bool = False
    """Whether values below 0 become 0 before scaling."""


@runtime_checkable
class Method(Protocol):
    """Heat-maps in one or more variants, the first of which is the method as published."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def own(self) -> Own:
        """Its own post-processing."""

    @property
    def reads_text(self) -> bool:
        """Whether maps depend on the text."""

    @property
    def variants(self) -> Sequence[str]:
        """Names of variants."""

    def grids(self, batch: Batch, form: str, variants: Sequence[str]) -> Grids:
        """Heat-maps of some variants, for a form of the texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """One of `baselines.METHODS` with its options."""

    name: str
    clip: Clip
    heat_maps: Callable[..., Tensor]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"as published": {}})
    own: Own = field(default_factory=Own)
    reads_text: bool = True

    @property
    def variants(self) -> Sequence[str]:
        """Names of options."""
        return list(self.options)

    def grids(self, batch: Batch, form: str, variants: Sequence[str]) -> Grids:
        """One run for each variant."""
        return {
            name: self.heat_maps(self.clip, batch.pixels, batch.texts[form], **self.options[name])
            for name in variants
        }


class Neurons:
    """Ours: recipes that share one forward pass."""

    name = OURS
    own = Own(threshold="half")
    reads_text = True

    def __init__(self, clip: Clip, lens: Lens, recipes: Mapping[str, Recipe]) -> None:
        self.clip = clip
        self.segmenters = {name: Segmenter(clip, lens, each) for name, each in recipes.items()}

    @property
    def variants(self) -> Sequence[str]:
        """Names of recipes."""
        return list(self.segmenters)

    def grids(self, batch: Batch, form: str, variants: Sequence[str]) -> Grids:
        """Encode once, and follow each recipe."""
        chosen = {name: self.segmenters[name] for name in variants}
        layers = {layer for segmenter in chosen.values() for layer in segmenter.layers}
        encoded = encode(self.clip, batch.pixels, layers)
        texts = batch.texts[form][:, None]
        return {name: each.heat_maps(encoded, texts)[:, 0] for name, each in chosen.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ceiling:
    """What a map with one value for each patch could reach: the share of the patch in the mask."""

    grid: tuple[int, int]
    name: str = CEILING
    own: Own = field(default_factory=lambda: Own(threshold="half"))
    reads_text: bool = False
    variants: Sequence[str] = ("share of the patch",)

    def grids(self, batch: Batch, form: str, variants: Sequence[str]) -> Grids:
        """Read off the masks."""
        share = F.adaptive_avg_pool2d((batch.masks == 1).to(batch.pixels.dtype), self.grid)
        return dict.fromkeys(variants, share)


SHARES = (PAPER_SHARE / 2, PAPER_SHARE, 5 * PAPER_SHARE, 1.0)
"""Of the neurons of the layers read: numbers tried."""


def recipes(clip: Clip, lens: Lens) -> dict[str, Recipe]:
    """The paper's recipe, and variants of it to choose from on development images."""
    found = {"as published": PAPER}
    for depth, share, weigh, scale in product((1, 2, 4), SHARES, get_args(Weigh), get_args(Scale)):
        if weigh == "equal" and share == 1:
            continue  # all neurons alike: the text would not be read
        layers = lens.layers[-depth * quarter(clip) :]
        neurons = max(1, round(share * len(layers) * clip.neurons))
        name = f"layers {layers[0]} to {layers[-1]}, {neurons} neurons, {weigh}, {scale}"
        found[name] = Recipe(
            layers=tuple(layers),
            neurons=neurons,
            choose="positive" if weigh == "equal" else "absolute",
            weigh=weigh,
            scale=scale,
        )
    return found


def table4(clip: Clip, lens: Lens) -> list[Method]:
    """Every row of the paper's Table 4, patch similarity, and the ceiling."""
    half = clip.layers // 2
    late = max(1, round(clip.layers / 3))
    rules = {"as published": {}, "all contributions": {"rule": "zero"}}
    options: dict[str, dict[str, dict[str, Any]]] = {
        "Partial-LRP": rules,
        "LRP": rules,
        "Rollout": {"as published": {}, "later half": {"first": half}},
        "GradCAM": {"as published": {}, "block before the last": {"layer": -2}},
        "Chefer et al.": {
            **rules,
            "later half": {"first": half},
            "later half, all contributions": {"first": half, "rule": "zero"},
        },
        "Raw attention": {"as published": {}, "later half": {"layers": clip.layers - half}},
        "TextSpan": {"as published": {}, "last third": {"layers": late}, "last": {"layers": 1}},
    }
    blind = ("Rollout", "Raw attention")
    methods: list[Method] = [
        Baseline(
            name=name,
            clip=clip,
            heat_maps=heat_maps,
            own=Own(positive=name == "TextSpan"),
            reads_text=name not in blind,
            **({"options": options[name]} if name in options else {}),
        )
        for name, heat_maps in baselines.METHODS.items()
    ]
    return [*methods, Neurons(clip, lens, recipes(clip, lens)), Ceiling(grid=clip.grid)]
