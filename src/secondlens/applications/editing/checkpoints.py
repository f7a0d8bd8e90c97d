"""An edited model on the disk: folders of open_clip and transformers, and a card beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch

from ...errors import SecondLensError
from ...formatting import cell
from ...lens.lens import Lens
from ...models.loading import load
from ...models.view import Clip
from ...naming import shown_model
from ...storage.files import save_json, save_text
from .outcomes import Outcome
from .saving import FOLDER, keeps_tokenizer, save_open_clip, save_transformers
from .weights import Edited

NOISE = 4
"""Random pictures on which a saved model is compared with the one in memory."""
TEXTS = ("a photo of a dog", "Two words: sea, grass!")
"""With which text towers are compared."""
PRECISIONS = {torch.float16: "pure_fp16", torch.bfloat16: "pure_bf16"}

LIBRARIES: Mapping[str, tuple[str, Callable[[Clip, Path], None]]] = {
    "open_clip": (FOLDER, save_open_clip),
    "transformers": ("hf:", save_transformers),
}
"""Folder in a checkpoint -> how `secondlens.load` names a model there, and what writes it."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One folder of a checkpoint, loaded again and compared with the model in memory."""

    library: str
    images: float
    """Largest difference of a number in unit embeddings of random pictures."""
    texts: float | None
    """The same of texts; None where the tokenizer is none that could be written."""


def save_models(clip: Clip, folder: Path) -> tuple[dict[str, Saved], dict[str, str]]:
    """Write a model for each library that can build it, and load what was written.

    Returns
    -------
    What was written by library, and why the others were not.

    Raises
    ------
    SecondLensError
        No library can build it.
    """
    saved, refused = {}, {}
    for library, (_, write) in LIBRARIES.items():
        try:
            write(clip, folder / library)
            saved[library] = compared(clip, loaded(folder, library, clip), library)
        except SecondLensError as error:
            refused[library] = str(error)
    if not saved:
        raise SecondLensError(next(iter(refused.values())))
    return saved, refused


def loaded(folder: Path, library: str, like: Clip) -> Clip:
    """The model in a folder of a checkpoint, on the device and in the precision of another."""
    precision = PRECISIONS.get(like.dtype, "fp32")
    name = f"{LIBRARIES[library][0]}{folder / library}"
    return load(name, device=like.device, precision=precision)


def compared(clip: Clip, other: Clip, library: str) -> Saved:
    """How far a model that was saved is from the one in memory."""
    noise = clip.noise(NOISE).to(clip.device, clip.dtype)
    images = _apart(*(_unit(each.encode_image(noise)) for each in (clip, other)))
    texts = None
    if keeps_tokenizer(clip) and other.text_tower is not None:
        texts = _apart(*(each.encode_text(TEXTS) for each in (clip, other)))
    return Saved(library=library, images=images, texts=texts)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def document(
    edited: Edited,
    lens: Lens,
    outcomes: Sequence[Outcome] = (),
    saved: Mapping[str, Saved] | None = None,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `edit.json` holds; `Edit.load` reads what was cut out of it."""
    changes = edited.edit
    return {
        "neurons": changes.neurons,
        "paths": changes.paths,
        "strength": changes.strength,
        "weights_hash": edited.before_hash,
        "model": shown_model(edited.before),
        "edited_weights_hash": edited.clip.weights_hash,
        "means": [edited.means[each] for each in changes.neurons],
        "explained": [edited.explained[each] for each in changes.paths],
        "names": [_name(lens, *each[:2]) for each in (*changes.neurons, *changes.paths)],
        "distances": [asdict(each) | {"share": each.share} for each in edited.distances],
        "images": edited.images,
        "outcomes": [asdict(each) for each in outcomes],
        "saved": [asdict(each) for each in (saved or {}).values()],
        "refused": dict(refused or {}),
    }


def _name(lens: Lens, layer: int, neuron: int) -> str:
    return lens.title(layer, neuron) if layer in lens else ""


def save_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `edit.json`, and the card `README.md` that says the same in words."""
    save_json(folder / "edit.json", dict(content))
    neurons, paths = content["neurons"], content["paths"]
    names = content["names"]
    text = card(
        *("secondlens.applications.editing", "edit-card.md", content),
        changed_neurons=list(zip(neurons, content["means"], names, strict=False)),
        changed_paths=list(zip(paths, content["explained"], names[len(neurons) :], strict=True)),
    )
    save_text(folder / "README.md", text)


def card(package: str, template: str, content: Mapping[str, Any], **more: Any) -> str:
    """The text of a card, from a template of a package and what it tells."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template(template).render(content, **more)
