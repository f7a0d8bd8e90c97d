"""What finished attacks left behind, as labelled pictures: to test a defence on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..classify import Labelled
from ..errors import SecondLensError
from ..images import Folder, Subset
from ..texts import Vocabulary
from .run import load_json


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """The pictures that passed their check, of all attacks in a folder."""

    pictures: Labelled
    rivals: tuple[int, ...]
    """The class that each picture was to be mistaken for."""
    words: tuple[str, ...]
    """All words that were chosen, sorted."""


def is_attack(folder: str | Path) -> bool:
    """Whether there is a finished attack in a folder, or in a folder of it."""
    return next(Path(folder).rglob("report.json"), None) is not None


def attacked(folder: str | Path, classes: Vocabulary) -> Attacked:
    """The pictures of one attack, or of all attacks in the folders of a folder.

    Parameters
    ----------
    classes
        What the classifier tells apart.

    Raises
    ------
    SecondLensError
        No finished attack, a damaged one, one on other classes, or none of whose pictures counts.
    """
    root = Path(folder)
    reports = sorted(root.rglob("report.json")) if root.is_dir() else []
    if not reports:
        raise SecondLensError(f"{root} holds no finished attack: there is no report.json in it")
    source = Folder(root)
    place = {each: position for position, each in enumerate(source.ids)}
    row = {label: i for i, label in enumerate(classes.labels)}
    positions, labels, rivals, words = [], [], [], set()
    for path in reports:
        report, inside = load_json(path), path.parent.relative_to(root)
        try:
            drawn, wrong = row[report["draw"]], row[report["mistake_for"]]
            words |= {str(word["text"]) for word in report["words"]}
            files = [(inside / shot["file"]).as_posix() for shot in _counted(report)]
            positions += [place[file] for file in files]
        except (KeyError, TypeError) as error:
            raise SecondLensError(
                f"{path} is damaged, or an attack on other classes: nothing is known of {error}"
            ) from error
        labels += [drawn] * len(files)
        rivals += [wrong] * len(files)
    if not positions:
        raise SecondLensError(f"no picture of the attacks in {root} passed its check")
    pictures = Labelled(
        name=root.name, source=Subset(source, positions), labels=tuple(labels), classes=classes
    )
    return Attacked(pictures=pictures, rivals=tuple(rivals), words=tuple(sorted(words)))


def _counted(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [shot for shot in report["shots"] if shot["counted"]]
