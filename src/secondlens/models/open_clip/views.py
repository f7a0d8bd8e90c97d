"""The `Clip` of an open_clip model: its weights split by head, or the reason why it has none."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    AttentionalPooler,
    VisionTransformer,
)
from open_clip.utils import to_2tuple
from PIL.Image import Image
from torch import Tensor, nn
from torch.func import functional_call

from ...arguments import checked
from ...devices import undisturbed
from ...errors import SecondLensWarning, UnsupportedModel
from ...naming import shown
from ..blocks import is_affine
from ..checks import activation_name, check_parity
from ..readers import (
    AttentionPool,
    ClassToken,
    LearnedPool,
    MeanOfPatches,
    Reader,
)
from ..resizing import interpolated, squeezed
from ..timm import covered as timm_covered
from ..timm import views as timm
from ..view import Clip, check_eval
from ..wrappers import not_compiled, plain, unwrapped
from . import convnext, resnet
from .blocks import block_refusals, view_of_block
from .texts import text_tower


@checked
@undisturbed
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
        An `open_clip.CLIP` or `CustomTextCLIP` with a vision transformer, open_clip's own or one of
        timm, in eval mode, on the device and in the precision it shall keep.
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
    model = plain(model, name)
    check_covered(model, name)
    check_eval(model)
    tower: Any = unwrapped(model.visual)
    parts = _image_parts(tower)
    clip = Clip(
        name=shown(name),
        origin=name,
        model=model,
        # no functions within this one: a model must be able to go to other processes
        text_tower=None if tokenizer is None else partial(_encode_text, model, tokenizer),
        tokenizer=tokenizer,
        preprocess=_for_the_tower(
            preprocess, tuple(to_2tuple(tower.image_size)), parts["image_size"], name
        ),
        text_view=partial(text_tower, tokenizer=tokenizer, check=check),
        view_of=partial(from_open_clip, name=name, check=False),
        context_length=getattr(model, "context_length", Clip.context_length),
        **parts,
    )
    if check:
        check_parity(clip)
    return clip


def _image_parts(tower: Any) -> dict[str, Any]:
    """What a `Clip` holds of an image tower."""
    if isinstance(tower, TimmModel) and convnext.is_convnext(tower):
        return convnext.image_parts(tower)
    if isinstance(tower, TimmModel):
        return timm.image_parts(unwrapped(tower.trunk), tower.head)
    if isinstance(tower, ModifiedResNet):
        return resnet.image_parts(tower)
    blocks = tower.transformer.resblocks
    return {
        "activation": activation_name(blocks[0].mlp.gelu),
        "blocks": tuple(view_of_block(block) for block in blocks),
        "ln_post": tower.ln_post,
        "patches": tower.conv1,
        "read_projection": partial(_projection, tower),
        "image_size": tuple(to_2tuple(tower.image_size)),  # of a file, it is a list
        "grid": tuple(tower.grid_size),
        # only nn.MultiheadAttention knows both layouts; open_clip's own attention has one
        "batch_first": getattr(blocks[0].attn, "batch_first", True),
        "reader": _reader(tower),
        "image_tower": partial(_encode_image, tower),
    }


def _for_the_tower(
    preprocess: Callable[[Image], Tensor] | None,
    stated: tuple[int, int],
    size: tuple[int, int],
    name: str,
) -> Callable[[Image], Tensor] | None:
    """The preprocessing itself, unless it is for other pictures than the tower takes."""
    if preprocess is None or stated == size:
        return preprocess
    warnings.warn(
        f"{name} is said to take pictures of {stated[0]} x {stated[1]} pixels, and its tower takes "
        f"{size[0]} x {size[1]}: pictures are squeezed to that",
        SecondLensWarning,
        stacklevel=5,
    )
    return squeezed(preprocess, stated, size)


def _projection(tower: Any) -> Tensor:
    projection: Tensor = tower.proj.detach()
    return projection


def check_covered(model: Any, name: str) -> None:
    """Raise `UnsupportedModel` if the mathematics does not describe the model's image tower.

    Its weights are not looked at, so that they need not be there.
    """
    for reason in _refusals(unwrapped(getattr(model, "visual", None))):
        raise UnsupportedModel(f"{name} cannot be explained: {reason}")


def _encode_image(tower: Any, images: Tensor) -> Tensor:
    with not_compiled(tower):
        return _through(tower, images)


def _through(tower: Any, images: Tensor) -> Tensor:
    grid = images.shape[-2] // tower.patch_size[0], images.shape[-1] // tower.patch_size[1]
    if grid == tuple(tower.grid_size):
        output = tower(images)
    else:
        positions = interpolated(tower.positional_embedding, tower.grid_size, grid)
        output = functional_call(tower, {"positional_embedding": positions}, images)
    embeddings: Tensor = output[0] if tower.output_tokens else output
    return embeddings


def _encode_text(model: Any, tokenizer: Callable[..., Tensor], texts: list[str]) -> Tensor:
    device = next(model.parameters()).device
    embeddings: Tensor = model.encode_text(tokenizer(texts).to(device))
    return embeddings


def _refusals(tower: Any) -> Iterator[str]:
    """Reasons why the mathematics does not describe this image tower."""
    if isinstance(tower, TimmModel) and convnext.is_convnext(tower):
        yield from convnext.refusals(tower)
        return
    if isinstance(tower, TimmModel):
        yield from timm_covered.refusals(unwrapped(tower.trunk), tower.head)
        return
    if isinstance(tower, ModifiedResNet):
        yield from resnet.refusals(tower)
        return
    if not isinstance(tower, VisionTransformer):
        yield (
            f"its image tower is a {type(tower).__name__}, and only open_clip's VisionTransformer "
            "and ResNet, and towers of timm, are covered"
        )
        return
    if tower.attn_pool is not None:
        yield from _pool_refusals(tower)
    elif tower.pool_type not in ("tok", "avg"):
        yield f"its pooling is {tower.pool_type!r}, and only 'tok' and 'avg' are covered"
    if tower.proj is None:
        yield "it has no output projection"
    if not is_affine(tower.ln_post):
        yield "ln_post is no LayerNorm with gain and bias"
    for j, block in enumerate(tower.transformer.resblocks):
        for reason in block_refusals(block):
            yield f"block {j} {reason}"


def _pool_refusals(tower: Any) -> Iterator[str]:
    if type(tower.attn_pool) is not AttentionalPooler:
        yield f"its pool is a {type(tower.attn_pool).__name__}, which is not covered"
        return
    if tower.attn_pool_contrastive is not None:
        yield "it has two attention pools, and which of them makes the embedding is not settled"
    if tower.pool_type != "tok":
        yield f"of its pool's queries it takes {tower.pool_type!r}, and only 'tok' is covered"
    if not is_affine(tower.attn_pool.ln_k):
        yield "its pool's ln_k is not a LayerNorm with gain and bias"
    if not getattr(tower.transformer.resblocks[0].attn, "batch_first", True):
        yield "its blocks see tokens before images, and its pool sees images before tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenClipPool(LearnedPool):
    """View of CoCa's pool, whose first query makes the embedding."""

    @property
    def query(self) -> Float[Tensor, "heads head_width"]:
        """See `LearnedPool`."""
        pool = self.module
        bias = pool.attn.in_proj_bias.chunk(3)[0]
        asked = F.linear(pool.ln_q(pool.query[:1]), self._weight(0), bias).detach()
        split: Tensor = asked[0].unflatten(0, (pool.attn.num_heads, -1))
        over_root: Tensor = split * split.shape[1] ** -0.5
        return over_root

    @property
    def key(self) -> Float[Tensor, "heads head_width width"]:
        """See `LearnedPool`."""
        return self._split(self._weight(1))

    @property
    def value(self) -> Float[Tensor, "heads head_width width"]:
        """See `Attention`."""
        return self._split(self._weight(2))

    @property
    def value_bias(self) -> Float[Tensor, "heads head_width"]:
        """See `Attention`."""
        return self._split(self.module.attn.in_proj_bias.chunk(3)[2])

    @property
    def output(self) -> Float[Tensor, "heads head_width out"]:
        """See `Attention`."""
        return self._split(self.module.attn.out_proj.weight.T)

    @property
    def output_bias(self) -> Float[Tensor, " out"]:
        """See `Attention`."""
        bias: Tensor = self.module.attn.out_proj.bias.detach()
        return bias

    def _weight(self, which: int) -> Tensor:
        attention = self.module.attn
        own = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)[which]
        weight: Tensor = attention.in_proj_weight.chunk(3)[which] if own is None else own
        return weight

    def _split(self, joint: Tensor) -> Float[Tensor, "heads head_width *width"]:
        split: Tensor = joint.detach().unflatten(0, (self.module.attn.num_heads, -1))
        return split


def _reader(tower: Any) -> Reader:
    """What reads the tokens of a tower that `check_covered` let through."""
    pool = tower.attn_pool
    if pool is not None:
        return AttentionPool(OpenClipPool(module=pool, ln_1=pool.ln_k, attention_end=pool))
    if tower.pool_type == "avg":
        return MeanOfPatches(prefix=1, waits=not tower.final_ln_after_pool)
    return ClassToken()
