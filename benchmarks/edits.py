"""What does an edited checkpoint do on pictures that nothing was chosen on?

    python benchmarks/edits.py --checkpoint checkpoint
    python benchmarks/edits.py --checkpoint checkpoint --seeds 5 --json edits.json

The checkpoint is what `secondlens edit` wrote for the embedded model: its folder `open_clip`,
loaded by open_clip alone, against the embedded model. Pictures are drawn with seeds that no audit
and no defence has used: single objects as they usually stand, and objects in the places of others.
Intervals are over pictures of all seeds; groups are the places that the pictures show.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click
import open_clip
from rich.console import Console
from rich.table import Table

import secondlens as sl
from secondlens.applications.auditing.counterfactuals import (
    MISLED_SEED,
    USUAL_SEED,
    counterfactual,
    natural,
)
from secondlens.applications.editing.outcomes import Outcome, outcome
from secondlens.data.labelled import Labelled
from secondlens.data.sources import InMemory

FIRST = 1000
"""What is added to the seeds of a defence, and 1, 2, ... more for further ones."""


def drawn(seeds: int, count: int) -> list[Labelled]:
    """Usual and misleading pictures of all seeds, each in one set."""
    kinds = []
    for of_seed in (
        [natural(count, USUAL_SEED + FIRST + i) for i in range(seeds)],
        [counterfactual(count, MISLED_SEED + FIRST + i)[0] for i in range(seeds)],
    ):
        pictures = [each.source.load(i) for each in of_seed for i in range(count)]
        kinds.append(
            Labelled(
                name=of_seed[0].name,
                source=InMemory(pictures),
                labels=tuple(label for each in of_seed for label in each.labels),
                classes=of_seed[0].classes,
                attributes={"place": sum((each.attributes["place"] for each in of_seed), ())},
            )
        )
    return kinds


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--pictures", type=click.IntRange(50), default=1000, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(checkpoint: Path, seeds: int, pictures: int, file: Path | None) -> None:
    """Compare the checkpoint with the embedded model on fresh pictures."""
    before = sl.load("demo")
    place = f"local-dir:{checkpoint / 'open_clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    after = sl.from_open_clip(model.eval(), preprocess, name="edited")
    found = [
        outcome(before, after, each, ["place"], progress=True) for each in drawn(seeds, pictures)
    ]
    table = Table(title=f"{seeds} seeds of {pictures:,} pictures of each kind, per cent")
    for name in ("pictures", "how many", "before", "after", "change"):
        table.add_column(name, justify="left" if name == "pictures" else "right")
    for whole in found:
        worst = min(whole.groups, key=lambda each: each.before)
        worst_after = min(whole.groups, key=lambda each: each.after)
        for label, each in (
            (whole.pictures, whole),
            (f"{whole.pictures}, worst before: {worst.pictures}", worst),
            (f"{whole.pictures}, worst after: {worst_after.pictures}", worst_after),
        ):
            table.add_row(label, *cells(each))
    Console().print(table)
    if file is not None:
        file.write_text(json.dumps([asdict(each) for each in found], indent=1))


def cells(each: Outcome) -> tuple[str, ...]:
    """Count, accuracies, and the change in points with its interval."""
    value, low, high = (100 * part for part in each.change)
    change = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{each.count:,}", f"{100 * each.before:.1f}", f"{100 * each.after:.1f}", change


if __name__ == "__main__":
    main()
