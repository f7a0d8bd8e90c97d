"""The `Clip` of a model of timm, and of timm's towers inside open_clip.

Its tokens are read by a class token, by their mean, or by a pool with a learned query (SigLIP,
Perception Encoder); `blocks` reads the weights, `covered` refuses what is not described.
A classifier is read like a CLIP whose texts are its classes: the head is the projection, its bias
an offset.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from jaxtyping import Float
from PIL.Image import Image
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ...arguments import checked
from ...devices import undisturbed
from ...errors import SecondLensError, UnsupportedModel
from ...naming import shown
from ..blocks import detached
from ..checks import activation_name, check_parity
from ..classes import ClassNames
from ..readers import AttentionPool, ClassToken, MeanOfPatches, Reader
from ..transformers.families import identity
from ..view import Clip, check_eval
from ..wrappers import not_compiled, plain, unwrapped
from .blocks import (
    TimmPool,
    beside,
    is_norm,
    rotary_at,
    view_of_block,
)
from .covered import projections, refusals


@checked
@undisturbed
def from_timm(
    model: nn.Module,
    preprocess: Callable[[Image], Tensor] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "timm model",
    check: bool = True,
) -> Clip:
    """View a timm model that is in memory. The model itself is never changed.

    With a classification head, the embedding of an image is its logits, and `encode_text` takes the
    names of classes. Without one, it is what the last norm or pool gives. Words that are no classes
    come from another CLIP, through `dissect`.

    Parameters
    ----------
    model
        A `VisionTransformer` or `Eva` of timm, in eval mode, on the device and in the precision it
        shall keep.
    preprocess
        From `timm.data.create_transform`; without it, images must come preprocessed.
    classes
        Names of its classes, in the order of its logits; without them, there is no `encode_text`.
    name
        What it is called in messages and in what is written; of a path, the last part.
    check
        Whether to run `check_parity`.

    Raises
    ------
    SecondLensError
        The model is in training mode, or has NaN or infinite weights; or there are more names than
        classes, or fewer.
    UnsupportedModel
        The tower computes something that the effects do not describe.
    """
    model = plain(model, name)
    check_covered(model, name)
    check_eval(model)
    # no functions within this one: a model must be able to go to other processes
    texts: Callable[[list[str]], Tensor] = partial(_no_texts, name)
    if classes is not None:
        outputs = getattr(model, "num_classes", 0)
        if len(classes) != outputs:
            raise SecondLensError(
                f"{name} has {outputs} classes, and {len(classes)} names were given: name each"
            )
        texts = ClassNames(model=name, names=tuple(classes), like=partial(_weight, model))
    clip = Clip(
        name=shown(name),
        origin=name,
        model=model,
        text_tower=texts,
        preprocess=preprocess,
        view_of=partial(from_timm, name=name, check=False),
        **image_parts(model, nn.Identity()),
    )
    if check:
        check_parity(clip)
    return clip


def check_covered(model: Any, name: str) -> None:
    """Raise `UnsupportedModel` if the mathematics does not describe a model of timm.

    Its weights are not looked at, so that they need not be there.
    """
    for reason in refusals(unwrapped(model), nn.Identity()):
        raise UnsupportedModel(f"{name} cannot be explained: {reason}")


def image_parts(trunk: Any, head: nn.Module) -> dict[str, Any]:
    """Return what a `Clip` holds of a tower that `refusals` does not refuse.

    Parameters
    ----------
    trunk
        The model of timm.
    head
        What open_clip puts after it; an `Identity` where there is nothing.
    """
    embedding = trunk.patch_embed
    rope, grid = getattr(trunk, "rope", None), tuple(embedding.grid_size)
    blocks = tuple(
        view_of_block(block, j, rope=rope, grid=grid) for j, block in enumerate(trunk.blocks)
    )
    linear = next(iter(projections(trunk, head)), None)
    offset = None if linear is None or linear.bias is None else partial(_offset, linear)
    return {
        "activation": activation_name(blocks[0].activation),
        "blocks": blocks,
        "ln_post": _last(trunk),
        "patches": next(m for m in embedding.modules() if isinstance(m, nn.Conv2d)),
        "read_projection": partial(_projection, trunk, linear),
        "read_offset": offset,
        "image_size": tuple(embedding.img_size),
        "grid": grid,
        "batch_first": True,
        "prefix": trunk.num_prefix_tokens,
        "reader": _reader(trunk),
        "image_tower": partial(_encode_image, trunk, head),
    }


def _last(trunk: Any) -> nn.Module:
    """The last norm, or where there is none, what gives the tokens or the pool's output."""
    norm: nn.Module = trunk.fc_norm if is_norm(trunk.fc_norm) else trunk.norm
    pool: nn.Module | None = trunk.attn_pool
    # the norm before a pool is that of the pool's heads
    return norm if pool is None or is_norm(trunk.fc_norm) else pool


def _reader(trunk: Any) -> Reader:
    prefix: int = trunk.num_prefix_tokens
    # Eva has no such option: its mean leaves the prefix out, and its pool sees it
    reads_prefix = getattr(trunk, "pool_include_prefix", trunk.attn_pool is not None)
    skipped = 0 if reads_prefix else prefix
    if trunk.attn_pool is not None:
        pool = trunk.attn_pool
        return AttentionPool(
            TimmPool(module=pool, ln_1=trunk.norm, attention_end=pool.proj, skipped=skipped)
        )
    if trunk.global_pool == "avg":
        return MeanOfPatches(prefix=skipped, waits=is_norm(trunk.norm))
    return ClassToken()


def _projection(trunk: Any, linear: nn.Linear | None) -> Float[Tensor, "width dim"]:
    return identity(trunk.blocks[0].norm1) if linear is None else detached(linear.weight.T)


def _offset(linear: nn.Linear) -> Float[Tensor, " dim"]:
    return detached(linear.bias)


def _encode_image(trunk: Any, head: nn.Module, images: Tensor) -> Tensor:
    with not_compiled(trunk), not_compiled(head):
        embeddings: Tensor = head(_at_size(trunk, images.shape[-2:])(images))
    return embeddings


def _at_size(trunk: Any, size: Sequence[int]) -> Any:
    """The tower, or one beside it for pictures of another size, made of the same parts."""
    embedding = trunk.patch_embed
    own, grid = tuple(embedding.img_size), tuple(embedding.grid_size)
    if tuple(size) == own:
        return trunk
    wanted = tuple(
        pixels // (side // cells) for pixels, side, cells in zip(size, own, grid, strict=True)
    )
    other = beside(trunk)
    other.patch_embed = beside(embedding)
    other.patch_embed.img_size, other.patch_embed.grid_size = tuple(size), wanted
    if trunk.pos_embed is not None:
        positions = resample_abs_pos_embed(
            trunk.pos_embed.detach(),
            new_size=list(wanted),
            old_size=list(grid),
            num_prefix_tokens=0 if trunk.no_embed_class else trunk.num_prefix_tokens,
        )
        other.pos_embed = nn.Parameter(positions, requires_grad=False)
    if getattr(trunk, "rope", None) is not None:
        other.rope = rotary_at(trunk.rope, wanted)
    return other


def _no_texts(name: str, texts: list[str]) -> NoReturn:
    raise SecondLensError(
        f"{name} embeds images only: pass classes= when wrapping the model, or take words from "
        "another CLIP, with dissect"
    )


def _weight(model: nn.Module) -> Tensor:
    return next(model.parameters())
