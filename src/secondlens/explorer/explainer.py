"""What a picture shows in the eyes of a lens: its concepts, and the neurons behind them."""

from functools import cached_property
from typing import Any

import torch
from PIL import Image

from ..capture import Capture, Pooled
from ..clip.view import Clip
from ..discover.discover import Discoverer
from ..discover.words import Word
from .atlas import Atlas
from .numbers import hex_digits, short
from .projections import Projections

FOUND = 24
"""Neurons of the whole picture."""
AT_PATCH = 6
"""Neurons of a word, and of a patch."""
CONCEPTS = 10


class Explainer:
    """Answers about pictures, whether or not the lens was fitted on them.

    Parameters
    ----------
    clip
        The model that the lens was fitted on.
    """

    def __init__(self, clip: Clip, atlas: Atlas) -> None:
        self.clip, self.atlas, self.lens = clip, atlas, atlas.lens
        self.projections = {n: Projections(clip, self.lens, n) for n in self.lens.layers}
        energy = torch.cat([self.lens[layer].energy for layer in self.lens.layers])
        self.sizes = energy.sqrt().clamp(min=1e-12)
        """Root mean squares of the neurons' effects."""

    @cached_property
    def _discoverer(self) -> Discoverer:
        return Discoverer(self.clip, self.lens)

    @torch.no_grad()
    def look(self, picture: Image.Image) -> tuple[Pooled, list[Word]]:
        """What the model makes of a picture: all that needs it."""
        reading = Capture(self.clip, self.lens.layers, keep_activations=True)
        with self.clip.class_token_only(), reading as capture:
            pooled = capture.pool(self.clip.encode_image([picture]))
        # effects of the official convention hold what is no neuron's
        exact = self.lens.convention == "exact"
        return pooled, self._discoverer([picture], CONCEPTS)[0] if exact else []

    @torch.no_grad()
    def answer(self, pooled: Pooled, words: list[Word]) -> dict[str, Any]:
        """Words, the strongest neurons, and those that fire at each patch."""
        return {
            "grid": list(self.clip.grid),
            "words": [self._word(word) for word in words],
            "first_block": min(self.lens.layers) + 1,
            **self._neurons(pooled),
        }

    def _neurons(self, pooled: Pooled) -> dict[str, Any]:
        effects, fired, light = [], [], []
        for layer, projections in self.projections.items():
            parts = projections.parts(pooled)[0].cpu()
            effects.append(parts.sum(0) - projections.mean.cpu())
            usual = self.lens[layer].activation_mean[1:]
            activation = pooled.activations[layer][0, 1:].float().cpu()
            spread = usual.square().mean(0).sqrt().clamp(min=1e-3)
            fired.append((activation - usual) / spread)
            light.append(activation)
        standard = torch.cat(effects) / self.sizes
        strongest = standard.abs().topk(min(FOUND, len(standard))).indices.tolist()
        heat = torch.cat(light, dim=1)[:, strongest]
        heat = heat / heat.amax(0).clamp(min=1e-6)
        patches = torch.cat(fired, dim=1).topk(min(AT_PATCH, len(standard)), dim=1)
        rows = zip(patches.indices.tolist(), patches.values.tolist(), strict=True)
        return {
            "neurons": [
                [*self._named(n, float(standard[n])), hex_digits(heat[:, i])]
                for i, n in enumerate(strongest)
            ],
            "patches": [
                [self._named(n, value) for n, value in zip(numbers, values, strict=True)]
                for numbers, values in rows
            ],
        }

    def _named(self, number: int, value: float) -> list[Any]:
        """[layer, neuron, value, name]."""
        place = self.atlas.neuron_at(number)
        return [*place, short(value), self.atlas.name(*place)]

    def _word(self, word: Word) -> dict[str, Any]:
        return {
            "text": word.text,
            "weight": short(word.weight),
            "neurons": [
                [c.layer, c.neuron, short(c.weight), self.atlas.name(c.layer, c.neuron)]
                for c in word.neurons[:AT_PATCH]
            ],
            "heads": [[short(v) for v in row] for row in word.heads.tolist()],
            "heat": hex_digits(word.patches.flatten() / word.patches.amax().clamp(min=1e-12)),
        }
