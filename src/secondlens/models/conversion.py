"""The same CLIP in open_clip's layout and in transformers': names of weights, and configurations.

Both libraries build the plain CLIP of OpenAI out of the same tensors. They differ in names, in
queries, keys and values that are one matrix or three, and in projections that are transposed.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import LayerScale, VisionTransformer
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .view import Clip

BLOCKS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
"""Beginnings of names in open_clip and in transformers."""
INSIDE = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
"""Of the parts of a block."""
JOINT = "attn.in_proj_"
SINGLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}
"""Names of `Clip.activation` and of transformers, for what both libraries can be told."""
EPS = 1e-5
"""Of every norm of a plain CLIP."""


def as_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an open_clip model under the names of transformers' `CLIPModel`.

    Raises
    ------
    UnsupportedModel
        One has no place there.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name in SINGLE:
            found[SINGLE[name]] = weight
        elif name in TRANSPOSED:
            found[TRANSPOSED[name]] = weight.T.contiguous()
        elif block := _split(name, 0):
            start, inner = block
            if inner.startswith(JOINT):
                for part, own in zip("qkv", weight.chunk(3), strict=True):
                    kind = inner.removeprefix(JOINT)
                    found[f"{start}self_attn.{part}_proj.{kind}"] = own.contiguous()
            else:
                found[start + _inside(inner, 0)] = weight
        else:
            raise UnsupportedModel(f"its weight {name} has no place in transformers' CLIPModel")
    return found


def as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of transformers' `CLIPModel` under the names of open_clip.

    Raises
    ------
    UnsupportedModel
        One has no place there.
    """
    single = {other: name for name, other in SINGLE.items()}
    transposed = {other: name for name, other in TRANSPOSED.items()}
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name in single:
            found[single[name]] = weight
        elif name in transposed:
            found[transposed[name]] = weight.T.contiguous()
        elif block := _split(name, 1):
            start, inner = block
            if part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", inner):
                if part[1] == "q":
                    before = name.removesuffix(inner)
                    three = [weights[f"{before}self_attn.{x}_proj.{part[2]}"] for x in "qkv"]
                    found[f"{start}{JOINT}{part[2]}"] = torch.cat(three)
            else:
                found[start + _inside(inner, 1)] = weight
        else:
            raise UnsupportedModel(f"its weight {name} has no place in open_clip's CLIP")
    return found


def _split(name: str, side: int) -> tuple[str, str] | None:
    """The beginning of a name inside a block, as the other library has it, and the rest."""
    for pair in BLOCKS:
        if name.startswith(pair[side]):
            number, _, inner = name.removeprefix(pair[side]).partition(".")
            return f"{pair[1 - side]}{number}.", inner
    return None


def _inside(name: str, side: int) -> str:
    for pair in INSIDE:
        if name.startswith(pair[side]):
            return pair[1 - side] + name.removeprefix(pair[side])
    raise UnsupportedModel(f"its blocks have {name}, which a plain CLIP does not")


def open_clip_configuration(clip: Clip) -> dict[str, Any]:
    """Return open_clip's configuration of a plain CLIP in either library, from its shapes.

    Raises
    ------
    UnsupportedModel
        It is not a plain CLIP: it has parts that one of the libraries does not know.
    """
    check_plain(clip)
    weights = _open_clip_weights(clip)
    text_width = weights["positional_embedding"].shape[1]
    if isinstance(clip.model, CLIP):
        text_heads = clip.model.transformer.resblocks[0].attn.num_heads
        head_width = clip.model.visual.proj.shape[0] // clip.heads
    else:
        model: Any = clip.model
        text_heads = model.config.text_config.num_attention_heads
        head_width = clip.width // clip.heads
    height, width = clip.image_size
    return {
        "embed_dim": clip.dim,
        "quick_gelu": clip.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": height if height == width else [height, width],
            "layers": clip.layers,
            "width": clip.width,
            "head_width": head_width,
            "patch_size": weights["visual.conv1.weight"].shape[-1],
            "mlp_ratio": clip.neurons / clip.width,
        },
        "text_cfg": {
            "context_length": weights["positional_embedding"].shape[0],
            "vocab_size": weights["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_heads,
            "layers": _count(weights, "transformer.resblocks."),
            "mlp_ratio": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / text_width,
        },
    }


def transformers_configuration(clip: Clip) -> dict[str, Any]:
    """Return the fields of transformers' `CLIPConfig` for a plain CLIP of open_clip.

    Raises
    ------
    UnsupportedModel
        It is not a plain CLIP, or takes pictures that are not square.
    """
    found = open_clip_configuration(clip)
    height, width = clip.image_size
    if height != width:
        raise UnsupportedModel(
            f"{clip.name} takes pictures of {height} x {width} pixels, and transformers builds a "
            "CLIP for square ones alone"
        )
    vision, text = found["vision_cfg"], found["text_cfg"]
    shared = {
        "hidden_act": ACTIVATIONS[clip.activation],
        "layer_norm_eps": EPS,
        "projection_dim": clip.dim,
    }
    tokenizer = getattr(clip.tokenizer, "tokenizer", clip.tokenizer)
    marks: dict[str, int | None] = {"bos_token_id": None, "pad_token_id": None}
    if isinstance(tokenizer, SimpleTokenizer):
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        marks = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    else:
        marks["eos_token_id"] = text["vocab_size"] - 1  # the highest, which open_clip reads at
    return {
        "projection_dim": clip.dim,
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": clip.neurons,
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": clip.heads,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **shared,
        },
        "text_config": {
            "hidden_size": text["width"],
            "intermediate_size": round(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            **marks,
            **shared,
        },
    }


def check_plain(clip: Clip) -> None:
    """Raise `UnsupportedModel` unless a model is the plain CLIP that both libraries can build."""
    if reason := _unplain(clip):
        raise UnsupportedModel(
            f"{clip.name} is not the plain CLIP that open_clip and transformers both build: "
            f"{reason}"
        )


def _unplain(clip: Clip) -> str | None:
    model: Any = clip.model
    if clip.activation not in ACTIVATIONS:
        return f"its activation is {clip.activation}"
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    if any(norm.eps != EPS for norm in norms):
        return f"its norms have another epsilon than {EPS:g}"
    if type(model).__name__ == "CLIPModel":
        return None
    if type(model) is not CLIP:
        return f"it is a {type(model).__name__}"
    tower = model.visual
    if not isinstance(tower, VisionTransformer):
        return f"its image tower is a {type(tower).__name__}"
    if tower.pool_type != "tok" or tower.attn_pool is not None or tower.final_ln_after_pool:
        return "its output is not the class token behind the last norm"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its text tower is not causal, or is not read where the text ends"
    if getattr(model, "logit_bias", None) is not None:
        return "it has a logit_bias"
    if any(isinstance(module, LayerScale) for module in model.modules()):
        return "it scales its layers"
    try:
        given = as_transformers(model.state_dict())
    except UnsupportedModel as error:
        return str(error)
    if missing := {*SINGLE.values(), *TRANSPOSED.values()} - given.keys():
        return f"it has no {min(missing)}"
    return None


def _open_clip_weights(clip: Clip) -> Mapping[str, Tensor]:
    weights = clip.model.state_dict()
    return weights if isinstance(clip.model, CLIP) else as_open_clip(weights)


def _count(weights: Mapping[str, Tensor], start: str) -> int:
    return len(
        {name.removeprefix(start).split(".")[0] for name in weights if name.startswith(start)}
    )
