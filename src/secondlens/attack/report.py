"""What an attack found: its pictures, and what the model says of each."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..intervals import wilson
from ..storage.files import save_csv
from .select import Pair, Word


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture, its twin without the words, and what the model says of both."""

    file: str
    plain_file: str
    caption: str
    plain: str
    words: tuple[str, ...]
    seed: int
    margin: float
    """Cosine with the wrong class minus cosine with the drawn one; wrong if above 0."""
    plain_margin: float
    best: str
    """Of all classes."""
    plain_best: str
    counted: bool
    """Whether both pictures show the class to draw and not the wrong one."""

    @property
    def fooled(self) -> bool:
        """The model prefers the wrong class: the paper's success."""
        return self.margin > 0

    @property
    def flipped(self) -> bool:
        """Right without the words, wrong with them."""
        return self.fooled and self.plain_margin <= 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an attack found. Rates are shares of the pictures that count."""

    pair: Pair
    settings: dict[str, Any]
    words: tuple[Word, ...]
    shots: tuple[Shot, ...]

    def __repr__(self) -> str:
        fooled = sum(shot.fooled for shot in self.counted)
        return (
            f"Report({self.pair.draw!r} as {self.pair.mistake_for!r}, "
            f"{fooled} of {len(self.counted)} pictures fool)"
        )

    @property
    def counted(self) -> list[Shot]:
        """Pictures that passed the check."""
        return [shot for shot in self.shots if shot.counted]

    def rates(self) -> dict[str, dict[str, Any]]:
        """Count, share and 95 % Wilson interval of each kind of success."""
        shots = self.counted
        successes = {
            "fooled": sum(shot.fooled for shot in shots),
            "flipped": sum(shot.flipped for shot in shots),
            "chosen of all": sum(shot.best == self.pair.mistake_for for shot in shots),
            "fooled without words": sum(shot.plain_margin > 0 for shot in shots),
        }
        return {
            name: {
                "count": count,
                "of": len(shots),
                "share": count / len(shots) if shots else float("nan"),
                "interval": list(wilson(count, len(shots))),
            }
            for name, count in successes.items()
        }

    def as_json(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            **asdict(self.pair),
            "settings": self.settings,
            "planned": len(self.shots),
            "counted": len(self.counted),
            "rates": self.rates() if self.counted else {},
            "words": [asdict(word) for word in self.words],
            "shots": [asdict(shot) for shot in self.shots],
        }


def write_csv(report: Report, path: Path) -> None:
    """A row for each picture: `images.csv`."""
    rows = [
        {**asdict(shot), "words": " ".join(shot.words), "flipped": shot.flipped}
        for shot in report.shots
    ]
    save_csv(path, rows)
