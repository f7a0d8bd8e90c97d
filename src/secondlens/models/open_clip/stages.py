"""The last stage of a convolutional tower, seen as one block: its channels are the neurons.

A channel is read at every place of the stage's output, and writes itself. There is no attention in
a stage, so a block of this kind has no heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks import Block, detached


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage(Block):
    """View of a stage: `mlp_output` is the module that gets what `mlp_end`, the stage, gives."""

    like: Any
    """A module of the tower with a weight: what is made here has its place and precision."""
    channels: int
    ln_1: Any = None
    ln_2: Any = None
    attention_end: Any = None
    mlp_input: Any = None

    @property
    def query(self) -> Float[Tensor, "heads head_width width"]:
        """See `Block`: there is none, as with the five below."""
        return self._empty(0, 0, self.channels)

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `query`."""
        return self._empty(0, 0, self.channels)

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `query`."""
        return self._empty(0, 0, self.channels)

    @property
    def output(self) -> Float[Tensor, "heads head_width width"]:
        """See `query`."""
        return self._empty(0, 0, self.channels)

    @property
    def query_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `query`."""
        return self._empty(0, 0)

    @property
    def key_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `query`."""
        return self._empty(0, 0)

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `query`."""
        return self._empty(0, 0)

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """See `Block`: zeros."""
        return self.mlp_bias

    @property
    def neuron_rows(self) -> Float[Tensor, "neurons width"]:
        """See `Block`: each channel writes itself."""
        weight = self._weight
        return torch.eye(self.channels, dtype=weight.dtype, device=weight.device)

    @property
    def mlp_bias(self) -> Float[Tensor, " width"]:
        """See `Block`: zeros."""
        return self._weight.new_zeros(self.channels)

    @property
    def _weight(self) -> Tensor:
        return detached(self.like.weight)

    def _empty(self, *shape: int) -> Tensor:
        return self._weight.new_empty(shape)
