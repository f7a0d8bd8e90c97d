"""Everything the page of one neuron shows: a plain dictionary that becomes JSON.

The pages of a large model are made by the hundred a second, so arrays are read row by row and
rounded together.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .atlas import Atlas
from .numbers import short, shortened, shortened_by_name
from .records import BANDS, GROUPS, IN_BAND, PER_NAME, LayerSurvey

UNSEEN = 12
"""Strongest images that are listed where no survey has pictures of them."""
_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


class Profiles:
    """What is known of each neuron of an atlas."""

    def __init__(self, atlas: Atlas) -> None:
        lens, layout = atlas.lens, atlas.layout
        self.atlas, self._ids, self._labels = atlas, lens.picture_ids, atlas.labels()
        self._top = {layer: lens[layer].top_images.numpy() for layer in lens.layers}
        self._norms = {layer: lens[layer].top_norms.float().numpy() for layer in lens.layers}
        if layout is not None:
            self._neighbours = layout.neighbours.numpy()
            self._cosines = layout.cosines.float().numpy()

    def of(self, layer: int, neuron: int) -> dict[str, Any]:
        """A neuron's profile.

        Raises
        ------
        SecondLensError
            The lens lacks the layer or the neuron.
        """
        self.atlas.check(layer, neuron)
        found = {
            "layer": layer,
            "neuron": neuron,
            "name": self.atlas.name(layer, neuron),
            "numbers": self._numbers(layer, neuron),
            "words": {
                name: description.of(layer, neuron, self._triangle(name, layer, neuron))
                for name, description in self.atlas.descriptions.items()
            },
            "similar": self._similar(layer, neuron),
            "names": [
                {"text": each.text, "auc": short(each.auc), "q": short(each.q), "held": each.held}
                | {"rose": each.rose, "confirmed": each.confirmed}
                for each in self.atlas.lens.fires_on(layer, neuron)
            ],
        }
        if self.atlas.survey:
            return found | self._seen(self.atlas.survey.layers[layer], layer, neuron)
        images = self._top[layer][neuron, :UNSEEN].tolist()
        norms = shortened(self._norms[layer][neuron, :UNSEEN])
        pairs = zip(images, norms, strict=True)
        return found | {"top": [[image, self._ids[image], norm] for image, norm in pairs]}

    def _numbers(self, layer: int, neuron: int) -> dict[str, Any]:
        """A number, [number, null], or [number, low, high]."""
        atlas, own = self.atlas, self.atlas.columns[layer]
        found: dict[str, Any] = {
            "strength": short(math.sqrt(own["energy"][neuron])),
            "threshold": short(own["threshold"][neuron]),
            "explained_all": short(own["explained_all"][neuron]),
        }
        for name in ("explained", "selectivity"):
            found[name] = [short(own[name][neuron]), short(own[f"{name}_null"][neuron])]
        if atlas.scores is not None:
            areas = (atlas.scores.auc, atlas.scores.low, atlas.scores.high)
            found["score"] = [short(each[layer][neuron, 0]) for each in areas]
        if atlas.stability is not None:
            cosines = (atlas.stability.cosine, atlas.stability.cosine_null)
            found["stability"] = [short(each[layer][neuron]) for each in cosines]
        if atlas.lens.first_names is not None:
            found["names"] = len(atlas.lens.fires_on(layer, neuron))
        return found

    def _triangle(self, name: str, layer: int, neuron: int) -> np.ndarray | None:
        survey = self.atlas.survey
        if survey is None or name not in survey.codes:
            return None
        numbers: np.ndarray = survey.codes[name][layer][neuron]
        return numbers

    def _similar(self, layer: int, neuron: int) -> list[list[Any]]:
        """[layer, neuron, cosine, name] of a neuron's neighbours."""
        if self.atlas.layout is None:
            return []
        number = self.atlas.offsets[layer] + neuron
        others = self._neighbours[number].tolist()
        pairs = zip(others, shortened(self._cosines[number]), strict=True)
        return [[*self.atlas.neuron_at(n), cosine, self.atlas.names[n]] for n, cosine in pairs]

    def _seen(self, seen: LayerSurvey, layer: int, neuron: int) -> dict[str, Any]:
        """Pictures, bands, paths and classes of a neuron."""
        images = seen.images[neuron].tolist()
        rows = ("effect", "peak", "paths", "change", "shares", "extent")
        numbers = shortened_by_name({name: getattr(seen, name)[neuron] for name in rows})
        heat = _DIGITS[seen.heat[neuron]].tobytes().decode()
        patches = len(heat) // len(images)
        path = seen.path[neuron].tolist()
        place: dict[int, int] = {}
        shots: list[list[Any]] = []
        for slot, position in enumerate(images):
            if position >= 0 and position not in place:
                place[position] = len(shots)
                values = numbers["effect"][slot], numbers["peak"][slot], path[slot]
                light = heat[slot * patches : (slot + 1) * patches]
                shots.append([position, self._ids[position], *values, light])

        def there(slots: Sequence[int]) -> list[int]:
            return [place[position] for position in slots if position >= 0]

        sizes = np.abs(seen.effect[neuron, GROUPS["strongest"]])
        strongest = np.array(images[GROUPS["strongest"]])[np.argsort(-sizes, kind="stable")]
        inside = images[GROUPS["bands"]]
        classes = zip(seen.classes[neuron].tolist(), numbers["change"], strict=True)
        return {
            "shots": shots,
            "groups": {
                "strongest": there(strongest.tolist()),
                "firing": there(images[GROUPS["firing"]]),
                "random": there(images[GROUPS["random"]]),
            },
            "bands": [
                [numbers["shares"][i], there(inside[i * IN_BAND : (i + 1) * IN_BAND])]
                for i in range(BANDS)
            ],
            "scale": short(seen.scale[neuron]),
            "extent": numbers["extent"],
            "counts": seen.counts[neuron].tolist(),
            "paths": numbers["paths"],
            "holding": [
                there(images[GROUPS["named"]][start : start + PER_NAME])
                for start in range(
                    0, PER_NAME * len(self.atlas.lens.fires_on(layer, neuron)), PER_NAME
                )
            ],
            "classes": [[self._labels[text], change] for text, change in classes],
        }
