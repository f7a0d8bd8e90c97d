"""Table 3 of the paper: attacks by second-order effects beside every baseline.

All methods share pool, filter, number of words, writer, drawer, check, layouts and seeds; they
differ in which words they choose. Runs resume, one for each pair, seed and method.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ..classify import evenly
from ..clip.view import Clip
from ..demo.pictures import FIT_SEED, Scenes
from ..demo.scenes import World
from ..demo.world import ATTACK_PAIRS
from ..describe.describe import describe
from ..errors import SecondLensError
from ..fit.fit import fit
from ..images import ImageSource, as_source
from ..lens import Lens
from ..reproduce.result import Result, show, write
from ..storage.places import check_empty
from ..texts.world import world_vocabulary
from . import gallery
from .attacker import Attacker, attacker
from .judge import Zeroshot
from .methods import METHODS, indirect, selector
from .run import folder_name, run
from .select import NothingLeft, Pair, Selector
from .table3 import OURS, PAPER, WHOLE, Runs, result_of


def table3(
    made: Attacker,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    seeds: int = 3,
    indirect_from: ImageSource | None = None,
    progress: bool = False,
) -> Result:
    """Attack every pair by every method, and compare.

    Parameters
    ----------
    made
        Everything but the selector and the seed.
    pairs
        (drawn, mistaken for).
    seeds
        Runs of each pair and method.
    indirect_from
        Pictures for directions of indirect effects; without them, that baseline is left out.

    Raises
    ------
    SecondLensError
        No pair has a word and a caption by second-order effects, or a part that fails.
    """
    runs = attack_all(made, pairs, out, seeds, indirect_from, progress)
    if not runs[OURS]:
        raise SecondLensError(
            "none of the pairs could be attacked by second-order effects: describe the lens with "
            "more texts, or take another writer"
        )
    texts = made.classes.embed(made.clip)
    for pair, (report, *_) in runs[OURS].items():
        v = Zeroshot(made.clip, made.classes.labels, texts, pair).v
        folder = _folder(out, pair, report.settings["seed"], OURS)
        gallery.write(made.clip, made.lens, report, v, folder)
    return result_of(made, runs, seeds)


def attack_all(
    made: Attacker,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    seeds: int,
    indirect_from: ImageSource | None,
    progress: bool,
) -> Runs:
    """Run, or read, every attack. A method without words for a pair has no report of it."""
    clip, lens, settings = made.clip, made.lens, made.settings
    codes = lens.codes[made.texts.name]
    shared: dict[str, Any] = {"layers": settings["layers"], "neurons": settings["neurons"]}
    fixed: dict[str, Selector] = {
        WHOLE: selector(OURS, clip, lens, made.texts, codes, whole_codes=True, **shared)
    }
    if indirect_from is not None:
        by_indirect = indirect(clip, lens, indirect_from, made.texts, codes, **shared)
        fixed[by_indirect.name] = by_indirect
    texts = made.classes.embed(clip)
    runs: Runs = {name: {} for name in (*METHODS, *fixed)}
    work = [
        (name, Pair(draw=d, mistake_for=m), s)
        for d, m in pairs
        for s in range(seeds)
        for name in runs
    ]
    for name, pair, seed in track(work, "table 3") if progress else work:
        chosen = fixed.get(name) or selector(
            name, clip, lens, made.texts, codes, seed=seed, **shared
        )
        judge = Zeroshot(clip, made.classes.labels, texts, pair)
        try:
            report = run(
                pair,
                replace(made.parts, selector=chosen, seed=seed),
                judge,
                _folder(out, pair, seed, name),
                plain="../plain",
                settings=settings | {"whole_codes": name == WHOLE},
            )
        except NothingLeft:
            continue
        runs[name].setdefault(pair, []).append(report)
    return runs


def _folder(out: Path, pair: Pair, seed: int, method: str) -> Path:
    return out / "runs" / folder_name(pair) / f"seed-{seed}" / method.replace(" ", "-")


def reproduce_table3(
    load: Callable[[], Clip],
    options: dict[str, Any],
    *,
    demo: bool,
    model: str,
    lens_path: Path | None,
    images: Path | None,
    out: Path,
    seeds: int,
    count: int,
    neurons: int,
    fit_images: int,
    effect_images: int,
    console: Console,
) -> Result:
    """Measure table 3 on the embedded world, or with parts of one's own; print and write it.

    Raises
    ------
    SecondLensError
        Neither the embedded world nor a lens, or a part that fails.
    """
    if demo != model.startswith("demo"):
        raise SecondLensError("--demo goes with the embedded models: drop it, or --model")
    if not demo and lens_path is None:
        raise SecondLensError("name a described lens with --lens, or take --demo")
    kept = out / "lens"
    if lens_path is None and not (kept / "lens.json").is_file():
        check_empty(out)
    clip = load()
    source: ImageSource | None = None
    if demo:
        source = Scenes(World(planted=clip.name == "demo"), FIT_SEED, fit_images)
    elif images is not None:
        source = as_source(images)
    if lens_path is not None:
        lens = Lens.load(lens_path)
    elif (kept / "lens.json").is_file():
        lens = Lens.load(kept)
    else:
        assert source is not None
        lens = fit(clip, source, progress=True)
        describe(clip, lens, world_vocabulary())
        lens.save(kept)
    some = None if source is None or not effect_images else evenly(source, effect_images)
    made = attacker(clip, lens, images=count, neurons=neurons, **options)
    pairs = ATTACK_PAIRS if demo else tuple(PAPER)
    result = table3(made, pairs, out, seeds=seeds, indirect_from=some, progress=True)
    show(result, console)
    for path in write(result, out):
        console.print(str(path), markup=False, highlight=False)
    return result
