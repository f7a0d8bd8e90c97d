"""An attack from words to verdicts, in one run folder that resumes.

    attack.json    what was asked for, the model's hash and the names of all parts
    words.json     step 1
    captions.json  step 2
    images/        step 3: a PNG for each picture, with caption, seed and drawer in it
    plain/         the same pictures without the words
    verdicts.json  step 4
    report.json, images.csv, gallery.html

Each step reads the file of the one before. What is there already is used again; a file that was
deleted is made anew, and so is what follows from it if it changes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from ..errors import SecondLensError
from ..storage.files import save_json
from ..storage.places import check_empty
from .draw import Drawer, Drawing, picture
from .judge import Check, Zeroshot
from .report import Report, Shot, write_csv
from .select import Pair, Selector, TooClose, Word, choose
from .write import Caption, Writer, captions

SEEDS_PER_RUN = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Who does the steps, and how much of each."""

    selector: Selector
    too_close: TooClose
    writer: Writer
    drawer: Drawer
    check: Check
    words: int
    captions: int
    images: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """For `attack.json`: names and numbers."""
        return {name: getattr(value, "name", value) for name, value in vars(self).items()}


def run(
    pair: Pair,
    parts: Parts,
    judge: Zeroshot,
    out: Path,
    *,
    plain: str = "plain",
    settings: dict[str, Any] | None = None,
    progress: bool = False,
) -> Report:
    """Select, write, draw and judge one attack, or what is missing of it.

    Parameters
    ----------
    judge
        The attacked model's decisions for the pair.
    out
        The run folder.
    plain
        Folder of the pictures without the words, from `out` on: runs that differ in words alone may
        share one.
    settings
        What else tells this attack from another one.

    Raises
    ------
    SecondLensError
        `out` holds something else, or a step has nothing to go on with; what was made stays.
    """
    asked = {**asdict(pair), **parts.settings(), **(settings or {})}
    _begin(out, asked)
    words = _words(pair, parts, judge, out)
    written = _captions(pair, parts, words, out)
    shots = _shots(pair, parts, judge, written, out, plain, progress)
    report = Report(pair=pair, settings=asked, words=tuple(words), shots=tuple(shots))
    write_csv(report, out / "images.csv")
    save_json(out / "report.json", report.as_json())
    return report


def folder_name(pair: Pair) -> str:
    """A folder for a pair, whatever is in the names of its classes."""
    return "-as-".join(
        "".join(c if c.isalnum() else "_" for c in name) for name in (pair.draw, pair.mistake_for)
    )


def _begin(out: Path, asked: dict[str, Any]) -> None:
    """Start the run folder, or find that it is this run's."""
    if (out / "attack.json").is_file():
        found = load_json(out / "attack.json")
        if different := [key for key in asked if found.get(key) != asked[key]]:
            raise SecondLensError(
                f"{out} holds another attack, with another {different[0].replace('_', ' ')}: name "
                "a new folder with --out, or remove it first"
            )
        return
    check_empty(out)
    save_json(out / "attack.json", asked)


def _words(pair: Pair, parts: Parts, judge: Zeroshot, out: Path) -> list[Word]:
    path = out / "words.json"
    if not path.is_file():
        found = choose(
            parts.selector, judge.v, pair, parts.too_close, parts.words, parts.drawer.knows
        )
        save_json(path, {"words": [asdict(word) for word in found]})
    with _intact(path):
        return [
            Word(**{**word, "neurons": tuple(map(tuple, word["neurons"]))})
            for word in load_json(path)["words"]
        ]


def _captions(pair: Pair, parts: Parts, words: Sequence[Word], out: Path) -> list[Caption]:
    path, texts = out / "captions.json", [word.text for word in words]
    if path.is_file():
        with _intact(path):
            known = load_json(path)
            if known["words"] == texts:
                return [
                    Caption(**{**caption, "words": tuple(caption["words"])})
                    for caption in known["captions"]
                ]
    found = captions(parts.writer, pair, texts, parts.captions, parts.seed)
    save_json(path, {"words": texts, "captions": [asdict(caption) for caption in found]})
    return found


def _shots(
    pair: Pair,
    parts: Parts,
    judge: Zeroshot,
    written: Sequence[Caption],
    out: Path,
    plain: str,
    progress: bool,
) -> list[Shot]:
    """Draw and judge; pictures and verdicts that are there already are used again."""
    plan: list[dict[str, Any]] = [
        {
            "file": f"images/{i:05}.png",
            "plain_file": f"{plain}/{i:05}.png",
            "caption": written[i % len(written)].text,
            "plain": written[i % len(written)].plain,
            "words": list(written[i % len(written)].words),
            "seed": parts.seed * SEEDS_PER_RUN + i,
        }
        for i in range(parts.images)
    ]
    path = out / "verdicts.json"
    drawn = all((out / shot[of]).is_file() for shot in plan for of in ("file", "plain_file"))
    if drawn and path.is_file():
        with _intact(path):
            found = load_json(path)["shots"]
            if [{key: shot[key] for key in plan[0]} for shot in found] == plan:
                return [Shot(**{**shot, "words": tuple(shot["words"])}) for shot in found]
    shown = track(plan, f"{pair.draw} as {pair.mistake_for}") if progress else plan
    attacked: list[Drawing] = []
    controls: list[Drawing] = []
    for shot in shown:
        for text, file, drawings in (
            (shot["caption"], shot["file"], attacked),
            (shot["plain"], shot["plain_file"], controls),
        ):
            drawings.append(picture(parts.drawer, text, pair.draw, shot["seed"], out / file))
    shots = _judged(pair, parts, judge, plan, attacked, controls)
    save_json(path, {"shots": [asdict(shot) for shot in shots]})
    return shots


def _judged(
    pair: Pair,
    parts: Parts,
    judge: Zeroshot,
    plan: Sequence[dict[str, Any]],
    attacked: Sequence[Drawing],
    controls: Sequence[Drawing],
) -> list[Shot]:
    passed = (parts.check(drawings, pair) for drawings in (attacked, controls))
    said = (judge([each.image for each in drawings]) for drawings in (attacked, controls))
    return [
        Shot(
            **{**shot, "words": tuple(shot["words"])},
            margin=verdict.margin,
            plain_margin=plain.margin,
            best=verdict.best,
            plain_best=plain.best,
            counted=ok and plain_ok,
        )
        for shot, verdict, plain, ok, plain_ok in zip(plan, *said, *passed, strict=True)
    ]


def load_json(path: Path) -> dict[str, Any]:
    """A JSON file of the run.

    Raises
    ------
    SecondLensError
        It is damaged.
    """
    with _intact(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("the file holds no object")
        return found


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Inside it, what fails is that a file does not hold what a run writes."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SecondLensError(f"{path} is damaged: remove it, then run again") from error
