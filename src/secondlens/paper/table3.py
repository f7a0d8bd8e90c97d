"""Table 3 of the paper: attacks by second-order effects beside every baseline.

All methods share pool, filter, number of words, captioner, image generator, judge, layouts and
seeds; they differ in which words they choose. Runs resume, one for each pair, seed and method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from ..applications.adversarial import gallery
from ..applications.adversarial.attacks import Attacker, attacker
from ..applications.adversarial.judging import Zeroshot
from ..applications.adversarial.runs import Report, folder_name, run
from ..applications.adversarial.selection import (
    METHODS,
    NothingLeft,
    Pair,
    Selector,
    indirect,
    selector,
)
from ..data.labelled import evenly
from ..data.sources import ImageSource, as_source
from ..data.vocabularies import world_vocabulary
from ..demo.scenes import FIT_SEED, Scenes, World
from ..demo.world import ATTACK_PAIRS
from ..errors import SecondLensError
from ..formatting import counted
from ..intervals import of_mean
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..models.view import Clip
from ..progress import tracked
from ..storage.files import check_empty, whole_folder
from ..words.describing import describe
from .results import Result, Row, Setting
from .study import kept_lens

OURS = METHODS[0]
WHOLE = f"{OURS}, whole codes"

PAPER: dict[tuple[str, str], dict[str, float]] = {
    ("horse", "automobile"): {
        "random neurons": 1.0,
        "indirect effect": 2.8,
        "similar words": 1.0,
        OURS: 5.3,
    },
    ("dog", "deer"): {
        "random neurons": 0.3,
        "indirect effect": 6.3,
        "similar words": 3.3,
        OURS: 22.7,
    },
    ("bird", "frog"): {
        "random neurons": 0.3,
        "indirect effect": 1.0,
        "similar words": 5.0,
        OURS: 8.0,
    },
    ("ship", "truck"): {
        "random neurons": 0.0,
        "indirect effect": 0.0,
        "similar words": 0.0,
        OURS: 5.7,
    },
    ("ship", "automobile"): {
        "random neurons": 1.3,
        "indirect effect": 0.0,
        "similar words": 1.3,
        OURS: 7.0,
    },
}
"""Pictures of 100 that fooled the binary classifier, mean of three runs."""

NONE: Mapping[tuple[str, Pair], str] = MappingProxyType({})

Runs = dict[str, dict[Pair, list[Report]]]
"""By method and pair, one report for each seed."""


LeftOut = dict[tuple[str, Pair], str]
"""By method and pair, why nothing could be drawn."""


def result_of(
    made: Attacker, runs: Runs, seeds: int, left_out: Mapping[tuple[str, Pair], str] = NONE
) -> Result:
    """Rates of every pair, their means, and differences to ours with intervals by pair."""
    details = [
        {
            "pair": f"{pair.draw} → {pair.mistake_for}",
            "method": name,
            "flipped, %": mean,
            "± over runs": stdev(flipped) if len(flipped) > 1 else None,
            "fooled, %": fmean(_rates(reports, "fooled")),
            "chosen of all, %": fmean(_rates(reports, "chosen of all")),
            "fooled without words, %": fmean(_rates(reports, "fooled without words")),
            "counted": sum(len(report.counted) for report in reports),
            "of": sum(len(report.samples) for report in reports),
            "paper, fooled, %": PAPER.get((pair.draw, pair.mistake_for), {}).get(name),
            "words": ", ".join(word.text for word in reports[0].words),
        }
        for name, by_pair in runs.items()
        for pair, reports in by_pair.items()
        for flipped in [_rates(reports, "flipped")]
        for mean in [fmean(flipped)]
    ]
    rows = [_row(name, runs) for name in runs if runs[name]]
    steps, settings = made.steps, made.settings
    return Result(
        name="table3",
        title=f"semantic adversarial images ({counted(len(runs[OURS]), 'pair')}, "
        f"{counted(seeds, 'run')} of {counted(steps.images, 'image')})",
        rows=rows,
        compact=[_compact(row) for row in rows],
        details=details,
        settings=[
            Setting(name="model", ours=str(settings["model"]), paper="ViT-B-32 (openai)"),
            Setting(
                name="words", ours=f"{steps.words} of {settings['texts']}", paper="25 of 30,000"
            ),
            Setting(name="codes", ours="brief; whole ones in a row of their own", paper="whole"),
            Setting(name="layers", ours=str(settings["layers"]), paper="[8, 9, 10]"),
            Setting(name="neurons", ours=str(settings["neurons"]), paper="100"),
            Setting(name="captioner", ours=steps.captioner.name, paper="Llama 3"),
            Setting(name="image generator", ours=steps.image_generator.name, paper="DeepFloyd IF"),
            Setting(name="judge", ours=steps.judge.name, paper="by hand"),
        ],
        notes=[
            "Flipped: right without the words, wrong with them, same layout and seed; fooled: the "
            "wrong class of the two, the paper's measure. Shares of pictures that pass the judge.",
            "Differences are ours minus the method's, with 95 % bootstrap intervals over pairs.",
            *(
                f"{name} left out a run of {pair.draw} → {pair.mistake_for}: {reason}."
                for (name, pair), reason in left_out.items()
            ),
        ],
    )


def _row(name: str, runs: Runs) -> Row:
    rates = {
        kind: {pair: fmean(_rates(reports, kind)) for pair, reports in runs[name].items()}
        for kind in ("flipped", "fooled")
    }
    ours = {pair: fmean(_rates(reports, "flipped")) for pair, reports in runs[OURS].items()}
    away = [ours[pair] - rates["flipped"][pair] for pair in ours if pair in rates["flipped"]]
    compared = name != OURS and bool(away)
    low, high = of_mean(list(rates["flipped"].values()))
    less, more = of_mean(away) if compared else (None, None)
    counted = [len(report.counted) for reports in runs[name].values() for report in reports]
    planned = [len(report.samples) for reports in runs[name].values() for report in reports]
    of_paper = [by_method[name] for by_method in PAPER.values() if name in by_method]
    return {
        "method": name,
        "flipped, %": fmean(rates["flipped"].values()),
        "low": low,
        "high": high,
        "ours − this": fmean(away) if compared else None,
        "less": less,
        "more": more,
        "fooled, %": fmean(rates["fooled"].values()),
        "passed, %": 100 * sum(counted) / sum(planned),
        "paper, fooled, %": fmean(of_paper) if of_paper else None,
    }


def _compact(row: Row) -> Row:
    """With the intervals beside their values."""
    low, high, less, more = (row[name] for name in ("low", "high", "less", "more"))
    away = row["ours − this"]
    return {
        "words by": row["method"],
        "flipped, %": f"{row['flipped, %']:.1f} [{low:.1f}, {high:.1f}]",
        "ours − this": None if away is None else f"{away:+.1f} [{less:+.1f}, {more:+.1f}]",
        "fooled, %": row["fooled, %"],
        "paper": row["paper, fooled, %"],
    }


def _rates(reports: Sequence[Report], kind: str) -> list[float]:
    """In %, of the runs in which a picture counts."""
    found: list[Mapping[str, Any]] = [report.rates()[kind] for report in reports]
    return [100 * rate["share"] for rate in found if rate["of"]] or [0.0]


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
        No pair has a word and a caption by second-order effects, or a step that fails.
    """
    runs, left_out = attack_all(made, pairs, out, seeds, indirect_from, progress)
    if not runs[OURS]:
        first = next(reason for (name, _), reason in left_out.items() if name == OURS)
        raise SecondLensError(
            f"none of the pairs could be attacked by second-order effects: {first}"
        )
    texts = made.classes.embed(made.clip)
    for pair, (report, *_) in runs[OURS].items():
        v = Zeroshot(made.clip, made.classes.labels, texts, pair).v
        folder = _folder(out, pair, report.settings["seed"], OURS)
        gallery.write(made.clip, made.lens, report, v, folder)
    return result_of(made, runs, seeds, left_out)


def attack_all(
    made: Attacker,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    seeds: int,
    indirect_from: ImageSource | None,
    progress: bool,
) -> tuple[Runs, LeftOut]:
    """Run, or read, every attack. A method without words or captions for a pair has no report of
    it, but a reason."""
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
    left_out: LeftOut = {}
    work = [
        (name, Pair(draw=d, mistake_for=m), s)
        for d, m in pairs
        for s in range(seeds)
        for name in runs
    ]
    for name, pair, seed in tracked(work, "table 3", progress):
        chosen = fixed.get(name) or selector(
            name, clip, lens, made.texts, codes, seed=seed, **shared
        )
        zeroshot = Zeroshot(clip, made.classes.labels, texts, pair)
        try:
            report = run(
                pair,
                replace(made.steps, selector=chosen, seed=seed),
                zeroshot,
                _folder(out, pair, seed, name),
                plain="../plain",
                settings=settings | {"whole_codes": name == WHOLE},
            )
        except NothingLeft as error:
            left_out[name, pair] = str(error)
            continue
        runs[name].setdefault(pair, []).append(report)
    return runs, left_out


def _folder(out: Path, pair: Pair, seed: int, method: str) -> Path:
    return out / "runs" / folder_name(pair) / f"seed-{seed}" / method.replace(" ", "-")


def check_sources(*, demo: bool, model: str, lens: Path | None) -> None:
    """Raise `SecondLensError` unless there is the embedded world, or another model and its lens."""
    if demo != model.startswith("demo"):
        raise SecondLensError("--demo goes with the embedded models: drop it, or --model")
    if not demo and lens is None:
        raise SecondLensError("name a described lens with --lens, or take --demo")


def reproduce_table3(
    load: Callable[[], Clip],
    options: dict[str, Any],
    *,
    demo: bool,
    lens_path: Path | None,
    images: Path | None,
    out: Path,
    seeds: int,
    count: int,
    neurons: int,
    fit_images: int,
    effect_images: int,
) -> Result:
    """Measure table 3 on the embedded world, or with steps of one's own.

    Raises
    ------
    SecondLensError
        The lens is another model's, or a step fails.
    """
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
        assert source is not None
        lens = kept_lens(kept, clip, source, "exact")
    else:
        assert source is not None
        lens = fit(clip, source, progress=True)
        describe(clip, lens, world_vocabulary())
        with whole_folder(kept) as folder:
            lens.save_held(folder)
    some = None if source is None or not effect_images else evenly(source, effect_images)
    made = attacker(clip, lens, images=count, neurons=neurons, **options)
    pairs = ATTACK_PAIRS if demo else tuple(PAPER)
    return table3(made, pairs, out, seeds=seeds, indirect_from=some, progress=True)
