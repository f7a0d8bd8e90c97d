"""An exam: one network with its pictures, and what is true of its units.

Contestants see the network, the pictures that they may learn from, and the texts. They are asked
about pictures that they have not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..effects.ablated_runs import Stopped, indirect, stop_after
from ..effects.linearised import Linearised, linearise
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..models.view import Clip, hooked
from .compiling import compiled
from .pictures import Pictures, draw
from .program import IDLE, Program, Unit
from .settings import FITTED, NAMED, TESTED

LEAST_EFFECT = 1e-9
"""Parts of the unit embedding below which an effect is rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exam:
    """What is asked of one network."""

    program: Program
    clip: Clip
    fitting: Pictures
    naming: Pictures
    testing: Pictures
    seed: int
    kept: dict[str, Any] = field(default_factory=dict)
    """What a contestant computed for one answer and needs for another, by a name of its own."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """In the order of every answer."""
        return self.program.units

    @property
    def words(self) -> tuple[str, ...]:
        """Texts along which effects are asked for."""
        return tuple(self.program.words)

    @cached_property
    def directions(self) -> Float[Tensor, "words dim"]:
        """Of the words, in the embedding."""
        return self.clip.encode_text(self.words)

    @cached_property
    def lens(self) -> Lens:
        """Of all layers that have second-order effects."""
        return fit(self.clip, self.fitting)

    @cached_property
    def means(self) -> dict[int, Float[Tensor, "tokens neurons"]]:
        """Mean activations over the fitted pictures, by layer."""
        pixels = self.fitting.values
        return {
            layer: stop_after(self.clip, pixels, layer).activation.mean(0)
            for layer in range(self.program.layers)
        }

    @cached_property
    def pixels(self) -> Float[Tensor, "images 3 height width"]:
        """Of the pictures that questions are about."""
        return self.testing.values

    @cached_property
    def stopped(self) -> dict[int, Stopped]:
        """These pictures after each layer."""
        return {
            layer: stop_after(self.clip, self.pixels, layer) for layer in range(self.program.layers)
        }

    @cached_property
    def linearised(self) -> Linearised:
        """The derivative of the network at these pictures."""
        return linearise(self.clip, self.pixels)

    @cached_property
    def gradients(self) -> dict[int, Float[Tensor, "words images tokens width"]]:
        """At these pictures, see `gradients`."""
        return gradients(self.clip, self.pixels, self.directions)

    @cached_property
    def worths(self) -> dict[int, Float[Tensor, "words images tokens neurons"]]:
        """Of one unit of each activation along each word, by layer."""
        return {
            layer: gradient @ self.clip.blocks[layer].neuron_rows.T
            for layer, gradient in self.gradients.items()
        }

    @cached_property
    def named(self) -> dict[int, Stopped]:
        """The pictures to name on after each layer."""
        return {
            layer: stop_after(self.clip, self.naming.values, layer)
            for layer in range(self.program.layers)
        }

    def change(self, layer: int) -> Float[Tensor, "images tokens neurons"]:
        """Activations minus their means."""
        return self.stopped[layer].activation - self.means[layer]

    def total(self, stopped: Stopped, number: int) -> Float[Tensor, "images dim"]:
        """What a unit does to the representation when it goes from its mean to its activation, over
        the representation's length."""
        base = stopped.run_on(stopped.stream - self.write(stopped, number))
        length = stopped.representation.norm(dim=-1, keepdim=True)
        change: Tensor = (stopped.representation - base) / length
        return change

    def write(self, stopped: Stopped, number: int) -> Float[Tensor, "images tokens width"]:
        """What a unit adds to the stream when it goes from its mean to its activation."""
        moved = stopped.activation[:, :, number] - self.means[stopped.layer][:, number]
        return moved[:, :, None] * stopped.rows[number]

    def of_units(self, answer: Callable[[int, list[int]], Tensor]) -> Tensor:
        """What a function of a layer and its units' numbers gives, [..., units], put into the order
        of `units`."""
        by_layer, order = [], []
        for layer in range(self.program.layers):
            own = self.program.of_layer(layer)
            if own:
                by_layer.append(answer(layer, list(range(len(own)))))
                order += [self.units.index(unit) for unit in own]
        return torch.cat(by_layer, dim=-1)[..., torch.tensor(order).argsort()]

    # -- what is true --------------------------------------------------------------------------

    @cached_property
    def ablated(self) -> Float[Tensor, "images words units"]:
        """What each unit adds along each word: two runs, with it and with it at its mean at every
        token, over the length of the representation."""

        def answer(layer: int, neurons: list[int]) -> Tensor:
            moved = indirect(self.clip, self.pixels, layer, neurons, self.means[layer])
            return torch.einsum("bnd,md->bmn", moved, self.directions)

        return self.of_units(answer)

    @cached_property
    def main_words(self) -> list[int]:
        """The word along which the true effect of each unit varies most."""
        found: list[int] = self.ablated.std(0).argmax(0).tolist()
        return found

    @cached_property
    def planted(self) -> list[frozenset[str]]:
        """The features that each unit responds to; none of idle ones."""
        return [
            frozenset() if unit.part in IDLE else frozenset(unit.features) for unit in self.units
        ]


def gradients(
    clip: Clip,
    pixels: Float[Tensor, "images 3 rows columns"],
    directions: Float[Tensor, "directions dim"],
) -> dict[int, Float[Tensor, "directions images tokens width"]]:
    """Gradients of <representation, direction> over the representation's length, held as it is,
    with respect to the stream after each block, by automatic differentiation.

    An activation times its row times the gradient is the sum of all classes of `sl.paths`.
    """
    streams: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        streams.append(output if output.requires_grad else output.requires_grad_())
        return streams[-1]

    found: list[list[Tensor]] = []
    with torch.enable_grad(), hooked([(block.module, see) for block in clip.blocks]):
        representation = clip.image_tower(pixels)
        similarity = representation @ directions.T / representation.detach().norm(dim=-1)[:, None]
        for column in similarity.unbind(1):
            each = torch.autograd.grad(column.sum(), streams, retain_graph=True)
            found.append([clip.batch_major(gradient) for gradient in each])
    return {layer: torch.stack(each) for layer, each in enumerate(zip(*found, strict=True))}


def exam(program: Program, seed: int = 0, *, named: int = NAMED, tested: int = TESTED) -> Exam:
    """Compile a program and draw the pictures of its exam.

    Parameters
    ----------
    program
        Of the network.
    seed
        Of the pictures and of the network's directions.
    named, tested
        Pictures to name on, and of the questions.
    """

    drawn = draw(
        *(program.features, FITTED + named + tested, seed),
        marked=program.marked,
        tinted=program.tinted,
    )
    return Exam(
        program=program,
        clip=compiled(program, seed),
        fitting=drawn.part("fit", slice(FITTED)),
        naming=drawn.part("name", slice(FITTED, FITTED + named)),
        testing=drawn.part("test", slice(FITTED + named, None)),
        seed=seed,
    )
