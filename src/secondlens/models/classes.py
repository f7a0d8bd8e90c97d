"""The classes of a classifier as its texts: each is one unit row of the space of its logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import SecondLensError


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """What stands for the text tower of a classifier, for `Clip.text_tower`.

    A class is called by its whole name, or by a part of it between commas that no other class
    has, whatever the case of the letters.
    """

    model: str
    """Its name, for messages."""
    names: tuple[str, ...]
    like: Callable[[], Tensor]
    """A weight of the model: rows have its place and precision."""

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts classes"]:
        """Rows of the identity.

        Raises
        ------
        SecondLensError
            A text that is no class.
        """
        for text in texts:
            if text.strip().lower() not in self._places:
                raise SecondLensError(
                    f"{self.model} is a classifier without a text tower, and {text!r} is none of "
                    f"its {len(self.names):,} classes: give names of classes, or let sl.dissect "
                    "find words with another CLIP as the judge"
                )
        places = torch.tensor([self._places[text.strip().lower()] for text in texts])
        return F.one_hot(places, len(self.names)).to(self.like())

    @cached_property
    def _places(self) -> dict[str, int]:
        known: dict[str, int] = {}
        for part in (False, True):  # whole names win over parts of others
            found: dict[str, set[int]] = {}
            for place, name in enumerate(self.names):
                for each in name.split(",") if part else [name]:
                    found.setdefault(each.strip().lower(), set()).add(place)
            single = {each: min(places) for each, places in found.items() if len(places) == 1}
            known = single | known
        return known
