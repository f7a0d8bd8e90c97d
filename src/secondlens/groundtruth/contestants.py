"""Contestants: methods that explain neurons, by the answers that each of them gives.

A contestant answers some of the questions, each by a function of an `Exam`. To add one is to
register a function that returns a `Contestant`:

    @contestants.register("loudness", help="mean activation, whatever the text")
    def loudness() -> Contestant:
        return Contestant(effects=my_effects)
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .exam import Exam


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A name that a contestant gives a unit."""

    feature: str
    evidence: int | float
    """The surer, the larger, in any unit: the bench turns it into a probability."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A method, as the answers that it gives; what it has no answer to is None."""

    effects: "Callable[[Exam], Float[Tensor, 'images words units']] | None" = None
    """What each unit adds to the similarity with each word, up to a factor."""
    classes: "Callable[[Exam], list[str]] | None" = None
    """The class of path that carries most of each unit's effect, one of `all_paths.CLASSES`."""
    names: "Callable[[Exam], list[list[Claim]]] | None" = None
    """The features that each unit responds to."""
    edges: "Callable[[Exam], Float[Tensor, 'units units']] | None" = None
    """How strongly each unit (row) acts on each other one (column), up to a factor."""
    places: "Callable[[Exam], Float[Tensor, 'images places rows columns']] | None" = None
    """Heat-maps of the words of `Program.places`, in their order."""
    by_truth: bool = False
    """Whether it looks at the truth, or at nothing: a bound rather than a method."""
