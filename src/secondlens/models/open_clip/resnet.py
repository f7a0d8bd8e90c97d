"""OpenAI's ResNets, as open_clip builds them: an attention pool reads the last stage's channels.

The pool sees the mean of all places and the places themselves, each with its position added, and
the mean asks. A neuron is a channel of the last stage, and a path is a head of the pool, after Bu
and Gandelsman (arXiv 2509.19943). At the mean a channel acts as strongly as on average, so that
effects of all channels and what the positions carry are together all that the pool gives but its
biases.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.func import functional_call

from ..blocks import detached
from ..checks import activation_name
from ..readers import AttentionPool, Pool
from ..resizing import interpolated
from ..wrappers import not_compiled
from .stages import Stage

STRIDE = 32
"""Pixels from one place of the last stage to the next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResNetPool(Pool):
    """View of the pool: `module` makes its tokens itself, out of the last stage's output."""

    def read_from(
        self, inputs: tuple[Any, ...], output: Any
    ) -> Float[Tensor, "images tokens width"]:
        """See `Attention`: the mean and all places, with their positions."""
        places = inputs[0].flatten(2).mT
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        # inside a pass these are the positions for its pictures, see `_encode_image`
        return tokens + detached(self.module.positional_embedding).to(tokens)

    def row(
        self, normalised: Float[Tensor, "images tokens width"], dtype: torch.dtype
    ) -> Float[Tensor, "images heads tokens"]:
        """See `Pool`: the mean token asks; the bias of keys shifts all scores of a head alike."""
        tokens = normalised.to(dtype)
        query = self._by_head(self.module.q_proj.weight).to(dtype)
        key = self._by_head(self.module.k_proj.weight).to(dtype)
        asked = torch.einsum("bw,hew->bhe", tokens[:, 0], query)
        asked = (asked + self._by_head(self.module.q_proj.bias)) * query.shape[1] ** -0.5
        folded = torch.einsum("bhe,hew->bhw", asked, key)
        return torch.bmm(folded, tokens.mT).softmax(dim=-1)

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Attention`."""
        return self._by_head(self.module.v_proj.weight)

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Attention`."""
        return self._by_head(self.module.v_proj.bias)

    @property
    def output(self) -> Float[Tensor, "heads head_width dim"]:
        """See `Attention`: to the embedding at once."""
        return self._by_head(self.module.c_proj.weight.T)

    @property
    def output_bias(self) -> Float[Tensor, " dim"]:
        """See `Attention`."""
        return detached(self.module.c_proj.bias)

    def _by_head(self, weight: Tensor) -> Float[Tensor, "heads head_width *width"]:
        split: Tensor = detached(weight).unflatten(0, (self.module.num_heads, -1))
        return split


def refusals(tower: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe a `ModifiedResNet`."""
    if type(tower.attnpool) is not AttentionPool2d:
        yield f"it pools by a {type(tower.attnpool).__name__}, and only its own pool is covered"


def image_parts(tower: Any) -> dict[str, Any]:
    """Return what a `Clip` holds of a `ModifiedResNet` that `refusals` does not refuse."""
    pool, activation = tower.attnpool, tower.layer4[-1].act3
    stage = Stage(
        module=tower.layer4,
        activation=activation,
        mlp_output=pool,
        mlp_end=tower.layer4,
        like=pool.v_proj,
        channels=pool.v_proj.in_features,
    )
    side = tower.image_size // STRIDE
    return {
        "activation": activation_name(activation),
        "blocks": (stage,),
        "ln_post": pool,
        "patches": tower.conv1,
        "read_projection": partial(_projection, pool),
        "image_size": (tower.image_size,) * 2,
        "grid": (side, side),
        "batch_first": True,
        "maps": True,
        "reader": AttentionPool(ResNetPool(module=pool, ln_1=pool, attention_end=pool)),
        "image_tower": partial(_encode_image, tower, (side, side)),
    }


def _projection(pool: Any) -> Float[Tensor, "dim dim"]:
    """The identity: the pool's output is the embedding."""
    bias = detached(pool.c_proj.bias)
    return torch.eye(len(bias), dtype=bias.dtype, device=bias.device)


def _encode_image(tower: nn.Module, grid: tuple[int, int], images: Tensor) -> Tensor:
    wanted = images.shape[-2] // STRIDE, images.shape[-1] // STRIDE
    name = "attnpool.positional_embedding"
    with not_compiled(tower):
        if wanted == grid:
            embeddings: Tensor = tower(images)
        else:
            positions = interpolated(tower.get_parameter(name), grid, wanted)
            embeddings = functional_call(tower, {name: positions}, images)
    return embeddings
