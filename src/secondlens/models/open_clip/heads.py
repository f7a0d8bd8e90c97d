"""What lies behind the projection of a few towers and is not linear."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks import detached


@dataclass(frozen=True, kw_only=True, eq=False)
class MlpHead:
    """An activation function and a linear layer, which turn the projection's output into the
    embedding."""

    activation: Any
    output: Any

    @property
    def dim(self) -> int:
        """Of the embedding."""
        dim: int = self.output.out_features
        return dim

    def __call__(self, projected: Float[Tensor, "images hidden"]) -> Float[Tensor, "images dim"]:
        """The embedding, in the precision of what is given."""
        weight = detached(self.output.weight).to(projected)
        embedded: Tensor = self.activation(projected) @ weight.T
        return embedded if self.output.bias is None else embedded + detached(self.output.bias)

    def derivative(
        self, projected: Float[Tensor, "images hidden"]
    ) -> Float[Tensor, "images hidden dim"]:
        """How the embedding moves with the projection's output, at each image."""
        with torch.enable_grad():
            point = projected.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.activation(point).sum(), point)
        moved: Tensor = slope[:, :, None] * detached(self.output.weight).to(projected).T
        return moved
