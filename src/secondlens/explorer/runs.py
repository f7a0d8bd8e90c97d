"""Finished attacks, audits and defences, read from the files that they wrote."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..applications.adversarial.runs import new_names, without_folders
from ..errors import SecondLensError
from ..storage.files import read_json
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
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        raise SecondLensError(f"{path} cannot be read: {error}") from error
    report = new_names(report)
    for part in ("settings", "model"):
        if isinstance(report.get(part), dict):
            report[part] = without_folders(report[part])
    kind = next((kind for kind, needed in KINDS.items() if needed <= report.keys()), None)
    if kind is None:
        return
    try:
        made = _attack(report, path.parent, runs) if kind == "attack" else json_ready(report)
    except (KeyError, TypeError) as error:
        raise SecondLensError(
            f"{path} is no whole report of an attack, it lacks {error}: give the command of the "
            "attack again"
        ) from error
    runs.reports.append({"kind": kind, "folder": path.parent.name, **made})


def _attack(report: dict[str, Any], folder: Path, runs: Runs) -> dict[str, Any]:
    """An attack with numbers in place of the files of its pictures."""

    def number(name: str) -> int | None:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.suffix in SUFFIXES
        if not inside or not path.is_file():
            return None
        runs.pictures.append(path)
        return len(runs.pictures) - 1

    samples = [
        {
            **{name: sample[name] for name in SAMPLE_KEYS},
            "margin": short(sample["margin"]),
            "plain_margin": short(sample["plain_margin"]),
            "picture": number(sample["file"]),
            "plain": number(sample["plain_file"]),
        }
        for sample in report["samples"]
    ]
    kept = ("draw", "mistake_for", "rates", "planned", "counted", "words", "settings")
    return {name: report[name] for name in kept} | {"samples": samples}
