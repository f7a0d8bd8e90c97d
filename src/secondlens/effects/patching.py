"""Patching: a part of what one picture does in the network, put into another picture's run.

What changes at the output is what that part alone carries from one to the other. Nothing is frozen:
everything after the part sees it and moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError, UnsupportedModel
from ..models.blocks import Block
from ..models.view import Clip, hooked
from .ablated_runs import check_neurons


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """Representations, not normalised, of pictures, of their donors, and of the pictures with a
    part of their donors."""

    before: Float[Tensor, "images dim"]
    donor: Float[Tensor, "images dim"]
    after: Float[Tensor, "images dim"]

    @property
    def effect(self) -> Float[Tensor, "images dim"]:
        """What the part changes, over the length of the representation before."""
        effect: Tensor = (self.after - self.before) / self.before.norm(dim=-1, keepdim=True)
        return effect

    @property
    def carried(self) -> Float[Tensor, " images"]:
        """How far the part moves a picture along the way to its donor: 0 not at all, 1 as far as
        the donor is. NaN where picture and donor are represented alike."""
        way = self.donor - self.before
        return ((self.after - self.before) * way).sum(-1) / way.square().sum(-1)


@checked
@undisturbed
@torch.no_grad()
def patch(
    clip: Clip,
    images: Any,
    donors: Any,
    layer: int,
    *,
    neurons: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
) -> Patched:
    """Put a part of one picture's run into another's, and run the network on from there.

    Parameters
    ----------
    clip
        The model.
    images
        What gets the part: what `Clip.prepare` takes, all in one pass.
    donors
        What gives it: as many, each for the image in its place.
    layer
        Whose neurons or heads, or after which block.
    neurons
        Their activations come from the donor.
    heads
        What these heads of the block's attention write comes from the donor.
    tokens
        Where: the class token is 0, and patches follow row by row, see `Clip.grid`. By default
        everywhere. Without neurons or heads, all of the residual stream at these tokens, as it is
        after the block, comes from the donor.

    Raises
    ------
    SecondLensError
        Nothing to patch; neurons and heads at once; no such layer, neuron, head or token; another
        number of donors than of images; or images that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    if neurons is not None and heads is not None:
        raise SecondLensError("neurons and heads are patched one after the other: drop one of them")
    _check(clip, layer, neurons, heads, tokens)
    pixels, donor_pixels = clip.prepare(images), clip.prepare(donors)
    if len(pixels) != len(donor_pixels):
        raise SecondLensError(
            f"each image gets a part of one donor: there are {len(pixels)} images, and "
            f"{len(donor_pixels)} donors"
        )
    block, dtype = clip.blocks[layer], clip.compute_dtype
    here = _chosen(clip.tokens, tokens)[:, None]
    read = changed = block.module
    if neurons is not None:
        read = changed = block.mlp_output
        here = here & _chosen(clip.neurons, neurons).to(here.device)
    elif heads is not None:
        read, changed = block.ln_1, block.attention_end
    entering = neurons is not None
    before, own = _run(clip, pixels, read, entering=entering)
    donor, given = _run(clip, donor_pixels, read, entering=entering)
    if heads is not None:
        written = partial(head_writes, block, heads=heads, dtype=dtype)
        given = written(given) - written(own)

    def put_in(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> Tensor:
        states = clip.batch_major(inputs[0] if entering else output)
        instead = given if heads is None else states.to(dtype) + given
        return clip.as_module(torch.where(here.to(states.device), instead.to(states), states))

    hook = [(changed, put_in)]
    with hooked([], hook) if entering else hooked(hook):
        after = clip.encode_image(pixels)
    return Patched(before=before.to(dtype), donor=donor.to(dtype), after=after.to(dtype))


def head_writes(
    block: Block,
    normalised: Float[Tensor, "images tokens width"],
    *,
    heads: Sequence[int],
    dtype: torch.dtype,
) -> Float[Tensor, "images tokens width"]:
    """What some heads write together at every token, from the output of `ln_1`; the output's bias
    is no head's."""
    normalised = normalised.to(dtype)
    queries, keys = (each[:, heads] for each in block.queries_and_keys(normalised))
    values = torch.einsum("btw,hew->bhte", normalised, block.value[heads].to(dtype))
    values = values + block.value_bias[heads, None].to(dtype)
    attended = (queries @ keys.mT).softmax(dim=-1) @ values
    return torch.einsum("bhte,hew->btw", attended, block.output[heads].to(dtype))


def _run(
    clip: Clip, pixels: Tensor, module: nn.Module, *, entering: bool
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images tokens features"]]:
    """Representations, and what a module gives meanwhile, or (`entering`) gets."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        seen.append(clip.batch_major(inputs[0] if entering else output))

    hook = [(module, see)]
    with hooked([], hook) if entering else hooked(hook):
        representation = clip.encode_image(pixels)
    return representation, seen[-1]


def _chosen(count: int, places: Sequence[int] | None) -> Bool[Tensor, " count"]:
    chosen = torch.full((count,), places is None)
    chosen[list(places or ())] = True
    return chosen


def _check(
    clip: Clip,
    layer: int,
    neurons: Sequence[int] | None,
    heads: Sequence[int] | None,
    tokens: Sequence[int] | None,
) -> None:
    parts = [list(each) for each in (neurons, heads, tokens) if each is not None]
    if not all(parts) or not parts:
        raise SecondLensError("there is nothing to patch: name neurons, heads or tokens")
    check_neurons(clip, layer, neurons or ())
    for head in heads or ():
        check_head(clip, layer, head)
        if clip.blocks[layer].inner_norm is not None:
            raise UnsupportedModel(
                f"heads of {clip.name} cannot be patched: a norm of all heads together in block "
                f"{layer} makes what one writes depend on the others"
            )
    for token in tokens or ():
        check_token(clip, token)


def check_head(clip: Clip, layer: int, head: int) -> None:
    """Raise `SecondLensError` for a head that a block does not have."""
    heads = clip.blocks[layer].heads
    if not 0 <= head < heads:
        known = f"choose one of 0 to {heads - 1}" if heads else "it has none"
        raise SecondLensError(f"block {layer} has no head {head}: {known}")


def check_token(clip: Clip, token: int) -> None:
    """Raise `SecondLensError` for a token that an image does not have."""
    if not 0 <= token < clip.tokens:
        rows, columns = clip.grid
        raise SecondLensError(
            f"there is no token {token}: the class token is 0, and the {rows} x {columns} patches "
            f"are 1 to {clip.tokens - 1}"
        )
