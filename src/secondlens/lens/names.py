"""What neurons fire on: names that passed a test, with their evidence, as a lens keeps them."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import SecondLensError

NO_NAME = "no reliable name"
"""The title of a neuron for which no text passed its test."""


@dataclass(frozen=True, kw_only=True)
class Name:
    """One text that a neuron fires on, and what speaks for it."""

    text: str
    auc: float
    """Area under the ROC curve with which the text finds images of large effects, on images that
    did not choose it."""
    p: float
    """One-sided, of the Mann-Whitney test on the same images."""
    q: float
    """The same after Benjamini and Hochberg, over all neurons and candidates."""
    held: int
    """How many of the neuron's `Names.shown` strongest images hold the text."""
    pictures: tuple[str, ...]
    """Ids of the strongest images that hold it, strongest first."""
    rose: int | None = None
    """In how many of `Names.pairs` pairs the effect is larger with the thing drawn in, if that was
    asked."""
    confirmed: bool | None = None
    """Whether these are more than chance gives: if not, the text goes with what the neuron fires
    on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """What the neurons of a lens fire on, see `secondlens.name`.

    A row of tensors that ended early has position -1, `held` 0 and NaN at its end.
    """

    vocabulary: str
    referee: str
    """Who judged what the images hold."""
    labels: tuple[str, ...]
    image_ids: tuple[str, ...]
    """Of all images that were looked at."""
    shown: int
    """Of the strongest images of a neuron, those that `held` counts."""
    tested: int
    """Pairs of a neuron and a candidate over which false discoveries were controlled."""
    shuffled: int
    """Names that the same search gave after the effects of each neuron were shuffled."""
    rare: int
    """Texts that could not be tested, because too few of the images held them."""
    constant: int = 0
    """Neurons that got no names because their activations, or their effects, never change."""
    alike: tuple[tuple[str, ...], ...] = ()
    """Groups of texts that the referee cannot tell apart: the first stands for all of them."""
    texts: dict[int, Int[Tensor, "neurons names"]]
    """Positions in `labels`, the most enriched text first."""
    auc: dict[int, Float[Tensor, "neurons names"]]
    """Area under the ROC curve with which a name finds images of large effects, on images that
    did not choose it."""
    p: dict[int, Float[Tensor, "neurons names"]]
    """One-sided, of the Mann-Whitney test on these images."""
    q: dict[int, Float[Tensor, "neurons names"]]
    """The same after Benjamini and Hochberg, over all neurons and candidates."""
    held: dict[int, Int[Tensor, "neurons names"]]
    """How many of the `shown` strongest images hold the name."""
    pictures: dict[int, Int[Tensor, "neurons names pictures"]]
    """Positions in `image_ids` of the strongest images that hold the name, strongest first."""
    pairs: int = 0
    """Pictures drawn with and without each text, see `confirm`; 0 if that was not done."""
    rose: dict[int, Int[Tensor, "neurons names"]] = field(default_factory=dict)
    """In how many pairs the effect is larger with the text, if that was asked."""
    confirmed: dict[int, Bool[Tensor, "neurons names"]] = field(default_factory=dict)
    """Whether these are more than chance gives."""

    def __repr__(self) -> str:
        named = sum(int((each[:, 0] >= 0).sum()) for each in self.texts.values())
        neurons = sum(map(len, self.texts.values()))
        return f"Names({self.name!r}, {named} of {neurons} neurons)"

    @property
    def name(self) -> str:
        """Such as "world by demo-twin"."""
        return f"{self.vocabulary} by {self.referee}"

    def of(self, layer: int, neuron: int) -> list[Name]:
        """The names of a neuron, the most enriched first; empty where nothing passed.

        Raises
        ------
        SecondLensError
            No such layer or neuron.
        """
        if layer not in self.texts:
            named = ", ".join(map(str, sorted(self.texts)))
            raise SecondLensError(f"layer {layer} has no names: layers {named} have")
        if not 0 <= neuron < len(self.texts[layer]):
            last = len(self.texts[layer]) - 1
            raise SecondLensError(f"layer {layer} has no neuron {neuron}: choose from 0 to {last}")
        return [
            Name(
                text=self.labels[text],
                auc=float(self.auc[layer][neuron, rank]),
                p=float(self.p[layer][neuron, rank]),
                q=float(self.q[layer][neuron, rank]),
                held=int(self.held[layer][neuron, rank]),
                pictures=tuple(
                    self.image_ids[position]
                    for position in self.pictures[layer][neuron, rank].tolist()
                    if position >= 0
                ),
                rose=int(self.rose[layer][neuron, rank]) if self.rose else None,
                confirmed=bool(self.confirmed[layer][neuron, rank]) if self.confirmed else None,
            )
            for rank, text in enumerate(self.texts[layer][neuron].tolist())
            if text >= 0
        ]

    def title(self, layer: int, neuron: int) -> str:
        """The names of a neuron in one line, or `NO_NAME`.

        Names that did not raise the effect when they were drawn in follow "goes with".

        Raises
        ------
        SecondLensError
            As `of`.
        """
        own = self.of(layer, neuron)
        parts = [", ".join(each.text for each in own if each.confirmed is not False)]
        if beside := [each.text for each in own if each.confirmed is False]:
            parts.append(f"goes with {', '.join(beside)}")
        return " · ".join(filter(None, parts)) or NO_NAME

    def coverage(self, names: int = 1) -> dict[int, float]:
        """By layer the share of its neurons that have at least that many names."""
        return {
            layer: float(((each >= 0).sum(1) >= names).float().mean())
            for layer, each in self.texts.items()
        }


EVIDENCE = ("texts", "auc", "p", "q", "held", "pictures")
CAUSES = ("rose", "confirmed")
TENSORS = (*EVIDENCE, *CAUSES)
"""Fields that have a tensor for each layer; of causes, only where they were asked for."""


def plain(names: Names) -> dict[str, Any]:
    """What the manifest of a lens says of names."""
    return {key: value for key, value in vars(names).items() if key not in TENSORS}
