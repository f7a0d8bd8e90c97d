"""Finished attacks, audits and defences, read from the files that they wrote."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..applications.adversarial.earlier import new_names, without_folders
from ..applications.adversarial.runs import read_report
from ..applications.auditing.audits import read_audit
from ..applications.auditing.defence import Defence
from ..errors import SecondLensError
from ..naming import shown
from ..storage.files import read_json
from ..storage.validation import convert, reading
from .numbers import json_ready, short

KINDS: Mapping[str, frozenset[str]] = {
    "attack": frozenset({"draw", "mistake_for", "samples", "rates"}),
    "audit": frozenset({"classes", "cues", "effect", "spread", "neurons", "images"}),
    "defence": frozenset({"before", "points", "results", "neurons"}),
}
"""The keys by which a report is known for what it is."""
SAMPLE_KEYS = ("caption", "words", "best", "plain_best", "counted")
"""What is shown of each sample of an attack as it stands there."""
SUFFIXES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}
FORMATS = {"PNG": ".png", "WEBP": ".webp", "JPEG": ".jpg"}
LARGEST = 2**26
"""Bytes of a picture."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Reports, and the pictures that they name."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    """Each with its `kind` and `folder`; pictures are numbers into `pictures`."""
    pictures: list[Path] = field(default_factory=list)

    def picture(self, number: int) -> tuple[bytes, str] | None:
        """A picture's file and the suffix of what it holds, whatever its name says; None if it is
        gone since, or no picture."""
        path = self.pictures[number]
        try:
            # a pipe would be waited for
            if not path.is_file() or path.stat().st_size > LARGEST:
                return None
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as opened:
                return content, FORMATS[str(opened.format)]
        # whatever a damaged header makes Pillow raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None

    def exported(self) -> list[dict[str, Any]]:
        """Reports in which pictures are files of an exported folder."""
        names = {number: self.name(number) for number in range(len(self.pictures))}
        return [
            report
            | {
                "samples": [
                    sample | {key: names.get(sample[key]) for key in ("picture", "plain")}
                    for sample in report["samples"]
                ]
            }
            if report["kind"] == "attack"
            else report
            for report in self.reports
        ]

    def name(self, number: int) -> str | None:
        """Of a picture in an exported folder."""
        found = self.picture(number)
        return None if found is None else f"runs/pictures/{number}{found[1]}"


def load_runs(folders: Iterable[Path]) -> Runs:
    """Every run in some folders, or in folders inside them.

    Raises
    ------
    SecondLensError
        A folder without any run, or a report that cannot be read.
    """
    runs = Runs()
    for folder in folders:
        found = sorted(folder.rglob("*.json")) if folder.is_dir() else []
        before = len(runs.reports)
        for path in found:
            _read(path, runs)
        if len(runs.reports) == before:
            raise SecondLensError(f"{folder} holds no finished attack, audit or defence")
    return runs


def _read(path: Path, runs: Runs) -> None:
    if path.stem not in ("report", "audit", "defence"):
        return
    with reading(str(path), "give the command that made it again"):
        report = new_names(read_json(path))
        kind = next((kind for kind, needed in KINDS.items() if needed <= report.keys()), None)
        if kind is not None:
            made = _MAKERS[kind](report, path, runs)
            runs.reports.append({"kind": kind, "folder": path.parent.name, **made})


def _audit(report: dict[str, Any], path: Path, runs: Runs) -> dict[str, Any]:
    """An audit without the folders that names of its images may have."""
    found = read_audit(report, path.name)
    kept: dict[str, Any] = json_ready(vars(found))
    images = [[shown(each) for each in of_cue] for of_cue in found.images]
    return kept | {"model": without_folders(found.model), "images": images}


def _defence(report: dict[str, Any], path: Path, runs: Runs) -> dict[str, Any]:
    kept: dict[str, Any] = json_ready(asdict(convert(report, Defence, path.name)))
    return kept


def _attack(report: dict[str, Any], path: Path, runs: Runs) -> dict[str, Any]:
    """An attack with numbers in place of the files of its pictures."""
    found, folder = read_report(report, path.name), path.parent

    def number(name: str) -> int | None:
        try:
            place = (folder / name).resolve()
            inside = place.is_relative_to(folder.resolve()) and place.suffix in SUFFIXES
            if not inside or not place.is_file():
                return None
        except (OSError, ValueError, RuntimeError):  # no name that a file can have
            return None
        runs.pictures.append(place)
        return len(runs.pictures) - 1

    samples = [
        {
            **{name: getattr(sample, name) for name in SAMPLE_KEYS},
            "margin": short(sample.margin),
            "plain_margin": short(sample.plain_margin),
            "picture": number(sample.file),
            "plain": number(sample.plain_file),
        }
        for sample in found.samples
    ]
    kept = asdict(replace(found, samples=()))
    return kept | {"settings": without_folders(found.settings), "samples": samples}


_MAKERS: Mapping[str, Callable[[dict[str, Any], Path, Runs], dict[str, Any]]] = {
    "attack": _attack,
    "audit": _audit,
    "defence": _defence,
}
