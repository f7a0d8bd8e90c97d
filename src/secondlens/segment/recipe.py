"""How neurons make a heat-map: which are read, how many, and what each counts for."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import SecondLensError

PAPER_SHARE = 200 / (3 * 3072)
"""Of the neurons of the layers read: the paper takes 200 of three layers of 3,072."""

SHARE = 5 * PAPER_SHARE
"""The share that did best on development images of the embedded world (`reproduce table4`)."""

Choose = Literal["absolute", "positive"]
Weigh = Literal["equal", "sign", "cosine", "effect"]
Scale = Literal["none", "centred", "standard"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How neurons make a heat-map. The defaults are what was measured to be best on the embedded
    world (`reproduce table4`); `PAPER` is the form of the paper.

    Raises
    ------
    SecondLensError
        A choice that does not exist, no layers, fewer than one neuron, or no share of them.
    """

    layers: tuple[int, ...] | None = None
    """MLP layers to read; by default the last fitted ones, a quarter of the model's depth."""
    neurons: int | None = None
    """How many, over all layers; by default `share` of them."""
    share: float = SHARE
    """Of the neurons of the layers read, unless `neurons` says how many."""
    choose: Choose = "absolute"
    """By the largest <direction, text>, in absolute value or as it is."""
    weigh: Weigh = "cosine"
    """Chosen neurons count alike; with the sign of <direction, text>; with its value; or, at each
    patch, with what the activation there adds to <image, text> on all second-order paths (Eq. 5).
    """
    scale: Scale = "centred"
    """Activations as they are; minus the neuron's mean at that patch over the images of the fit; or
    that over the root mean square, over patches, of this mean."""
    positive: bool = True
    """Whether `segment` makes heat below 0 to 0 before it scales: for weights with signs, 0 is
    where nothing speaks for the text, and the most negative patch says nothing about the rest."""

    def __post_init__(self) -> None:
        for name, kind in (("choose", Choose), ("weigh", Weigh), ("scale", Scale)):
            if (given := getattr(self, name)) not in (known := get_args(kind)):
                raise SecondLensError(f"{name} is {given!r}: choose one of {', '.join(known)}")
        if self.layers == ():
            raise SecondLensError("no layers make no heat-map: take at least one")
        if self.neurons is not None and self.neurons < 1:
            raise SecondLensError(f"{self.neurons} neurons make no heat-map: take at least one")
        if not 0 < self.share <= 1:
            raise SecondLensError(
                f"a share of {self.share} of the neurons cannot be taken: give more than 0, at "
                "most 1"
            )


BEST = Recipe()
"""What did best on development images of the embedded world."""

PAPER = Recipe(share=PAPER_SHARE, weigh="equal", scale="none", positive=False)
"""Activations averaged as they are, over the paper's share of neurons."""
