"""`attack`: one pair of classes, or every ordered pair of a list."""

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from ..clip.view import Clip
from ..engine import Engine, Local
from ..errors import SecondLensError
from ..lens import Lens
from ..storage.files import save_json
from ..storage.places import check_empty
from . import gallery
from .attacker import Attacker, attacker
from .report import Report
from .run import folder_name
from .select import NothingLeft, Pair


def attack(
    clip: Clip,
    lens: Lens,
    draw: str,
    mistake_for: str,
    out: str | Path,
    *,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Pictures of `draw` that the model takes for `mistake_for`, and how many of them it does.

    For the embedded models all parts have defaults; any other model needs `classes`, `too_close`,
    `drawer` and `check`. An attack that was interrupted goes on when called again.

    Parameters
    ----------
    clip, lens
        A model, and a lens fitted on it and described.
    draw, mistake_for
        Two of the classes.
    out
        The run folder: see `run`.
    options
        - `classes`: what `vocabulary` takes; the pair is among them;
        - `texts`: the words to choose from, which the lens was described with; by default those
          of its first description;
        - `method`: one of `METHODS`; `layers`, by default all fitted, and `neurons`, 100;
        - `whole_codes`: take the whole codes of the description, as the paper does, and not the
          brief ones;
        - `words`: to keep, by default 25 and at most 1 in 32 of the pool; `captions`, 10;
          `images`, 100; `seed`;
        - `too_close`, `writer`, `drawer`, `check`: who filters words, writes, draws, and says
          whether a picture counts.

    Raises
    ------
    SecondLensError
        The same class twice, an unknown class, another model's lens, one without a description,
        a folder that holds something else, no word or caption that may be used, or a part that
        fails.
    """
    made = attacker(clip, lens, **options)
    return made(Pair(draw=draw, mistake_for=mistake_for), out, progress=progress)


def attack_pairs(
    made: Attacker,
    names: Sequence[str],
    out: str | Path,
    *,
    engine: Engine | None = None,
    progress: bool = False,
) -> tuple[list[Report], dict[Pair, str]]:
    """Attack every ordered pair of some classes, each in a folder of its own below `out`.

    Pairs for which no word or caption is left are listed with the reason; the others go on. An
    index of all galleries is written at the end. An engine, as in `fit`, attacks several pairs at a
    time; all its workers must reach `out`.

    Raises
    ------
    SecondLensError
        As `attack`, or fewer than two classes.
    """
    if len(set(names)) < 2:
        raise SecondLensError("pairs need two different classes at least: list more of them")
    if unknown := [name for name in names if name not in made.classes.labels]:
        raise SecondLensError(f"there is no class {unknown[0]!r}: list classes of the vocabulary")
    folder = Path(out)
    if not (folder / "pairs.json").is_file():
        check_empty(folder)
    save_json(folder / "pairs.json", {"classes": list(names)})
    pairs = [
        Pair(draw=drawn, mistake_for=wrong)
        for drawn, wrong in permutations(dict.fromkeys(names), 2)
    ]
    engine = engine or Local()
    # side by side, the bars of several pairs would say nothing
    shown = progress and engine.shared == "nobody"
    with engine.start(partial(_attacked, made, folder.absolute(), shown)) as workers:
        found = dict(workers.map(pairs))
    reports = [found[pair] for pair in pairs if isinstance(found[pair], Report)]
    left_out = {pair: found[pair] for pair in pairs if isinstance(found[pair], str)}
    if not reports:
        raise SecondLensError(
            f"none of the pairs could be attacked: {next(iter(left_out.values()))}"
        )
    gallery.write_index(reports, left_out, folder)
    return reports, left_out


def _attacked(made: Attacker, folder: Path, progress: bool, pair: Pair) -> Report | str:
    """The report of one pair, or the reason why it is left out."""
    try:
        return made(pair, folder / folder_name(pair), progress=progress)
    except NothingLeft as error:
        return str(error)
