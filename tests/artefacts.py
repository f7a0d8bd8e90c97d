"""Artefacts of every format, as the real code makes them, and what opens each; for `fuzz.py`."""

import contextlib
import csv
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from explored import Pictures, tiny_clip
from PIL import Image

import secondlens as sl
from secondlens.applications.ablation.accuracy import Ablation
from secondlens.applications.adversarial.captioning import TemplateCaptioner
from secondlens.applications.adversarial.generation import GeneratedImage
from secondlens.applications.adversarial.judging import Zeroshot
from secondlens.applications.adversarial.runs import Steps, attacked, is_attack, run
from secondlens.applications.adversarial.selection import Pair, RankedWord
from secondlens.applications.auditing.audits import Audit, audit
from secondlens.applications.auditing.defence import defend, summary
from secondlens.applications.editing.edits import Edit
from secondlens.data.labelled import Labelled, labelled
from secondlens.data.masked import MaskFolder
from secondlens.data.sources import InMemory, as_source
from secondlens.data.vocabularies import Vocabulary, vocabulary
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.layout import lay_out, load_layout
from secondlens.explorer.opening import FOLDER
from secondlens.explorer.pages import Pages, packed, preview
from secondlens.explorer.records import load_survey
from secondlens.explorer.runs import load_runs
from secondlens.explorer.survey import survey
from secondlens.lens.hub import lens_card
from secondlens.words.halves import stability
from secondlens.words.scoring import score

LABELS = tuple(f"word {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
CLASSES = ("dog", "deer", "cat")
LAYERS = (0, 1)


@dataclass(frozen=True)
class Format:
    """A kind of artefact: how the real code makes one in a folder, and what opens it there."""

    make: Callable[[Path], object]
    open: Callable[[Path], object]


@contextlib.contextmanager
def refused():
    """What may be raised: one sentence on one line."""
    try:
        yield
    except sl.SecondLensError as error:
        if "\n" in str(error).strip():
            raise AssertionError(f"several lines: {error}") from error


@cache
def clip():
    return tiny_clip()


@cache
def lens():
    found = sl.fit(clip(), Pictures(), LAYERS, top=6, keep_coordinates=True)
    words = vocabulary(LABELS, name="letters")
    sl.describe(clip(), found, words, 8)
    unseen = [Pictures().load(100 + i) for i in range(60)]
    unseen = InMemory(unseen, [f"new-{i}" for i in range(60)])
    score(clip(), found, words, unseen, [{LABELS[i % 20]} for i in range(60)])
    stability(clip(), found, words, Pictures(30))
    sl.name(clip(), found, unseen, words, [{LABELS[i % 3]} for i in range(60)])
    return found


def open_lens(folder):
    found = sl.Lens.load(folder / "lens")
    repr(found), lens_card(found)
    for codes in found.codes.values():
        for layer in codes.brief:
            codes.words(layer, 0), codes.code(layer, 0)
    for scores in found.scores.values():
        for layer in scores.auc:
            scores.ranked(layer)
    for names in found.names.values():
        for layer in names.texts:
            names.title(layer, 0)
    found.save(folder / "copy")
    json.dumps(found.model, allow_nan=False)
    return found


def make_explored(folder):
    lens().save(folder / "lens")
    kept = sl.Lens.load(folder / "lens")
    survey(clip(), kept, Pictures()).save(folder / "lens" / FOLDER)
    lay_out(kept).save(folder / "lens" / FOLDER / "layout.safetensors", kept)


def open_explored(folder):
    found, place = sl.Lens.load(folder / "lens"), folder / "lens" / FOLDER
    layout = load_layout(place / "layout.safetensors", found)
    atlas = Atlas(found, load_survey(place, found), layout or lay_out(found))
    pages = Pages(atlas)
    pages.home(), pages.table, pages.model, pages.words, pages.map, pages.reports
    for layer in found.layers:
        pages.layer(layer), pages.neuron(layer, 3), preview(atlas, layer, 3)
        packed([pages.profiles.of(layer, neuron) for neuron in range(0, 48, 6)])
    packed([atlas.image(position) for position in range(0, 40, 5)])


class Stopped(Exception):
    pass


class StoppingPictures(Pictures):
    """Of which the last cannot be had, so that a fit stays unfinished."""

    def load(self, index):
        if index == self.count - 1:
            raise Stopped
        return super().load(index)


def refit(folder, pictures):
    return sl.fit(
        *(clip(), pictures, LAYERS), top=6, out=folder / "lens", shard_size=8, batch_size=8
    )


def make_unfinished(folder):
    with contextlib.suppress(Stopped):
        refit(folder, StoppingPictures())
    assert (folder / "lens.unfinished" / "work.json").is_file()


class Step:
    """Someone who does a step of an attack; each is a function of what it is given."""

    knows = None

    def __init__(self, name):
        self.name = name

    def rank(self, v):
        return [
            RankedWord(text=text, score=0.5, neurons=((0, 5, 0.25),)) for text in ("snow", "sea")
        ]

    def too_close(self, words, to):
        return [False] * len(words)

    def draw(self, caption, subject, seed):
        return GeneratedImage(image=Pictures().load(seed % 40), shows=(subject,))

    def __call__(self, generated, pair):
        return [True] * len(generated)


def classes():
    return Vocabulary(name="animals", labels=CLASSES, prompts=tuple((name,) for name in CLASSES))


def attack(folder):
    steps = Steps(
        selector=Step("selector"), too_close=Step("close"), captioner=TemplateCaptioner(),
        image_generator=Step("noise"), judge=Step("all"), words=2, captions=2, images=3, seed=0,
    )  # fmt: skip
    pair = Pair(draw="dog", mistake_for="deer")
    zeroshot = Zeroshot(clip(), CLASSES, classes().embed(clip()), pair)
    return run(pair, steps, zeroshot, folder / "run", settings={"layers": [0, 1]})


def open_attack(folder):
    load_runs([folder / "run"]).exported()
    if is_attack(folder / "run"):
        attacked(folder / "run", classes())
    attack(folder)


def animals(count):
    labels = tuple(i % len(CLASSES) for i in range(count))
    return Labelled(name="noise", source=Pictures(count), labels=labels, classes=classes())


@cache
def audited():
    return audit(clip(), lens(), classes(), Pictures(30), vocabulary(LABELS[:4]), chance=1.0)


def open_audit(folder):
    found = Audit.load(folder)
    found.ties(3), found.first_cue(found.classes[0]), found.save(folder / "copy")
    load_runs([folder])
    defend(clip(), lens(), found, animals(12), animals(12))


def make_defence(folder):
    found = defend(clip(), lens(), audited(), animals(12), animals(12))
    summary(found), found.save(folder)


def make_edit(folder):
    Edit(neurons=((0, 1), (1, 2)), paths=((0, 2, 1, 0),), strength=0.5).save(folder / "edit.json")


def make_ablation(folder):
    ranks = {(layer, kind): torch.arange(9) % 3 for layer in LAYERS for kind in ("all", "small")}
    Ablation(ranks=ranks, significant={n: torch.arange(9) for n in LAYERS}).save(folder / "a.st")


def open_ablation(folder):
    found = Ablation.load(folder / "a.st")
    for layer, kind in found.ranks:
        found.accuracy(layer, kind)


def many():
    return vocabulary([f"{a}{b}" for a in LABELS for b in LABELS], name="many")


def embed_in(folder):
    before = os.environ.get("SECONDLENS_CACHE")
    os.environ["SECONDLENS_CACHE"] = str(folder)
    try:
        assert many().embed(clip()).isfinite().all()
    finally:
        os.environ.pop("SECONDLENS_CACHE")
        if before is not None:
            os.environ["SECONDLENS_CACHE"] = before


def make_lists(folder):
    (folder / "words.txt").write_text("\n".join(LABELS))
    with (folder / "words.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], *([label, "x, y"] for label in LABELS)])
    table = pyarrow.table({"a": LABELS, "n": range(len(LABELS))})
    pyarrow.parquet.write_table(table, folder / "words.parquet")
    for name in CLASSES:
        (folder / "sets" / name).mkdir(parents=True)
        Pictures().load(0).save(folder / "sets" / name / "0.png")
    (folder / "classes.txt").write_text("".join(f"{name}\tthe {name}\n" for name in CLASSES))


def open_lists(folder):
    for name in ("words.txt", "words.csv:a", "words.parquet:a"):
        with refused():
            vocabulary(f"{folder}/{name}").embed(clip())
    labelled(folder / "sets", folder / "classes.txt")


def make_pictures(folder):
    for number, kind in enumerate(("png", "jpeg", "webp", "gif", "bmp", "tiff")):
        (folder / "photos").mkdir(exist_ok=True)
        Pictures().load(number).save(folder / "photos" / f"{number}.{kind}")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for path in sorted((folder / "photos").iterdir()):
            archive.add(path, path.name)
            for suffix, text in (("cls", "3"), ("json", '{"caption": "a dog", "label": 4}')):
                note = tarfile.TarInfo(f"{path.stem}.{suffix}")
                note.size = len(text)
                archive.addfile(note, io.BytesIO(text.encode()))
    contents = [path.read_bytes() for path in sorted((folder / "photos").iterdir())]
    table = pyarrow.table({"image": [{"bytes": each, "path": "x"} for each in contents]})
    pyarrow.parquet.write_table(table, folder / "shard.parquet", row_group_size=2)
    for place in ("images", "masks"):
        (folder / "set" / place / "dog").mkdir(parents=True)
    Pictures().load(1).save(folder / "set" / "images" / "dog" / "1.png")
    Image.new("L", (24, 16), 1).save(folder / "set" / "masks" / "dog" / "1.png")


def open_pictures(folder):
    for name in ("photos", "shard.tar", "shard.parquet"):
        with refused():
            source = as_source(folder / name)
            for index in range(len(source.ids)):
                with contextlib.suppress(ValueError, OSError):  # skipped, and listed
                    source.load(index)
            for extra in ("labels", "captions"):
                if name == "shard.tar":
                    getattr(source, extra)
    for example in MaskFolder(folder / "set"):
        example.masks_at((8, 8))


FORMATS = {
    "lens": Format(lambda folder: lens().save(folder / "lens"), open_lens),
    "explorer": Format(make_explored, open_explored),
    "unfinished fit": Format(make_unfinished, lambda folder: refit(folder, Pictures())),
    "attack": Format(attack, open_attack),
    "audit": Format(lambda folder: audited().save(folder), open_audit),
    "defence": Format(make_defence, lambda folder: load_runs([folder])),
    "edit": Format(make_edit, lambda folder: Edit.load(folder).check(clip())),
    "ablation": Format(make_ablation, open_ablation),
    "cache of texts": Format(embed_in, embed_in),
    "lists": Format(make_lists, open_lists),
    "pictures": Format(make_pictures, open_pictures),
}


@cache
def made(name):
    """A folder with a sound artefact, which is copied for each trial."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    FORMATS[name].make(folder)
    return folder
