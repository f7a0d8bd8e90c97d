"""Names of the embedded model, judged by what is true of scenes that chose nothing.

python benchmarks/naming.py
python benchmarks/naming.py --images 2000 --fresh 1000 --layers 5 --json naming.json
python benchmarks/naming.py --cost
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import secondlens as sl
from secondlens.commands.options import layer_numbers
from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.model import TWIN
from secondlens.demo.scenes import (
    FIT_SEED,
    NAME_SEED,
    SCORE_SEED,
    Scenes,
    World,
    truth,
    with_and_without,
)
from secondlens.demo.world import BACKGROUNDS, PLACES, PREFERENCE
from secondlens.effects.projections import Projector, project
from secondlens.intervals import of_mean, wilson
from secondlens.lens.moments import top_count
from secondlens.words.causes import PAIRS
from secondlens.words.judging import Holdings, by_labels
from secondlens.words.naming import NameSearch, Ranks, mann_whitney
from secondlens.words.scoring import area_under_roc

MANY = 64
"""Pairs that say whether a text raises an effect, beside the few of `sl.confirm`."""
DOUBTFUL = 0.6
"""Area under the ROC curve below which a name is printed as a weak one."""


@click.command()
@click.option("--fit-images", default=1200, show_default=True)
@click.option("--images", default=5000, show_default=True, help="Scenes to name and to test on.")
@click.option("--fresh", default=4000, show_default=True, help="Scenes that judge.")
@click.option("--layers", default="all", show_default=True)
@click.option("--cost", is_flag=True, help="Only time the search, on random effects and holdings.")
@click.option("--json", "out", type=Path, help="Also write the numbers to this file.")
def main(
    fit_images: int, images: int, fresh: int, layers: str, cost: bool, out: Path | None
) -> None:
    """Print how many names and pictures are true, and what naming costs."""
    torch.set_num_threads(1)
    found = costs() if cost else truths(fit_images, images, fresh, layers)
    click.echo("\n".join(f"{what}: {value}" for what, value in found.items()))
    if out:
        out.write_text(json.dumps(found, indent=1))


def truths(fit_images: int, images: int, fresh: int, layers: str) -> dict[str, Any]:
    """What is true of the names of the embedded model; `World` knows."""
    clip, texts = sl.load("demo"), world_vocabulary()
    world = World()
    lens = sl.fit(clip, Scenes(world, FIT_SEED, fit_images), layer_numbers(layers), progress=True)
    pool = Scenes(world, NAME_SEED, images)
    twin = sl.load(TWIN[clip.name])
    busy = time.process_time()
    names = sl.name(clip, lens, pool, texts, twin, progress=True)
    busy = time.process_time() - busy
    known = truth(pool)
    true_of = dict(zip(pool.ids, known, strict=True))
    judges = Scenes(world, SCORE_SEED, fresh)
    held = by_labels(truth(judges), texts, list(range(fresh))).texts
    projectors = {n: Projector(clip, n, lens[n].directions[:, None]) for n in lens.layers}
    products = project(clip, judges, projectors, progress=True).products

    place = {text: position for position, text in enumerate(texts.labels)}
    rows = normalise(texts.embed(clip)).float()
    related = normalise(texts.embed(twin)).float()
    content = (held[:, :, None] == torch.arange(len(texts))).any(dim=1).float()
    of_images = content @ related
    top = top_count(None, fresh)
    pictures = {"object": [0, 0], "background": [0, 0]}
    words = {"object": [0, 0, 0], "background": [0, 0, 0]}
    polysemous = [0, 0]
    gains: dict[str, list[float]] = {"exact labels": [], "related words": []}
    for layer in lens.layers:
        effects = products[layer][:, :, 0].T.contiguous()
        ranks = Ranks.of(effects)
        similar = (lens[layer].directions.float() @ rows.T).argmax(dim=1).tolist()
        for neuron in range(len(effects)):
            own = names.of(layer, neuron)
            true_names = 0
            for each in own:
                kind = "background" if each.text in BACKGROUNDS else "object"
                pictures[kind][0] += sum(each.text in true_of[i] for i in each.pictures)
                pictures[kind][1] += len(each.pictures)
                holds = (held == place[each.text]).any(dim=1)
                auc, p = mann_whitney(ranks.at(torch.tensor([neuron])), holds)
                words[kind][0] += bool(p >= 0.05)
                words[kind][1] += bool(auc < DOUBTFUL)
                words[kind][2] += 1
                true_names += bool(p < 0.05)
            if len(own) > 1:
                polysemous[0] += true_names == len(own)
                polysemous[1] += 1
            if own:
                strongest = effects[neuron].argsort(descending=True)
                two = torch.tensor([place[own[0].text], similar[neuron]])
                for what, predicted in (
                    ("exact labels", content[:, two].T),
                    ("related words", related[two] @ of_images.T),
                ):
                    ordered = predicted[:, strongest]
                    area = area_under_roc(ordered[:, :top], ordered[:, top:]).auc
                    gains[what].append(float(area[0] - area[1]))
    neurons = sum(map(len, names.texts.values()))
    named = sum(int((each[:, 0] >= 0).sum()) for each in names.texts.values())
    coverage = ", ".join(f"{layer}: {share:.2f}" for layer, share in names.coverage().items())
    found: dict[str, Any] = {
        "neurons named": interval(named, neurons),
        "by layer": coverage,
        "neurons with two or more names, all true": interval(*polysemous),
        "names of shuffled effects": names.shuffled,
        "texts that could not be tested": names.rare,
    }
    for kind in pictures:
        false, weak, count = words[kind]
        found[f"{kind} pictures true"] = interval(*pictures[kind])
        found[f"{kind} names false (p >= 0.05)"] = interval(false, count)
        found[f"{kind} names with a true area below {DOUBTFUL}"] = interval(weak, count)
    for what, values in gains.items():
        low, high = of_mean(values)
        mean = sum(values) / max(1, len(values))
        found[f"first name minus most similar word, area by {what}, mean"] = (
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    found |= causes(clip, lens, names)
    return found | {"processor seconds of sl.name, with both models": round(busy, 1)}


def causes(clip: sl.Clip, lens: sl.Lens, names: sl.Names) -> dict[str, Any]:
    """How many names raise the effect when they are drawn in; of those that do not, by many other
    pairs, how many few pairs find."""
    draw = partial(with_and_without, World(planted=False))
    many = sl.confirm(clip, lens, draw, names=names.name, pairs=MANY, seed=PAIRS, progress=True)
    few = sl.confirm(clip, lens, draw, names=names.name, pairs=PAIRS, progress=True)
    cues = torch.tensor([text in {*PREFERENCE, *PLACES} for text in names.labels])
    rose = confirmed = count = idle = found = idle_cues = found_cues = 0
    for layer, texts in names.texts.items():
        there = texts >= 0
        up = few.rose[layer] * 2 > PAIRS
        none = there & (many.rose[layer] * 2 <= MANY)
        cue = none & cues[texts]
        passed = few.confirmed[layer]
        count, rose = count + int(there.sum()), rose + int((up & there).sum())
        confirmed += int((passed & there).sum())
        idle, found = idle + int(none.sum()), found + int((none & ~passed).sum())
        idle_cues, found_cues = idle_cues + int(cue.sum()), found_cues + int((cue & ~passed).sum())
    return {
        f"names that raise the effect in more than half of {PAIRS} pairs": interval(rose, count),
        f"names that the sign test on {PAIRS} pairs confirms": interval(confirmed, count),
        f"of names that raise it in at most half of {MANY} other pairs, found": interval(
            found, idle
        ),
        "the same of objects and places that go together by design": interval(
            found_cues, idle_cues
        ),
    }


def interval(count: int, trials: int) -> str:
    """A share with Wilson's interval."""
    low, high = wilson(count, trials)
    share = 100 * count / trials if trials else float("nan")
    return f"{share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({count} of {trials})"


def costs() -> dict[str, Any]:
    """Processor seconds of the search and its shuffled control, without any model."""
    found = {}
    for neurons, texts in ((5376, 271), (3072, 30_000)):
        generator = torch.Generator().manual_seed(0)
        held = torch.randint(texts, (5000, 2), generator=generator)
        strength = torch.full(held.shape, 9.0)
        effects = torch.randn(neurons, 5000, generator=generator)
        search = NameSearch(Holdings(judge="chance", texts=held, strength=strength), texts, 0)
        start = time.process_time()
        search(lambda _, e=effects: e, [0], "names", False)
        search(lambda _, e=effects, s=search: s.shuffled(e, 0), [0], "shuffled", False)
        found[f"{neurons} neurons, 5,000 images, {texts} texts, processor seconds"] = round(
            time.process_time() - start, 1
        )
    return found


if __name__ == "__main__":
    main()
