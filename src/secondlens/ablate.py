"""Mean-ablation of second-order effects (section 3 of arXiv 2406.04341, Figure 3).

Effects are parts of the normalised embedding, so replacing some of them is a subtraction:
embedding - sum over the replaced neurons of (effect - replacement). What the classifier then says
shows what those effects were for.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from rich.progress import track
from safetensors import safe_open
from torch import Tensor

from .capture import Capture
from .effects import extended_coefficients, image_scale, isometry, value_paths
from .errors import SecondLensError
from .images import Reader, as_source
from .lens import Lens
from .storage import load_tensors, save_tensors
from .view import Clip

KINDS = ("all", "large", "small", "random", "first component")
"""What is ablated: the effects of all neurons; of those whose centred norm is above their
threshold; of the others; of equally many random ones as are above; and, last, all effects replaced
by mean + their projection on the neuron's direction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """Whether each image was classified right, without ablation and with each kind of it."""

    baseline: Bool[Tensor, " images"]
    correct: dict[tuple[int, str], Bool[Tensor, " images"]]
    """By (layer, kind)."""
    significant: dict[int, float]
    """Mean number of significant neurons of an image, by layer."""

    def accuracy(self, layer: int, kind: str) -> float:
        """Top-1, as a share."""
        return float(self.correct[layer, kind].float().mean())

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        tensors = {f"{layer}/{kind}": right for (layer, kind), right in self.correct.items()}
        significant = {"significant": json.dumps(self.significant)}
        save_tensors(path, {"baseline": self.baseline, **tensors}, significant)

    @classmethod
    def load(cls, path: Path) -> "Ablation":
        """What `save` wrote."""
        tensors = load_tensors(path)
        with safe_open(path, framework="pt") as file:
            significant = json.loads(file.metadata()["significant"])
        return cls(
            baseline=tensors.pop("baseline"),
            correct={
                (int(layer), kind): right
                for (layer, kind), right in ((key.split("/"), t) for key, t in tensors.items())
            },
            significant={int(layer): mean for layer, mean in significant.items()},
        )


@torch.no_grad()
def ablate(
    clip: Clip,
    lens: Lens,
    images: Any,
    labels: Sequence[int],
    classifier: Float[Tensor, "classes dim"],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """Top-1 of a zero-shot classifier with second-order effects of one layer at a time ablated.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it; the lens has the means, directions and thresholds.
    images
        What `fit` takes.
    labels
        The class of each image, as a row of `classifier`.
    classifier
        Unit embeddings of the classes.
    layers
        By default all layers of the lens.
    seed
        For the random neurons.

    Raises
    ------
    SecondLensError
        Another model's lens, or labels that do not fit the images or classes.
    """
    lens.check_model(clip)
    source = as_source(images)
    if len(labels) != len(source.ids):
        raise SecondLensError(f"there are {len(source.ids)} images and {len(labels)} labels")
    if labels and not 0 <= min(labels) <= max(labels) < len(classifier):
        raise SecondLensError(f"labels must lie between 0 and {len(classifier) - 1}")
    chosen = lens.layers if layers is None else list(layers)
    replacements = {layer: _Replacement(clip, lens, layer) for layer in chosen}
    generator = torch.Generator().manual_seed(seed)
    baseline: list[Tensor] = []
    correct: dict[tuple[int, str], list[Tensor]] = {}
    counts: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    shown: Callable = track if progress else (lambda batches, **_: batches)
    with Capture(clip, chosen) as capture:
        for batch in shown(reader, description="ablations", total=len(reader)):
            representation = clip.encode_image(batch.pixels)
            pooled = capture.pool(representation)
            embedding = F.normalize(representation.to(clip.compute_dtype), dim=-1)
            truth = torch.tensor([labels[i] for i in batch.positions], device=clip.device)

            def right(embedding: Tensor, truth: Tensor = truth) -> Tensor:
                return (embedding @ classifier.T).argmax(1) == truth

            baseline.append(right(embedding))
            scale = image_scale(pooled, lens.convention)
            # official effects are 100 times as large
            unit = float(pooled.scale[0] / scale[0])
            for layer, replacement in replacements.items():
                coefficients = extended_coefficients(pooled, layer, lens.convention)
                centred = replacement.centred(coefficients, scale)
                masks = replacement.masks(centred, generator)
                counts[layer].append(masks["large"].sum(1))
                for kind in KINDS:
                    removed = unit * replacement.removed(centred, kind, masks)
                    correct.setdefault((layer, kind), []).append(right(embedding - removed))
    return Ablation(
        baseline=torch.cat(baseline),
        correct={key: torch.cat(parts) for key, parts in correct.items()},
        significant={layer: float(torch.cat(c).float().mean()) for layer, c in counts.items()},
    )


class _Replacement:
    """What ablation takes out of the embedding, computed in isometric coordinates."""

    def __init__(self, clip: Clip, lens: Lens, layer: int) -> None:
        fitted = lens[layer]
        self.isometry = isometry(value_paths(clip, layer, lens.convention))
        basis = self.isometry.basis
        self.threshold = fitted.threshold
        self.mean = torch.bmm(fitted.mean[:, None], basis)[:, 0]
        self.component = torch.bmm(fitted.directions[:, None], basis)[:, 0]
        self.directions = fitted.directions
        self.flat_basis = basis.transpose(1, 2).flatten(0, 1)

    def centred(self, coefficients: Tensor, scale: Tensor) -> Tensor:
        """Coordinates minus their mean, [images, neurons, rank]."""
        return self.isometry.coordinates(coefficients, scale) - self.mean

    def masks(self, centred: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Neurons to ablate in each image, [images, neurons], for the kinds that choose some."""
        large = centred.norm(dim=-1) > self.threshold
        noise = torch.rand(large.shape, generator=generator).to(large.device)
        place = noise.argsort(1).argsort(1)
        return {
            "all": torch.ones_like(large),
            "large": large,
            "small": ~large,
            "random": place < large.sum(1, keepdim=True),
        }

    def removed(self, centred: Tensor, kind: str, masks: dict[str, Tensor]) -> Tensor:
        """What leaves the embedding, [images, dim]."""
        if kind == "first component":
            everything = centred.flatten(1) @ self.flat_basis
            projections = (centred * self.component).sum(-1)
            return everything - projections @ self.directions
        return (centred * masks[kind][:, :, None]).flatten(1) @ self.flat_basis
