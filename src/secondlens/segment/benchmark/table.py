"""Table 4 of the paper, reproduced: measured, printed beside the paper's numbers, and drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from ...storage.files import save_csv, save_json, save_picture
from .methods import OURS
from .metrics import paired_differences, score
from .protocol import Choice, Comparison, Measured

PAPER: dict[str, tuple[float, float, float]] = {
    "Partial-LRP": (55.0, 35.5, 66.9),
    "Rollout": (61.8, 42.6, 74.0),
    "LRP": (62.9, 35.8, 68.5),
    "GradCAM": (67.3, 39.3, 61.9),
    "Chefer et al.": (68.9, 49.1, 79.7),
    "Raw attention": (69.6, 49.8, 80.0),
    "TextSpan": (76.5, 58.1, 84.1),
    OURS: (78.1, 59.0, 84.9),
}
"""Pixel accuracy, mIoU and mAP in the paper's Table 4: ViT-B/32 on ImageNet-Segmentation."""

METRICS = ("pixel accuracy", "mIoU", "mAP")

CAPTION = (
    "%; the paper's in brackets; below, ours − theirs, 95 % interval; cut: threshold, x in means "
    "of the map, + if heat below 0 became 0"
)

GROUPS = {"all images": (1, 10**9), "one object": (1, 1), "several objects": (2, 10**9)}
"""Images by their number of masks."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method, one way to make masks, one group of images; shares in %."""

    group: str
    protocol: str
    method: str
    pixel_accuracy: float
    miou: float
    map: float
    ahead: tuple[tuple[float, float], ...] | None
    """95 % intervals of ours minus this method, in the order of `METRICS`; None for ours."""
    paper: tuple[float, float, float] | None
    variant: str
    form: str
    threshold: str
    maps_per_second: float


def rows(comparison: Comparison) -> list[Row]:
    """All rows, for every group that has maps."""
    return [
        row for group in GROUPS for way in ("same", "own") for row in _group(comparison, group, way)
    ]


def _group(comparison: Comparison, group: str, way: str) -> Iterator[Row]:
    fewest, most = GROUPS[group]
    mine = [i for i, count in enumerate(comparison.objects) if fewest <= count <= most]
    if not mine:
        return
    images = [comparison.images[i] for i in mine]
    ours = next(each for each in comparison.methods if each.name == OURS)
    for measured in comparison.methods:
        found = score(getattr(measured, way)[mine])
        ahead = None
        if measured is not ours:
            intervals = paired_differences(
                getattr(ours, way)[mine], getattr(measured, way)[mine], images
            )
            ahead = tuple((100 * low, 100 * high) for low, high in intervals.tolist())
        yield Row(
            group=group,
            protocol=way,
            method=measured.name,
            pixel_accuracy=100 * found.pixel_accuracy,
            miou=100 * found.miou,
            map=100 * found.map,
            ahead=ahead,
            paper=PAPER.get(measured.name),
            **_settings(measured, way),
        )


def _settings(measured: Measured, way: str) -> dict[str, Any]:
    choice = measured.choice
    tuned = way == "same"
    return {
        "variant": choice.variant if tuned else "as published",
        "form": choice.form if tuned else "plain",
        "threshold": _threshold(choice) if tuned else "own",
        "maps_per_second": 1 / measured.seconds,
    }


def _threshold(choice: Choice) -> str:
    """Such as "0.45"; "1.2x" in means of the map; "1.2x+" if it is also cut at 0."""
    value = f"{choice.threshold:.1f}x" if choice.relative else f"{choice.threshold:.2f}"
    return f"{value}+" if choice.positive else value


def tables(found: Sequence[Row]) -> Iterator[Table]:
    """Tables that fit a terminal, one for each group and way to make masks."""
    for group, way in dict.fromkeys((row.group, row.protocol) for row in found):
        how = "tuned, same post-processing" if way == "same" else "each paper's own"
        table = Table(title=f"{group}, {how}", caption=CAPTION)
        for name in ("method", "accuracy", "mIoU", "mAP", "cut", "maps/s"):
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in found:
            if (row.group, row.protocol) == (group, way):
                values = (row.pixel_accuracy, row.miou, row.map)
                table.add_row(
                    row.method,
                    *(_cell(row, i, value) for i, value in enumerate(values)),
                    row.threshold,
                    f"{row.maps_per_second:.0f}",
                )
        yield table


def _cell(row: Row, metric: int, value: float) -> str:
    cell = f"{value:.1f}"
    if row.paper is not None:
        cell += f" ({row.paper[metric]:.1f})"
    if row.ahead is not None:
        low, high = row.ahead[metric]
        cell += f"\n{low:+.1f}…{high:+.1f}"
    return cell


def write(found: Sequence[Row], grid: Image.Image, out: Path, facts: dict[str, Any]) -> None:
    """`table4.csv`, `table4.json` and `table4.png` in the folder `out`; each is whole or absent."""
    records = [asdict(row) for row in found]
    save_csv(out / "table4.csv", list(map(_flat, records)))
    save_picture(out / "table4.png", grid)
    save_json(out / "table4.json", {**facts, "rows": records})


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record for a CSV: a column for each number."""
    ahead = record["ahead"] or [("", "")] * len(METRICS)
    paper = record["paper"] or [""] * len(METRICS)
    plain = {key: value for key, value in record.items() if key not in ("ahead", "paper")}
    for i, name in enumerate(METRICS):
        plain[f"ours minus this, {name}, low"], plain[f"ours minus this, {name}, high"] = ahead[i]
        plain[f"paper, {name}"] = paper[i]
    return plain
