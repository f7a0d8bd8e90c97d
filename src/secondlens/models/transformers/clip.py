"""CLIP and MetaCLIP 2 of transformers: a class token, and a projection without a bias."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..blocks import detached, is_affine
from .families import SIZES, Family, TowerView, both
from .layers import LayerNames, layer_block, layer_refusals

PREFIXES = ("CLIP", "MetaClip2")
LAYERS = LayerNames(
    classes=frozenset(
        prefix + part for prefix in PREFIXES for part in ("EncoderLayer", "Attention", "MLP")
    ),
    ln_1="layer_norm1",
    ln_2="layer_norm2",
    attention="self_attn",
    output="out_proj",
    heads="num_heads",
)


def _vision(model: Any) -> Any:
    """The tower; older versions of transformers put another module around it."""
    return getattr(model.vision_model, "vision_model", model.vision_model)


def _view(model: Any) -> TowerView:
    vision = _vision(model)
    size, patch = both(vision.embeddings.image_size), both(vision.embeddings.patch_size)
    has_texts = hasattr(model, "text_model")
    whole = type(model).__name__.replace("VisionModelWithProjection", "Model")
    return TowerView(
        tower=(model.vision_model, model.visual_projection),
        blocks=tuple(layer_block(layer, LAYERS) for layer in vision.encoder.layers),
        ln_post=vision.post_layernorm,
        patches=vision.embeddings.patch_embedding,
        read_projection=partial(_projection, model),
        image_size=size,
        patch=patch,
        encode=partial(_encode, model, size),
        embed=partial(_embed, model) if has_texts else None,
        context_length=model.text_model.config.max_position_embeddings if has_texts else 77,
        instead=f"load the whole {whole}",
    )


def _projection(model: Any) -> Tensor:
    return detached(model.visual_projection.weight.T)


def _encode(model: Any, size: tuple[int, int], images: Tensor) -> Tensor:
    resized = tuple(images.shape[-2:]) != size
    output = model.vision_model(images, interpolate_pos_encoding=resized, return_dict=True)
    embeddings: Tensor = model.visual_projection(output.pooler_output)
    return embeddings


def _embed(model: Any, tokens: Any) -> Tensor:
    states = model.text_model(tokens.input_ids, tokens.attention_mask, return_dict=True)
    embeddings: Tensor = model.text_projection(states.pooler_output)
    return embeddings


def _refusals(model: Any) -> Iterator[str]:
    vision = _vision(model)
    if type(model.visual_projection) is not nn.Linear:
        yield f"its projection is a {type(model.visual_projection).__name__}, no plain Linear"
    if not is_affine(vision.post_layernorm):
        yield "post_layernorm is no LayerNorm with gain and bias"
    for j, layer in enumerate(vision.encoder.layers):
        for reason in layer_refusals(layer, LAYERS):
            yield f"block {j} {reason}"


CLIP = Family(
    models={
        "CLIPModel": "clip",
        "CLIPVisionModelWithProjection": "clip_vision_model",
        "MetaClip2Model": "metaclip_2",
        "MetaClip2VisionModelWithProjection": "metaclip_2_vision_model",
    },
    view=_view,
    refusals=_refusals,
    fields=SIZES,
    vision="vision_config",
)
