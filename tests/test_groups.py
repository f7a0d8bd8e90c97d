"""Sets in a table with attributes, and accuracy by group."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image

import secondlens as sl
from secondlens.applications.editing.outcomes import outcome
from secondlens.commands.group import main
from secondlens.data.labelled import Labelled, labelled, training_pictures
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.intervals import wilson

NAMES = ["landbird", "waterbird"]
SHORT = ["land", "sea"]
"""What the tiny model can read."""
COLUMNS = ("img_id", "img_filename", "y", "split", "place", "place_filename")
ROWS = [
    (i, f"{i % 2:03}.Bird/{i:02}.png", i % 2, (0, 0, 1, 2)[i % 4 if i < 8 else 3], i // 2 % 2, "x")
    for i in range(20)
]
"""Of 20 pictures the first eight are of all parts, and the others of part 2."""


def write(folder, rows=ROWS, columns=COLUMNS, classes=NAMES):
    rng = np.random.default_rng(0)
    for row in ROWS:
        path = folder / row[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    if classes:
        (folder / "classnames.txt").write_text("\n".join(classes))
    return folder


@pytest.fixture
def birds(tmp_path):
    return write(tmp_path / "birds")


def test_a_table_as_wilds_has_it(birds):
    found = labelled(birds)
    test = [row for row in ROWS if row[3] == 2]
    assert found.name == "birds test" and found.classes.labels == tuple(NAMES)
    assert list(found.source.ids) == [row[1] for row in test]
    assert found.labels == tuple(row[2] for row in test)
    assert found.attributes == {"place": tuple(str(row[4]) for row in test)}
    assert list(training_pictures(birds).ids) == [row[1] for row in ROWS if row[3] == 0]
    assert labelled(birds / "metadata.csv").labels == found.labels
    part = found.at([3, 0])
    assert part.attributes["place"] == tuple(str(test[i][4]) for i in (3, 0))


def test_tables_of_other_hands(tmp_path):
    """Names of classes in the table, names of parts, no parts at all, and other columns."""
    rows = [(row[1], NAMES[row[2]], "val" if row[3] else "train") for row in ROWS]
    columns = ("file_name", "label", "split")
    found = labelled(write(tmp_path / "a", rows, columns, None))
    assert found.classes.labels == tuple(NAMES) and found.name == "a val"
    found = labelled(write(tmp_path / "b", [row[:2] for row in rows], columns[:2], NAMES[::-1]))
    assert found.classes.labels == tuple(NAMES[::-1])
    assert len(found) == 20 and found.labels[:2] == (1, 0) and found.name == "b"
    with pytest.raises(SecondLensError, match="has no training pictures"):
        training_pictures(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"rows": [*ROWS, (9, "000.Bird/00.png", 7, 2, 0, "x")]},
            r"class '7', which classnames\.txt",
        ),
        (
            {"rows": [*ROWS, (9, "../away.png", 0, 2, 0, "x")]},
            r"\.\./away\.png, which is not a pic",
        ),
        ({"rows": [*ROWS, (9, "000.Bird/00.png", 0, 5, 0, "x")]}, "line 22 .* of the part '5'"),
        ({"rows": [*ROWS, (9, "000.Bird/00.png")]}, "line 22 .* another number of columns"),
        ({"rows": []}, "has no rows"),
        ({"columns": ("a", "b", "y", "split", "place", "c")}, "no column img_filename or"),
        ({"columns": (*COLUMNS[:2], "kind", *COLUMNS[3:])}, "no column y or label or class"),
        ({"classes": None}, "are numbers without names"),
    ],
)
def test_tables_that_are_wrong(change, why, tmp_path):
    with pytest.raises(SecondLensError, match=why):
        labelled(write(tmp_path / "birds", **change))


@pytest.fixture(scope="module")
def clip():
    return sl.from_open_clip(tiny_model(dtype=torch.float64), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def pictures(clip):
    return Labelled(
        name="birds",
        source=InMemory(tiny_images(clip, 40, seed=3)),
        labels=tuple(i % 2 for i in range(40)),
        classes=vocabulary(SHORT),
        attributes={"place": tuple("ls"[i % 3 > 0] for i in range(40))},
    )


def test_groups_are_counted_by_hand(clip, pictures):
    best = (clip.encode_image(pictures.source.pictures) @ clip.encode_text(SHORT).T).argmax(1)
    found = sl.accuracy_by_group(clip, pictures, ["class", "place"], batch_size=7)
    by_name = {each.name: each for each in found}
    for label, name in enumerate(SHORT):
        for place in "ls":
            own = [i for i in range(40) if i % 2 == label and "ls"[i % 3 > 0] == place]
            right = sum(int(best[i]) == label for i in own)
            each = by_name.pop(f"{name}, place={place}")
            assert each.count == len(own) and each.accuracy == pytest.approx(right / len(own))
            assert (each.low, each.high) == wilson(right, len(own))
    assert not by_name
    assert [each.accuracy for each in found] == sorted(each.accuracy for each in found)


def test_an_outcome_by_group(clip, pictures):
    images = pictures.source.pictures
    lens = sl.fit(clip, images, top=4)
    other = sl.edit(clip, lens, sl.Edit(neurons=((0, 3), (1, 5)), strength=3.0)).clip
    found = outcome(clip, other, pictures, ["place"])
    before, after = (
        {each.name: each.accuracy for each in sl.accuracy_by_group(which, pictures, ["place"])}
        for which in (clip, other)
    )
    assert {each.pictures: each.before for each in found.groups} == pytest.approx(before)
    assert {each.pictures: each.after for each in found.groups} == pytest.approx(after)
    whole = sum(each.count * each.after for each in found.groups) / found.count
    assert found.after == pytest.approx(whole)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (["weather"], "birds has no groups by weather: choose from class, place"),
        ([], "has no groups by nothing"),
    ],
)
def test_groups_that_are_not_there(clip, pictures, columns, why):
    with pytest.raises(SecondLensError, match=why):
        sl.accuracy_by_group(clip, pictures, columns)


def test_a_group_of_one_picture(clip, pictures):
    alone = {"place": ("far", *pictures.attributes["place"][1:])}
    one = Labelled(**{**vars(pictures), "attributes": alone})
    with pytest.raises(SecondLensError, match="the group place=far has 1 picture that can be read"):
        sl.accuracy_by_group(clip, one, ["place"])


def test_an_audit_of_a_table(birds, tmp_path):
    demo = sl.load("demo")
    sl.fit(demo, birds, [5], top=3).save(tmp_path / "lens")
    given = ["audit", f"{tmp_path / 'lens'}", "--images", f"{birds}", "--labelled", "--chance", "1"]
    out = tmp_path / "audit"
    groups = ["--groups", "class", "--groups", "place", "--out", f"{out}"]
    result = CliRunner().invoke(main, [*given, *groups, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)["groups"]
    assert sum(each["count"] for each in said) == len(labelled(birds))
    with (out / "groups.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [each["name"] for each in said]
    wrong = [*given, "--groups", "weather", "--out", f"{tmp_path / 'other'}"]
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 2 and "no groups by weather" in result.stderr
    assert not (tmp_path / "other").exists()
    result = CliRunner().invoke(main, [*given[:2], "--groups", "place", "--out", f"{out}2"])
    assert result.exit_code == 2 and "--groups is of a labelled set" in result.stderr
