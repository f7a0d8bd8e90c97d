"""Plain vision transformers of transformers: a classifier, whose texts are its classes, or none.

The embedding of a classifier is its logits; that of a `ViTModel` is the class token behind the last
norm, and its pooler, a layer with a tanh for some other task, is not read.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..blocks import detached, is_affine
from .families import (
    SIZES,
    Family,
    TowerView,
    both,
    identity,
)
from .layers import BUILT_OTHERWISE, LayerNames, layer_block, layer_refusals

LAYERS = LayerNames(
    classes=frozenset({"ViTLayer", "ViTAttention", "ViTMLP"}),
    ln_1="layernorm_before",
    ln_2="layernorm_after",
    attention="attention",
    output="o_proj",
    heads="num_attention_heads",
)


def _trunk(model: Any) -> Any:
    return getattr(model, "vit", model)


def _view(model: Any) -> TowerView:
    trunk, config = _trunk(model), model.config
    head = getattr(model, "classifier", None)
    names = None
    if head is not None:
        names = tuple(str(config.id2label[place]) for place in range(config.num_labels))
    return TowerView(
        tower=(model,),
        blocks=tuple(layer_block(layer, LAYERS) for layer in trunk.layers),
        ln_post=trunk.layernorm,
        patches=trunk.embeddings.patch_embeddings.projection,
        read_projection=partial(identity, trunk.layernorm)
        if head is None
        else partial(_projection, head),
        read_offset=None if head is None or head.bias is None else partial(_offset, head),
        image_size=both(config.image_size),
        patch=both(config.patch_size),
        encode=partial(_encode, model),
        instead="let sl.dissect find words with another CLIP as the judge",
        classes=names,
    )


def _projection(head: Any) -> Tensor:
    return detached(head.weight.T)


def _offset(head: Any) -> Tensor:
    return detached(head.bias)


def _encode(model: Any, images: Tensor) -> Tensor:
    resized = tuple(images.shape[-2:]) != both(model.config.image_size)
    output = model(images, interpolate_pos_encoding=resized)
    embeddings: Tensor = output.logits if hasattr(output, "logits") else output[0][:, 0]
    return embeddings


def _refusals(model: Any) -> Iterator[str]:
    trunk = _trunk(model)
    head = getattr(model, "classifier", None)
    if head is not None and type(head) is not nn.Linear:
        yield f"its classifier is a {type(head).__name__}, no plain Linear"
    if not hasattr(trunk, "layers"):
        yield f"it {BUILT_OTHERWISE}"
        return
    if not is_affine(trunk.layernorm):
        yield "its last norm is no LayerNorm with gain and bias"
    for j, layer in enumerate(trunk.layers):
        for reason in layer_refusals(layer, LAYERS):
            yield f"block {j} {reason}"


VIT = Family(
    models={"ViTModel": "vit", "ViTForImageClassification": "vit"},
    view=_view,
    refusals=_refusals,
    fields=SIZES
    | {
        "attention_probs_dropout_prob",
        "encoder_stride",
        "hidden_dropout_prob",
        "pooler_act",
        "pooler_output_size",
        "qkv_bias",
    },
    options={"ViTModel": {"add_pooling_layer": False}},
    unread=("pooler.",),
)
