"""Which towers of timm the mathematics describes, and why it does not describe the others.

Every class, and every field of each, is on a list here: what timm adds is refused by its name until
somebody has looked at what it does.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from timm.layers import (
    AttentionPoolLatent,
    HybridEmbed,
    PatchEmbed,
)
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..blocks import is_affine
from .blocks import MLPS, is_norm

TOWERS = (VisionTransformer, Eva)
POOLS = ("token", "avg", "map")

BIAS_OF_PAIRS = (
    "its attention adds a bias to every pair of places, and scores are read as products of queries "
    "and keys"
)
WINDOWS = (
    "it attends inside shifted windows and merges patches between its stages, so no stream of "
    "tokens goes from a neuron to the output"
)
REASONS = {
    "Beit": BIAS_OF_PAIRS,
    "FastVit": (
        "a convolution with an activation function follows its last stage, so nothing that a head "
        "writes reaches the output by a linear map"
    ),
    "SwinTransformer": WINDOWS,
    "SwinTransformerV2": WINDOWS,
    "VisionTransformerRelPos": BIAS_OF_PAIRS,
}
"""Of towers, by the name of the class."""

OUTPUT_IS_NORMED = (
    "norms what its MLP writes before that is added, so what a neuron writes is no activation "
    "times a row: it is over a scale of each token"
)
BLOCK_REASONS = {"EvaBlockPostNorm": OUTPUT_IS_NORMED, "ResPostBlock": OUTPUT_IS_NORMED}
"""Of blocks, by the name of the class."""

FIELDS: Mapping[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "VisionTransformer": (
            "_model_args _traits attn_pool blocks cls_token default_cfg dynamic_img_size embed_dim "
            "fc_norm feature_info fix_init global_pool grad_checkpointing has_class_token head "
            "head_drop head_hidden_size in_chans no_embed_class norm norm_pre num_classes "
            "num_features num_prefix_tokens num_reg_tokens patch_drop patch_embed "
            "pool_include_prefix pos_drop pos_embed pretrained_cfg pretrained_model_args reg_token "
            "weight_init_mode"
        ),
        "Eva": (
            "_model_args _traits attn_pool blocks cls_embed cls_token default_cfg dynamic_img_size "
            "embed_dim fc_norm feature_info global_pool grad_checkpointing head head_drop "
            "head_hidden_size head_init_scale in_chans no_embed_class norm norm_pre num_classes "
            "num_features num_prefix_tokens patch_drop patch_embed pos_drop pos_embed "
            "pretrained_cfg pretrained_model_args reg_token rope rope_mixed"
        ),
        "PatchEmbed": (
            "dynamic_img_pad flatten grid_size img_size norm num_patches output_fmt patch_size "
            "proj strict_img_size"
        ),
        "HybridEmbed": (
            "backbone dynamic_img_pad feature_dim feature_ratio feature_size flatten grid_size "
            "img_size in_chans num_patches output_fmt patch_size proj strict_img_size"
        ),
        "Block": "attn drop_path1 drop_path2 ls1 ls2 mlp norm1 norm2",
        "EvaBlock": "attn drop_path1 drop_path2 gamma_1 gamma_2 init_values mlp norm1 norm2",
        "Attention": (
            "attn_dim attn_drop fused_attn gate head_dim k_norm norm num_heads proj proj_drop "
            "q_norm qkv scale"
        ),
        "EvaAttention": (
            "attn_drop fused_attn gate head_dim k_bias k_norm k_proj norm num_heads "
            "num_prefix_tokens proj proj_drop q_bias q_norm q_proj qkv qkv_bias_separate "
            "rotate_half scale v_bias v_proj"
        ),
        "AttentionRope": (
            "attn_dim attn_drop fused_attn gate head_dim k_norm k_proj kv_dim norm num_heads "
            "num_kv_groups num_kv_heads num_prefix_tokens proj proj_drop q_norm q_proj qkv "
            "rotate_half scale v_proj"
        ),
        "Mlp": "act drop1 drop2 fc1 fc2 norm",
        "GluMlp": "act chunk_dim drop1 drop2 fc1 fc2 gate_last norm",
        "SwiGLU": "act drop1 drop2 fc1_g fc1_x fc2 norm",
        "GeGluMlp": "act drop1 drop2 norm w0 w1 w2",
        "AttentionPoolLatent": (
            "feat_size fused_attn head_dim k_norm kv latent latent_dim latent_len mlp norm "
            "num_heads out_features pool pos_embed proj proj_drop q q_norm scale"
        ),
    }.items()
}
"""Names of all that a module holds and that is read, or known to change nothing at inference."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))

ROTARY = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3", "RotaryEmbeddingMixed")
BLOCKS = ("Block", "EvaBlock")
ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention")


def refusals(trunk: Any, head: nn.Module) -> Iterator[str]:
    """Reasons why the mathematics does not describe a tower of timm, and what follows it."""
    if type(trunk) not in TOWERS:
        name = type(trunk).__name__
        yield REASONS.get(name, f"its image tower is a {name} of timm, which is not covered")
        return
    yield from _unknown_fields("its image tower", trunk)
    if trunk.global_pool not in POOLS:
        yield f"its pooling is {trunk.global_pool!r}, and only {', '.join(POOLS)} are covered"
    if type(trunk.patch_embed) not in (PatchEmbed, HybridEmbed):
        yield f"its patches are embedded by a {type(trunk.patch_embed).__name__}, not covered"
        return
    yield from _unknown_fields("the embedding of its patches", trunk.patch_embed)
    if trunk.patch_embed.img_size is None:
        yield "it has no size of pictures of its own"
    if trunk.patch_embed.dynamic_img_pad:
        yield "it pads pictures (dynamic_img_pad), and every patch is read as a part of the picture"
    rope = getattr(trunk, "rope", None)
    if rope is not None and type(rope).__name__ not in ROTARY:
        yield f"its positions are a {type(rope).__name__}, which is not covered"
    last = [norm for norm in (trunk.norm, trunk.fc_norm) if is_norm(norm)]
    if len(last) > 1:
        yield "it has two norms after its last block, before its tokens are pooled and after"
    if not all(map(is_affine, last)):
        yield f"its last norm is a {type(last[0]).__name__}, no LayerNorm with gain and bias"
    yield from _head_refusals(trunk, head)
    if trunk.attn_pool is not None:
        for reason in _pool_refusals(trunk.attn_pool):
            yield f"its attention pool {reason}"
    for j, block in enumerate(trunk.blocks):
        for reason in _block_refusals(block):
            yield f"block {j} {reason}"


def projections(trunk: Any, head: nn.Module) -> list[nn.Linear]:
    """Return the linear layers after the last norm or pool, in order."""
    after = [trunk.head, *head.children()]
    return [module for module in after if isinstance(module, nn.Linear)]


def _head_refusals(trunk: Any, head: nn.Module) -> Iterator[str]:
    for module in (trunk.head, *head.children()):
        if type(module) not in (nn.Linear, nn.Identity, nn.Dropout):
            yield (
                f"its head has a {type(module).__name__}, and the embedding is read by a linear map"
            )
    if len(projections(trunk, head)) > 1:
        yield "it has two output projections, one after another"


def _pool_refusals(pool: nn.Module) -> Iterator[str]:
    if type(pool) is not AttentionPoolLatent:
        yield f"is a {type(pool).__name__}, which is not covered"
        return
    yield from _unknown_fields("", pool)
    if pool.latent_len != 1:
        yield f"has {pool.latent_len} queries, and one is read"
    if pool.pos_embed is not None:
        yield "has positions of its own"
    if is_norm(pool.q_norm) or is_norm(pool.k_norm):
        yield "normalises queries and keys"
    if type(pool.proj) is not nn.Linear:
        yield "has no output matrix"


def _block_refusals(block: Any) -> Iterator[str]:
    kind = type(block).__name__
    if kind not in BLOCKS:
        yield BLOCK_REASONS.get(kind, f"is a {kind}, which is not covered")
        return
    attention, mlp = block.attn, block.mlp
    if type(attention).__name__ not in ATTENTIONS:
        yield f"has attention of class {type(attention).__name__}, which is not covered"
        return
    if type(mlp).__name__ not in MLPS:
        yield f"has an MLP of class {type(mlp).__name__}, which is not covered"
        return
    for module in (block, attention, mlp):
        yield from _unknown_fields("", module)
    if not is_affine(block.norm1):
        kind = type(block.norm1).__name__
        yield f"has a {kind} before attention, no LayerNorm with gain and bias"
    if getattr(attention, "gate", None) is not None:
        yield "gates what its heads read by a function of the token that looks (gate)"
    inner: Any = getattr(attention, "norm", None)
    if is_norm(inner) and not is_affine(inner):
        yield f"has a {type(inner).__name__} inside attention, no LayerNorm with gain and bias"
    scales = (getattr(block, "ls1", None), getattr(block, "ls2", None))
    yield from _others("scales its layers by", scales, ("LayerScale", "Identity"))
    paths = (block.drop_path1, block.drop_path2)
    yield from _others("drops its layers by", paths, ("DropPath", "Identity"))
    linears = [attention.proj, getattr(mlp, MLPS[type(mlp).__name__].writes)]
    linears += [getattr(attention, each, None) for each in ("qkv", "q_proj", "k_proj", "v_proj")]
    yield from _others("reads or writes by", linears, ("Linear",))


def _others(what: str, modules: Iterable[Any], known: tuple[str, ...]) -> Iterator[str]:
    for module in modules:
        if module is not None and type(module).__name__ not in known:
            yield f"{what} a {type(module).__name__}, which is not covered"


def _unknown_fields(where: str, module: nn.Module) -> Iterator[str]:
    """What a module holds and no list knows: timm may have given it a new part."""
    held = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    kind = type(module).__name__
    for field in sorted(held - OF_EVERY_MODULE - FIELDS[kind] - {"forward"}):
        yield f"{where} has {field!r} in its {kind}, which is not covered".strip()
