"""Marks of a checkpoint of `contrastive.py`, each with its 95 % interval.

    python training/marks.py runs/trunk/checkpoint.safetensors --out marks.json
    apt-get install tuxpaint-stamps-default        # photographs with an outline, for one more row

Top-1 over all object names: single objects in trained depictions, held-out depictions, a held-out
style and what the first world held out; words alone in trained fonts, in held-out fonts, and words
that were never written in training; and the share of pictures named rightly that a foreign word
makes to be named after the word.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from contrastive import CLIP, CONFIG, EXAM_SEED, Exam, Words, best_names, exams, read, weights_of
from rich.console import Console
from rich.table import Table
from world.scenes import World
from world.sprites import Sprite, Wardrobe

from secondlens.demo.world import NAMES
from secondlens.intervals import wilson

STAMPS = Path("/usr/share/tuxpaint/stamps")
LEFT_OUT = frozenset({"cartoon", "mirror", "military", "sea", "seasonal", "symbols"})
"""Words in the path of a drawing, of a mirrored copy, or of something else by that name."""


def stamps(root: Path) -> Iterator[Sprite]:
    """Stamps whose file name ends with the name of an object."""
    for path in sorted(root.rglob("*.png")):
        words = re.findall("[a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
        if LEFT_OUT & set(words):
            continue
        found = [name for name in NAMES if words[-1] in (name, f"{name}s")]
        if found:
            yield Sprite(
                name=found[0],
                style="stamp",
                split="train",
                silhouette=False,
                encoded=path.read_bytes(),
            )


def photographs(root: Path) -> Exam:
    """Every stamp once, as the world shows objects."""
    world, scenes = World(planted=False, words=0), []
    for number, sprite in enumerate(stamps(root)):
        world.wardrobe = Wardrobe("train", [sprite])
        scenes.append(world.scene(EXAM_SEED, number, objects=[sprite.name]))
    return Exam.of(scenes, [scene.objects[0] for scene in scenes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="of every row")
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    words = Words()
    model = CLIP(**CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": len(words.ids)}})
    tensors, facts = read(args.checkpoint)
    model.load_state_dict(weights_of(tensors), strict=False)
    sheets = exams(args.images)
    if args.stamps.exists():
        sheets["stamps"] = photographs(args.stamps)
    right = {
        name: best == sheets[name].answers
        for name, best in best_names(model, words, sheets).items()
    }
    right["flips"] = right.pop("attacked")[right["compositions"]]
    table, found = Table("row", "pictures", "%", "95 % interval"), {}
    for name, answers in right.items():
        if not len(answers):
            continue  # nothing that could flip was named rightly
        hits, count = int(answers.sum()), len(answers)
        low, high = wilson(hits, count)
        found[name] = {"pictures": count, "share": hits / count, "interval": [low, high]}
        table.add_row(
            name, str(count), f"{100 * hits / count:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"
        )
    Console().print(f"after {facts['pictures']} pictures", table)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
