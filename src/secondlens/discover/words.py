"""A word that an image shows, and who says so."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..lens.neuron import NeuronId


@dataclass(frozen=True, kw_only=True)
class Carrier(NeuronId):
    """What a neuron adds to the weight of a word."""

    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """A word that an image shows; unpacks as (text, weight, neurons)."""

    text: str
    synonyms: tuple[str, ...]
    """Words so alike that they count as this one."""
    weight: float
    neurons: tuple[Carrier, ...]
    """The active neurons, the one that adds most first; their weights add up to the word's."""
    heads: Float[Tensor, "blocks heads"]
    """What arrives through each attention head; adds up to the weight."""
    patches: Float[Tensor, "rows columns"]
    """What comes from each patch; with `class_token`, adds up to the weight."""
    class_token: float

    def __repr__(self) -> str:
        return f"Word({self.text!r}, {self.weight:.3g}, {len(self.neurons)} neurons)"

    def __iter__(self) -> Iterator[object]:
        return iter((self.text, self.weight, self.neurons))
