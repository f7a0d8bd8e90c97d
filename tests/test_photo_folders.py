import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

import secondlens as sl
from secondlens.applications import photo_files
from secondlens.applications.discovery.finding import Discoverer
from secondlens.applications.discovery.photo_words import write_words
from secondlens.applications.photo_files import file_names
from secondlens.applications.segmentation.heat_maps import label_map
from secondlens.applications.segmentation.photo_masks import (
    MaskSettings,
    box_of,
    packed,
    polygons_of,
    run_lengths,
    write_masks,
)
from secondlens.applications.segmentation.presence import PresenceReader
from secondlens.commands.group import main
from secondlens.data.embedding import embed_texts
from secondlens.data.sources import as_source
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import NAMES
from secondlens.engine.local import Local
from secondlens.errors import SecondLensError

# of pycocotools
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXTS = ("a dog", "the sea", "a ship")
SETTINGS = MaskSettings(texts=TEXTS)


@pytest.fixture(scope="module")
def clip():
    return sl.load("demo")


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, Scenes(World(), 5, 24), [5, 6], top=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven photos of several sizes at two depths, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for i, size in enumerate(((64, 64), (50, 30), (30, 50), (80, 64), (64, 64), (40, 40))):
        World().scene(i, objects=["dog"], background="sea").image.resize(size).save(
            folder / f"{i}.png"
        )
    World().scene(9, objects=["ship"]).image.save(folder / "sub" / "0.jpg")
    (folder / "6.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return folder


def files(folder):
    """What a folder holds; pages name no time and no place."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def blobs(seed):
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.random((1, 1, 5, 6)))
    return (torch.nn.functional.interpolate(coarse, (40, 50), mode="bicubic")[0, 0] > 0.6).numpy()


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_and_boxes_are_those_of_pycocotools(seed):
    mask = blobs(seed)
    found = run_lengths(mask)
    assert np.array_equal(coco_masks.decode(found).astype(bool), mask)
    expected = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert found == {"size": [40, 50], "counts": expected["counts"].decode()}
    assert box_of(mask) == coco_masks.toBbox(expected).tolist()


def test_run_lengths_of_any_size_are_packed():
    counts = [0, 1, 15, 16, 31, 32, 33, 1023, 1024, 5, 100_000, 3, 2]
    packed_by_them = coco_masks.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, 1)
    assert packed(counts) == packed_by_them["counts"].decode()


def test_masks_that_hold_all_or_nothing():
    full, empty = np.ones((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)
    assert run_lengths(full) == {"size": [3, 4], "counts": packed([0, 12])}
    assert run_lengths(empty) == {"size": [3, 4], "counts": packed([12])}
    assert box_of(full) == [0, 0, 4, 3]
    assert box_of(empty) == [0, 0, 0, 0]
    assert polygons_of(empty) == []
    (outline,) = polygons_of(full)
    assert min(outline) == 0 and max(outline[::2]) == 4 and max(outline[1::2]) == 3


@pytest.mark.parametrize("seed", range(6))
def test_polygons_enclose_the_mask(seed):
    mask = blobs(seed)
    packed = coco_masks.merge(coco_masks.frPyObjects(polygons_of(mask), *mask.shape))
    drawn = coco_masks.decode(packed).astype(bool)
    # holes are filled, and corners of pixels are cut
    assert (drawn & mask).sum() >= 0.97 * mask.sum()
    edge = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 3, 1, 1)[0]
    outside = torch.nn.functional.pad(edge.bool(), (1, 1, 1, 1))
    reached = torch.zeros_like(outside)
    reached[0, 0] = True
    for _ in range(200):  # what is outside of every outline, from a corner on
        grown = torch.nn.functional.max_pool2d(reached[None].float(), 3, 1, 1)[0].bool() & ~outside
        if torch.equal(grown | reached, reached):
            break
        reached |= grown
    assert not (drawn & reached[1:-1, 1:-1].numpy()).any()


def test_names_of_files_stay_below_their_folder():
    names = file_names(["a.jpg", "a.png", "../../b.png", "/etc/c", "d/e:f?.tar.gz", "..", "x\\y.p"])
    assert names == ["a", "a (2)", "b", "etc/c", "d/e_f_.tar", "photo", "x/y"]


def test_masks_of_a_folder_are_those_of_each_photo(clip, lens, photos, tmp_path):
    out = tmp_path / "masks"
    records = write_masks(clip, lens, as_source(photos), SETTINGS, out)
    assert [each["photo"] for each in records] == as_source(photos).ids
    assert [each["photo"] for each in records if "error" in each] == ["6.png"]
    coco = COCO(out / "masks.json")
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(TEXTS)
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(photos / image["file_name"]) as picture:
            assert (image["width"], image["height"]) == picture.size
            (heat,) = sl.segment(clip, lens, [picture.copy()], list(TEXTS))
        with Image.open(out / image["labels"]) as labels:
            # where two texts are as hot, rounding decides, which depends on who shares the batch
            first, second = heat.topk(2, dim=0).values
            sure = (first - second > 1e-5).numpy()
            assert sure.mean() > 0.3
            assert np.array_equal(np.asarray(labels)[sure], label_map(heat).numpy()[sure])
        for each in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = heat[each["category_id"] - 1].numpy() >= 0.5
            written = coco.annToMask(each).astype(bool)
            near = (heat[each["category_id"] - 1] - 0.5).abs().numpy() < 1e-5
            assert np.array_equal(written | near, mask | near)
            assert each["area"] == written.sum()
    with (out / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * len(TEXTS)
    told = {(r["photo"], t["text"]): t for r in records for t in r.get("texts", ())}
    for row in rows:
        own = told[row["photo"], row["text"]]
        assert float(row["share"]) == own["share"] and float(row["score"]) == own["score"]
    page = (out / "index.html").read_text()
    assert "a photo: it has a hottest place in every one" in page
    assert page.count("<img") == 7 and "1 of\n8 photos could not be read" in page


def test_a_score_tells_photos_with_the_thing_from_others(clip, lens, tmp_path):
    with_ship = [World().scene(i, objects=["ship"], background="red").image for i in range(8)]
    without = [World().scene(50 + i, objects=["dog"], background="red").image for i in range(8)]
    settings = MaskSettings(texts=("ship",))
    records = write_masks(clip, lens, as_source(with_ship + without), settings, tmp_path / "out")
    scores = [each["texts"][0]["score"] for each in records]
    higher = sum(a > b for a in scores[:8] for b in scores[8:])
    assert higher >= 0.8 * 64


def test_what_is_not_there_gets_no_mask(clip, lens, tmp_path):
    """Maps of what is there are those without a decision, and the table tells its log-odds."""
    words = world_vocabulary()
    scenes = [World().scene(i) for i in range(40)]
    told = [(each.image, {*each.objects, each.background}) for each in scenes]
    presence = sl.tune_presence(clip, lens, told, words, windows=1)
    presence.save(tmp_path / "presence.json")
    pictures = [World().scene(90 + i, objects=["ship"], background="red").image for i in range(6)]
    source, among = as_source(pictures), tuple(NAMES)
    settings = MaskSettings(texts=("ship", "apple"), presence=presence, among=among)
    records = write_masks(clip, lens, source, settings, tmp_path / "some")
    plain = write_masks(clip, lens, source, MaskSettings(texts=("ship", "apple")), tmp_path / "all")
    texts, rivals = embed_texts(clip, ["ship", "apple"]), embed_texts(clip, among)
    read = PresenceReader(clip, lens)(pictures, texts, rivals, 1)
    for record, other, odds in zip(records, plain, presence.scores(read).tolist(), strict=True):
        for each, before, odd in zip(record["texts"], other["texts"], odds, strict=True):
            assert each["score"] == pytest.approx(odd, abs=1e-4)
            assert each["share"] == (before["share"] if odd >= presence.level else 0)
    shares = {text: [r["texts"][i]["share"] for r in records] for i, text in enumerate(("s", "a"))}
    assert sum(map(bool, shares["s"])) >= 5 and not sum(map(bool, shares["a"])) > 1
    with pytest.raises(SecondLensError, match="among other words"):
        MaskSettings(texts=("ship",), presence=presence)


def test_one_odd_photo_does_not_stop_the_others(clip, lens, tmp_path):
    """What has no room for windows, or is far too long, is named; at a threshold of 0, too."""
    pictures = [World().scene(0).image, Image.new("RGB", (3, 9)), Image.new("RGB", (1, 5000))]
    zeros, ones = (0.0,) * 5, (1.0,) * 5
    presence = sl.Presence(means=zeros, deviations=ones, weights=ones, level=1e9)
    settings = MaskSettings(texts=TEXTS, windows=4, threshold=0.0, presence=presence, among=TEXTS)
    records = write_masks(clip, lens, as_source(pictures), settings, tmp_path / "out")
    assert [("error" in each) for each in records] == [False, True, True]
    assert "3 x 9 pixels" in records[1]["error"]
    assert [each["share"] for each in records[0]["texts"]] == [0, 0, 0]
    with pytest.raises(SecondLensError, match="at most 255 texts, and these are 256"):
        MaskSettings(texts=("a",) * 256)


def test_polygons_are_written_where_they_are_wanted(clip, lens, photos, tmp_path):
    out = tmp_path / "masks"
    write_masks(clip, lens, as_source(photos), MaskSettings(texts=TEXTS[:1], polygons=True), out)
    coco = COCO(out / "masks.json")
    for each in coco.loadAnns(coco.getAnnIds()):
        assert isinstance(each["segmentation"], list)
        assert coco.annToMask(each).sum() == pytest.approx(each["area"], rel=0.35, abs=12)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["masks", "words"])
def test_stopped_work_goes_on_with_the_same_result(clip, lens, photos, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(photo_files, "PHOTOS_PER_PART", 2)
    source = as_source(photos)

    def write(out, engine=None, texts=TEXTS):
        if kind == "masks":
            settings = MaskSettings(texts=tuple(texts))
            return write_masks(clip, lens, source, settings, out, engine=engine)
        finder = Discoverer(clip, lens, list(texts))
        return write_words(finder, source, out, top=2, engine=engine)

    whole = write(tmp_path / "whole")
    done = photo_files.Checkpoints.save

    def save(self, name, tensors, info):
        done(self, name, tensors, info)
        if name == "000000002":
            raise Stopped

    monkeypatch.setattr(photo_files.Checkpoints, "save", save)
    with pytest.raises(Exception):  # noqa: B017 - the engine tells it in its own words
        write(tmp_path / "again", Local(retries=0))
    monkeypatch.setattr(photo_files.Checkpoints, "save", done)
    assert not (tmp_path / "again").exists()
    with pytest.raises(SecondLensError, match="unfinished work"):
        write(tmp_path / "again", texts=("a cat", "a cow"))
    loaded, load = [], type(source).load
    monkeypatch.setattr(type(source), "load", lambda self, i: loaded.append(i) or load(self, i))
    assert write(tmp_path / "again") == whole
    assert sorted(loaded) == [4, 5, 6, 7]
    assert files(tmp_path / "again") == files(tmp_path / "whole")
    assert not Path(f"{tmp_path / 'again'}.unfinished").exists()


def test_workers_write_the_same(clip, lens, photos, tmp_path, monkeypatch):
    source = as_source(photos)
    monkeypatch.setattr(photo_files, "PHOTOS_PER_PART", 3)
    one = write_masks(clip, lens, source, SETTINGS, tmp_path / "one")
    two = write_masks(clip, lens, source, SETTINGS, tmp_path / "two", engine=Local(workers=2))
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_words_of_a_folder_are_those_of_each_photo(clip, lens, photos, tmp_path, table):
    out = tmp_path / "words"
    finder = Discoverer(clip, lens, "world")
    records = write_words(finder, as_source(photos), out, top=3, table=table)
    if table == "csv":
        with (out / "words.csv").open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = parquet.read_table(out / "words.parquet").to_pylist()
    for record in records:
        own = [row for row in rows if row["photo"] == record["photo"]]
        if "error" in record:
            assert record["photo"] == "6.png" and not own
            continue
        words = sl.discover(clip, lens, photos / record["photo"], 3, texts="world")
        assert [row["word"] for row in own] == [word.text for word in words]
        assert [int(row["rank"]) for row in own] == [1, 2, 3]
        weights = [float(row["weight"]) for row in own]
        assert weights == pytest.approx([word.weight for word in words], rel=1e-4)
        assert own[0]["neurons"].split(", ")[0] == words[0].neurons[0].name
    assert (out / "index.html").read_text().count("<img") == 7


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def saved(lens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lens") / "lens"
    lens.save(folder)
    return folder


def test_the_commands_take_folders(saved, photos, tmp_path):
    (tmp_path / "texts.txt").write_text("a dog\nthe sea\n")
    masks = run(
        *("segment", saved, photos, "--texts", tmp_path / "texts.txt", "--text", "a ship"),
        *("--out", tmp_path / "masks", "--json"),
    )
    assert masks.exit_code == 0, masks.output
    lines = [json.loads(line) for line in masks.stdout.splitlines()]
    assert len(lines) == 8
    assert [each["text"] for each in lines[0]["texts"]] == ["a ship", "a dog", "the sea"]
    assert "6.png: " in masks.stderr
    words = run("discover", saved, photos, "--texts", "world", "--top", 2, "--out", tmp_path / "w")
    assert words.exit_code == 0, words.output
    assert "7 photos; open" in words.stdout.replace("\n", " ")
    again = run("segment", saved, photos, "--text", "a dog", "--out", tmp_path / "masks")
    assert again.exit_code == 2 and "holds a finished set of masks" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("discover LENS PHOTOS", "name --out for them"),
        ("discover LENS PHOTOS --page x.html --out OUT", "--page is of one photo"),
        ("discover LENS PHOTOS/0.png --out OUT", "--out is of several photos"),
        ("discover LENS PHOTOS --out OUT --texts world --top 999", "top must lie between"),
        ("discover LENS PHOTOS --out OUT --texts world --layers 3", "layer 3 is not in this lens"),
        ("segment LENS PHOTOS --out OUT", "nothing to find"),
        ("segment LENS PHOTOS --out OUT --text dog --presence x.json", "needs words"),
        ("segment LENS PHOTOS --out OUT --text dog --among x.txt", "of --presence: name it"),
        ("segment LENS PHOTOS --out OUT --text x --presence LENS/lens.json --among TEXTS", "does"),
        ("segment LENS PHOTOS/0.png --out OUT --text dog --polygons", "of several photos"),
        ("segment LENS PHOTOS --out OUT --texts PHOTOS/none.txt", "none.txt"),
        ("segment LENS PHOTOS/nowhere --out OUT --text dog", "nowhere"),
        ("segment LENS PHOTOS --out OUT --text dog --engine local --worker-gpus 1", "Ray's"),
    ],
)
def test_mistakes_are_one_sentence(saved, photos, tmp_path, arguments, message):
    (tmp_path / "words.txt").write_text("a cat\na cow\n")
    places = {
        "TEXTS": tmp_path / "words.txt",
        "LENS": saved,
        "PHOTOS": photos,
        "OUT": tmp_path / "out",
    }
    for name, place in places.items():
        arguments = arguments.replace(name, str(place))
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
