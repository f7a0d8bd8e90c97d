"""ConvNeXt towers of timm inside open_clip: the last stage's channels, averaged and normed.

There is no attention, so no value carries what a channel writes: all effects are direct. Where an
MLP follows the average, it is linearised at each image (see `heads`).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers import Mlp, NormMlpClassifierHead
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ..blocks import detached, is_affine
from ..checks import activation_name
from ..readers import MeanOfPatches
from ..wrappers import not_compiled, unwrapped
from .heads import MlpHead
from .stages import Stage

STRIDE = 32
"""Pixels from one place of the last stage to the next."""


def is_convnext(tower: Any) -> bool:
    """Whether the trunk of a `TimmModel` is one."""
    return isinstance(unwrapped(tower.trunk), ConvNeXt)


def refusals(tower: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe a tower whose trunk is a ConvNeXt."""
    trunk = unwrapped(tower.trunk)
    pooling = trunk.head
    if type(pooling) is not NormMlpClassifierHead or pooling.global_pool.pool_type != "avg":
        yield "it does not average its places before the last norm"
        return
    if trunk.stages[-1].blocks[0].conv_dw.stride != (1, 1) or _stride(trunk) != STRIDE:
        yield f"a place of its last stage is not {STRIDE} pixels from the next"
    if not is_affine(pooling.norm):
        yield "its last norm is no LayerNorm with gain and bias"
    for part in (trunk.norm_pre, pooling.pre_logits, pooling.fc):
        if not isinstance(part, nn.Identity):
            yield f"there is a {type(part).__name__} between its last stage and open_clip's head"
    if _linear(tower) is None:
        yield "its head is neither a Linear layer nor an MLP of two with an activation between"


def _stride(trunk: Any) -> int:
    return int(trunk.feature_info[-1]["reduction"])


def _linear(tower: Any) -> nn.Linear | None:
    """The layer behind the last norm, if the head is covered."""
    linear = getattr(tower.head, "proj", None)
    if mlp := _mlp(tower):
        linear = mlp.fc1
    return linear if type(linear) is nn.Linear else None


def _mlp(tower: Any) -> Any:
    mlp = getattr(tower.head, "mlp", None)
    plain = type(mlp) is Mlp and isinstance(mlp.norm, nn.Identity) and type(mlp.fc2) is nn.Linear
    return mlp if plain else None


def image_parts(tower: Any) -> dict[str, Any]:
    """Return what a `Clip` holds of a tower that `refusals` does not refuse."""
    trunk, linear, mlp = unwrapped(tower.trunk), _linear(tower), _mlp(tower)
    assert linear is not None
    identity = nn.Identity().eval()
    stage = Stage(
        module=trunk.stages[-1],
        activation=identity,  # a channel is a sum, and nothing else happens to it
        mlp_output=trunk.norm_pre,
        mlp_end=trunk.stages[-1],
        like=trunk.head.norm,
        channels=trunk.num_features,
    )
    height, width = tower.image_size
    return {
        "activation": activation_name(identity),
        "blocks": (stage,),
        "ln_post": trunk.head.norm,
        "patches": trunk.stem[0],
        "read_projection": partial(_projection, linear),
        "read_offset": None if linear.bias is None else partial(_offset, linear),
        "head": MlpHead(activation=mlp.act, output=mlp.fc2) if mlp else None,
        "image_size": (height, width),
        "grid": (height // STRIDE, width // STRIDE),
        "batch_first": True,
        "maps": True,
        "prefix": 0,
        "reader": MeanOfPatches(prefix=0),
        "image_tower": partial(_encode_image, tower),
    }


def _projection(linear: nn.Linear) -> Float[Tensor, "width dim"]:
    return detached(linear.weight.T)


def _offset(linear: nn.Linear) -> Float[Tensor, " dim"]:
    return detached(linear.bias)


def _encode_image(tower: nn.Module, images: Tensor) -> Tensor:
    with not_compiled(tower):
        embeddings: Tensor = tower(images)
        return embeddings
