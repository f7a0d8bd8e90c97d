"""What an edit changes: neurons, or paths of neurons through single heads, and how far."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...effects.ablated_runs import check_neurons
from ...errors import SecondLensError
from ...models.view import Clip
from ...storage.files import read_json, save_json
from ...storage.validation import Position, convert, reading
from ..auditing.ablated_clip import LayerNeuron

NeuronPath = tuple[Position, Position, Position, Position]
"""Layer and place of a neuron, then block and number of the head that carries its value."""

FILES = ("edit.json", "defence.json")
"""What of a folder says what is cut."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Neurons, and paths of neurons through heads, that are drawn to their means.

    Raises
    ------
    SecondLensError
        Nothing to change, the same twice, a path of a neuron that is changed whole, or a strength
        that is not finite or changes nothing.
    """

    neurons: tuple[LayerNeuron, ...] = ()
    paths: tuple[NeuronPath, ...] = ()
    strength: float = 1.0
    """1 holds an activation at its mean, 0.5 halves its distance from it, and 2 mirrors it."""
    weights_hash: str = ""
    """`Clip.weights_hash` of the model that it is for; empty if nobody said."""

    def __post_init__(self) -> None:
        if not self.neurons and not self.paths:
            raise SecondLensError("there is nothing to cut: name at least one neuron or path")
        if not math.isfinite(self.strength) or self.strength == 0:
            raise SecondLensError(
                f"the strength of an edit is a number other than 0, such as 1: {self.strength:g}"
            )
        for what, given in (("neuron", self.neurons), ("path", self.paths)):
            if twice := [each for each, count in Counter(given).items() if count > 1]:
                raise SecondLensError(f"the {what} {_name(twice[0])} is cut twice: name it once")
        whole = set(self.neurons)
        if both := [path for path in self.paths if path[:2] in whole]:
            raise SecondLensError(
                f"the neuron {_name(both[0][:2])} is cut whole and by a path: name one of the two"
            )

    @property
    def layers(self) -> list[int]:
        """MLP layers in which something is changed."""
        return sorted({each[0] for each in (*self.neurons, *self.paths)})

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Blocks and heads of the paths."""
        return sorted({path[2:] for path in self.paths})

    def check(self, clip: Clip) -> None:
        """Raise `SecondLensError` unless the model is the one it is for, and has all of it."""
        if self.weights_hash and self.weights_hash != clip.weights_hash:
            raise SecondLensError(
                f"this cut is of a model with other weights than {clip.name} has: load that model, "
                "or choose anew what is cut"
            )
        for layer, neuron in (each[:2] for each in (*self.neurons, *self.paths)):
            clip.check_layer(layer, last=True)
            check_neurons(clip, layer, [neuron])
        for layer, neuron, block, head in self.paths:
            attentions = clip.attentions(layer)
            if block not in attentions:
                known = ", ".join(map(str, attentions)) or "none"
                raise SecondLensError(
                    f"no head of block {block} reads the neuron {_name((layer, neuron))}: those of "
                    f"{known} do"
                )
            if head >= attentions[block].heads:
                raise SecondLensError(
                    f"block {block} has no head {head}: choose from 0 to "
                    f"{attentions[block].heads - 1}"
                )

    def save(self, path: str | Path) -> None:
        """Write it as a JSON file that `load` reads."""
        save_json(path, asdict(self))

    @classmethod
    def load(cls, place: str | Path) -> "Edit":
        """The edit in a file, or in the folder of an edit or a defence.

        A file has the keys "neurons", pairs of layer and neuron; "paths", fours of layer, neuron,
        block and head; and "strength". Others are left alone.

        Raises
        ------
        SecondLensError
            There is none, a damaged one, or one that changes nothing.
        """
        path = Path(place)
        if path.is_dir():
            found = [path / name for name in FILES if (path / name).is_file()]
            if not found:
                raise SecondLensError(
                    f"{place} says nothing of what to cut: there is no {' or '.join(FILES)} in it; "
                    "secondlens defend makes one of an audit"
                )
            path = found[0]
        elif not path.is_file():
            raise SecondLensError(f"there is no file {place}: name one that says what to cut")
        with reading(f"the cut in {place}"):
            kept = convert(read_json(path), _Stored, path.name)
        return cls(
            neurons=kept.neurons,
            paths=kept.paths,
            strength=kept.strength,
            weights_hash=kept.weights_hash,
        )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a file says, before it is known to make sense."""

    neurons: tuple[LayerNeuron, ...] = ()
    paths: tuple[NeuronPath, ...] = ()
    strength: float = 1.0
    weights_hash: str = ""


def _name(place: Iterable[int]) -> str:
    """Such as "L5 #120", or "L5 #120 by head 3 of block 6"."""
    layer, neuron, *path = place
    by = f" by head {path[1]} of block {path[0]}" if path else ""
    return f"L{layer} #{neuron}{by}"
