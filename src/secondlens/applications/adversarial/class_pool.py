"""Descriptions of classes by a language model, as the paper made its third pool of texts.

The paper asked a chat model for 40 image characteristics of each of ImageNet's 1,000 classes and
kept about 28,000 different ones. A run keeps each class in a file, so that it goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import msgspec

from ...errors import SecondLensError
from ...formatting import differences
from ...progress import tracked
from ...storage.files import check_empty, read_json, save_json, save_text
from ...storage.locks import writing
from ...storage.validation import Texts, convert, reading
from .captioning import Captioner
from .selection import NothingLeft

PER_CLASS = 40
"""The paper's."""


@runtime_checkable
class LanguageModel(Protocol):
    """A captioner that answers any request for a list of texts."""

    name: str

    def ask(self, prompt: str, seed: int) -> list[str]:
        """The texts of one reply; raises `NothingLeft` if there is no list in it."""


def request(label: str, count: int) -> str:
    """What is asked of a class."""
    return (
        f"List {count} characteristics that photos of {label} may have: things, places, animals, "
        "people, textures, colours and ways of photographing. Write each as a short caption of one "
        "characteristic, such as “Image with a wooden cutting board” or “Close-up photo of a "
        "melting popsicle”. Keep them different from each other. Answer with a numbered list and "
        "nothing else."
    )


@dataclass(frozen=True, kw_only=True)
class ClassPool:
    """What a run has made."""

    texts: tuple[str, ...]
    """Different descriptions, in the order of the classes."""
    left_out: dict[str, str]
    """By class, why it has none."""
    path: Path
    """A file with a text a line, for `--texts`."""


@dataclass(frozen=True, kw_only=True)
class StoredClass:
    """What a file of one class holds."""

    label: str
    texts: Texts
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    """Why there are none."""


def class_pool(
    model: Captioner,
    labels: Sequence[str],
    out: str | Path,
    *,
    per_class: int = PER_CLASS,
    seed: int = 0,
    progress: bool = False,
) -> ClassPool:
    """Ask for descriptions of each class, or for those that an interrupted run has not got.

    Parameters
    ----------
    model
        One that answers requests: a `LanguageModel`.
    labels
        Names of the classes.
    out
        The run's folder; `descriptions.txt` in it is written at the end.
    per_class
        Descriptions to ask for, and to keep at most.

    Raises
    ------
    SecondLensError
        A captioner that answers no requests, no classes, fewer than one description, a folder that
        holds something else, a step of the captioner that fails, or no description of any class;
        what was made stays.
    """
    if not isinstance(model, LanguageModel):
        raise SecondLensError(
            f"the captioner {model.name} describes no classes: name a chat model or an endpoint"
        )
    if not labels or per_class < 1:
        raise SecondLensError("a pool needs at least one class and one description of each")
    folder = Path(out)
    asked = {"captioner": model.name, "classes": list(labels), "per_class": per_class, "seed": seed}
    with writing(folder):
        _begin(folder, asked)
        found = [
            _one(model, label, folder / "classes" / f"{number:05}.json", per_class, seed)
            for number, label in enumerate(tracked(labels, "classes", progress))
        ]
        texts = tuple(dict.fromkeys(text for each in found for text in each.texts))
        left_out = {each.label: each.reason for each in found if not each.texts}
        if not texts:
            raise SecondLensError(f"no class is described: {next(iter(left_out.values()))}")
        save_text(folder / "descriptions.txt", "\n".join(texts) + "\n")
    return ClassPool(texts=texts, left_out=left_out, path=folder / "descriptions.txt")


def _begin(folder: Path, asked: dict[str, object]) -> None:
    """Start the folder, or find that it is this run's."""
    path = folder / "pool.json"
    if not path.is_file():
        check_empty(folder)
        save_json(path, asked)
        return
    with reading(str(path), "remove it, then run again"):
        found = read_json(path)
    if differing := differences(found, asked):
        raise SecondLensError(
            f"{folder} holds another pool, with {differing}: name a new folder with --out, or "
            "remove it first"
        )


def _one(model: LanguageModel, label: str, path: Path, per_class: int, seed: int) -> StoredClass:
    """The descriptions of a class: those that are there, or new ones."""
    if path.is_file():
        with reading(str(path), "remove it, then run again"):
            return convert(read_json(path), StoredClass, path.name)
    reason = ""
    try:
        said = [" ".join(text.split()) for text in model.ask(request(label, per_class), seed)]
    except NothingLeft as error:
        said, reason = [], str(error)
    texts = list(dict.fromkeys(said))[:per_class]
    path.parent.mkdir(exist_ok=True)
    save_json(path, {"label": label, "texts": texts, "reason": reason})
    return StoredClass(label=label, texts=tuple(texts), reason=reason)
