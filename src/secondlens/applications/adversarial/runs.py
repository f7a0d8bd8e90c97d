"""An attack from words to verdicts, in one run folder that resumes.

    attack.json    what was asked for, the model's hash and the names of all who do the steps
    words.json     step 1
    captions.json  step 2
    images/        step 3: a PNG for each picture, with caption, seed and image generator in it
    plain/         the same pictures without the words
    verdicts.json  step 4
    report.json, images.csv, gallery.html

Each step reads the file of the one before. What is there already is used again; a file that was
deleted is made anew, and so is what follows from it if it changes.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ...arguments import checked
from ...data.folder import Folder
from ...data.labelled import Labelled
from ...data.sources import Subset
from ...data.vocabularies import Vocabulary
from ...errors import SecondLensError
from ...formatting import differences
from ...intervals import wilson
from ...progress import tracked
from ...storage.files import check_empty, read_json, save_csv, save_json
from ...storage.validation import (
    Kind,
    Position,
    Settings,
    Texts,
    check_finite,
    convert,
    reading,
)
from .captioning import Caption, Captioner, captions
from .earlier import NEWER, new_names, with_old_names, without_folders
from .generation import GeneratedImage, ImageGenerator, picture
from .judging import Judge, Zeroshot
from .selection import Pair, RankedWord, Selector, TooClose, choose


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture, its twin without the words, and what the model says of both."""

    file: str
    plain_file: str
    caption: str
    plain: str
    words: tuple[str, ...]
    seed: int
    margin: float
    """Cosine with the wrong class minus cosine with the drawn one; wrong if above 0."""
    plain_margin: float
    best: str
    """Of all classes."""
    plain_best: str
    counted: bool
    """Whether both pictures show the class to draw and not the wrong one."""

    @property
    def fooled(self) -> bool:
        """The model prefers the wrong class: the paper's success."""
        return self.margin > 0

    @property
    def flipped(self) -> bool:
        """Right without the words, wrong with them."""
        return self.fooled and self.plain_margin <= 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an attack found. Rates are shares of the pictures that count."""

    pair: Pair
    settings: dict[str, Any]
    words: tuple[RankedWord, ...]
    samples: tuple[Sample, ...]

    def __repr__(self) -> str:
        fooled = sum(sample.fooled for sample in self.counted)
        return (
            f"Report({self.pair.draw!r} as {self.pair.mistake_for!r}, "
            f"{fooled} of {len(self.counted)} pictures fool)"
        )

    @property
    def shots(self) -> tuple[Sample, ...]:
        """The samples, as version 0.1 called them; the name ends with 0.3."""
        message = "report.shots is called report.samples now; the old name ends with 0.3"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return self.samples

    @property
    def counted(self) -> list[Sample]:
        """Pictures that passed the judge."""
        return [sample for sample in self.samples if sample.counted]

    def rates(self) -> dict[str, dict[str, Any]]:
        """Count, share and 95 % Wilson interval of each kind of success."""
        samples = self.counted
        successes = {
            "fooled": sum(sample.fooled for sample in samples),
            "flipped": sum(sample.flipped for sample in samples),
            "chosen of all": sum(sample.best == self.pair.mistake_for for sample in samples),
            "fooled without words": sum(sample.plain_margin > 0 for sample in samples),
        }
        return {
            name: {
                "count": count,
                "of": len(samples),
                "share": count / len(samples) if samples else float("nan"),
                "interval": list(wilson(count, len(samples))),
            }
            for name, count in successes.items()
        }

    def as_json(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            **asdict(self.pair),
            "settings": self.settings,
            "planned": len(self.samples),
            "counted": len(self.counted),
            "rates": self.rates() if self.counted else {},
            "words": [asdict(word) for word in self.words],
            "samples": [asdict(sample) for sample in self.samples],
        }


def write_csv(report: Report, path: Path) -> None:
    """A row for each picture: `images.csv`."""
    rows = [
        {**asdict(sample), "words": " ".join(sample.words), "flipped": sample.flipped}
        for sample in report.samples
    ]
    save_csv(path, rows)


SEEDS_PER_RUN = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Who does the steps, and how much of each."""

    selector: Selector
    too_close: TooClose
    captioner: Captioner
    image_generator: ImageGenerator
    judge: Judge
    words: int
    captions: int
    images: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """For `attack.json`: names and numbers, and what else decides what a step makes.

        A part of an attack says that in `facts`, which not every part has: what tells it from
        another of its name.
        """
        found = {name: getattr(value, "name", value) for name, value in vars(self).items()}
        for name, value in vars(self).items():
            facts: Mapping[str, Any] = getattr(value, "facts", {})
            found |= {f"{name}_{key}": each for key, each in facts.items()}
        return found


def run(
    pair: Pair,
    steps: Steps,
    zeroshot: Zeroshot,
    out: Path,
    *,
    plain: str = "plain",
    settings: dict[str, Any] | None = None,
    progress: bool = False,
) -> Report:
    """Select, write, draw and judge one attack, or what is missing of it.

    Parameters
    ----------
    zeroshot
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
    asked = {**asdict(pair), **steps.settings(), **(settings or {})}
    _begin(out, asked)
    words = _words(pair, steps, zeroshot, out)
    written = _captions(pair, steps, words, out)
    samples = _samples(pair, steps, zeroshot, written, out, plain, progress)
    report = Report(pair=pair, settings=asked, words=tuple(words), samples=tuple(samples))
    write_csv(report, out / "images.csv")
    save_json(out / "report.json", with_old_names(report.as_json()))
    return report


def folder_name(pair: Pair) -> str:
    """A folder for a pair, whatever is in the names of its classes."""
    return "-as-".join(
        "".join(c if c.isalnum() else "_" for c in name) for name in (pair.draw, pair.mistake_for)
    )


def _begin(out: Path, asked: dict[str, Any]) -> None:
    """Start the run folder, or find that it is this run's."""
    if (out / "attack.json").is_file():
        with _intact(out / "attack.json"):
            found = new_names(read_json(out / "attack.json"))
        known = {key: each for key, each in asked.items() if key in found or key not in NEWER}
        # both without folders: what looks like a path may be a class, such as "AC /DC"
        if differing := differences(without_folders(found), without_folders(known)):
            raise SecondLensError(
                f"{out} holds another attack, with {differing}: name a new folder with --out, or "
                "remove it first"
            )
        return
    check_empty(out)
    save_json(out / "attack.json", asked)


def _words(pair: Pair, steps: Steps, zeroshot: Zeroshot, out: Path) -> list[RankedWord]:
    path = out / "words.json"
    if not path.is_file():
        found = choose(
            steps.selector,
            zeroshot.v,
            pair,
            steps.too_close,
            steps.words,
            steps.image_generator.knows,
        )
        save_json(path, {"words": [asdict(word) for word in found]})
    return list(_load(path, StoredWords).words)


def _captions(pair: Pair, steps: Steps, words: Sequence[RankedWord], out: Path) -> list[Caption]:
    path, texts = out / "captions.json", [word.text for word in words]
    if path.is_file() and list((known := _load(path, StoredCaptions)).words) == texts:
        return list(known.captions)
    found = captions(steps.captioner, pair, texts, steps.captions, steps.seed)
    save_json(path, {"words": texts, "captions": [asdict(caption) for caption in found]})
    return found


def _samples(
    pair: Pair,
    steps: Steps,
    zeroshot: Zeroshot,
    written: Sequence[Caption],
    out: Path,
    plain: str,
    progress: bool,
) -> list[Sample]:
    """Draw and judge; pictures and verdicts that are there already are used again."""
    plan: list[dict[str, Any]] = [
        {
            "file": f"images/{i:05}.png",
            "plain_file": f"{plain}/{i:05}.png",
            "caption": written[i % len(written)].text,
            "plain": written[i % len(written)].plain,
            "words": list(written[i % len(written)].words),
            "seed": steps.seed * SEEDS_PER_RUN + i,
        }
        for i in range(steps.images)
    ]
    path = out / "verdicts.json"
    drawn = all((out / sample[of]).is_file() for sample in plan for of in ("file", "plain_file"))
    if drawn and path.is_file():
        found = _load(path, StoredSamples).samples
        if [{**sample, "words": tuple(sample["words"])} for sample in plan] == [
            {key: getattr(sample, key) for key in plan[0]} for sample in found
        ]:
            return list(found)
    shown = tracked(plan, f"{pair.draw} as {pair.mistake_for}", progress)
    attacked: list[GeneratedImage] = []
    controls: list[GeneratedImage] = []
    for sample in shown:
        for text, file, generated in (
            (sample["caption"], sample["file"], attacked),
            (sample["plain"], sample["plain_file"], controls),
        ):
            generated.append(
                picture(steps.image_generator, text, pair.draw, sample["seed"], out / file)
            )
    samples = _judged(pair, steps, zeroshot, plan, attacked, controls)
    save_json(path, {"samples": [asdict(sample) for sample in samples]})
    return samples


def _judged(
    pair: Pair,
    steps: Steps,
    zeroshot: Zeroshot,
    plan: Sequence[dict[str, Any]],
    attacked: Sequence[GeneratedImage],
    controls: Sequence[GeneratedImage],
) -> list[Sample]:
    passed = (steps.judge(generated, pair) for generated in (attacked, controls))
    said = (zeroshot([each.image for each in generated]) for generated in (attacked, controls))
    return [
        Sample(
            **{**sample, "words": tuple(sample["words"])},
            margin=verdict.margin,
            plain_margin=plain.margin,
            best=verdict.best,
            plain_best=plain.best,
            counted=ok and plain_ok,
        )
        for sample, verdict, plain, ok, plain_ok in zip(plan, *said, *passed, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class StoredWords:
    """What `words.json` holds."""

    words: Annotated[tuple[RankedWord, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        for word in self.words:
            check_finite(word.score, *(share for _, _, share in word.neurons))


@dataclass(frozen=True, kw_only=True)
class StoredCaptions:
    """What `captions.json` holds."""

    words: Texts
    captions: Annotated[tuple[Caption, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class StoredSamples:
    """What `verdicts.json` holds."""

    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for sample in self.samples:
            check_finite(sample.margin, sample.plain_margin)


@dataclass(frozen=True, kw_only=True)
class StoredRate:
    """What `report.json` holds of a kind of success."""

    count: Position
    of: Position
    share: float
    interval: tuple[float, float]

    def __post_init__(self) -> None:
        check_finite(self.share, *self.interval)


@dataclass(frozen=True, kw_only=True)
class StoredReport(StoredWords, StoredSamples):
    """What `report.json` holds, but for names of version 0.1."""

    draw: str
    mistake_for: str
    settings: Settings
    planned: Position
    counted: Position
    rates: dict[str, StoredRate]

    def __post_init__(self) -> None:
        StoredWords.__post_init__(self)
        StoredSamples.__post_init__(self)


def read_report(content: dict[str, Any], file: str) -> StoredReport:
    """A `report.json` of any version, checked.

    Raises
    ------
    ValueError
        It lacks something, or has something else in its place.
    """
    return convert(new_names(content), StoredReport, file)


def _load(path: Path, kind: type[Kind]) -> Kind:
    """A JSON file of the run, checked; raises `SecondLensError` if it is damaged."""
    with _intact(path):
        return convert(new_names(read_json(path)), kind, path.name)


def _intact(path: Path) -> AbstractContextManager[None]:
    """Inside it, what fails is that a file does not hold what a run writes."""
    return reading(str(path), "remove it, then run again")


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """The pictures that passed their check, of all attacks in a folder."""

    pictures: Labelled
    rivals: tuple[int, ...]
    """The class that each picture was to be mistaken for."""
    words: tuple[str, ...]
    """All words that were chosen, sorted."""


def is_attack(folder: str | Path) -> bool:
    """Whether there is a finished attack in a folder, or in a folder of it."""
    return next(Path(folder).rglob("report.json"), None) is not None


@checked
def attacked(folder: str | Path, classes: Vocabulary) -> Attacked:
    """The pictures of one attack, or of all attacks in the folders of a folder.

    Parameters
    ----------
    classes
        What the classifier tells apart.

    Raises
    ------
    SecondLensError
        No finished attack, a damaged one, one on other classes, or none of whose pictures counts.
    """
    root = Path(folder)
    reports = sorted(root.rglob("report.json")) if root.is_dir() else []
    if not reports:
        raise SecondLensError(f"{root} holds no finished attack: there is no report.json in it")
    source = Folder(root)
    place = {each: position for position, each in enumerate(source.ids)}
    row = {label: i for i, label in enumerate(classes.labels)}
    positions, labels, rivals, words = [], [], [], set()
    for path in reports:
        with reading(str(path), "give the command of the attack again"):
            report, inside = read_report(read_json(path), path.name), path.parent.relative_to(root)
        files = [(inside / each.file).as_posix() for each in report.samples if each.counted]
        for known, name in [
            *((row, name) for name in (report.draw, report.mistake_for)),
            *((place, file) for file in files),
        ]:
            if name not in known:
                raise SecondLensError(
                    f"{path} is damaged, or an attack on other classes: {name!r} is unknown"
                )
        drawn, wrong = row[report.draw], row[report.mistake_for]
        words |= {word.text for word in report.words}
        positions += [place[file] for file in files]
        labels += [drawn] * len(files)
        rivals += [wrong] * len(files)
    if not positions:
        raise SecondLensError(f"no picture of the attacks in {root} passed its check")
    pictures = Labelled(
        name=root.name, source=Subset(source, positions), labels=tuple(labels), classes=classes
    )
    return Attacked(pictures=pictures, rivals=tuple(rivals), words=tuple(sorted(words)))
