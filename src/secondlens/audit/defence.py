"""What a defence chose, beside all that was tried; written, plotted and summed up."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..clip.view import Clip
from ..lens import Lens
from ..storage.files import save_json, whole
from .cut import Cut, Neuron, by_layer
from .trial import Point, Result

OURS = "neurons of the cues"
"""The method whose choice is the defence."""


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What was chosen, and everything that was tried."""

    neurons: tuple[Neuron, ...]
    strength: float
    before: Point
    results: tuple[Result, ...]
    """By method, ours first."""
    points: tuple[Point, ...]

    @property
    def methods(self) -> list[str]:
        """In the order of the results."""
        return list(dict.fromkeys([OURS, *(point.method for point in self.points)]))

    def cut(self, clip: Clip, lens: Lens) -> Cut:
        """The defended image encoder, at the cost of a forward pass."""
        return Cut(clip, lens, by_layer(self.neurons), self.strength)

    def save(self, folder: str | Path) -> None:
        """Write `defence.json` and the trade-off curves, `defence.png`, into a folder."""
        plot(self, Path(folder) / "defence.png")
        save_json(Path(folder) / "defence.json", asdict(self))


def plot(defence: Defence, path: Path) -> None:
    """Accuracy where cues mislead against usual accuracy: all that was tried, on the half that
    measures, and what each method chose."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, (method, result) in enumerate(zip(defence.methods, defence.results, strict=True)):
        own = [p for p in defence.points if p.method == method]
        x, y = [100 * p.usual for p in own], [100 * p.unusual for p in own]
        axes.scatter(x, y, s=14, alpha=0.45, color=f"C{i}", label=method)
        chosen = result.point
        axes.scatter(
            [100 * chosen.usual], [100 * chosen.unusual], s=110, marker="*", color=f"C{i}",
            edgecolors="black", linewidths=0.6, zorder=3,
        )  # fmt: skip
    before = defence.before
    axes.axvline(100 * before.usual, color="gray", linewidth=0.8)
    axes.axhline(100 * before.unusual, color="gray", linewidth=0.8)
    axes.set_xlabel("accuracy on usual pictures, %")
    axes.set_ylabel("accuracy where cues mislead, %")
    axes.set_title("Cutting cues (lines: nothing cut; stars: chosen on the other half)", size=10)
    axes.legend(fontsize=8)
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def summary(defence: Defence) -> list[dict[str, Any]]:
    """What was chosen and what it did, one row for each method."""
    return [
        {"method": method, **asdict(result)}
        for method, result in zip(defence.methods, defence.results, strict=True)
    ]
