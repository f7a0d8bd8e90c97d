"""Answers what the pages ask of a lens: plain dictionaries that become JSON."""

import math
from functools import cached_property
from typing import Any, SupportsFloat

import numpy as np
import torch

from ..concepts import Proof
from ..errors import SecondLensError
from ..evidence import Scores, Stability
from ..lens import Codes, Lens
from .language import SIZES
from .layout import Layout, layer_offsets
from .prepared import GROUPS, PROVEN, LayerSurvey, Survey

NAMING = 3
"""Words in a neuron's name."""
GALLERY = 48
"""Pictures to choose from."""
TEXTS, ALONG = 2000, 24
"""Texts that can be searched for without a model, and neurons that are then found."""
HEX = "0123456789abcdef"
_DIGITS = np.frombuffer(HEX.encode(), dtype=np.uint8)


class Atlas:
    """Everything the pages show of a lens that does not need the model.

    Parameters
    ----------
    lens
        What is shown.
    survey
        What was seen on its pictures; without it, pages lack pictures and what follows from them.
    layout
        The map and neighbours; without it, pages lack these.
    """

    def __init__(
        self, lens: Lens, survey: Survey | None = None, layout: Layout | None = None
    ) -> None:
        self.lens, self.survey, self.layout = lens, survey, layout
        self.offsets = layer_offsets(lens)
        self.sizes = {layer: len(lens[layer].directions) for layer in lens.layers}
        self.total = sum(self.sizes.values())
        self.scores: Scores | None = _of_first(lens.codes, lens.scores.values())
        self.stability: Stability | None = _of_first(lens.codes, lens.stability.values())
        self._codes = {name: _Words(lens, name) for name in lens.codes}
        self._columns = {
            layer: {
                name: values.double().numpy()
                for name, values in vars(lens[layer]).items()
                if values.dim() == 1
            }
            | {"threshold": lens[layer].threshold.double().numpy()}
            for layer in lens.layers
        }
        self._top = {layer: lens[layer].top_images.numpy() for layer in lens.layers}
        self._norms = {layer: lens[layer].top_norms.numpy() for layer in lens.layers}
        if layout is not None:
            self._neighbours, self._cosines = layout.neighbours.numpy(), layout.cosines.numpy()

    def check(self, layer: int, neuron: int = 0) -> None:
        """Raise `SecondLensError` if the lens lacks the layer or the neuron."""
        fitted = self.lens[layer]
        if not 0 <= neuron < len(fitted.directions):
            raise SecondLensError(
                f"layer {layer} has no neuron {neuron}: it has 0 to {len(fitted.directions) - 1}"
            )

    def neuron_at(self, number: int) -> tuple[int, int]:
        """Layer and neuron of a number through the layers."""
        layer = max(each for each in self.lens.layers if self.offsets[each] <= number)
        return layer, number - self.offsets[layer]

    def name(self, layer: int, neuron: int) -> str:
        """The best signed words, such as "ship + whale − road"; empty without a description."""
        for words in self._codes.values():
            return words.name(layer, neuron)
        return ""

    def words(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """[text, coefficient] of a neuron in the first description, strongest first."""
        for words in self._codes.values():
            return words.words(layer, neuron)
        return []

    def model(self) -> dict[str, Any]:
        """What all pages say about the lens."""
        model = self.lens.model
        return {
            "name": model["name"],
            "grid": model["grid"],
            "heads": model["heads"],
            "depth": model["layers"],
            "layers": self.lens.layers,
            "neurons": [self.sizes[layer] for layer in self.lens.layers],
            "images": len(self.lens.image_ids),
            "top": self.lens.top,
            "surveyed": self.survey.surveyed if self.survey else 0,
            "convention": self.lens.convention,
            "vocabularies": list(self.lens.codes),
            "pictures": self._some_pictures(),
            "referee": self.scores.referee if self.scores else None,
        }

    def labels(self) -> tuple[str, ...]:
        """The texts of the first description."""
        return next((codes.labels for codes in self.lens.codes.values()), ())

    def along_texts(self) -> dict[str, list[list[Any]]]:
        """[number, cosine] of the neurons most along and most against each text of the first
        description; empty lists where that is not known. The first `TEXTS` of them."""
        labels = self.labels()[:TEXTS]
        if self.survey is None:
            return {text.lower(): [] for text in labels}
        directions = torch.cat([self.lens[layer].directions for layer in self.lens.layers]).float()
        found: dict[str, list[list[Any]]] = {}
        texts = torch.from_numpy(self.survey.texts[:TEXTS]).float()
        half = min(ALONG, len(directions)) // 2
        for label, text in zip(labels, texts, strict=True):
            cosines = directions @ text
            ends = [*cosines.topk(half).indices, *(-cosines).topk(half).indices]
            found[label.lower()] = [[int(n), short(float(cosines[n]))] for n in ends]
        return found

    def _some_pictures(self) -> list[int]:
        """Positions of pictures that are there, evenly spaced."""
        if self.survey is None:
            return []
        there = np.flatnonzero(np.diff(self.survey.offsets))
        return there[:: max(1, len(there) // GALLERY)][:GALLERY].tolist()

    def layer(self, layer: int) -> dict[str, Any]:
        """Quartiles of a layer's numbers, and of their nulls."""
        columns = self._columns[layer] | self._evidence(layer)
        if self.survey:
            columns["polysemy"] = self.survey.layers[layer].polysemy
        columns["strength"] = np.sqrt(columns["energy"])
        return {name: _quartiles(values) for name, values in columns.items()}

    @cached_property
    def table(self) -> dict[str, Any]:
        """All neurons, column by column; None where a number is not known."""
        columns: dict[str, list[Any]] = {}
        for layer in self.lens.layers:
            own = self._columns[layer]
            neurons = range(self.sizes[layer])
            found: dict[str, Any] = {
                "layer": [layer] * len(neurons),
                "neuron": neurons,
                "name": [self.name(layer, neuron) for neuron in neurons],
                "score": self._evidence(layer).get("score"),
                "strength": np.sqrt(own["energy"]),
                "selectivity": own["selectivity"] / np.maximum(own["selectivity_null"], 1e-12),
                "explained": own["explained"],
                "cosine": self._final_cosines(layer),
                "polysemy": self.survey.layers[layer].polysemy if self.survey else None,
                "stability": self._evidence(layer).get("stability"),
            }
            for name, values in found.items():
                values = [None] * len(neurons) if values is None else values
                whole = isinstance(values, list | range)
                columns.setdefault(name, []).extend(values if whole else map(short, values))
        return columns

    def neuron(self, layer: int, neuron: int) -> dict[str, Any]:
        """Everything a neuron's page shows.

        Raises
        ------
        SecondLensError
            The lens lacks the layer or the neuron.
        """
        self.check(layer, neuron)
        found: dict[str, Any] = {
            "layer": layer,
            "neuron": neuron,
            "name": self.name(layer, neuron),
            "numbers": self._numbers(layer, neuron),
            "words": {
                name: words.of(layer, neuron, self._triangle(name, layer, neuron))
                for name, words in self._codes.items()
            },
            "similar": self.similar(layer, neuron),
        }
        if self.survey:
            found |= self._seen(self.survey.layers[layer], layer, neuron)
        else:
            found["top"] = [
                [int(position), self.lens.image_ids[position], short(norm)]
                for position, norm in zip(
                    self._top[layer][neuron, :12], self._norms[layer][neuron], strict=False
                )
            ]
        return found

    def similar(self, layer: int, neuron: int) -> list[list[Any]]:
        """[layer, neuron, cosine, name] of a neuron's neighbours."""
        if self.layout is None:
            return []
        number = self.offsets[layer] + neuron
        pairs = zip(self._neighbours[number].tolist(), self._cosines[number].tolist(), strict=True)
        places = ((self.neuron_at(other), cosine) for other, cosine in pairs)
        return [[*place, short(cosine), self.name(*place)] for place, cosine in places]

    def image(self, position: int) -> dict[str, Any]:
        """What the survey knows of an image of the fit.

        Raises
        ------
        SecondLensError
            The lens has no such image.
        """
        if not 0 <= position < len(self.lens.image_ids):
            last = len(self.lens.image_ids) - 1
            raise SecondLensError(f"there is no image {position}: choose one of 0 to {last}")
        found: dict[str, Any] = {"position": position, "id": self.lens.image_ids[position]}
        if self.survey:
            pairs = zip(
                self.survey.responding[position].tolist(),
                self.survey.response[position].tolist(),
                strict=True,
            )
            places = [(self.neuron_at(n), size) for n, size in pairs if n >= 0]
            found["neurons"] = [[*p, short(size), self.name(*p)] for p, size in places]
        return found

    def best(self, count: int = 8) -> list[tuple[int, int]]:
        """Neurons to begin with: the best scored, else the most selective, of all layers, no two
        with the same first word or the same strongest image."""
        ranked: list[tuple[float, int, int]] = []
        for layer in self.lens.layers:
            order = self._columns[layer]["selectivity"]
            if self.scores is not None:
                order = self.scores.low[layer][:, 0].nan_to_num(-1).double().numpy()
            for neuron in np.argsort(-order, kind="stable")[: 16 * count].tolist():
                ranked.append((-float(order[neuron]), layer, neuron))
        found: list[tuple[int, int]] = []
        seen: set[Any] = set()
        for _, layer, neuron in sorted(ranked):
            first = self.words(layer, neuron)[:1]
            marks = {int(self._top[layer][neuron, 0]), *(word for word, _ in first)}
            if not marks & seen:
                found.append((layer, neuron))
                seen |= marks
        return found[:count]

    def _numbers(self, layer: int, neuron: int) -> dict[str, Any]:
        """A number, [number, null], or [number, low, high]."""
        own = self._columns[layer]
        found: dict[str, Any] = {
            "strength": short(math.sqrt(own["energy"][neuron])),
            "threshold": short(own["threshold"][neuron]),
            "explained_all": short(own["explained_all"][neuron]),
        }
        for name in ("explained", "selectivity"):
            found[name] = [short(own[name][neuron]), short(own[f"{name}_null"][neuron])]
        if self.scores is not None:
            areas = (self.scores.auc, self.scores.low, self.scores.high)
            found["score"] = [short(float(each[layer][neuron, 0])) for each in areas]
        if self.stability is not None:
            cosines = (self.stability.cosine, self.stability.cosine_null)
            found["stability"] = [short(float(each[layer][neuron])) for each in cosines]
        if self.survey:
            found["polysemy"] = short(self.survey.layers[layer].polysemy[neuron])
        return found

    def _evidence(self, layer: int) -> dict[str, np.ndarray]:
        found = {}
        if self.scores is not None:
            found["score"] = self.scores.auc[layer][:, 0].double().numpy()
        if self.stability is not None:
            found["stability"] = self.stability.cosine[layer].double().numpy()
        return found

    def _final_cosines(self, layer: int) -> np.ndarray | None:
        for codes in self.lens.codes.values():
            return codes.cosine[layer].double().numpy()
        return None

    def _triangle(self, name: str, layer: int, neuron: int) -> np.ndarray | None:
        if self.survey is None or name not in self.survey.codes:
            return None
        return self.survey.codes[name][layer][neuron]

    def _seen(self, seen: LayerSurvey, layer: int, neuron: int) -> dict[str, Any]:
        """Pictures, bands, paths, concepts and classes of a neuron."""
        images = seen.images[neuron].tolist()
        place: dict[int, int] = {}
        shots: list[list[Any]] = []
        for slot, position in enumerate(images):
            if position >= 0 and position not in place:
                place[position] = len(shots)
                shots.append(
                    [
                        position,
                        self.lens.image_ids[position],
                        short(seen.effect[neuron, slot]),
                        short(seen.peak[neuron, slot]),
                        int(seen.path[neuron, slot]),
                        _DIGITS[seen.heat[neuron, slot]].tobytes().decode(),
                    ]
                )
        groups = {
            name: [place[p] for p in images[slots] if p >= 0] for name, slots in GROUPS.items()
        }
        each = GROUPS["bands"].start
        step = (GROUPS["bands"].stop - each) // seen.shares.shape[1]
        bands = [
            [
                short(share),
                [place[p] for p in images[each + i * step : each + (i + 1) * step] if p >= 0],
            ]
            for i, share in enumerate(seen.shares[neuron].tolist())
        ]
        labels = self.labels()
        return {
            "shots": shots,
            "groups": {name: groups[name] for name in ("strongest", "firing", "random")},
            "bands": bands,
            "scale": short(seen.scale[neuron]),
            "extent": [short(end) for end in seen.extent[neuron]],
            "counts": seen.counts[neuron].tolist(),
            "paths": [short(share, 3) for share in seen.paths[neuron]],
            "concepts": self._concepts(seen, layer, neuron, images, place),
            "classes": [
                [labels[text], short(change)]
                for text, change in zip(
                    seen.classes[neuron].tolist(), seen.change[neuron], strict=True
                )
            ],
        }

    def _concepts(
        self, seen: LayerSurvey, layer: int, neuron: int, images: list[int], place: dict[int, int]
    ) -> list[dict[str, Any]]:
        proof = Proof(
            images=tuple(self._top[layer][neuron].tolist()),
            concepts=tuple(seen.proof[neuron].tolist()),
        )
        pairs = self.words(layer, neuron)
        ids = seen.concept[neuron].tolist()
        shown = images[GROUPS["proofs"]]
        step = len(shown) // PROVEN
        found = []
        for rank, concept in enumerate(proof.proven):
            own = [pair for pair, i in zip(pairs, ids, strict=False) if i == concept]
            mine = shown[rank * step : (rank + 1) * step] if rank < PROVEN else []
            found.append(
                {
                    "words": [word for word, _ in own],
                    "weight": short(sum(weight for _, weight in own)),
                    "count": len(proof.showing(concept)),
                    "shots": [place[p] for p in mine if p >= 0],
                }
            )
        return found


class _Words:
    """One description, ready to be read neuron by neuron."""

    def __init__(self, lens: Lens, name: str) -> None:
        codes = lens.codes[name]
        self.labels, self.size = codes.labels, codes.indices[lens.layers[0]].shape[1]
        self.cosine = {layer: codes.cosine[layer].numpy() for layer in lens.layers}
        self.texts = {n: codes.indices[n][:, :SIZES].int().numpy() for n in lens.layers}
        self.brief = {layer: codes.brief[layer].float().numpy() for layer in lens.layers}

    def name(self, layer: int, neuron: int) -> str:
        """The first words with their signs."""
        text = ""
        for word, weight in self.words(layer, neuron)[:NAMING]:
            sign = "− " if weight < 0 else "+ " if text else ""
            text += f"{' ' if text else ''}{sign}{word}"
        return text

    def words(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """(text, coefficient) of the brief code, strongest first."""
        weights = self.brief[layer][neuron].tolist()
        texts = self.texts[layer][neuron].tolist()
        found = [(self.labels[i], w) for i, w in zip(texts, weights, strict=False) if i >= 0]
        return sorted(found, key=lambda pair: -abs(pair[1]))

    def of(self, layer: int, neuron: int, triangle: np.ndarray | None) -> dict[str, Any]:
        """Texts in the order of the pursuit, the brief code, and what codes of other sizes need."""
        texts = [i for i in self.texts[layer][neuron].tolist() if i >= 0]
        return {
            "texts": [self.labels[i] for i in texts],
            "brief": [short(w) for w in self.brief[layer][neuron].tolist()],
            "cosine": short(float(self.cosine[layer][neuron])),
            "size": self.size,
            "triangle": None if triangle is None else [short(v, 4) for v in triangle.tolist()],
        }


def short(value: SupportsFloat, digits: int = 3) -> float | None:
    """Rounded to some significant digits; None for what is no number."""
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def json_ready(content: Any) -> Any:
    """The same with every number that JSON can hold, shortened, and None for the others."""
    if isinstance(content, dict):
        return {str(key): json_ready(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_ready(value) for value in content]
    return short(content, 4) if isinstance(content, float) else content


def _of_first(codes: dict[str, Codes], found: Any) -> Any:
    """The first evidence about the first description."""
    return next((each for each in found if codes and each.vocabulary == next(iter(codes))), None)


def _quartiles(values: np.ndarray) -> list[float | None]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [None, None, None]
    return [short(each) for each in np.quantile(finite, (0.25, 0.5, 0.75))]
