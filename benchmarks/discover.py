"""How good discovered words are, on scenes whose content is known.

    python benchmarks/discover.py --model demo
    python benchmarks/discover.py --model demo-twin --lens LENS --json discover.json

Precision of the first word, and recall of objects, colours and places among the first ten words,
over unseen scenes, beside: the texts nearest to the image embedding, and to the sum of the effects
of all neurons, which shows what of the gain is the vote's; a sparse code of the embedding (the idea
of SpLiCE, arXiv 2402.10376); and the paper's own sum (A.5).
"""

import json
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import secondlens as sl
from secondlens.applications.discovery.finding import Discoverer
from secondlens.data.reader import Reader
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World, truth
from secondlens.demo.world import COLOURS, NAMES, PLACES
from secondlens.effects.streaming import stream
from secondlens.effects.token_effects import TokenReader
from secondlens.intervals import of_mean, wilson
from secondlens.sparse.pursuit import omp

SEED = 71
TOP = 10
KINDS = {"objects": set(NAMES), "colours": set(COLOURS), "places": set(PLACES)}

Ranked = dict[str, list[list[str]]]
"""Method -> the words of each scene, best first."""


@torch.no_grad()
def rank(clip: sl.Clip, lens: sl.Lens, scenes: Scenes) -> Ranked:
    """The first ten words of every scene by every method."""
    discoverer, paper = Discoverer(clip, lens, "world"), Discoverer(clip, lens, "world", paper=True)
    labels, atoms = discoverer.texts.labels, discoverer.atoms
    reader = TokenReader(clip, lens.token_means(clip, discoverer.layers))
    sums, embeddings = [], []
    for batch in stream(
        clip, scenes, discoverer.layers, keep_activations=True, what="effects", progress=True
    ):
        sums.append(reader.read(batch.pooled).sent.sum(1))
        embeddings.append(batch.embedding)
    embedding = torch.cat(embeddings)
    nearest = {
        "nearest texts": embedding @ discoverer.texts.embed(clip).T,
        "nearest to the sum of effects": torch.cat(sums) @ atoms.T,
    }
    return {
        "neurons": words_of(discoverer, scenes),
        "the paper's sum": words_of(paper, scenes),
        **{
            name: [[labels[i] for i in row] for row in cosine.topk(TOP).indices]
            for name, cosine in nearest.items()
        },
        "sparse code of the embedding": coded(embedding - embedding.mean(0), atoms, labels),
    }


def words_of(discoverer: Discoverer, scenes: Scenes) -> list[list[str]]:
    """Words of each scene, heaviest first; synonyms count as one."""
    reader = Reader(source=scenes, clip=discoverer.clip)
    found = dict(discoverer.stream(reader, TOP, progress=True))
    return [[word.text for word in found[i]] for i in range(len(scenes.ids))]


def coded(rows: Tensor, atoms: Tensor, labels: tuple[str, ...]) -> list[list[str]]:
    """Words of a non-negative sparse code of each row, heaviest first."""
    indices, weights = omp(rows, atoms, TOP, nonnegative=True)
    order = weights.argsort(dim=1, descending=True)
    pairs = zip(indices.gather(1, order), weights.gather(1, order), strict=True)
    return [[labels[i] for i, w in zip(*pair, strict=True) if w > 0] for pair in pairs]


def measure(words: list[list[str]], true: list[set[str]]) -> dict[str, list[float]]:
    """By measure, one number for each scene that has something to find."""
    pairs = list(zip(words, true, strict=True))
    found = {"first word": [float(bool(w) and w[0] in t) for w, t in pairs]}
    for kind, names in {"all": set().union(*KINDS.values()), **KINDS}.items():
        wanted = [(set(w), t & names) for w, t in pairs if t & names]
        found[f"recall, {kind}"] = [len(w & t) / len(t) for w, t in wanted]
    return found


@click.command()
@click.option("--model", type=click.Choice(["demo", "demo-twin"]), default="demo")
@click.option("--lens", type=Path, help="Fitted and described; by default one of 1,500 scenes.")
@click.option("--images", default=500, show_default=True)
@click.option("--json", "out", type=Path)
def main(model: str, lens: Path | None, images: int, out: Path | None) -> None:
    """Measure discovery on the embedded world."""
    clip, world = sl.load(model), World(planted=model == "demo")
    if lens is None:
        fitted = sl.fit(clip, Scenes(world, FIT_SEED, 1500), progress=True)
        sl.describe(clip, fitted, world_vocabulary(), 32)
    else:
        fitted = sl.Lens.load(lens)
    scenes = Scenes(world, SEED, images)
    ranked = rank(clip, fitted, scenes)
    true = truth(scenes)
    measured = {name: measure(words, true) for name, words in ranked.items()}
    table = Table(title=f"{model}: words of {images} unseen scenes; 95 % intervals")
    for column in (
        "words from",
        "first word right",
        "ours - theirs",
        *list(measured["neurons"])[1:],
    ):
        table.add_column(column, justify="left" if column == "words from" else "right")
    rows = []
    for name, of in measured.items():
        first = of["first word"]
        low, high = wilson(int(sum(first)), len(first))
        gains = [a - b for a, b in zip(measured["neurons"]["first word"], first, strict=True)]
        gain = sum(gains) / len(gains), *of_mean(gains)
        recalls = {kind: (sum(v) / len(v), *of_mean(v)) for kind, v in list(of.items())[1:] if v}
        share = sum(first) / len(first)
        rows.append({"method": name, "first": [share, low, high], "gain": gain, "recall": recalls})
        table.add_row(
            name,
            f"{share:.3f} [{low:.3f}, {high:.3f}]",
            "" if name == "neurons" else f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]",
            *(f"{mean:.3f} [{a:.3f}, {b:.3f}]" for mean, a, b in recalls.values()),
        )
    Console().print(table)
    if out:
        out.write_text(json.dumps({"model": model, "images": images, "methods": rows}, indent=1))


if __name__ == "__main__":
    main()
