"""Programs written into the weights of open_clip's ordinary vision transformer.

Each slot is a direction of the residual stream; the directions are a random orthonormal set at
right angles to (1, ..., 1), so that no coordinate means anything by itself and the centring of
LayerNorms touches no slot. `ONE` holds `BALLAST` instead of 1. Beside that the other slots are so
small that the scale of every LayerNorm is the same at all tokens to 1e-9, and its gain makes up for
it: LayerNorms compute as always, and a program sees none of them, unless a unit writes as much as
the ballast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import SecondLensError
from ..models.open_clip.views import from_open_clip
from ..models.view import Clip
from .pictures import GRID, SIDE, filters, preprocess
from .program import CLASS, MEAN, ONE, SHARPNESS, TOKENS, Number, Program

BALLAST = 5e5
HEAD_WIDTH = 16
HEADS = 6
CONSTANT = 5.0
"""Part of every representation along the text `PICTURE`, so that lengths differ little."""
PICTURE = "a picture"
LEAST_DIM = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Of the residual stream, by slot."""

    rows: Mapping[str, Float[Tensor, " width"]]
    width: int

    def write(self, amounts: Mapping[str, Number]) -> Float[Tensor, " width"]:
        """The vector that adds amounts to slots."""
        added = torch.zeros(self.width, dtype=torch.float64)
        for slot, amount in amounts.items():
            added += amount * (BALLAST if slot in (ONE, MEAN) else 1.0) * self.rows[slot]
        return added

    def read(self, weights: Mapping[str, Number]) -> Float[Tensor, " width"]:
        """The vector whose product with the stream is the weighted sum of slots."""
        row = torch.zeros(self.width, dtype=torch.float64)
        for slot, weight in weights.items():
            row += weight / (BALLAST if slot == ONE else 1.0) * self.rows[slot]
        return row


def directions(program: Program, seed: int) -> Directions:
    """Random orthonormal directions for the slots of a program.

    Raises
    ------
    SecondLensError
        More slots than there are directions.
    """
    width = HEADS * HEAD_WIDTH
    if len(program.slots) >= width:
        raise SecondLensError(
            f"{program.name} has {len(program.slots)} slots, and a stream of width {width} holds "
            f"{width - 1}"
        )
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(width, width, dtype=torch.float64, generator=generator)
    random[:, 0] = 1
    columns = torch.linalg.qr(random).Q.T
    rows = dict(zip(program.slots, columns[1:], strict=False))
    return Directions(rows=rows | {MEAN: torch.full((width,), width**-0.5).double()}, width=width)


class Texts(nn.Module):
    """A text tower that knows some texts by heart."""

    def __init__(self, texts: tuple[str, ...], rows: Float[Tensor, "texts dim"]) -> None:
        super().__init__()
        self.texts = texts
        self.register_buffer("rows", rows)

    def forward(self, tokens: Int[Tensor, "texts 1"]) -> Float[Tensor, "texts dim"]:
        """The row of each text."""
        rows: Tensor = self.rows[tokens[:, 0]]  # type: ignore[index]
        return rows

    def tokens(self, texts: list[str]) -> Int[Tensor, "texts 1"]:
        """One token for each text: its number.

        Raises
        ------
        SecondLensError
            A text that the network does not know.
        """
        if unknown := [text for text in texts if text not in self.texts]:
            raise SecondLensError(
                f"the network knows no text {unknown[0]!r}: it knows {', '.join(self.texts)}"
            )
        return torch.tensor([[self.texts.index(text)] for text in texts])


class Compiled(nn.Module):
    """A CLIP of an ordinary image tower and a table of texts."""

    def __init__(self, visual: VisionTransformer, text: Texts) -> None:
        super().__init__()
        self.visual, self.text = visual, text

    def encode_image(self, images: Tensor) -> Tensor:
        """Representations, not normalised."""
        found: Tensor = self.visual(images)
        return found

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit rows."""
        found: Tensor = self.text(tokens)
        return found


def compiled(program: Program, seed: int = 0) -> Clip:
    """The network of a program in float64, as every function of the library takes it.

    Parameters
    ----------
    program
        What it computes.
    seed
        Of the directions of slots and texts; the units are the same whatever it is.

    Raises
    ------
    SecondLensError
        More slots, or a head that moves or scores more, than the network has room for.
    """
    slots = directions(program, seed)
    neurons = max(len(program.of_layer(layer)) for layer in range(program.layers))
    tower = VisionTransformer(
        image_size=GRID * SIDE,
        patch_size=SIDE,
        width=slots.width,
        layers=program.layers,
        heads=HEADS,
        mlp_ratio=(neurons + 0.5) / slots.width,
        output_dim=max(LEAST_DIM, len(program.words) + 1),
        no_ln_pre=True,
    ).double()
    texts = (PICTURE, *program.words)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
        _write_embedding(tower, program, slots)
        for layer, block in enumerate(tower.transformer.resblocks):
            for norm in (block.ln_1, block.ln_2):
                _set_gain(norm)
            _write_heads(block.attn, program, layer, slots)
            _write_units(block.mlp, program, layer, slots)
        _set_gain(tower.ln_post)
        rows = _write_output(tower, program, slots, texts, seed)
    model = Compiled(tower, Texts(texts, rows)).double().eval().requires_grad_(False)
    # a block without units or heads writes zeros, of which no relative error exists: the tests
    # compare every activation with the program instead
    return from_open_clip(model, preprocess, model.text.tokens, name=program.name, check=False)


def _set_gain(norm: Any) -> None:
    """Undo the division by the ballast's share of the scale."""
    width = norm.weight.numel()
    norm.weight.fill_((BALLAST**2 / width + norm.eps) ** 0.5)


def _write_embedding(tower: Any, program: Program, slots: Directions) -> None:
    read = filters()
    for slot in program.basis:
        tower.conv1.weight += slots.rows[slot][:, None, None, None] * read[slot]
    tower.class_embedding += slots.write({CLASS: 1})
    tower.positional_embedding += slots.write({ONE: 1}).expand(TOKENS, -1)


def _write_heads(attention: Any, program: Program, block: int, slots: Directions) -> None:
    own = [head for head in program.heads if head.block == block]
    if len(own) > HEADS or any(max(len(h.moves), len(h.looks)) > HEAD_WIDTH for h in own):
        raise SecondLensError(
            f"block {block} of {program.name} needs more than {HEADS} heads of width {HEAD_WIDTH}"
        )
    query, key, value = attention.in_proj_weight.unflatten(0, (3, HEADS, HEAD_WIDTH))
    output = attention.out_proj.weight.unflatten(1, (HEADS, HEAD_WIDTH))
    for number, head in enumerate(own):
        for place, (looking, looked_at, weight) in enumerate(head.looks):
            query[number, place] = HEAD_WIDTH**0.5 * slots.read({looking: weight})
            key[number, place] = slots.read({looked_at: 1})
        for place, (slot, (to, weight)) in enumerate(head.moves.items()):
            value[number, place] = slots.read({slot: 1})
            output[:, number, place] = slots.write({to: weight})


def _write_units(mlp: Any, program: Program, layer: int, slots: Directions) -> None:
    for number, unit in enumerate(program.of_layer(layer)):
        mlp.c_fc.weight[number] = SHARPNESS * slots.read(unit.reads)
        mlp.c_fc.bias[number] = -SHARPNESS * unit.threshold
        mlp.c_proj.weight[:, number] = slots.write(unit.writes) / SHARPNESS


def _write_output(
    tower: Any, program: Program, slots: Directions, texts: tuple[str, ...], seed: int
) -> Float[Tensor, "texts dim"]:
    dim = tower.proj.shape[1]
    generator = torch.Generator().manual_seed(seed + 1)
    random = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    rows = torch.linalg.qr(random).Q[: len(texts)]
    read = [slots.read({ONE: CONSTANT}), *(slots.read(each) for each in program.words.values())]
    for row, direction in zip(rows, read, strict=True):
        tower.proj += direction[:, None] * row
    return F.normalize(rows, dim=1)
