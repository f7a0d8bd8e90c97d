"""What graphs of neurons keep, find and cost.

    python benchmarks/circuits.py keep              # margins of scenes with one object
    python benchmarks/circuits.py cues              # planted cues
    python benchmarks/circuits.py cost              # random weights of ViT-B/32

`keep`: of the neurons that do most, some edges stay, as a share of all that the network has; all
others are held at their means over other scenes. Told is how far the margin of the right object
over the next best comes from where it is with every edge held to where it is. The edges are those
that `circuit` takes for a share; beside them, with attention frozen, as many that are the strongest
alone, and as many drawn at random that add up to the same for each neuron.

`cues`: what goes to an object's score through the neurons of a place, on that place minus before
plain gray; for its planted place and all others, and for objects with other planted places. Each
place has equally many neurons. Less what goes to the object from all places, and from the place to
objects that are not planted there, nothing should be left without a cue. Told are the mean over
objects with its 95 % interval, the p of the planted places among 10,000 permutations over objects,
and how many objects get more from their place than 95 % of the objects with another one do.
"""

import json
import resource
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
from secondlens.demo.world import PLACES, PREFERRED_PLACES
from secondlens.effects.edges import Sources
from secondlens.effects.held_runs import held_run
from secondlens.effects.linearised import linearise
from secondlens.intervals import of_mean
from secondlens.models.view import hooked


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
@click.option("--seeds", default=2, show_default=True, help="Pictures of each object and place.")
@click.option("--objects", default=3, show_default=True, help="Of each planted place.")
@click.option("--neurons", default=32, show_default=True, help="Of each place.")
@click.option("--json", "out", type=Path)
def cues(model: str, seeds: int, objects: int, neurons: int, out: Path | None) -> None:
    """Compare what goes from places to objects through neurons of the place."""
    clip = sl.load(model)
    world = World(planted=False)
    means = sl.mean_of(clip, Scenes(world, FIT_SEED, 300))
    named = neurons_of_places(clip, world, neurons)
    names = object_names()
    rows = dict(zip(names.labels, names.embed(clip), strict=True))
    asked = [(name, place) for place in PLACES for name in PREFERRED_PLACES[place][1][:objects]]
    flows = np.zeros((2, len(asked), len(PLACES)))
    for at, (name, _) in enumerate(track(asked, "objects")):
        tracer = Tracer(
            clip=clip, aim=Aim(name=name, direction=rows[name]), means=means, secant=True
        )
        for seed in range(seeds):
            plain = flow(tracer, object_on(world, name, None, seed), named)
            for column, place in enumerate(PLACES):
                there = flow(tracer, object_on(world, name, place, seed), named)
                flows[:, at, column] += (there - plain)[:, column] / seeds
    if out:
        out.write_text(json.dumps({"asked": asked, "flows": flows.tolist()}, indent=1))
    own = np.array([list(PLACES).index(place) for _, place in asked])
    for what, found in zip(("all paths", "straight to the score"), flows, strict=True):
        print(f"{model}, {what}: {verdict(found, own)}")


def neurons_of_places(clip: sl.Clip, world: World, count: int) -> dict[str, list[tuple[int, int]]]:
    """The neurons that tell a place most from all other backgrounds, by the world's truth."""
    scenes = Scenes(world, TEST_SEED, 900)
    seen, activations = Sources(clip), []
    for start in range(0, scenes.count, 50):
        images = [scenes.scene(index).image for index in range(start, start + 50)]
        with torch.no_grad(), hooked([], seen.hooks()):
            clip.encode_image(images)
        activations.append(torch.cat([each.mean(1) for each in seen.activations.values()], dim=1))
    values = torch.cat(activations)
    backgrounds = np.array([scenes.scene(index).background for index in range(scenes.count)])
    found = {}
    for place in PLACES:
        here = torch.from_numpy(backgrounds == place)
        apart = (values[here].mean(0) - values[~here].mean(0)) / values.std(0)
        best = apart.topk(count).indices.sort().values.tolist()
        found[place] = [divmod(each, clip.neurons) for each in best]
    return found


def flow(tracer: Tracer, image: Any, named: dict[str, list[tuple[int, int]]]) -> np.ndarray:
    """What the neurons of each place do to the score: by all paths, and straight."""
    (pixels,) = tracer.clip.prepare([image]).split(1)
    picture = tracer.picture(pixels)
    whole = torch.cat(
        [
            (picture.gradient.worth[layer] * change).sum(1)[0]
            for layer, change in picture.change.items()
        ]
    )
    straight = torch.cat(
        [
            (
                picture.gradient.after[layer][0]
                @ picture.tower.blocks[layer].neuron_rows.T
                * change
            ).sum(1)[0]
            for layer, change in picture.change.items()
        ]
    )
    n = tracer.clip.neurons
    places = [[layer * n + neuron for layer, neuron in each] for each in named.values()]
    return np.array([[float(kind[each].sum()) for each in places] for kind in (whole, straight)])


def verdict(flows: np.ndarray, own: np.ndarray) -> str:
    """How much more goes from the planted place than from others and to other objects."""
    rng = np.random.default_rng(0)
    left = flows - flows.mean(1, keepdims=True)
    objects, places = left.shape
    planted = own[:, None] == np.arange(places)
    # of each place, what goes to objects that are not planted there is no cue
    left = left - left.mean(0, where=~planted)
    values = left[planted]
    passed = []
    for name, place in enumerate(own):
        others = left[own != place, place]
        passed.append((1 + (others >= left[name, place]).sum()) / (1 + len(others)))
    drawn = [left[np.arange(objects), rng.permutation(own)].mean() for _ in range(10_000)]
    p = (1 + sum(each >= values.mean() for each in drawn)) / (1 + len(drawn))
    low, high = of_mean(values)
    return (
        f"{values.mean():+.5f} [{low:+.5f}, {high:+.5f}] more from the planted place, p {p:.4f}; "
        f"above 95 % of "
        f"other objects for {sum(each <= 0.05 for each in passed)} of {objects}"
    )


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
