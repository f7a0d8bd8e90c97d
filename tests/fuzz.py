"""Whole artefacts, made by the real code, of which one thing is changed; then they are opened.

    python tests/fuzz.py --minutes 60

tries as many as that time allows and prints how many, and each fault with how it came about. A
fault is any exception but one `SecondLensError` of one line, or more memory than `ROOM`.
`tests/test_fuzz.py` tries some of each format.
"""

import collections
import contextlib
import csv
import io
import json
import math
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pyarrow
import pyarrow.parquet
import torch
from click.testing import CliRunner
from explored import Pictures, tiny_clip
from PIL import Image
from safetensors.torch import load_file, save_file

import secondlens as sl
from secondlens.applications.ablation.accuracy import Ablation
from secondlens.applications.adversarial.captioning import TemplateCaptioner
from secondlens.applications.adversarial.generation import GeneratedImage
from secondlens.applications.adversarial.judging import Zeroshot
from secondlens.applications.adversarial.runs import Steps, attacked, is_attack, run
from secondlens.applications.adversarial.selection import Pair, RankedWord
from secondlens.applications.auditing.audits import Audit, audit
from secondlens.applications.auditing.defence import defend, summary
from secondlens.commands import main as secondlens
from secondlens.data.labelled import Labelled, labelled
from secondlens.data.masked import MaskFolder
from secondlens.data.sources import as_source
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

ROOM = 2**29
"""Bytes that opening an artefact of kilobytes may take for a moment."""
LABELS = tuple(f"word {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
CLASSES = ("dog", "deer", "cat")
LAYERS = (0, 1)


@dataclass(frozen=True)
class Format:
    """A kind of artefact: how the real code makes one in a folder, and what opens it there."""

    make: Callable[[Path], object]
    open: Callable[[Path], object]


# -- artefacts ---------------------------------------------------------------------------------


@cache
def clip():
    return tiny_clip()


@cache
def lens():
    found = sl.fit(clip(), Pictures(), LAYERS, top=6, keep_coordinates=True)
    words = vocabulary(LABELS, name="letters")
    sl.describe(clip(), found, words, 8)
    score(clip(), found, words, Pictures(30), [{LABELS[i % 20]} for i in range(30)])
    stability(clip(), found, words, Pictures(30))
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
    return audit(clip(), lens(), classes(), Pictures(30), vocabulary(LABELS[:4]))


def open_audit(folder):
    found = Audit.load(folder)
    found.ties(3), found.first_cue(found.classes[0]), found.save(folder / "copy")
    load_runs([folder])
    defend(clip(), lens(), found, animals(12), animals(12))


def make_defence(folder):
    found = defend(clip(), lens(), audited(), animals(12), animals(12))
    summary(found), found.save(folder)


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
    import tarfile

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


# -- changes -----------------------------------------------------------------------------------

DEEP, LONG = "@deep@", "@long@"
VALUES = (
    *(None, True, False, "", "x", [], {}, [[]], [None], {"": ""}, -1, 0, 1, 2, 3.5, -0.0),
    *(2**24, 2**31, 2**53, 2**63, 2**64, 10**400, -(2**62), 1e308, -1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, "\ud800", "\x1b[31m", "\x00", "../../x", "/etc/passwd"),
    *("a" * 5000, "\u202e", "nan", "1", "world", DEEP, LONG, [DEEP], [1] * 3000, {"a": LONG}),
)


def places(value, path=()):
    """Paths of all values at any depth."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


def change_document(document, rng):
    """The text of a JSON document with one thing changed."""
    found = sorted(places(document), key=len)
    path = rng.choice([p for p in found if p] or found)
    # lists are long, and each kind of value shall be tried
    path = rng.choice([p for p in found if len(p) == len(path)][:200])
    how = rng.choice(["put", "put", "put", "drop", "twice", "more", "swap", "rename"])
    if not path:
        return written(rng.choice(VALUES))
    parent, key = at(document, path[:-1]), path[-1]
    if how == "drop":
        del parent[key]
    elif how == "twice" and isinstance(parent, list):
        parent.append(parent[key])
    elif how == "twice":
        parent["@twice@"] = rng.choice([parent[key], rng.choice(VALUES)])
        return written(document).replace('"@twice@"', json.dumps(key))
    elif how == "more" and isinstance(parent, dict):
        parent[rng.choice(["x", "files", "", "\ud800", "scores"])] = rng.choice(VALUES)
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(["x", "-1", "99", key + " "])] = parent.pop(key)
    elif how == "swap":
        other = rng.choice(found)
        parent[key] = json.loads(json.dumps(at(document, other)))
    else:
        parent[key] = rng.choice(VALUES)
    return written(document)


def written(document):
    text = json.dumps(document)
    return text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(
        f'"{LONG}"', '"' + "x" * 2**20 + '"'
    )


def change_header(path, rng):
    """A safetensors file whose header says something else."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = change_document(json.loads(content[8 : 8 + size]), rng).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def change_tensors(path, rng):
    """A sound safetensors file with other tensors."""
    tensors = load_file(path)
    with_metadata = _metadata(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].clone()
    how = rng.choice(["drop", "copy", "kind", "less", "axis", "empty", "value", "value", "grow"])
    if how == "drop":
        del tensors[name]
    elif how == "copy":
        tensors[
            rng.choice([name + "x", name + "-1", "x-01", "a/b/c", rng.choice(sorted(tensors))])
        ] = tensor
    elif how == "kind":
        kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
        tensors[name] = tensor.to(rng.choice(kinds))
    elif how == "less" and tensor.ndim:
        tensors[name] = tensor[: max(1, len(tensor) // 2)]
    elif how == "grow" and tensor.ndim:
        tensors[name] = torch.cat([tensor] * 3, dim=rng.randrange(tensor.ndim))
    elif how == "axis":
        tensors[name] = tensor[None]
    elif how == "empty" and tensor.ndim:
        tensors[name] = tensor[:0]
    elif tensor.numel():
        wild = (math.nan, math.inf, -1.0, 1e38, 0.0)
        whole = (-1, -2, 2**31 - 1, -(2**31), 100, 7)
        value = rng.choice(wild if tensor.is_floating_point() else whole)
        flat = tensor.view(-1)
        place = rng.choice([slice(None), rng.randrange(len(flat))])
        low = (
            0
            if tensor.dtype in (torch.uint8, torch.bool)
            else -(2 ** (8 * tensor.element_size() - 1))
        )
        if not tensor.is_floating_point():
            value = max(low, min(value, -low - 1 if low else 255))
        flat[place] = value
        tensors[name] = tensor
    save_file(
        {key: each.contiguous().clone() for key, each in tensors.items()}, path, with_metadata
    )


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def change_bytes(path, rng):
    """Bytes flipped, cut off, put in or doubled; mostly near an end, where it matters."""
    content = bytearray(path.read_bytes())
    end = len(content)
    start = rng.choice(
        [rng.randrange(end + 1), min(end, rng.randrange(600)), max(0, end - rng.randrange(1, 600))]
    )
    how = rng.choice(["flip", "cut", "insert", "zero", "double", "ones"])
    if how == "flip" and start < end:
        content[start] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[start:]
    elif how == "insert":
        content[start:start] = rng.randbytes(rng.randrange(1, 9))
    elif how == "double":
        content += bytes(content)
    else:
        width = rng.randrange(1, 32)
        content[start : start + width] = bytes([255 if how == "ones" else 0]) * width
    path.write_bytes(content)


def change_file(path, rng):
    """Something else in the place of a file."""
    how = rng.choice(["gone", "folder", "loop", "pipe", "empty", "hollow", "other"])
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "hollow":
        path.write_bytes(content)
        os.truncate(path, 2**36)
    elif how == "other":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    return how


def change(folder, rng):
    """One change to one file of an artefact; says which."""
    path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
    kinds = ["bytes", "file"]
    if path.suffix == ".json":
        kinds = ["document"] * 6 + kinds
    if path.suffix in (".safetensors", ".st"):
        kinds = ["header", "header", "tensors", "tensors", "tensors", *kinds]
    kind = rng.choice(kinds)
    if kind == "document":
        path.write_text(change_document(json.loads(path.read_text()), rng))
    elif kind == "header":
        change_header(path, rng)
    elif kind == "tensors":
        change_tensors(path, rng)
    elif kind == "bytes":
        change_bytes(path, rng)
    else:
        kind = change_file(path, rng)
    return f"{path.relative_to(folder)}, {kind}"


# -- trials ------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused():
    """What may be raised: one sentence on one line."""
    try:
        yield
    except sl.SecondLensError as error:
        assert "\n" not in str(error).strip(), f"several lines: {error}"


COMMANDS = {
    "lens": ("search lens --neuron 0:1", "share lens --to shared", "pull lens pulled"),
    "explorer": ("export lens site --no-model",),
    "attack": ("export SOUND site --no-model --runs run",),
    "audit": ("export SOUND site --no-model --runs .",),
    "defence": ("export SOUND site --no-model --runs .",),
}
"""What also opens an artefact, tried now and then."""


@cache
def sound():
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    lens().save(folder / "lens")
    return folder / "lens"


def command(line, folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(secondlens, line.replace("SOUND", str(sound())).split())
    finally:
        os.chdir(before)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 2), done.output
    said = done.output + done.stderr
    assert "\x1b" not in said and "Traceback" not in said, said
    if done.exit_code:
        assert done.stderr.count("Error: ") == 1 and done.stderr.endswith("\n"), said


def peak(reset=False):
    """The most memory that this process had, in bytes; from now on, if `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])


def attempt(name, seed):
    """Change an artefact and open it; the change, and the fault if there is one."""
    rng = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place) / "a"
        shutil.copytree(made(name), folder)
        said = change(folder, rng)
        before = peak(reset=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with refused():
                    FORMATS[name].open(folder)
                if name in COMMANDS and rng.random() < 0.1:
                    for left in ("copy", "shared", "pulled", "site"):
                        shutil.rmtree(folder / left, ignore_errors=True)
                    command(rng.choice(COMMANDS[name]), folder)
        except Exception:
            return said, traceback.format_exc()
        if (taken := peak() - before) > ROOM:
            return said, f"{taken:,} bytes of memory were taken"
    return said, None


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the first trial.")
@click.option("--only", type=click.Choice(list(FORMATS)), help="One format.")
def main(minutes, seed, only):
    """Change artefacts and open them."""
    end, counts, faults = time.monotonic() + 60 * minutes, collections.Counter(), {}
    for name in FORMATS:
        made(name)
    print(f"{'format':<16}{'seed':>8}  change", flush=True)
    while time.monotonic() < end:
        for name in [only] if only else FORMATS:
            counts[name] += 1
            said, fault = attempt(name, seed)
            if fault and (last := "\n".join(fault.strip().split("\n")[-3:])) not in faults:
                faults[last] = f"{name:<16}{seed:>8}  {said}\n{fault}"
                print(faults[last], flush=True)
        seed += 1
        if seed % 100 == 0:
            print(f"{sum(counts.values()):,} artefacts, {len(faults)} faults", flush=True)
    print(f"{sum(counts.values()):,} artefacts tried, {len(faults)} faults: {dict(counts)}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
