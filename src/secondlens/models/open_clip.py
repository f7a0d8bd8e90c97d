"""The `Clip` of an open_clip model: its weights split by head, or the reason why it has none."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    LayerScale,
    ResidualAttentionBlock,
    VisionTransformer,
)
from PIL.Image import Image
from torch import Tensor, nn
from torch.func import functional_call

from ..arguments import checked
from ..errors import UnsupportedModel
from ..naming import shown
from .checks import activation_name, check_parity
from .resizing import interpolated
from .view import Block, Clip, check_eval, is_affine


@checked
def from_open_clip(
    model: nn.Module,
    preprocess: Callable[[Image], Tensor] | None = None,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    name: str = "open_clip model",
    check: bool = True,
) -> Clip:
    """View an open_clip model that is in memory. The model itself is never changed.

    Parameters
    ----------
    model
        An `open_clip.CLIP` or `CustomTextCLIP` with a vision transformer, in eval mode, on the
        device and in the precision it shall keep.
    preprocess
        Its inference transform; without it, images must come preprocessed.
    tokenizer
        From `open_clip.get_tokenizer`; without it, there is no `encode_text`.
    name
        What it is called in messages and in what is written; of a path, the last part.
    check
        Whether to run `check_parity`.

    Raises
    ------
    SecondLensError
        The model is in training mode, or has NaN or infinite weights.
    UnsupportedModel
        The tower computes something that the effects do not describe.
    """
    check_covered(model, name)
    check_eval(model)
    tower: Any = model.visual
    attention = tower.transformer.resblocks[0].attn

    clip = Clip(
        name=shown(name),
        origin=name,
        activation=activation_name(tower.transformer.resblocks[0].mlp.gelu),
        blocks=tuple(_block(block) for block in tower.transformer.resblocks),
        ln_post=tower.ln_post,
        post_gain=tower.ln_post.weight.detach(),
        post_bias=tower.ln_post.bias.detach(),
        post_eps=tower.ln_post.eps,
        projection=tower.proj.detach(),
        image_size=tuple(tower.image_size),
        grid=tuple(tower.grid_size),
        # only nn.MultiheadAttention knows both layouts; open_clip's own attention has one
        batch_first=getattr(attention, "batch_first", True),
        dtype=tower.conv1.weight.dtype,
        model=model,
        # no functions within this one: a model must be able to go to other processes
        image_tower=partial(_encode_image, tower),
        text_tower=None if tokenizer is None else partial(_encode_text, model, tokenizer),
        preprocess=preprocess,
        context_length=getattr(model, "context_length", Clip.context_length),
    )
    if check:
        check_parity(clip)
    return clip


def check_covered(model: Any, name: str) -> None:
    """Raise `UnsupportedModel` if the mathematics does not describe the model's image tower.

    Its weights are not looked at, so that they need not be there.
    """
    for reason in _refusals(getattr(model, "visual", None)):
        raise UnsupportedModel(f"{name} cannot be explained: {reason}")


def _encode_image(tower: Any, images: Tensor) -> Tensor:
    grid = images.shape[-2] // tower.patch_size[0], images.shape[-1] // tower.patch_size[1]
    if grid == tuple(tower.grid_size):
        output = tower(images)
    else:
        positions = interpolated(tower.positional_embedding, tower.grid_size, grid)
        output = functional_call(tower, {"positional_embedding": positions}, images)
    embeddings: Tensor = output[0] if tower.output_tokens else output
    return embeddings


def _encode_text(model: Any, tokenizer: Callable[..., Tensor], texts: list[str]) -> Tensor:
    embeddings: Tensor = model.encode_text(tokenizer(texts).to(model.visual.proj.device))
    return embeddings


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    added: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + added


def _refusals(tower: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe this image tower."""
    if not isinstance(tower, VisionTransformer):
        yield (
            f"its image tower is a {type(tower).__name__}, and only open_clip's VisionTransformer "
            "is covered, no ResNet and no timm model"
        )
        return
    if tower.attn_pool is not None:
        yield "it pools by attention, and effects are read at the class token"
    if tower.pool_type != "tok":
        yield f"its pooling is {tower.pool_type!r}, and effects are read at the class token ('tok')"
    if tower.proj is None:
        yield "it has no output projection"
    if not is_affine(tower.ln_post):
        yield "ln_post is no LayerNorm with gain and bias"
    for j, block in enumerate(tower.transformer.resblocks):
        for reason in _block_refusals(block):
            yield f"block {j} {reason}"


def _block_refusals(block: Any) -> Iterator[str]:
    if type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock):
        yield f"is a {type(block).__name__}, which is not covered"
        return
    attention, mlp = block.attn, block.mlp
    if type(attention) not in (nn.MultiheadAttention, Attention):
        yield f"has attention of class {type(attention).__name__}, which is not covered"
        return
    for scale in (block.ls_1, block.ls_2):
        if not isinstance(scale, LayerScale | nn.Identity):
            yield f"scales its layers by a {type(scale).__name__}, which is not covered"
    if not is_affine(block.ln_1):
        yield "has an ln_1 that is no LayerNorm with gain and bias"
    if hasattr(block, "ln_1_kv"):
        yield "attends across sequences"
    if _is_active(attention, "ln_q") or _is_active(attention, "ln_k"):
        yield "normalises queries and keys (qk_norm)"
    if getattr(attention, "logit_scale", None) is not None:
        yield "has scaled cosine attention"
    if getattr(attention, "head_scale", None) is not None:
        yield "scales its heads (scale_heads)"
    if _is_active(attention, "ln_inner"):
        yield "has a norm inside attention (scale_attn_inner)"
    if _is_active(block, "ln_attn"):
        yield "has a norm after attention (scale_attn)"
    if _is_active(mlp, "ln"):
        yield "has a norm inside the MLP (scale_fc)"
    if attention.in_proj_weight is None or attention.in_proj_bias is None:
        yield "has no joint query, key and value projection with biases"
    if not _is_active(mlp, "gelu"):
        yield "has no activation in its MLP, so no neurons"


def _is_active(parent: nn.Module, name: str) -> bool:
    return not isinstance(getattr(parent, name, None), nn.Identity | None)


def _block(block: Any) -> Block:
    """View an open_clip block."""
    attention, mlp, heads = block.attn, block.mlp, block.attn.num_heads
    weights = attention.in_proj_weight.detach().unflatten(0, (3, heads, -1))
    biases = attention.in_proj_bias.detach().unflatten(0, (3, heads, -1))
    output = _scaled(block.ls_1, attention.out_proj.weight.detach().T)
    return Block(
        module=block,
        ln_1=block.ln_1,
        ln_2=block.ln_2,
        mlp_input=mlp.c_fc,
        activation=mlp.gelu,
        attention_end=block.ls_1,
        mlp_end=block.ls_2,
        gain=block.ln_1.weight.detach(),
        bias=block.ln_1.bias.detach(),
        eps=block.ln_1.eps,
        query=weights[0],
        key=weights[1],
        value=weights[2],
        query_bias=biases[0],
        key_bias=biases[1],
        value_bias=biases[2],
        output=output.unflatten(0, (heads, -1)),
        output_bias=_scaled(block.ls_1, attention.out_proj.bias.detach()),
        neuron_rows=_scaled(block.ls_2, mlp.c_proj.weight.detach().T),
        mlp_bias=_scaled(block.ls_2, mlp.c_proj.bias.detach()),
        mlp_half=partial(_mlp_half, block),
    )


def _scaled(scale: nn.Module, weight: Tensor) -> Tensor:
    return weight * scale.gamma.detach() if isinstance(scale, LayerScale) else weight
