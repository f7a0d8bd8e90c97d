"""Table 3 of the paper as a result: what every method reached, with the paper's numbers beside."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ..intervals import of_mean
from ..numerals import counted
from ..reproduce.result import Result, Row, Setting
from .attacker import Attacker
from .methods import METHODS
from .report import Report
from .select import Pair

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

Runs = dict[str, dict[Pair, list[Report]]]
"""By method and pair, one report for each seed."""


def result_of(made: Attacker, runs: Runs, seeds: int) -> Result:
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
            "of": sum(len(report.shots) for report in reports),
            "paper, fooled, %": PAPER.get((pair.draw, pair.mistake_for), {}).get(name),
            "words": ", ".join(word.text for word in reports[0].words),
        }
        for name, by_pair in runs.items()
        for pair, reports in by_pair.items()
        for flipped in [_rates(reports, "flipped")]
        for mean in [fmean(flipped)]
    ]
    rows = [_row(name, runs) for name in runs if runs[name]]
    parts, settings = made.parts, made.settings
    return Result(
        name="table3",
        title=f"semantic adversarial images ({counted(len(runs[OURS]), 'pair')}, "
        f"{counted(seeds, 'run')} of {counted(parts.images, 'image')})",
        rows=rows,
        compact=[_compact(row) for row in rows],
        details=details,
        settings=[
            Setting(name="model", ours=str(settings["model"]), paper="ViT-B-32 (openai)"),
            Setting(
                name="words", ours=f"{parts.words} of {settings['texts']}", paper="25 of 30,000"
            ),
            Setting(name="codes", ours="brief; whole ones in a row of their own", paper="whole"),
            Setting(name="layers", ours=str(settings["layers"]), paper="[8, 9, 10]"),
            Setting(name="neurons", ours=str(settings["neurons"]), paper="100"),
            Setting(name="writer", ours=parts.writer.name, paper="Llama 3"),
            Setting(name="drawer", ours=parts.drawer.name, paper="DeepFloyd IF"),
            Setting(name="check", ours=parts.check.name, paper="by hand"),
        ],
        notes=[
            "Flipped: right without the words, wrong with them, same layout and seed; fooled: the "
            "wrong class of the two, the paper's measure. Shares of pictures that pass the check.",
            "Differences are ours minus the method's, with 95 % bootstrap intervals over pairs.",
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
    planned = [len(report.shots) for reports in runs[name].values() for report in reports]
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
