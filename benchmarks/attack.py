"""How much is there to win for an attack by choosing words well, and who wins how much of it?

    python benchmarks/attack.py --json attack.json

Every drawable word is drawn beside some objects, and what it moves is measured: the truth that a
selector guesses at. For random pairs of a drawn and a wrong class (those of `ATTACK_PAIRS` are left
out), the best words of each selector are compared by how far they move the margin, and how often
one of them alone flips the decision, beside the words that move most, which only drawing can tell.
Intervals of differences: bootstrap over pairs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import secondlens as sl
from secondlens.applications.adversarial.attacks import SHARE_OF_POOL
from secondlens.applications.adversarial.selection import (
    METHODS,
    NeuronSelector,
    Pair,
    RankedWord,
    Selector,
    choose,
    selector,
)
from secondlens.applications.adversarial.sprites import SpriteGenerator, Taxonomy
from secondlens.data.vocabularies import object_names, world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.demo.world import ATTACK_PAIRS, COLOURS, NAMES, PLACES, with_article
from secondlens.intervals import of_mean

SEED = 900_000
BATCH_SIZE = 64


def captioned(drawn: str, word: str) -> str:
    """A caption with one word more than the plain one."""
    plain = f"a photo of {with_article(drawn)}"
    if word in COLOURS:
        return f"{plain} on a {word} background"
    return f"{plain} {PLACES[word]}" if word in PLACES else f"{plain} and {with_article(word)}"


@torch.no_grad()
def embedded(
    clip: sl.Clip, drawer: SpriteGenerator, drawn: str, seeds: int
) -> tuple[Float[Tensor, "words seeds dim"], Float[Tensor, "seeds dim"]]:
    """Unit embeddings of pictures of an object with each word, and without any."""
    words = list(drawer.knows or ())
    texts = [captioned(drawn, word) for word in words] + [f"a photo of {with_article(drawn)}"]
    plan = [(text, SEED + seed) for text in texts for seed in range(seeds)]
    rows = []
    for start in range(0, len(plan), BATCH_SIZE):
        some = plan[start : start + BATCH_SIZE]
        rows.append(clip.encode_image([drawer.draw(text, drawn, s).image for text, s in some]))
    unit = F.normalize(torch.cat(rows), dim=-1).unflatten(0, (len(texts), seeds))
    return unit[:-1], unit[-1]


class Truth:
    """Words by how far they were seen to move the margin."""

    name = "drawing every word"

    def __init__(self, moved: dict[str, float]) -> None:
        self.moved = moved

    def rank(self, v: Tensor) -> list[RankedWord]:
        """All words, the one that moves most first."""
        order = sorted(self.moved, key=lambda word: -self.moved[word])
        return [RankedWord(text=word, score=self.moved[word]) for word in order]


def dense(clip: sl.Clip, lens: sl.Lens) -> NeuronSelector:
    """Neurons with the cosines of all words in place of sparse codes."""
    pool = world_vocabulary()
    texts = pool.embed(clip)
    directions = {layer: lens[layer].directions for layer in lens.layers}
    everywhere = torch.arange(len(texts))
    codes = {n: (everywhere.expand(len(r), -1), r @ texts.T) for n, r in directions.items()}
    return NeuronSelector(directions, pool.labels, codes, name="second order, cosines of all words")


def whole(selected: Selector) -> Selector:
    """The same under another name."""
    selected.name += ", whole codes"
    return selected


def compared(
    clip: sl.Clip,
    drawer: SpriteGenerator,
    selectors: Sequence[Selector],
    objects: int,
    wrong: int,
    seeds: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By selector and for each pair: how far its words move the margin, and how often one of them
    alone flips the decision, in percent; `Truth` is compared too."""
    pool = world_vocabulary()
    names = object_names()
    texts, row = names.embed(clip), {name: i for i, name in enumerate(names.labels)}
    rng = np.random.default_rng(SEED)
    fixed = {drawn for drawn, _ in ATTACK_PAIRS}
    chosen = rng.choice([name for name in NAMES if name not in fixed], objects, replace=False)
    moves: dict[str, list[float]] = {}
    flips: dict[str, list[float]] = {}
    words, drawable = [], list(drawer.knows or ())
    place = {word: i for i, word in enumerate(drawable)}
    for drawn in track(chosen.tolist(), "objects"):
        attacked, plain = embedded(clip, drawer, drawn, seeds)
        others = [name for name in NAMES if name != drawn]
        for mistaken in rng.choice(others, wrong, replace=False).tolist():
            v = texts[row[mistaken]] - texts[row[drawn]]
            before, after = plain @ v, attacked @ v
            moved = (after - before).mean(1)
            flipped = ((after > 0) & (before <= 0)).float().mean(1)
            truth = Truth(dict(zip(drawable, moved.tolist(), strict=True)))
            for each in [*selectors, truth]:
                count = int(SHARE_OF_POOL * len(pool))
                pair = Pair(draw=drawn, mistake_for=mistaken)
                words = choose(each, v, pair, Taxonomy(), count, drawable)
                at = [place[word.text] for word in words]
                moves.setdefault(each.name, []).append(float(moved[at].mean()))
                flips.setdefault(each.name, []).append(100 * float(flipped[at].mean()))
    return moves, flips


@click.command()
@click.option("--model", type=click.Choice(["demo", "demo-twin"]), default="demo")
@click.option("--fit-images", default=1500, show_default=True)
@click.option("--objects", default=14, show_default=True, help="Drawn.")
@click.option("--wrong", default=14, show_default=True, help="Wrong classes for each.")
@click.option("--seeds", default=5, show_default=True, help="Pictures of each object and word.")
@click.option("--json", "json_path", type=Path)
def main(
    model: str, fit_images: int, objects: int, wrong: int, seeds: int, json_path: Path | None
) -> None:
    """Print what each selector's words move in truth."""
    clip, drawer, pool = sl.load(model), SpriteGenerator(), world_vocabulary()
    lens = sl.fit(clip, Scenes(World(planted=model == "demo"), FIT_SEED, fit_images), progress=True)
    codes = sl.describe(clip, lens, pool)
    selectors: list[Selector] = [selector(n, clip, lens, pool, codes) for n in METHODS]
    selectors += [
        whole(selector(METHODS[0], clip, lens, pool, codes, whole_codes=True)),
        dense(clip, lens),
    ]
    moves, flips = compared(clip, drawer, selectors, objects, wrong, seeds)
    ours = np.array(flips[METHODS[0]])
    found = {
        name: {
            "margin moved": float(np.mean(moves[name])),
            "flipped by one word, %": float(np.mean(flips[name])),
            "ours − this": float(np.mean(ours - flips[name])),
            "interval": of_mean(ours - flips[name]),
        }
        for name in moves
    }
    table = Table(title=f"{model}: {objects * wrong} pairs, best words of each selector")
    for column in ("words by", "margin moved", "flipped by one word, %", "ours − this [95 %]"):
        table.add_column(column, justify="left" if column == "words by" else "right")
    for name, each in sorted(found.items(), key=lambda pair: -pair[1]["margin moved"]):
        low, high = each["interval"]
        table.add_row(
            name,
            f"{each['margin moved']:.3f}",
            f"{each['flipped by one word, %']:.1f}",
            f"{each['ours − this']:+.1f} [{low:+.1f}, {high:+.1f}]",
        )
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
