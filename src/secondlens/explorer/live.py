"""What needs the model: typed texts, new pictures, and effects measured on request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..applications.adversarial.attacks import attack as attack_lens
from ..applications.discovery.finding import Discoverer
from ..applications.discovery.words import FoundWord
from ..applications.segmentation.segmenting import segment
from ..data.sources import UNREADABLE, ImageSource, with_ids
from ..demo.world import NAMES
from ..effects.ablated_runs import indirect
from ..effects.capture import Capture, Pooled
from ..effects.value_paths import (
    OFFICIAL_SCALE,
    direct,
    extended_coefficients,
    image_scale,
    path_factors,
)
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..lens.pictures import NAMED_ON
from ..models.loading import DEMOS
from ..models.view import Clip
from ..report.page import data_uri
from ..words.searching import text_direction
from .atlas import Atlas
from .attention import looked, refusal
from .numbers import hex_digits, json_ready, short
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
    def look(self, picture: Image.Image) -> tuple[Pooled, list[FoundWord]]:
        """What the model makes of a picture: all that needs it."""
        reading = Capture(self.clip, self.lens.layers, keep_activations=True)
        with self.clip.class_token_only(), reading as capture:
            pooled = capture.pool(self.clip.encode_image([picture]))
        # effects of the official convention hold what is no neuron's
        exact = self.lens.convention == "exact"
        return pooled, self._discoverer([picture], CONCEPTS)[0] if exact else []

    @torch.no_grad()
    def answer(self, pooled: Pooled, words: list[FoundWord]) -> dict[str, Any]:
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
            usual = self.lens[layer].activation_mean[self.clip.prefix :]
            activation = pooled.activations[layer][0, self.clip.prefix :].float().cpu()
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

    def _word(self, word: FoundWord) -> dict[str, Any]:
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


PICTURES = 8
"""Of an attack."""


def drawable_classes(clip: Clip) -> Sequence[str]:
    """What can be drawn and mistaken: the objects of an embedded model's world, of others none."""
    return NAMES if clip.name in DEMOS else ()


def small_attack(clip: Clip, lens: Lens, draw: str, mistake_for: str) -> dict[str, Any]:
    """A small attack from words to verdicts, with its pictures; nothing of it is kept.

    Raises
    ------
    SecondLensError
        What `attack` raises.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        report = attack_lens(
            *(clip, lens, draw, mistake_for, out), captions=PICTURES // 2, images=PICTURES
        ).as_json()
        for sample in report["samples"]:
            sample["picture"] = _inline(out / sample["file"])
            sample["plain"] = _inline(out / sample["plain_file"])
    shown: dict[str, Any] = json_ready(report)
    return shown


def _inline(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(picture.convert("RGB"), "webp", quality=80)


FOUND_NEURONS = 24
"""Neurons of each kind in an answer."""
SAMPLE = 64
"""Random images beside a neuron's top images, where effects along a text are ranked."""
ABLATED = 8
"""Images on which a neuron is ablated."""
LONGEST_TEXT = 200


@dataclass(kw_only=True, eq=False)
class Live:
    """A model beside the atlas of its lens; one request uses the model at a time.

    Parameters
    ----------
    source
        The pictures of the fit, if they are at hand.
    named_on
        Those that the neurons were named on, likewise.
    """

    clip: Clip
    atlas: Atlas
    source: ImageSource | None = None
    named_on: ImageSource | None = None

    def __post_init__(self) -> None:
        self.lens.check_model(self.clip)
        self._lock = RLock()
        if self.source is not None:
            self.source = with_ids(self.source, self.lens.image_ids)
        if self.named_on is not None and (names := self.lens.first_names) is not None:
            self.named_on = with_ids(self.named_on, names.image_ids, these=NAMED_ON)

    @property
    def lens(self) -> Lens:
        """Of the atlas."""
        return self.atlas.lens

    @torch.no_grad()
    def search(self, text: str) -> dict[str, Any]:
        """The neurons whose directions point most along a text, and most against it.

        Raises
        ------
        SecondLensError
            No text, one too long, or a lens without the mean text.
        """
        query = self._query(text)
        # layer by layer: all directions in one array would be held twice
        cosines = torch.cat([self.lens[n].directions @ query for n in self.lens.layers])
        answer: dict[str, Any] = {"text": text}
        for side, sign in (("for", 1), ("against", -1)):
            best = (sign * cosines).topk(min(FOUND_NEURONS, len(cosines))).indices.tolist()
            places = [(self.atlas.neuron_at(n), float(cosines[n])) for n in best]
            answer[side] = [[*p, short(c), self.atlas.name(*p)] for p, c in places if c * sign > 0]
        return answer

    @torch.no_grad()
    def wall(self, layer: int, neuron: int, text: str) -> dict[str, Any]:
        """A neuron's top images and random ones, by what its effect adds to their cosine with a
        text: <effect - mean effect, text - mean text>, the text's part of unit length."""
        self.atlas.check(layer, neuron)
        query = self._query(text)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.lens.image_ids), generator=generator)[:SAMPLE]
        top = self.lens[layer].top_images[neuron]
        positions = torch.cat([top, order]).unique().tolist()
        images = [self.picture(position) for position in positions]
        with self._lock, self.clip.class_token_only():
            reading = Capture(self.clip, [layer], keep_activations=True)
            with reading as capture:
                pooled = capture.pool(self.clip.encode_image(images))
        rows = path_factors(self.clip, layer, self.lens.convention).rows(slice(neuron, neuron + 1))
        coefficients = extended_coefficients(pooled, layer, self.lens.convention)[:, :, neuron]
        scale = image_scale(pooled, self.lens.convention)
        fitted = self.lens[layer]
        effects = (coefficients @ rows[0] * scale[:, None]).cpu() - fitted.mean[neuron]
        along = (effects @ query.to(effects) / self._unit).tolist()
        peaks = pooled.activations[layer][:, 1:, neuron].float().cpu()
        largest = float(peaks.amax().clamp(min=1e-30))
        ids = self.lens.image_ids
        shots = [
            [p, ids[p], short(a), short(float(peak.amax())), -1, hex_digits(peak / largest)]
            for p, a, peak in zip(positions, along, peaks, strict=True)
        ]
        shots.sort(key=lambda shot: -(shot[2] or 0.0))
        return {"text": text, "shots": shots}

    @torch.no_grad()
    def budget(self, layer: int, neuron: int) -> dict[str, Any]:
        """Mean norms of a neuron's effects on its strongest images, less the mean where one is
        known: all of it (ablated in the network), on value paths, and directly."""
        self.atlas.check(layer, neuron)
        positions = self.lens[layer].top_images[neuron, :ABLATED].tolist()
        images = [self.picture(position) for position in positions]
        fitted, clip = self.lens[layer], self.clip
        with self._lock:
            pixels = clip.prepare(images)
            total = indirect(clip, pixels, layer, [neuron], fitted.activation_mean)[:, 0]
            straight = direct(clip, pixels, layer)[:, neuron]
            with Capture(clip, [layer]) as capture:
                pooled = capture.pool(clip.encode_image(pixels))
        rows = path_factors(clip, layer).rows(slice(neuron, neuron + 1))[0]
        paths = pooled.coefficients[layer][:, :, neuron] @ rows * pooled.scale[:, None]
        if self.lens.convention == "exact":
            paths = paths - fitted.mean[neuron].to(paths)
        sizes = {"total": total, "paths": paths, "direct": straight}
        return {
            "images": len(positions),
            **{name: short(float(each.norm(dim=1).mean())) for name, each in sizes.items()},
            "agreement": short(float(F.cosine_similarity(total, paths, dim=1).mean())),
        }

    def image(self, picture: Image.Image) -> dict[str, Any]:
        """A picture's concepts, neurons, heads and patches, and why its attention cannot be
        divided, where it cannot."""
        with self._lock:
            explainer = self._explainer
            pooled, words = explainer.look(picture)
        return explainer.answer(pooled, words) | {"undivided": refusal(self.clip)}

    def attention(
        self,
        picture: Image.Image,
        layer: int,
        head: int,
        patch: int | None = None,
        *,
        contrast: bool = True,
    ) -> dict[str, Any]:
        """Where a head looks in a picture, and why, see `looked`."""

        def name(layer: int, neuron: int) -> str | None:
            return self.atlas.name(layer, neuron) if layer in self.atlas.sizes else None

        with self._lock:
            return looked(self.clip, picture, layer, head, patch, contrast=contrast, name=name)

    def segment(self, picture: Image.Image, texts: Sequence[str]) -> dict[str, Any]:
        """Heat in [0, 1] at the patches' resolution times four, 0 to 255, for each text."""
        size = [4 * n for n in self.clip.grid]
        for text in texts:
            _check_text(text)
        small = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        with self._lock:
            maps = segment(self.clip, self.lens, small, list(texts))
        assert isinstance(maps, Tensor)
        heat = (maps * 255).round().to(torch.uint8).flatten(1).cpu()
        return {"size": size, "texts": list(texts), "heat": [bytes(each).hex() for each in heat]}

    @property
    def classes(self) -> Sequence[str]:
        """That the attack lab can draw and have mistaken; none without a world to draw from."""
        return drawable_classes(self.clip)

    def attack(self, draw: str, mistake_for: str) -> dict[str, Any]:
        """A small attack from words to verdicts, with its pictures; nothing of it is kept.

        Raises
        ------
        SecondLensError
            What `attack` raises.
        """
        with self._lock:
            return small_attack(self.clip, self.lens, draw, mistake_for)

    def picture(self, position: int) -> Image.Image:
        """The picture at a position in `Lens.picture_ids`.

        Raises
        ------
        SecondLensError
            No such image, pictures that are not at hand, or one that cannot be read.
        """
        self.atlas.image(position)
        beyond = position - len(self.lens.image_ids)
        source, place = (self.source, position) if beyond < 0 else (self.named_on, beyond)
        if source is None:
            option = "--images" if beyond < 0 else "--named-on"
            raise SecondLensError(f"the pictures are not at hand: start with {option}")
        try:
            found = source.load(place)
        except UNREADABLE as error:
            raise SecondLensError(f"the picture {position} cannot be read: {error}") from error
        if not isinstance(found, Image.Image):
            raise SecondLensError("the pictures of this lens are tensors: give them as files")
        return found

    @property
    def _unit(self) -> float:
        return OFFICIAL_SCALE if self.lens.convention == "official" else 1.0

    def _query(self, text: str) -> Float[Tensor, " dim"]:
        """A text's unit direction, less what all texts share."""
        _check_text(text)
        with self._lock:
            row = text_direction(self.clip, self.lens, text)
        return row.to(self.lens[self.lens.layers[0]].directions)

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.clip, self.atlas)


def _check_text(text: str) -> None:
    if not text.strip():
        raise SecondLensError("there is no text: give a word or a sentence")
    if len(text) > LONGEST_TEXT:
        raise SecondLensError(f"the text is longer than {LONGEST_TEXT} letters: shorten it")
