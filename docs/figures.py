"""Draw the pictures of the page on the method: `python docs/figures.py`.

The embedded model and its scenes only, so that anyone gets the same pictures.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

import secondlens as sl
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.lens.moments import HISTOGRAM_EDGES, gaussian_null

FOLDER = Path(__file__).parent / "figures"
SCENES, LAYER = 600, 5
BLUE, ORANGE, GREY = "#2a6fb0", "#d9822b", "#8a8f98"


def main() -> None:
    """Write every picture."""
    matplotlib.rcParams |= {
        "svg.hashsalt": "secondlens",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    draw("paths", (6.4, 2.3), paths)
    draw("selection", (5.2, 2.7), selection)
    clip = sl.load("demo")
    lens = sl.fit(clip, Scenes(World(planted=True), FIT_SEED, SCENES), layers=[LAYER])
    codes = sl.describe(clip, lens, world_vocabulary(), 32)
    draw("effect", (5.2, 2.7), lambda axes: effect(axes, lens))
    draw("codes", (5.2, 2.7), lambda axes: curve(axes, codes))


def draw(name: str, size: tuple[float, float], content: Callable[[Axes], None]) -> None:
    """One picture, as an SVG file that is the same each time."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    content(axes)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def paths(axes: Axes) -> None:
    """The ways from a neuron to the image embedding, and which of them counts."""
    axes.set(xlim=(0.4, 9.9), ylim=(0.1, 3.1))
    axes.axis("off")
    boxes = {
        "neuron n\nof MLP l,\nat patches": (1.1, 1.0),
        "attention heads\nof later layers:\nvalues, outputs": (4.3, 2.4),
        "class token": (7.0, 2.4),
        "image\nembedding": (9.2, 2.4),
        "later MLPs, queries,\nkeys, norms": (4.3, 0.5),
    }
    for text, place in boxes.items():
        counts = "MLPs" not in text
        axes.text(
            *place,
            text,
            ha="center",
            va="center",
            color="black" if counts else GREY,
            bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": BLUE if counts else GREY},
        )
    for start, end, counts in (
        ((1.85, 1.3), (3.2, 2.1), True),
        ((5.35, 2.4), (6.15, 2.4), True),
        ((7.75, 2.4), (8.35, 2.4), True),
        ((1.9, 0.8), (3.05, 0.55), False),
        ((5.5, 0.6), (6.9, 2.1), False),
    ):
        style = {"color": BLUE, "lw": 2} if counts else {"color": GREY, "ls": "--"}
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="->", mutation_scale=12, **style))
    axes.text(2.3, 2.1, "activation ×\nattention ∕ σ", ha="right", color=BLUE)
    axes.text(6.6, 1.1, "left out", color=GREY)


def selection(axes: Axes) -> None:
    """Selecting by norm makes a Gaussian look more like one line than it is."""
    dims = 24
    shares = torch.linspace(0.3, 0.9, 13)
    covariance = torch.stack([torch.diag(_spectrum(float(share), dims)) for share in shares])
    _, explained = gaussian_null(covariance, 0.02, 2000)
    axes.plot(shares, shares, color=GREY, label="over all images")
    axes.plot(shares, explained, color=ORANGE, marker="o", ms=3, label="over the top 2 % by norm")
    axes.set(xlabel="share of the first component in a Gaussian", ylabel="share found", ylim=(0, 1))
    axes.legend(frameon=False)


def _spectrum(first: float, dims: int) -> torch.Tensor:
    rest = torch.full((dims - 1,), (1 - first) / (dims - 1))
    return torch.cat([torch.tensor([first]), rest])


def effect(axes: Axes, lens: sl.Lens) -> None:
    """Norms of the effects of a selective neuron and of a plain one, with their thresholds."""
    fitted = lens[LAYER]
    order = fitted.selectivity.argsort(descending=True)
    edges = torch.as_tensor(HISTOGRAM_EDGES)
    for neuron, colour, name in (
        (int(order[0]), BLUE, "most selective"),
        (int(order[len(order) // 2]), ORANGE, "median"),
    ):
        counts = fitted.histogram[neuron]
        axes.stairs(counts, edges, color=colour, label=f"#{neuron}, {name}", lw=1.4)
        rms = fitted.energy[neuron].sqrt()
        axes.axvline(float(fitted.threshold[neuron] / rms), color=colour, ls=":")
    axes.set(
        yscale="symlog",
        xlabel="‖effect − mean‖ over its root mean square (dotted: threshold)",
        ylabel=f"of {len(lens.image_ids)} images",
    )
    axes.legend(frameon=False)


def curve(axes: Axes, codes: sl.Codes) -> None:
    """How well codes of each size rebuild directions, and random directions."""
    assert codes.control is not None
    sizes = range(1, len(codes.control) + 1)
    axes.plot(sizes, codes.curve[LAYER], color=BLUE, label=f"neurons of layer {LAYER}")
    axes.plot(sizes, codes.control, color=GREY, label="random directions")
    axes.set(xlabel="texts in a code", ylabel="cosine, median", ylim=(0, 1))
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
