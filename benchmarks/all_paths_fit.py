"""What a fit over all paths costs and buys: names, words and attacks of either kind of effects.

    python benchmarks/all_paths_fit.py --json all-paths-fit.json
    python benchmarks/all_paths_fit.py --cost                    # random weights of ViT-B/32

The embedded model is fitted over the value path and over all paths on the same scenes. Both are
named and described alike. Names are judged by what is true of fresh scenes, words by how well they
find the fresh scenes of large effects (true labels, related words by the twin), and words of an
attack as `benchmarks/attack.py` does it. Costs are processor time over that of encodings.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from attack import compared
from rich.console import Console
from rich.table import Table

import secondlens as sl
from secondlens.applications.adversarial.selection import (
    METHODS,
    NeuronSelector,
    codes_of,
    selector,
)
from secondlens.applications.adversarial.sprites import SpriteGenerator
from secondlens.commands.process import keep_freed_memory
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.model import TWIN
from secondlens.demo.scenes import FIT_SEED, NAME_SEED, SCORE_SEED, Scenes, World, truth
from secondlens.effects.linearised import linearise
from secondlens.effects.projections import project
from secondlens.effects.total_effects import total_effects
from secondlens.intervals import of_mean
from secondlens.lens.codes import CONTROLS, SIDES
from secondlens.lens.lens import PATHS, projectors
from secondlens.words.judging import by_labels
from secondlens.words.naming import Ranks, mann_whitney

EARLY = 5
"""Layers 0 to 4."""


@click.command()
@click.option("--fit-images", default=1200, show_default=True)
@click.option("--images", default=2500, show_default=True, help="Scenes to name and to test on.")
@click.option("--fresh", default=1500, show_default=True, help="Scenes that judge.")
@click.option("--axes", type=int, help="Of the fit over all paths; by default the fit's own.")
@click.option("--objects", default=14, show_default=True, help="Drawn for the attack.")
@click.option("--wrong", default=14, show_default=True, help="Wrong classes for each.")
@click.option("--seeds", default=5, show_default=True, help="Pictures of each object and word.")
@click.option("--cost", is_flag=True, help="Only the price of an axis, on random weights.")
@click.option("--model", default="ViT-B-32", show_default=True, help="Whose price.")
@click.option("--json", "out", type=Path, help="Also write the numbers to this file.")
def main(
    fit_images: int,
    images: int,
    fresh: int,
    axes: int | None,
    objects: int,
    wrong: int,
    seeds: int,
    cost: bool,
    model: str,
    out: Path | None,
) -> None:
    """Print what a fit over all paths costs and buys."""
    torch.set_num_threads(1)
    if cost:
        price(model)
        return
    clip, world = sl.load("demo"), World()
    encoding = seconds_of_encoding(clip, torch.randn(32, 3, *clip.image_size))
    found: dict[str, Any] = {"encoding, ms": 1000 * encoding}
    scenes = Scenes(world, FIT_SEED, fit_images)
    pictures = torch.stack([clip.preprocess(scenes.load(i)) for i in range(fit_images)])
    for paths in PATHS:
        began = time.process_time()
        lens = sl.fit(clip, pictures, paths=paths, axes=axes if paths == "all" else None)
        spent = time.process_time() - began
        found[f"fit over {paths} paths, encodings an image"] = spent / fit_images / encoding
    assert lens.all_paths is not None and lens.all_paths.axes is not None
    found["axes"] = len(lens.all_paths.axes.rows)
    found["left out, by layer"] = lens.all_paths.axes.left_out.tolist()
    say(found)
    for paths in PATHS:
        found[paths] = judged(clip, lens.over(paths), images, fresh)
    layers_table(found, lens.layers)
    found["attack"] = attacks(clip, lens, objects, wrong, seeds)
    if out:
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def seconds_of_encoding(clip: sl.Clip, images: torch.Tensor, runs: int = 5) -> float:
    """Processor seconds of one image, of the fastest of some runs."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        clip.encode_image(images)
        seconds.append(time.process_time() - began)
    return min(seconds) / len(images)


def price(name: str) -> None:
    """Print what total effects of all neurons along axes cost, the forward pass apart."""
    keep_freed_memory()
    clip = sl.from_open_clip(open_clip.create_model(name).eval(), check=False)
    images = torch.randn(8, 3, *clip.image_size)
    encoding = seconds_of_encoding(clip, images, 3) * len(images)
    axes = torch.linalg.qr(torch.randn(clip.dim, 16)).Q.T.contiguous()
    layers = list(range(clip.last_effect_layer + 1))
    tower = linearise(clip, images)
    seconds = {}
    for count in (4, 16):
        total_effects(tower, axes[:1], layers)
        began = time.process_time()
        total_effects(tower, axes[:count], layers)
        seconds[count] = time.process_time() - began
    began = time.process_time()
    linearise(clip, images)
    forward = (time.process_time() - began) / encoding
    each = (seconds[16] - seconds[4]) / 12 / encoding
    print(f"{name}: an encoding {1000 * encoding / len(images):.1f} ms an image")
    print(f"{name}: forward pass with what the derivative needs {forward:.2f} encodings")
    print(f"{name}: each axis, all neurons of all layers {each:.2f} encodings")


def judged(clip: sl.Clip, lens: sl.Lens, images: int, fresh: int) -> dict[str, Any]:
    """Names and words of a lens, by what is true of fresh scenes."""
    world, texts, twin = World(), world_vocabulary(), sl.load(TWIN[clip.name])
    judges = Scenes(world, SCORE_SEED, fresh)
    names = sl.name(clip, lens, Scenes(world, NAME_SEED, images), texts, twin, progress=True)
    codes = sl.describe(clip, lens, texts)
    scores = sl.score(
        clip, lens, texts, judges, truth(judges), related=twin, pictures="fresh", progress=True
    )
    held = by_labels(truth(judges), texts, list(range(fresh))).texts
    along = projectors(clip, lens, {n: lens[n].directions[:, None] for n in lens.layers})
    products = project(clip, judges, along, progress=True).products
    place = {text: position for position, text in enumerate(texts.labels)}
    found: dict[str, Any] = {"names of shuffled effects": names.shuffled, "layers": {}}
    for layer in lens.layers:
        ranks = Ranks.of(products[layer][:, :, 0].T.contiguous())
        false, areas = 0, []
        for neuron in range(clip.neurons):
            for each in names.of(layer, neuron):
                holds = (held == place[each.text]).any(dim=1)
                auc, p = mann_whitney(ranks.at(torch.tensor([neuron])), holds)
                false += bool(p >= 0.05)
                areas.append(float(auc))
        row: dict[str, Any] = {
            "neurons": clip.neurons,
            "named": int((names.texts[layer][:, 0] >= 0).sum()),
            "names": len(areas),
            "false": false,
            "area of names": statistics.median(areas) if areas else float("nan"),
            "cosine of 8 words": float(codes.curve[layer][7]),
        }
        for side, name in enumerate(SIDES):
            row[f"area of {name} words"] = float(scores.auc[layer][:, side].nanmedian())
            for control, what in enumerate(CONTROLS):
                controls = scores.controls[layer][:, side, control]
                row[f"area of {name} words, {what}"] = float(controls.nanmedian())
        found["layers"][layer] = row
    return found


def attacks(
    clip: sl.Clip, lens: sl.Lens, objects: int, wrong: int, seeds: int
) -> dict[str, dict[str, Any]]:
    """What the words of each kind of effects do in an attack, beside similar words."""
    pool = world_vocabulary()
    selectors = []
    for paths in PATHS:
        own = lens.over(paths)
        codes = own.codes[pool.name]
        for what, layers in (("", own.layers), (", early layers", own.layers[:EARLY])):
            selectors.append(
                NeuronSelector(
                    {n: own[n].directions for n in layers},
                    codes.labels,
                    codes_of(codes, layers),
                    name=f"{paths} paths{what}",
                )
            )
    selectors += [selector(n, clip, lens, pool, lens.codes[pool.name]) for n in METHODS[1:]]
    moves, flips = compared(clip, SpriteGenerator(), selectors, objects, wrong, seeds)
    table = Table(title=f"attack, {objects * wrong} pairs: best words of each selector")
    for column in ("words by", "margin moved", "flipped by one word, %", "this − similar [95 %]"):
        table.add_column(column)
    found = {}
    similar = np.array(flips["similar words"])
    for name, moved in moves.items():
        difference = np.array(flips[name]) - similar
        low, high = of_mean(difference)
        found[name] = {
            "margin moved": float(np.mean(moved)),
            "flipped by one word, %": float(np.mean(flips[name])),
            "this - similar": [float(difference.mean()), low, high],
        }
        row = found[name]
        table.add_row(
            name,
            f"{row['margin moved']:.3f}",
            f"{row['flipped by one word, %']:.1f}",
            f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]",
        )
    Console(width=120).print(table)
    return found


def say(found: dict[str, Any]) -> None:
    """Print numbers."""
    for what, value in found.items():
        shown = [f"{each:.3f}" for each in value] if isinstance(value, list) else f"{value:.2f}"
        print(f"{what}: {shown}", flush=True)


def layers_table(found: dict[str, Any], layers: list[int]) -> None:
    """Print both kinds of effects layer by layer, and over the early layers together."""
    table = Table(title="names and words by layer: value path | all paths")
    what = ("named, %", "false names, %", "area of names")
    columns = [f"area of {side} words" for side in SIDES]
    columns += [f"{columns[0]}, {CONTROLS[0]}", f"{columns[0]}, {CONTROLS[3]}"]
    for column in ("layer", *what, *columns):
        table.add_column(column)
    groups = {str(layer): [layer] for layer in layers}
    groups |= {"0 to 4": layers[:EARLY], "all": layers}
    for name, group in groups.items():
        cells = []
        rows = {paths: [found[paths]["layers"][n] for n in group] for paths in PATHS}
        for paths in PATHS:
            own = rows[paths]
            count, neurons, names, false = (
                sum(each[key] for each in own) for key in ("named", "neurons", "names", "false")
            )
            cells.append(
                [
                    f"{100 * count / neurons:.1f}",
                    f"{100 * false / names:.1f}" if names else "–",
                    *(
                        f"{np.nanmean([each[key] for each in own]):.3f}"
                        for key in ("area of names", *columns)
                    ),
                ]
            )
        table.add_row(name, *(f"{a} | {b}" for a, b in zip(*cells, strict=True)))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
