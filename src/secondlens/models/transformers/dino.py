"""DINOv2 and DINOv3 of transformers: a class token, registers, and no text tower.

The embedding is the class token behind the last norm. What turns queries and keys of DINOv3's
patches by their places changes where heads look, and nothing of what they carry.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks import is_affine
from .families import (
    SIZES,
    Family,
    TowerView,
    both,
    identity,
)
from .layers import LayerBlock, LayerNames, layer_block, layer_refusals

PREFIXES = ("Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
PARTS = ("Layer", "Attention", "MLP", "SwiGLUFFN", "GatedMLP")
VERSION_2 = LayerNames(
    classes=frozenset(prefix + part for prefix in PREFIXES for part in PARTS),
    ln_1="norm1",
    ln_2="norm2",
    attention="attention",
    output="o_proj",
    heads="num_attention_heads",
    scales=("layer_scale1", "layer_scale2"),
)
VERSION_3 = replace(VERSION_2, heads="num_heads")


@dataclass(frozen=True, kw_only=True, eq=False)
class RotaryBlock(LayerBlock):
    """A block that turns queries and keys of patches by their places."""

    rotary: Any
    """Gives cosines and sines of patches for pictures of a shape."""
    patch: tuple[int, int]
    """Pixels of one, in height and width."""
    grid: tuple[int, int]

    def at_grid(self, grid: tuple[int, int]) -> "RotaryBlock":
        """See `Block`."""
        return replace(self, grid=grid)

    def placed(
        self, heads: Float[Tensor, "images heads tokens head_width"], *, queries: bool
    ) -> Float[Tensor, "images heads tokens head_width"]:
        """See `Block`: pairs of numbers turn by an angle; the prefix stays."""
        height, width = (cells * side for cells, side in zip(self.grid, self.patch, strict=True))
        blank = self.query_map.weight.new_empty(1, 3, height, width)
        cosines, sines = (each.to(heads) for each in self.rotary(blank))
        prefix, patches = heads.split([heads.shape[2] - len(sines), len(sines)], dim=2)
        one, other = patches.chunk(2, dim=-1)
        turned = patches * cosines + torch.cat([-other, one], dim=-1) * sines
        return torch.cat([prefix, turned], dim=2)


def _view_2(model: Any) -> TowerView:
    embeddings = model.embeddings
    return TowerView(
        blocks=tuple(layer_block(layer, VERSION_2) for layer in model.encoder.layer),
        ln_post=model.layernorm,
        patches=embeddings.patch_embeddings.projection,
        read_projection=partial(identity, model.layernorm),
        prefix=1 + getattr(model.config, "num_register_tokens", 0),
        **_common(model),
    )


def _view_3(model: Any) -> TowerView:
    size, patch = both(model.config.image_size), both(model.config.patch_size)
    grid = (size[0] // patch[0], size[1] // patch[1])
    places = {"rotary": model.rope_embeddings, "patch": patch, "grid": grid}
    return TowerView(
        blocks=tuple(
            layer_block(layer, VERSION_3, RotaryBlock, **places) for layer in _layers_3(model)
        ),
        ln_post=model.norm,
        patches=model.embeddings.patch_embeddings,
        read_projection=partial(identity, model.norm),
        prefix=1 + model.config.num_register_tokens,
        **_common(model),
    )


def _layers_3(model: Any) -> Any:
    """Of DINOv3; older versions of transformers put no module around them."""
    return getattr(model, "model", model).layer


def _common(model: Any) -> dict[str, Any]:
    return {
        "tower": (model,),
        "image_size": both(model.config.image_size),
        "patch": both(model.config.patch_size),
        "encode": partial(_encode, model),
        "any_size": True,
        "instead": "let sl.dissect find words with another CLIP as the judge",
    }


def _encode(model: Any, images: Tensor) -> Tensor:
    embeddings: Tensor = model(images).pooler_output
    return embeddings


def _refusals_2(model: Any) -> Iterator[str]:
    yield from _refusals(model.layernorm, model.encoder.layer, VERSION_2)


def _refusals_3(model: Any) -> Iterator[str]:
    yield from _refusals(model.norm, _layers_3(model), VERSION_3)


def _refusals(norm: Any, layers: Any, names: LayerNames) -> Iterator[str]:
    if not is_affine(norm):
        yield "its last norm is no LayerNorm with gain and bias"
    for j, layer in enumerate(layers):
        for reason in layer_refusals(layer, names):
            yield f"block {j} {reason}"


BACKBONE = {
    "_out_features",
    "_out_indices",
    "apply_layernorm",
    "drop_path_rate",
    "layerscale_value",
    "num_register_tokens",
    "out_features",
    "out_indices",
    "reshape_hidden_states",
    "stage_names",
}
"""Fields of all versions; those of feature maps change nothing of a whole model."""

DINO_2 = Family(
    models={
        "Dinov2Model": "dinov2",
        "Dinov2WithRegistersModel": "dinov2_with_registers",
    },
    view=_view_2,
    refusals=_refusals_2,
    fields=SIZES
    | BACKBONE
    | {
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "mlp_ratio",
        "qkv_bias",
        "use_mask_token",
        "use_swiglu_ffn",
    },
)
DINO_3 = Family(
    models={"DINOv3ViTModel": "dinov3_vit"},
    view=_view_3,
    refusals=_refusals_3,
    fields=SIZES
    | BACKBONE
    | {
        "key_bias",
        "mlp_bias",
        "pos_embed_jitter",
        "pos_embed_rescale",
        "pos_embed_shift",
        "proj_bias",
        "query_bias",
        "rope_parameters",
        "rope_theta",
        "use_gated_mlp",
        "value_bias",
    },
)
