"""Answers what the pages ask of a lens as a whole: plain dictionaries that become JSON."""

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from ..effects.value_paths import chunks
from ..errors import SecondLensError
from ..lens.codes import Codes, Scores, Stability
from ..lens.lens import Lens
from ..words.summary import label
from .layout import Layout, layer_offsets
from .numbers import quartiles, short, shortened
from .records import SIZES, Survey

PUSHES = 3
"""Words of its code that a table shows of a neuron."""


class NeuronWords:
    """The codes of one vocabulary."""

    def __init__(self, lens: Lens, name: str) -> None:
        codes = lens.codes[name]
        self.labels, self.size = codes.labels, codes.indices[lens.layers[0]].shape[1]
        self.cosine = {layer: codes.cosine[layer].float().numpy() for layer in lens.layers}
        self.texts = {n: codes.indices[n][:, :SIZES].int().numpy() for n in lens.layers}
        self.brief = {layer: codes.brief[layer].float().numpy() for layer in lens.layers}

    def pushes(self, layer: int, neuron: int) -> str:
        """The strongest words, those it pushes towards first, such as "ship + whale − road"."""
        text = ""
        strongest = self.words(layer, neuron)[:PUSHES]
        for word, weight in sorted(strongest, key=lambda pair: pair[1] < 0):
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
            "brief": shortened(self.brief[layer][neuron]),
            "cosine": short(self.cosine[layer][neuron]),
            "size": self.size,
            "triangle": None if triangle is None else shortened(triangle, 4),
        }


GALLERY = 48
"""Pictures to choose from."""
TEXTS, ALONG = 2000, 24
"""Texts that can be searched for without a model, and neurons that are then found."""
TEXTS_PER_CHUNK = 64
Evidence = TypeVar("Evidence", Scores, Stability)


class Atlas:
    """Everything the pages show of all neurons together that does not need the model.

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
        self.descriptions = {name: NeuronWords(lens, name) for name in lens.codes}
        self.columns = {
            layer: {
                name: values.double().numpy()
                for name, values in vars(lens[layer]).items()
                if values.dim() == 1
            }
            | {"threshold": lens[layer].threshold.double().numpy()}
            for layer in lens.layers
        }
        self._ids = lens.picture_ids
        self._layers = lens.layers
        self._starts = [self.offsets[layer] for layer in lens.layers]

    def check(self, layer: int, neuron: int = 0) -> None:
        """Raise `SecondLensError` if the lens lacks the layer or the neuron."""
        fitted = self.lens[layer]
        if not 0 <= neuron < len(fitted.directions):
            raise SecondLensError(
                f"layer {layer} has no neuron {neuron}: it has 0 to {len(fitted.directions) - 1}"
            )

    def neuron_at(self, number: int) -> tuple[int, int]:
        """Layer and neuron of a number through the layers."""
        which = bisect_right(self._starts, number) - 1
        return self._layers[which], number - self._starts[which]

    @cached_property
    def names(self) -> list[str]:
        """Of every neuron its `label`, numbered through the layers."""
        return [label(self.lens, n, each) for n, own in self.sizes.items() for each in range(own)]

    def name(self, layer: int, neuron: int) -> str:
        """Of `names`."""
        return self.names[self.offsets[layer] + neuron]

    @cached_property
    def pushes(self) -> list[str]:
        """The best words of every neuron's code, see `NeuronWords.pushes`; empty without a
        description."""
        first = next(iter(self.descriptions.values()), None)
        if first is None:
            return [""] * self.total
        return [first.pushes(layer, n) for layer, own in self.sizes.items() for n in range(own)]

    def words(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """(text, coefficient) of a neuron in the first description, strongest first."""
        for description in self.descriptions.values():
            return description.words(layer, neuron)
        return []

    def model(self) -> dict[str, Any]:
        """What all pages say about the lens."""
        model = self.lens.model
        return {
            "name": model["name"],
            "grid": model["grid"],
            "heads": model["heads"],
            "depth": model["layers"],
            "pool": model.get("pool_heads"),
            "tower": model.get("tower", "image"),
            "layers": self.lens.layers,
            "neurons": [self.sizes[layer] for layer in self.lens.layers],
            "images": len(self.lens.image_ids),
            "top": self.lens.top,
            "surveyed": self.survey.surveyed if self.survey else 0,
            "convention": self.lens.convention,
            "vocabularies": list(self.lens.codes),
            "pictures": self._some_pictures(),
            "referee": self.scores.referee if self.scores else None,
            "scored_on": self.scores.pictures if self.scores else None,
            "names": self._about_names(),
        }

    def _about_names(self) -> dict[str, Any] | None:
        """Who named the neurons, on how many pictures, and what chance gave."""
        names = self.lens.first_names
        if names is None:
            return None
        facts = {
            key: getattr(names, key) for key in ("referee", "shown", "tested", "shuffled", "pairs")
        }
        return facts | {"images": len(names.image_ids)}

    def labels(self) -> tuple[str, ...]:
        """The texts of the first description."""
        return next((codes.labels for codes in self.lens.codes.values()), ())

    def along_texts(self) -> dict[str, list[list[Any]]]:
        """[number, cosine] of the neurons most along and most against each of the first `TEXTS`
        texts of the first description; empty lists where that is not known."""
        labels = [text.lower() for text in self.labels()[:TEXTS]]
        if self.survey is None:
            return {text: [] for text in labels}
        texts = torch.from_numpy(self.survey.texts[:TEXTS])
        half = min(ALONG, self.total) // 2
        found: dict[str, list[list[Any]]] = {}
        for some in chunks(len(labels), TEXTS_PER_CHUNK):
            cosines = torch.cat(
                [texts[some].float() @ self.lens[n].directions.float().T for n in self.lens.layers],
                dim=1,
            )
            for text, row in zip(labels[some], cosines, strict=True):
                ends = torch.cat([row.topk(half).indices, (-row).topk(half).indices])
                pairs = zip(ends.tolist(), shortened(row[ends].numpy()), strict=True)
                found[text] = [list(pair) for pair in pairs]
        return found

    def _some_pictures(self) -> list[int]:
        """Positions of pictures that are there, evenly spaced."""
        if self.survey is None:
            return []
        ends = self.survey.offsets[: len(self.lens.image_ids) + 1]
        there = np.flatnonzero(np.diff(ends))
        some: list[int] = there[:: max(1, len(there) // GALLERY)][:GALLERY].tolist()
        return some

    def layer(self, layer: int) -> dict[str, Any]:
        """Quartiles of a layer's numbers, and of their nulls."""
        columns = self.columns[layer] | self._evidence(layer)
        if (count := self._name_counts(layer)) is not None:
            columns["names"] = count
        columns["strength"] = np.sqrt(columns["energy"])
        return {name: quartiles(values) for name, values in columns.items()}

    def table(self) -> dict[str, list[Any]]:
        """All neurons, column by column; None where a number is not known."""
        columns: dict[str, list[Any]] = {"layer": [], "neuron": [], "name": self.names}
        columns["pushes"] = self.pushes
        for layer, neurons in self.sizes.items():
            own, evidence = self.columns[layer], self._evidence(layer)
            columns["layer"] += [layer] * neurons
            columns["neuron"] += range(neurons)
            numbers = {
                "score": evidence.get("score"),
                "strength": np.sqrt(own["energy"]),
                "selectivity": own["selectivity"] / np.maximum(own["selectivity_null"], 1e-12),
                "explained": own["explained"],
                "cosine": self._final_cosines(layer),
                "names": self._name_counts(layer),
                "area": self._areas(layer),
                "stability": evidence.get("stability"),
            }
            for name, values in numbers.items():
                known = [None] * neurons if values is None else shortened(values)
                columns.setdefault(name, []).extend(known)
        return columns

    def image(self, position: int) -> dict[str, Any]:
        """What the survey knows of an image of the fit.

        Raises
        ------
        SecondLensError
            The lens has no such image.
        """
        if not 0 <= position < len(self._ids):
            last = len(self._ids) - 1
            raise SecondLensError(f"there is no image {position}: choose one of 0 to {last}")
        found: dict[str, Any] = {"position": position, "id": self._ids[position]}
        if self.survey and position < len(self.lens.image_ids):
            pairs = zip(
                self.survey.responding[position].tolist(),
                self.survey.response[position].tolist(),
                strict=True,
            )
            places = [(self.neuron_at(n), size) for n, size in pairs if n >= 0]
            found["neurons"] = [[*p, short(size), self.name(*p)] for p, size in places]
        return found

    def clearest(self, count: int = 8) -> list[tuple[int, int]]:
        """Neurons to begin with: those whose first name finds unseen images best, else the best
        scored, else the most selective."""
        return self._varied({layer: self._clarity(layer) for layer in self.lens.layers}, count)

    def polysemous(self, count: int = 8) -> list[tuple[int, int]]:
        """The clearest of the neurons that have two names or more."""
        clarity = {}
        for layer in self.lens.layers:
            counts = self._name_counts(layer)
            if counts is not None:
                clarity[layer] = np.where(counts >= 2, self._clarity(layer), -np.inf)
        return self._varied(clarity, count)

    def _name_counts(self, layer: int) -> np.ndarray | None:
        """Names of each neuron of a layer, if it was named."""
        names = self.lens.first_names
        if names is None or layer not in names.texts:
            return None
        counts: np.ndarray = (names.texts[layer] >= 0).sum(1).numpy()
        return counts

    def _areas(self, layer: int) -> np.ndarray | None:
        """The area of each neuron's first name, not a number where it has none."""
        names = self.lens.first_names
        if names is None or layer not in names.auc:
            return None
        areas: np.ndarray = names.auc[layer][:, 0].double().numpy()
        return areas

    def _clarity(self, layer: int) -> np.ndarray:
        clarity: np.ndarray
        if (areas := self._areas(layer)) is not None:
            clarity = np.nan_to_num(areas, nan=-np.inf)
        elif self.scores is not None:
            clarity = self.scores.low[layer][:, 0].nan_to_num(-1).double().numpy()
        else:
            clarity = self.columns[layer]["selectivity"]
        return clarity

    def _varied(self, clarity: dict[int, np.ndarray], count: int) -> list[tuple[int, int]]:
        """The clearest neurons, no two with the same name, first word or strongest image."""
        ranked: list[tuple[float, int, int]] = []
        for layer, order in clarity.items():
            for neuron in np.argsort(-order, kind="stable")[: 16 * count].tolist():
                if order[neuron] > -np.inf:
                    ranked.append((-float(order[neuron]), layer, neuron))
        found: list[tuple[int, int]] = []
        seen: set[Any] = set()
        for _, layer, neuron in sorted(ranked):
            named = [each.text for each in self.lens.fires_on(layer, neuron)]
            words = named or [word for word, _ in self.words(layer, neuron)[:1]]
            marks = {int(self.lens[layer].top_images[neuron, 0]), *words}
            if not marks & seen:
                found.append((layer, neuron))
                seen |= marks
        return found[:count]

    def _evidence(self, layer: int) -> dict[str, np.ndarray]:
        found = {}
        if self.scores is not None:
            found["score"] = self.scores.auc[layer][:, 0].double().numpy()
        if self.stability is not None:
            found["stability"] = self.stability.cosine[layer].double().numpy()
        return found

    def _final_cosines(self, layer: int) -> np.ndarray | None:
        for description in self.descriptions.values():
            return description.cosine[layer]
        return None


def _of_first(codes: dict[str, Codes], found: Iterable[Evidence]) -> Evidence | None:
    """The first evidence about the first description."""
    return next((each for each in found if codes and each.vocabulary == next(iter(codes))), None)
