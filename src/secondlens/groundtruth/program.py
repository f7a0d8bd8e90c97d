"""Programs of a vision transformer: what every unit reads, when it fires, and what it writes.

The residual stream is a set of named slots. Amounts of basis pictures are in the patches' slots
from the start, `CLASS` is 1 at the class token, and `ONE` is 1 at every token. In each block heads
move slots from token to token, and then units fire:

    p[t] = gelu(SHARPNESS * (sum over slots of weight * slot[t] - threshold))

and add amount * p[t] / SHARPNESS to the slots that they write. So a unit that reads one mark fires
with SHARPNESS * (amount - threshold) where the mark is, and nowhere else: gelu is 0 or the identity
there to 1e-12. A head's score of token s for token t is a sum of weight * slot_q[t] * slot_k[s].

`compiling` writes a program into the weights of a transformer. `run` computes it by the formulas
above, without a transformer: it is the definition that the network is tested against.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import SecondLensError
from .pictures import PATCHES, Pictures, reads

Number = int | float
SHARPNESS = 20.0
THRESHOLD = 0.375
"""Half the least amount of a mark."""
TOKENS = 1 + PATCHES
ONE, CLASS, MEAN = "one", "class", "mean"
"""Slots of every program, which LayerNorms keep as they are: what is written to `MEAN` goes to all
coordinates alike, and centring takes it away; what is written to `ONE` is divided away again by the
scale."""

PARTS = {
    "detector": "fires where a mark or tint is",
    "polysemous": "fires where either of two unrelated marks is",
    "superposed": "fires on several features, each of which several units share",
    "inhibited": "fires on one feature unless another is there",
    "key": "changes where the class token looks, through a key",
    "query": "changes where the class token looks, through a query",
    "feeder": "is read by a later unit and by nothing else",
    "reader": "fires at the class token on what earlier units say",
    "relayed": "reaches the output through the values of two heads, one after the other",
    "undone by LayerNorm": "writes what a LayerNorm takes away again",
    "scaling": "makes everything else smaller, through the scale of a LayerNorm",
    "repaired": "writes what a later unit takes away again",
    "repairing": "takes away what an earlier unit wrote",
    "duplicate": "does what another unit does",
    "dead": "fires on no picture",
    "always on": "fires everywhere alike",
    "cue": "carries a spurious cue to a class",
}
"""The language of parts: what a unit can be, with one line of help."""
IDLE = ("dead", "always on")
"""Parts that respond to no feature."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A neuron whose function is known."""

    name: str
    layer: int
    part: str
    """One of `PARTS`."""
    reads: Mapping[str, Number]
    writes: Mapping[str, Number]
    threshold: Number = THRESHOLD
    features: tuple[str, ...] = ()
    """What raises its activation."""
    acts: str | None = None
    """The class of path that carries its effect; None for a unit without any in total."""
    cue: bool = False
    """Whether it carries the spurious cue."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one attention head moves, and where tokens look; without `looks` everywhere alike."""

    block: int
    moves: Mapping[str, tuple[str, Number]]
    """From a slot of the token that is looked at: the slot of the token that looks, and a factor
    for it."""
    looks: tuple[tuple[str, str, Number], ...] = ()
    """Slot of the token that looks, slot of the token that is looked at, weight of their product in
    the score."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Units, heads and read-outs of one network, and what its pictures hold."""

    name: str
    features: tuple[str, ...]
    """Marks and tints in its pictures."""
    units: tuple[Unit, ...]
    heads: tuple[Head, ...]
    words: Mapping[str, Mapping[str, Number]]
    """Texts: the slots of the class token that each is read from, with weights."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Words whose place in the picture is asked for: the feature that is there."""
    cue: "tuple[str, str, str] | None" = None
    """The feature, and the words of the class that it is wired to and of the other one."""
    marked: float = 0.15
    """Share of patches with a mark, as `tinted` with a tint."""
    tinted: float = 0.2
    layers: int = 4

    def __post_init__(self) -> None:
        for unit in self.units:
            if unit.part not in PARTS:
                raise SecondLensError(f"no part {unit.part!r}: there are {', '.join(PARTS)}")
            if not 0 <= unit.layer < self.layers:
                raise SecondLensError(f"{self.name} has no layer {unit.layer} for {unit.name}")
        names = [unit.name for unit in self.units]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SecondLensError(f"two units of {self.name} are called {twice[0]}")

    @cached_property
    def basis(self) -> tuple[str, ...]:
        """Slots that the pictures fill."""
        return tuple(dict.fromkeys(reads(feature)[0] for feature in self.features))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """All slots but `MEAN`, in order of use."""
        used = [ONE, CLASS, *self.basis]
        for unit in self.units:
            used += [*unit.reads, *unit.writes]
        for head in self.heads:
            used += [*head.moves, *(to for to, _ in head.moves.values())]
            used += [slot for query, key, _ in head.looks for slot in (query, key)]
        for weights in self.words.values():
            used += weights
        return tuple(slot for slot in dict.fromkeys(used) if slot != MEAN)

    @cached_property
    def numbers(self) -> dict[str, tuple[int, int]]:
        """Layer and number of each unit, by name: units of a layer in their order."""
        found: dict[str, tuple[int, int]] = {}
        counts = [0] * self.layers
        for unit in self.units:
            found[unit.name] = unit.layer, counts[unit.layer]
            counts[unit.layer] += 1
        return found

    def of_layer(self, layer: int) -> tuple[Unit, ...]:
        """Units of one layer, by number."""
        return tuple(unit for unit in self.units if unit.layer == layer)

    def carried(self, unit: Unit, layer: int) -> frozenset[str]:
        """Slots of what a unit writes, as units of a later layer find it: where it was written, and
        where the values of heads moved it."""
        there = {slot for slot in unit.writes if slot not in (ONE, MEAN)}
        for head in self.heads:
            if unit.layer < head.block <= layer:
                there |= {to for slot, (to, _) in head.moves.items() if slot in there}
        return frozenset(there)

    @cached_property
    def edges(self) -> frozenset[tuple[str, str]]:
        """Pairs of units of which the second reads what the first writes: at the same token, or
        moved there by the values of heads, and through no third unit."""
        return frozenset(
            (unit.name, other.name)
            for unit in self.units
            for other in self.units
            if other.layer > unit.layer and self.carried(unit, other.layer) & set(other.reads)
        )

    @cached_property
    def outputs(self) -> frozenset[tuple[str, str]]:
        """Pairs of a unit and a word that is read from what it writes, or from what a head moves
        whose scores it changes."""
        found = set()
        for unit in self.units:
            there = set(self.carried(unit, self.layers))
            for head in self.heads:
                if any(set(term[:2]) & self.carried(unit, head.block - 1) for term in head.looks):
                    there |= {to for to, _ in head.moves.values()}
            found |= {(unit.name, word) for word, read in self.words.items() if there & set(read)}
        return frozenset(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a program computes for some pictures, in float64."""

    activations: dict[str, Float[Tensor, "images tokens"]]
    """By unit."""
    words: dict[str, Float[Tensor, " images"]]
    """What each text is read from, before the last LayerNorm."""


def run(program: Program, pictures: Pictures) -> Run:
    """Compute a program by its definition, for tests of its network."""
    state = {
        slot: torch.zeros(len(pictures), TOKENS, dtype=torch.float64) for slot in program.slots
    }
    state[ONE] += 1
    state[CLASS][:, 0] = 1
    for slot in program.basis:
        if slot in pictures.amounts:
            state[slot][:, 1:] = pictures.amounts[slot]
    activations = {}
    for layer in range(program.layers):
        before = dict(state)
        for head in program.heads:
            if head.block != layer:
                continue
            scores = state[ONE].new_zeros(len(pictures), TOKENS, TOKENS)
            for query, key, weight in head.looks:
                scores = scores + weight * before[query][:, :, None] * before[key][:, None]
            attention = scores.softmax(-1)
            for slot, (to, weight) in head.moves.items():
                moved = (attention @ before[slot][:, :, None])[:, :, 0]
                state[to] = state[to] + weight * moved
        between = dict(state)
        for unit in program.of_layer(layer):
            read = sum(weight * between[slot] for slot, weight in unit.reads.items())
            activation = F.gelu(SHARPNESS * (read - unit.threshold + 0 * state[ONE]))
            activations[unit.name] = activation
            for slot, amount in unit.writes.items():
                if slot not in (ONE, MEAN):
                    state[slot] = state[slot] + amount * activation / SHARPNESS
    words = {
        word: sum((weight * state[slot][:, 0] for slot, weight in weights.items()), torch.zeros(()))
        for word, weights in program.words.items()
    }
    return Run(activations=activations, words=words)
