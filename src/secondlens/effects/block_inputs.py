"""What the blocks of an image tower read and what their neurons do, kept from one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModel
from ..models.blocks import Block
from ..models.view import Clip, hooked
from .linearised import LinearNorm

Kept = dict[int, Float[Tensor, "images tokens features"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockInputs:
    """By number of a block, in the precision of the model."""

    before: Kept = field(default_factory=dict)
    """The residual stream before the block."""
    between: Kept = field(default_factory=dict)
    """The residual stream between its attention and its MLP."""
    activations: Kept = field(default_factory=dict)
    """Of its neurons."""


@torch.no_grad()
def block_inputs(clip: Clip, images: Any, layers: Sequence[int]) -> BlockInputs:
    """Run images through the network once, and keep what some blocks read.

    Raises
    ------
    UnsupportedModel
        A network without attention blocks.
    SecondLensError
        Images that `Clip.prepare` refuses.
    """
    if any(block.ln_1 is None for block in clip.blocks) or not clip.blocks:
        raise UnsupportedModel(
            f"attention of {clip.name} cannot be told: it has no blocks in which tokens look at "
            "one another"
        )
    found = BlockInputs()

    def keep(kept: Kept, number: int) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            kept[number] = clip.batch_major(inputs[0])

        return see

    before = []
    for number in layers:
        block = clip.blocks[number]
        before += [
            (block.ln_1, keep(found.before, number)),
            (block.ln_2, keep(found.between, number)),
            (block.mlp_output, keep(found.activations, number)),
        ]
    with hooked([], before):
        clip.encode_image(images)
    return found


def queries_and_keys(
    block: Block, norm: LinearNorm
) -> tuple[
    Float[Tensor, "images heads tokens head_width"], Float[Tensor, "images heads tokens head_width"]
]:
    """Of every token, whose products are scores, from the LayerNorm before attention."""
    normalised = norm.centred / norm.sigma * norm.gain + block.bias.to(norm.gain)
    return block.queries_and_keys(normalised[:, :, 0])


def attention_of(
    clip: Clip, queries: Tensor, keys: Tensor
) -> Float[Tensor, "images heads tokens tokens"]:
    """Rows add up to 1; in a causal tower, no token looks at later ones."""
    scores = queries @ keys.mT
    if getattr(clip.reader, "causal", False):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(dim=-1)
