"""Zero-shot accuracy of the embedded models, as their cards quote it.

    python training/evaluate.py --out accuracies.json

Top-1 over all object names, with prompt ensembles, on unseen single-object scenes: trained
depictions in new compositions, held-out depictions, and a held-out style; each in the model's own
world, and with backgrounds that do not depend on the object.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import secondlens as sl
from secondlens.data.reader import Reader
from secondlens.data.vocabularies import object_names
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import NAMES
from secondlens.intervals import wilson

SEED = 31
SPLITS = {"train": "new compositions", "heldout": "held-out depictions", "style": "held-out style"}


@torch.no_grad()
def accuracy(clip: sl.Clip, classifier: torch.Tensor, scenes: Scenes) -> list[bool]:
    """Whether each scene's object is the best of all names."""
    right: list[bool] = []
    reader = Reader(source=scenes, clip=clip, batch_size=64)
    for batch in track(reader, description=scenes.world.wardrobe.split, total=len(reader)):
        best = (clip.encode_image(batch.pixels) @ classifier.T).argmax(1).tolist()
        truth = [scenes.scene(i).objects[0] for i in batch.positions]
        right += [NAMES[b] == name for b, name in zip(best, truth, strict=True)]
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = Table("model", "backgrounds", "depictions", "top-1 %", "95 % interval")
    found = []
    for name in ("demo", "demo-twin"):
        clip = sl.load(name)
        classifier = object_names().embed(clip)
        worlds = (
            {"own world": True, "independent": False} if name == "demo" else {"own world": False}
        )
        for world, planted in worlds.items():
            for split, meaning in SPLITS.items():
                scenes = Scenes(World(planted=planted, split=split), SEED, args.images, single=True)
                right = accuracy(clip, classifier, scenes)
                low, high = wilson(sum(right), len(right))
                top1 = sum(right) / len(right)
                row = {"model": name, "backgrounds": world, "depictions": meaning}
                found.append(row | {"top1": top1, "interval": [low, high]})
                table.add_row(
                    *row.values(), f"{100 * top1:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"
                )
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
