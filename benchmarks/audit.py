"""Does the audit find the planted cues? The embedded world's table says which there are.

    python benchmarks/audit.py --model demo
    python benchmarks/audit.py --model demo-twin --lens LENS --json audit.json

Over all pairs of an object and a place: the area under the ROC curve with which a ranking tells
planted pairs from others, and the share of objects with a planted place whose first place it is.
Rankings: the audit's, by ablation; by drawn pictures; by similarity of texts; by correlation of
image embeddings with both texts; by as many random neurons. Intervals: bootstrap over objects. The
scenes have backgrounds that do not depend on objects, so that no ranking reads the cues off the
data. The twin was trained without planted cues: there, all is to be at chance.
"""

import json
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

import secondlens as sl
from secondlens.applications.auditing.audits import audit, margins
from secondlens.applications.auditing.counterfactuals import drawn
from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import Vocabulary, object_names, prompts
from secondlens.demo.scenes import FIT_SEED, Scenes, World, object_on, truth
from secondlens.demo.world import NAMES, PLACES, PREFERENCE
from secondlens.effects.projections import embed
from secondlens.words.scoring import area_under_roc

AUDIT_SEED = 72
PLANTED = torch.tensor([[PREFERENCE.get(name, ("",))[0] == p for p in PLACES] for name in NAMES])

Ranking = Float[Tensor, "classes cues"]


def places() -> Vocabulary:
    """The nine places as cues."""
    return Vocabulary(name="places", labels=tuple(PLACES), prompts=tuple(map(prompts, PLACES)))


def quality(ranking: Ranking, objects: Tensor) -> tuple[float, float]:
    """Area under ROC and precision of the first cue, over some objects."""
    scores, planted = ranking[objects].double(), PLANTED[objects]
    area = area_under_roc(scores[planted][None], scores[~planted][None])
    some = planted.any(1)
    first = planted[some].gather(1, scores[some].argmax(1, keepdim=True))
    return float(area.auc), float(first.float().mean())


def measure(rankings: dict[str, Ranking], draws: int = 1000) -> dict[str, dict[str, list[float]]]:
    """Each ranking's quality, and how far the audit's is above it, with bootstrap intervals."""
    rng = np.random.default_rng(0)
    resamples = [torch.from_numpy(rng.integers(0, len(NAMES), len(NAMES))) for _ in range(draws)]
    values = {n: np.array([quality(r, s) for s in resamples]) for n, r in rankings.items()}
    found = {}
    for name, ranking in rankings.items():
        whole = quality(ranking, torch.arange(len(NAMES)))
        gain = np.array(quality(rankings["audit"], torch.arange(len(NAMES)))) - whole
        row = {}
        for i, what in enumerate(("roc", "first")):
            ends = np.quantile(values[name][:, i], [0.025, 0.975])
            ahead = np.quantile(values["audit"][:, i] - values[name][:, i], [0.025, 0.975])
            row[what] = [whole[i], *ends.tolist()]
            row[f"{what} gain"] = [float(gain[i]), *ahead.tolist()]
        found[name] = row
    return found


@click.command()
@click.option("--model", type=click.Choice(["demo", "demo-twin"]), default="demo")
@click.option("--lens", type=Path, help="By default one of 1,500 scenes.")
@click.option("--images", default=2000, show_default=True)
@click.option("--drawings", default=2, show_default=True, help="Of each object and place.")
@click.option("--json", "out", type=Path)
def main(model: str, lens: Path | None, images: int, drawings: int, out: Path | None) -> None:
    """Compare rankings of cues with the table of planted ones."""
    clip = sl.load(model)
    if lens is None:
        fitted = sl.fit(clip, Scenes(World(planted=model == "demo"), FIT_SEED, 1500), progress=True)
    else:
        fitted = sl.Lens.load(lens)
    world = World(planted=False)
    scenes = Scenes(world, AUDIT_SEED, images)
    names, cues = object_names(), places()
    classes, texts = names.embed(clip), cues.embed(clip)
    judged = partial(audit, clip, fitted, names, scenes, cues, shown=truth(scenes), progress=True)
    everything = normalise(torch.cat([classes, texts]))
    embedding = embed(clip, scenes)
    score, present = embedding @ margins(classes).T, embedding @ texts.T
    rankings = {
        "audit": judged().effect,
        "drawn pictures": drawn(
            clip, names, cues, partial(object_on, world), seeds=range(drawings), progress=True
        ).mean(2),
        "similarity of texts": everything[: len(names)] @ everything[len(names) :].T,
        "correlation of embeddings": torch.corrcoef(torch.cat([score, present], dim=1).T)[
            : len(names), len(names) :
        ],
        "random neurons": judged(random=0).effect,
    }
    found = measure(rankings)
    table = Table(title=f"{model}: planted cues among {PLANTED.numel():,} pairs; 95 % intervals")
    for column in (
        "ranked by",
        "area under ROC",
        "audit's gain",
        "first cue right",
        "audit's gain",
    ):
        table.add_column(column, justify="left" if column == "ranked by" else "right")
    for name, row in found.items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]", "{:+.3f} [{:+.3f}, {:+.3f}]"] * 2
        shown = zip(cells, row.values(), strict=True)
        table.add_row(name, *(cell.format(*value) for cell, value in shown))
    Console().print(table)
    if out:
        out.write_text(json.dumps({"model": model, "images": images, "rankings": found}, indent=1))


if __name__ == "__main__":
    main()
