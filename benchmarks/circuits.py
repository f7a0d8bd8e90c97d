"""What graphs of neurons keep, find and cost.

    python benchmarks/circuits.py keep              # margins of scenes with one object
    python benchmarks/circuits.py cues --lens secondlens-demo/lens  # planted cues
    python benchmarks/circuits.py cost              # random weights of ViT-B/32

`keep`: of the neurons that do most, some edges stay, as a share of all that the network has; all
others are held at their means over other scenes. Told is how far the margin of the right object
over the next best comes from where it is with every edge held to where it is. The edges are those
that `circuit` takes for a share; beside them, with attention frozen, as many that are the strongest
alone, and as many drawn at random that add up to the same for each neuron.

`cues`: the graph of an object's score, on its planted place minus before plain gray, has a route if
an edge leaves a neuron that is named by the place, reaches the target, and what goes along it is
positive. Beside it stands the same for a place drawn at random, which is no cue.
"""

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.progress import track

import secondlens as sl
from secondlens.applications.circuits.pruning import balanced, leading_on, strongest
from secondlens.applications.circuits.tracing import Aim, Tracer, held_scores
from secondlens.data.vocabularies import object_names
from secondlens.demo.scenes import FIT_SEED, TEST_SEED, Scenes, World, object_on
from secondlens.demo.world import PLACES, PREFERENCE
from secondlens.effects.held_runs import held_run
from secondlens.effects.linearised import linearise


@click.group()
def main() -> None:
    """Measure graphs of neurons."""
    torch.set_num_threads(1)


def margin(clip: sl.Clip, rows: torch.Tensor, image: Any, right: int) -> tuple[torch.Tensor, float]:
    """The direction from the next best class to the right one, and how far it is ahead."""
    scores = torch.nn.functional.normalize(clip.encode_image([image]), dim=-1)[0] @ rows.T
    others = scores.clone()
    others[right] = -1
    other = int(others.argmax())
    return rows[right] - rows[other], float(scores[right] - scores[other])


@main.command()
@click.option("--model", type=click.Choice(["demo", "demo-twin"]), default="demo")
@click.option("--pictures", default=100, show_default=True, help="That are classified rightly.")
@click.option("--nodes", default=1500, show_default=True)
@click.option("--share", default=0.01, show_default=True, help="Of all edges that the network has.")
@click.option("--beside", default=100, show_default=True, help="With what else, on how many.")
@click.option("--gain", type=click.Choice(["secant", "tangent"]), default="secant")
@click.option("--json", "out", type=Path)
def keep(
    model: str,
    pictures: int,
    nodes: int,
    share: float,
    beside: int,
    gain: str,
    out: Path | None,
) -> None:
    """Hold all edges at their means but some, and look at the margin."""
    clip, world = sl.load(model), World(planted=model == "demo")
    means = sl.mean_of(clip, Scenes(world, FIT_SEED, 300))
    scenes = Scenes(world, TEST_SEED, 4 * pictures, single=True)
    names = object_names()
    rows, labels = names.embed(clip), list(names.labels)
    found: list[dict[str, float]] = []
    for index in track(range(scenes.count), "pictures"):
        if len(found) == pictures:
            break
        scene = scenes.scene(index)
        direction, ahead = margin(clip, rows, scene.image, labels.index(scene.objects[0]))
        if ahead <= 0:
            continue
        tracer = tracer_of(clip, direction, means, gain)
        reader = tracer.reader([scene.image])
        (picture,) = [p for _, p in tracer.pictures(reader, "", False)]
        chosen = tracer.chosen([reader], nodes, 0, False)
        weights, wanted = tracer.frozen_edges(picture, chosen)
        n, last = clip.neurons, clip.layers
        possible = n**2 * last * (last - 1) // 2 + last * n + clip.tokens * (last * n + 1)
        count = int(share * possible)
        kept = leading_on(balanced(weights, wanted, count), len(chosen.neurons))
        row: dict[str, float] = {"margin": ahead, "edges": int(kept.sum()) / possible}
        row["neurons"] = int(kept[: len(chosen.neurons)].any(1).sum())
        scores = held_scores(picture, chosen, kept, ahead)
        for attention, (score, held, whole) in zip(("frozen", "free"), scores, strict=True):
            row[attention] = (score - held) / (whole - held)
            row[f"{attention}, off by"] = abs(1 - row[attention])
            row[f"{attention}, of the margin"] = score / whole
        if len(found) < beside:
            for name, mask in (
                ("frozen, strongest alone", strongest(weights, int(kept.sum()))),
                ("frozen, random", random_balanced(weights, wanted, int(kept.sum()))),
            ):
                mask = leading_on(mask, len(chosen.neurons))
                score = float(held_run(*picture.run, chosen, mask).score(direction)[0])
                row[name] = (score - picture.without[0]) / (ahead - picture.without[0])
        found.append(row)
        if out:
            out.write_text(json.dumps(found, indent=1))
    for name in found[0]:
        values = np.array([row[name] for row in found if name in row])
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"{name}: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}, n {len(values)}")


def random_balanced(weights: torch.Tensor, wanted: torch.Tensor, count: int) -> torch.Tensor:
    """Edges at random, more of one sign than of the other so that they bring what is wanted."""
    drawn = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0))
    up, down = weights.clamp(min=0).sum(0), (-weights).clamp(min=0).sum(0)
    rate = count / int((weights != 0).sum())
    tilt = (wanted - rate * (up - down)) / (2 * up * down).clamp(min=1e-30)
    rates = torch.where(weights > 0, rate + tilt * down, rate - tilt * up)
    return (drawn < rates) & (weights != 0)


def tracer_of(clip: sl.Clip, direction: torch.Tensor, means: Any, gain: str) -> Any:
    aim = Aim(name="margin", direction=direction)
    return Tracer(clip=clip, aim=aim, means=means.to(direction), secant=gain == "secant")


@main.command()
@click.option("--model", type=click.Choice(["demo", "demo-twin"]), default="demo")
@click.option("--lens", "folder", type=Path, required=True, help="One whose neurons are named.")
@click.option("--seeds", default=4, show_default=True, help="Pictures of each object and place.")
@click.option("--nodes", default=64, show_default=True)
@click.option("--edges", "count", default=400, show_default=True)
@click.option("--objects", type=int, help="By default all with a planted place.")
def cues(model: str, folder: Path, seeds: int, nodes: int, count: int, objects: int | None) -> None:
    """Look for routes from places to objects."""
    clip, lens = sl.load(model), sl.Lens.load(folder)
    world = World(planted=False)
    means = sl.mean_of(clip, Scenes(world, FIT_SEED, 300))
    names = object_names()
    rows = dict(zip(names.labels, names.embed(clip), strict=True))
    planted = {name: place for name, (place, _) in PREFERENCE.items()}
    rng = np.random.default_rng(0)
    routes: dict[str, list[bool]] = {"planted": [], "random place": []}
    amounts: dict[str, list[float]] = {"planted": [], "random place": []}
    for name, place in track(list(planted.items())[:objects], "objects"):
        other = str(rng.choice([each for each in PLACES if each != place]))
        for kind, where in (("planted", place), ("random place", other)):
            there = [object_on(world, name, where, seed) for seed in range(seeds)]
            plain = [object_on(world, name, None, seed) for seed in range(seeds)]
            found = sl.circuit(
                clip, lens, there, rows[name], means, minus=plain, nodes=nodes, edges=count
            )
            flow = sum(
                edge.weight
                for node in found.neurons
                if where in [each.text for each in lens_names(lens, node)]
                for edge in found.out_of(node.id)
            )
            routes[kind].append(flow > 0)
            amounts[kind].append(flow)
    for kind, values in routes.items():
        mean = statistics.mean(amounts[kind])
        print(
            f"{model}, {kind}: a route through neurons named by the place in "
            f"{100 * statistics.mean(values):.1f} % of {len(values)}; on average {mean:+.5f}"
        )


def lens_names(lens: sl.Lens, node: Any) -> list[Any]:
    return lens.fires_on(node.layer, node.number) if node.layer in lens.layers else []


@main.command()
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--nodes", default=64, show_default=True)
def cost(model: str, nodes: int) -> None:
    """Time one picture's graph in encodings, and its memory."""
    clip = sl.from_open_clip(open_clip.create_model(model).eval(), check=False)
    images = torch.randn(8, 3, *clip.image_size)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        clip.encode_image(images)
        seconds.append(time.process_time() - began)
    encoding = min(seconds) / len(images)
    means = sl.mean_of(clip, images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    direction = torch.nn.functional.normalize(torch.randn(clip.dim), dim=0)
    linearise(clip, images[:1])
    spent = []
    for _ in range(3):
        began = time.process_time()
        sl.circuit(clip, None, images[:1], direction, means, nodes=nodes)
        spent.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Console().print(
        f"{model}: one picture's graph of {nodes} neurons in {min(spent) / encoding:.1f} encodings "
        f"of {1000 * encoding:.0f} ms; {peak / 2**20:.2f} GB of memory at most, "
        f"{before / 2**20:.2f} before"
    )


if __name__ == "__main__":
    main()
