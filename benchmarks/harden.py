"""What training on attacks is worth: on held-out pairs, usual pictures, and against a new attack.

    python benchmarks/harden.py --json harden.json

The embedded model is attacked on every ordered pair of some random classes, trained on these
pictures, and shown attacks on `ATTACK_PAIRS`, none of whose classes was among the first. Then a
lens is fitted on the trained model and it is attacked anew on the same pairs, by one who knows the
new weights, with other seeds. Usual pictures are single objects of the planted world, the other
half of those that training stays near; the other style is silhouettes and varied colours. Intervals
of attacks are over pairs, those of accuracy over pictures.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import secondlens as sl
from secondlens.applications.adversarial.attacks import Attacker, attack_pairs, attacker
from secondlens.applications.adversarial.judging import ExactJudge
from secondlens.applications.adversarial.runs import Attacked, attacked, folder_name
from secondlens.applications.adversarial.selection import Pair
from secondlens.applications.adversarial.sprites import SpriteGenerator, Taxonomy
from secondlens.applications.auditing.counterfactuals import natural
from secondlens.applications.editing.outcomes import Outcome, outcome
from secondlens.applications.hardening.resistance import Resistance, resistance
from secondlens.applications.hardening.training import Training, harden
from secondlens.data.labelled import Labelled
from secondlens.data.vocabularies import object_names, world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.demo.world import ATTACK_PAIRS, NAMES

SEED = 7
STYLE_SEED = 95


def attacks_on(
    clip: sl.Clip, lens: sl.Lens, pairs: list[tuple[str, str]], images: int, seed: int, out: Path
) -> Attacked:
    """Pictures of attacks on pairs, by one who knows the weights."""
    made = parts(clip, lens, images, seed)
    for drawn, wrong in pairs:
        pair = Pair(draw=drawn, mistake_for=wrong)
        made(pair, out / folder_name(pair), progress=False)
    return attacked(out, object_names())


def parts(clip: sl.Clip, lens: sl.Lens, images: int, seed: int) -> Attacker:
    """An attacker of the embedded world, whatever the model is called."""
    return attacker(
        *(clip, lens),
        classes=object_names(),
        texts=world_vocabulary(),
        too_close=Taxonomy(),
        image_generator=SpriteGenerator(),
        judge=ExactJudge(),
        images=images,
        seed=seed,
    )


def described(clip: sl.Clip, images: int) -> sl.Lens:
    """A lens with words."""
    lens = sl.fit(clip, Scenes(World(), FIT_SEED, images), progress=True)
    sl.describe(clip, lens, world_vocabulary())
    return lens


def other_style(count: int) -> Labelled:
    """Single objects as silhouettes and in other colours."""
    scenes = Scenes(World(augment=True), STYLE_SEED, count, single=True)
    labels = tuple(NAMES.index(scenes.scene(i).objects[0]) for i in range(count))
    return Labelled(name="other style", source=scenes, labels=labels, classes=object_names())


@click.command()
@click.option("--fit-images", default=1500, show_default=True)
@click.option("--classes", default=8, show_default=True, help="Trained on, in all ordered pairs.")
@click.option("--images", default=12, show_default=True, help="Of each pair that is trained on.")
@click.option("--test-images", default=40, show_default=True, help="Of each held-out pair.")
@click.option("--usual", default=4000, show_default=True)
@click.option("--blocks", default=Training.blocks, show_default=True)
@click.option("--steps", default=Training.steps, show_default=True)
@click.option("--learning-rate", default=Training.learning_rate, show_default=True)
@click.option("--keep", default=Training.keep, show_default=True)
@click.option("--again/--not-again", default=True, help="Attack the trained model anew.")
@click.option("--folder", type=Path, help="Keeps the pictures of attacks; by default nowhere.")
@click.option("--json", "json_path", type=Path)
def main(
    fit_images: int,
    classes: int,
    images: int,
    test_images: int,
    usual: int,
    blocks: int,
    steps: int,
    learning_rate: float,
    keep: float,
    again: bool,
    folder: Path | None,
    json_path: Path | None,
) -> None:
    """Print what attacks do before and after, and what that costs."""
    clip = sl.load("demo")
    lens = described(clip, fit_images)
    held_out = {name for pair in ATTACK_PAIRS for name in pair}
    rng = np.random.default_rng(SEED)
    others = [name for name in NAMES if name not in held_out]
    chosen = rng.choice(others, classes, replace=False).tolist()
    training = Training(blocks=blocks, steps=steps, learning_rate=learning_rate, keep=keep)
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        attack_pairs(parts(clip, lens, images, 0), chosen, root / "train", progress=True)
        shown = attacked(root / "train", object_names())
        unseen = attacks_on(clip, lens, list(ATTACK_PAIRS), test_images, 1, root / "test")
        pictures = natural(usual)
        half = pictures.at(range(0, usual, 2)).source
        found = harden(clip, shown, half, training=training, progress=True)
        measured: dict[str, Resistance | Outcome] = {
            "attacks on held-out pairs": resistance(clip, found.clip, unseen),
            "usual pictures": outcome(clip, found.clip, pictures.at(range(1, usual, 2))),
            "another style": outcome(clip, found.clip, other_style(usual // 2)),
        }
        if again:
            new = described(found.clip, fit_images)
            fresh = attacks_on(
                *(found.clip, new, list(ATTACK_PAIRS), test_images, 2, root / f"again-{steps}")
            )
            measured["a new attack on the trained model"] = resistance(clip, found.clip, fresh)
    show(measured, training)
    if json_path is not None:
        content = {name: asdict(each) for name, each in measured.items()}
        json_path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def show(measured: dict[str, Resistance | Outcome], training: Training) -> None:
    """Print a row for each number."""
    table = Table(title=f"{training}", title_justify="left")
    for column in ("pictures", "share of", "how many", "before, %", "after, %", "change [95 %]"):
        table.add_column(
            column, justify="right" if column not in ("pictures", "share of") else "left"
        )
    for name, each in measured.items():
        if isinstance(each, Outcome):
            kinds = {"right": each}
        else:
            kinds = {
                "called the wrong class": each.called_wrong,
                "nearer to the wrong class": each.nearer_wrong,
                "right": each.right,
            }
        for kind, value in kinds.items():
            change, low, high = (100 * part for part in value.change)
            table.add_row(
                *(name, kind, f"{each.count:,}"),
                *(f"{100 * part:.1f}" for part in (value.before, value.after)),
                f"{change:+.1f} [{low:+.1f}, {high:+.1f}]",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
