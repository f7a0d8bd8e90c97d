"""`secondlens harden`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .defend import labelled_with
from .edit import accuracies, print_saved
from .options import (
    PATH,
    PLACE,
    POSITIVE,
    ChosenModel,
    check_pictures,
    console,
    groups_option,
    hold_new,
    json_option,
    note,
    print_json,
    with_model,
)
from .together import check_together, when

if TYPE_CHECKING:
    from ..applications.hardening.resistance import Resistance


@click.command()
@click.argument("attacks", type=PATH)
@click.option(
    "--test",
    "tests",
    type=PATH,
    multiple=True,
    help="A folder of attacks that are measured and not trained on; repeatable.",
)
@click.option(
    "--usual",
    type=PLACE,
    help="A labelled set of usual pictures: the model is held there on the even half, and measured "
    "on the odd half.",
)
@click.option("--template", "templates", multiple=True, help="As for audit.")
@click.option(
    "--drawn",
    type=click.IntRange(4),
    default=4000,
    show_default=True,
    help="Usual pictures, for the embedded models, where none are named.",
)
@click.option(
    "--blocks",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Blocks of the image tower that are trained, the last ones.",
)
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True)
@click.option(
    "--learning-rate", type=POSITIVE, default=1e-4, show_default=True, help="The highest one."
)
@click.option(
    "--keep",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Weight of staying near the model on usual pictures.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Pictures of attacks in a step, and as many usual ones.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the order of the pictures.",
)
@click.option("--out", type=PATH, required=True, help="A new folder.")
@groups_option
@json_option
@with_model
def harden(
    attacks: Path,
    tests: tuple[Path, ...],
    usual: Path | str | None,
    templates: tuple[str, ...],
    drawn: int,
    blocks: int,
    steps: int,
    learning_rate: float,
    keep: float,
    batch_size: int,
    seed: int,
    out: Path,
    groups: tuple[str, ...],
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Train the last blocks of a model on the pictures of ATTACKS, and attack it again.

    ATTACKS is the folder of an attack, or of many. Each picture is trained to be called by the
    class that it shows; on usual pictures the model is held near what it was. Writes a folder that
    open_clip loads, one that transformers loads, harden.json, and a card.

    What --test holds shows what attacks still do: make those on other pairs of classes, and with
    another seed. They are of the model before; to attack the new one, fit a lens on it.

    Example: secondlens harden attacks --test held-out --out checkpoint
    """
    hold_new(out)
    check_pictures(usual)
    own = model.model.startswith("demo")
    trained_on = [each for each in tests if _overlap(each, attacks)]
    check_together(
        when(
            usual is None and not own,
            f"{model.model} has no pictures of its own: name some with --usual",
        ),
        when(bool(templates) and usual is None, "--template is for --usual"),
        when(
            bool(trained_on),
            f"{trained_on[0] if trained_on else ''} shares pictures with what is trained on: name "
            "other attacks with --test",
        ),
    )
    from ..applications.adversarial.runs import attacked
    from ..applications.auditing.counterfactuals import natural
    from ..applications.editing.checkpoints import loaded, save_models
    from ..applications.editing.outcomes import outcome
    from ..applications.hardening.checkpoints import document, save_card
    from ..applications.hardening.resistance import resistance
    from ..applications.hardening.training import Training, check_trainable
    from ..applications.hardening.training import harden as train
    from ..storage.files import whole_folder

    training = Training(
        blocks=blocks,
        steps=steps,
        learning_rate=learning_rate,
        keep=keep,
        batch_size=batch_size,
        seed=seed,
    )
    pictures = natural(drawn) if usual is None else labelled_with(usual, templates)
    if len(pictures) < 2:
        raise SecondLensError(
            f"{pictures.name} has one picture, and half of them measure: name more with --usual"
        )
    chosen = attacked(attacks, pictures.classes)
    held_out = [attacked(each, pictures.classes) for each in tests]
    held, measured = (pictures.at(range(start, len(pictures), 2)) for start in (0, 1))
    if groups:
        measured.groups(groups)  # says before all work that there is no such column
    clip = model.load()
    check_trainable(clip, training)
    found = train(clip, chosen, held.source, training=training, progress=True)
    with whole_folder(out) as folder:
        saved, refused = save_models(found.clip, folder)
        first = loaded(folder, next(iter(saved)), clip)
        resistances = [resistance(clip, first, each, progress=True) for each in held_out]
        outcomes = [outcome(clip, first, measured, groups, progress=True)]
        content = document(found, resistances, outcomes, saved, refused)
        save_card(folder, content)
    for why in refused.values():
        note(why)
    if not tests:
        note("what attacks still do is not known: name attacks on other pairs with --test")
    if as_json:
        print_json(content | {"checkpoint": out})
        return
    if resistances:
        console.print(_table(resistances))
    console.print(accuracies("Accuracy of the saved model, in per cent", outcomes))
    print_saved(content)
    folders = ", ".join((*saved, "harden.json", "README.md"))
    console.print(f"{out}: {folders}", markup=False, highlight=False)


def _overlap(one: Path, other: Path) -> bool:
    """Whether two folders are the same, or one lies in the other."""
    first, second = one.resolve(), other.resolve()
    return first == second or first in second.parents or second in first.parents


def _table(resistances: "list[Resistance]") -> Table:
    table = Table(title="Pictures of attacks with the saved model, in per cent")
    for name in ("attacks", "are", "pictures", "before", "after", "change, points"):
        table.add_column(name, justify="left" if name in ("attacks", "are") else "right")
    for each in resistances:
        for kind, success in (
            ("called the wrong class", each.called_wrong),
            ("nearer to the wrong class", each.nearer_wrong),
            ("right", each.right),
        ):
            value, low, high = (100 * part for part in success.change)
            table.add_row(
                escape(each.attacks),
                kind,
                f"{each.count:,}",
                f"{100 * success.before:.1f}",
                f"{100 * success.after:.1f}",
                f"{value:+.1f} [{low:+.1f}, {high:+.1f}]",
            )
    return table
