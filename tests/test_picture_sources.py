"""What people's pictures come in: archives by macOS, tables of paths, clones, phones, streams."""

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from models import tiny_images, tiny_model
from PIL import Image, PngImagePlugin
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from secondlens.commands import main
from secondlens.data.decoders import Decode
from secondlens.data.decoding import SUFFIXES, decode
from secondlens.data.folder import Folder
from secondlens.data.reader import Reader
from secondlens.data.sources import Choice, InMemory, TorchDataset, as_source
from secondlens.data.tar import Tar
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip

COLOURS = ("red", "lime", "blue", "white")


def encoded(colour, kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, kind, **options)
    return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return path


def colours(source):
    names = {(255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue"}
    return [names.get(source.load(i).getpixel((0, 0)), "white") for i in range(len(source.ids))]


PICTURES = [(f"{number}.png", encoded(colour)) for number, colour in enumerate(COLOURS)]
APPLE = b"\0\5\x16\7" + b"\0" * 80


# Tar


def test_a_tar_made_by_macos(tmp_path):
    members = [
        pair for name, content in PICTURES for pair in ((f"._{name}", APPLE), (name, content))
    ]
    source = as_source(write_tar(tmp_path / "a.tar", [*members, ("__MACOSX/9.png", APPLE)]))
    assert source.ids == ["0", "1", "2", "3"] and colours(source) == [*COLOURS]
    assert source.damaged == {
        "._*": "left out: 4, such as a.tar/._0.png: not part of the set",
        "hidden folders": "left out: a.tar/__MACOSX/9.png: not part of the set",
    }


def test_joined_tars_are_read_one_after_the_other(tmp_path):
    first, second = (
        write_tar(tmp_path / f"{n}.tar", PICTURES[part]).read_bytes()
        for n, part in enumerate((slice(2), slice(2, 4)))
    )
    (tmp_path / "c.tar").write_bytes(first + second)
    source = as_source(tmp_path / "c.tar")
    assert source.ids == ["0", "1", "2", "3"] and colours(source) == [*COLOURS]
    assert not source.damaged
    # the same names in both are different pictures
    other = write_tar(tmp_path / "o.tar", [("0.png", encoded("blue"))]).read_bytes()
    (tmp_path / "c.tar").write_bytes(first + b"\0" * 512 + other)
    source = as_source(tmp_path / "c.tar")
    assert source.ids == ["c.tar/0.png", "c.tar/1.png", "c.tar#2/0.png"]
    assert colours(source) == ["red", "lime", "blue"]
    (tmp_path / "c.tar").write_bytes(first + b"rubbish" * 200)
    source = as_source(tmp_path / "c.tar")
    assert source.ids == ["0", "1"] and "no file can be found" in source.damaged["c.tar"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".tar.gz", gzip.compress),
        (".tgz", gzip.compress),
        (".tar", gzip.compress),
        (".tar.bz2", bz2.compress),
        (".tar.xz", lzma.compress),
    ],
)
def test_compressed_tars_are_unpacked_once(tmp_path, suffix, pack):
    plain = write_tar(tmp_path / "plain", [*PICTURES, *((f"{n}.cls", b"1") for n in range(4))])
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a{suffix}"
    path.write_bytes(pack(plain.read_bytes()))
    for place in (path, path.parent):
        source = as_source(place)
        assert source.ids == ["0", "1", "2", "3"] and colours(source) == [*COLOURS]
        assert source.labels == [1, 1, 1, 1]
    kept = Path(str(source.shards[0]))
    assert kept.is_file()
    del source
    assert not kept.exists()


def test_a_compressed_tar_that_is_cut_off(tmp_path):
    noise = np.random.default_rng(0).bytes(2**18)
    plain = write_tar(tmp_path / "plain", [*PICTURES, ("noise", noise), ("9.png", CELLS[0])])
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(plain.read_bytes())[: 2**17])
    source = as_source(path)
    assert source.ids == ["0", "1", "2", "3"]
    assert "only the pictures before the damage are used" in source.damaged["a.tar.gz"]


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("secondlens.data.tar.FREE_GROWTH", 2**20)
    path = tmp_path / "a.tar.gz"
    members = [PICTURES[0], ("zeros", b"\0" * 2**23)]
    path.write_bytes(gzip.compress(write_tar(tmp_path / "x", members).read_bytes()))
    source = as_source(path)
    assert source.ids == ["0"] and "it grows beyond" in source.damaged["a.tar.gz"]


def test_links_and_later_versions(tmp_path):
    members = [
        *PICTURES[:2],
        ("a/hard.png", (tarfile.LNKTYPE, "0.png")),
        ("a/soft.png", (tarfile.SYMTYPE, "../1.png")),
        ("lost.png", (tarfile.LNKTYPE, "nowhere.png")),
        ("1.png", encoded("blue")),
    ]
    source = as_source(write_tar(tmp_path / "a.tar", members))
    assert dict(zip(source.ids, colours(source), strict=True)) == {
        "0": "red",
        "1": "blue",
        "a/hard": "red",
        "a/soft": "lime",
    }
    assert source.damaged == {
        "links": "left out: lost.png: leads to nowhere.png, not found before",
        "earlier versions": "left out: a.tar/1.png: replaced later",
    }


def test_several_pictures_a_key_are_asked_back(tmp_path):
    members = [("0.input.png", encoded("red")), ("0.target.png", encoded("lime"))]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(
        SecondLensError, match=r"\(input\.png, target\.png\).*--extension.*--ids na"
    ):
        as_source(path)
    assert colours(as_source(path, Choice(extension="target.png"))) == ["lime"]
    assert as_source(path, Choice(ids="name")).ids == ["a.tar/0.input.png", "a.tar/0.target.png"]
    for choice, message in (
        (Choice(ids="label"), "ids of tar archives are key or name"),
        (Choice(column="jpg"), "column means nothing for tar archives"),
    ):
        with pytest.raises(SecondLensError, match=message):
            as_source(path, choice)


# Parquet and clones


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


CELLS = [encoded(colour) for colour in COLOURS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(CELLS).dictionary_encode(),
        pa.array(CELLS, pa.binary_view()),
        pa.array(CELLS, pa.large_binary()),
        pa.array([{"bytes": cell} for cell in CELLS]),
    ],
    ids=["dictionary", "view", "large", "struct"],
)
def test_columns_of_other_types(tmp_path, column):
    source = as_source(table(tmp_path / "a.parquet", image=column, n=[1, 2, 3, 4]))
    assert colours(source) == [*COLOURS]


def test_tables_of_paths(tmp_path):
    for name, content in PICTURES:
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    paths = ["0.png", str(tmp_path / "2.png"), "pipe.png", "gone.png", None]
    path = table(tmp_path / "a.parquet", file=paths, text=["x"] * 5)
    with pytest.raises(
        SecondLensError, match=r"if file, text holds their paths, say so with --col"
    ):
        as_source(path)
    reader = Reader(source=as_source(path, Choice(column="file")), clip=tiny())
    (batch,) = reader
    assert batch.positions == [0, 1]
    assert reader.skipped == {
        "a.parquet/2": "ValueError: pipe.png is not a file",
        "a.parquet/3": "No such file or directory",
        "a.parquet/4": "it is empty",
    }
    # as Hugging Face writes what it does not embed
    cells = [{"bytes": None, "path": "0.png"}, {"bytes": CELLS[1], "path": None}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    source = as_source(table(tmp_path / "b.parquet", image=pa.array(cells, kind)))
    assert colours(source) == ["red", "lime"]


def test_clones_of_hub_sets(tmp_path):
    for split in ("train", "test"):
        table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", image=CELLS, thumb=CELLS[::-1])
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "preview.png").write_bytes(CELLS[0])
    with pytest.raises(SecondLensError, match=r"choose one of image, thumb .*--column"):
        as_source(tmp_path)
    source = as_source(tmp_path, Choice(column="thumb"))
    assert colours(source) == [*reversed(COLOURS)]
    assert "not for training" in source.damaged["test-00000-of-00001.parquet"]
    pointer = tmp_path / "data" / "train-00000-of-00001.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SecondLensError, match=r"a pointer of Git LFS: fetch .* git lfs pull"):
        as_source(pointer)


def test_shards_in_subfolders(tmp_path):
    for number, (name, content) in enumerate(PICTURES):
        (tmp_path / f"{number}").mkdir()
        write_tar(tmp_path / f"{number}" / "x.tar", [(name, content)])
    source = as_source(tmp_path)
    assert isinstance(source, Tar) and colours(source) == [*COLOURS]


# Files


def test_pictures_by_list_and_by_pattern(tmp_path):
    for name, content in PICTURES:
        (tmp_path / name).write_bytes(content)
    for images in (
        str(tmp_path / "*.png"),
        str(tmp_path / "{0..3}.png"),
        [str(tmp_path / name) for name, _ in PICTURES],
    ):
        source = as_source(images)
        assert source.ids == ["0.png", "1.png", "2.png", "3.png"] and colours(source) == [*COLOURS]
    with pytest.raises(SecondLensError, match="column means nothing for files of pictures"):
        as_source(str(tmp_path / "*.png"), Choice(column="x"))
    with pytest.raises(SecondLensError, match="column means nothing for pictures in folders"):
        as_source(tmp_path, Choice(column="x"))
    with pytest.raises(SecondLensError, match="ids means nothing for pictures in memory"):
        as_source([Image.new("RGB", (3, 3))], Choice(ids="x"))


def test_heic_is_read_with_its_extra_and_named_without(tmp_path, monkeypatch):
    picture = Image.new("RGB", (64, 48), "red")
    pillow_heif.from_pillow(picture).save(tmp_path / "a.HEIC")
    (tmp_path / "b.png").write_bytes(CELLS[1])
    source = Folder(tmp_path)
    assert source.ids == ["a.HEIC", "b.png"] and not source.damaged
    assert np.abs(np.asarray(source.load(0)).astype(int) - [255, 0, 0]).max() < 9
    monkeypatch.setattr("secondlens.data.folder.SUFFIXES", SUFFIXES - {".heic"})
    source = Folder(tmp_path)
    assert source.ids == ["b.png"]
    needed = "reading it needs pip install 'secondlens[heif]'"
    assert source.damaged == {"*.heic": f"left out: a.HEIC: {needed}"}


@pytest.mark.parametrize("size", [2 * 2**20, 65 * 2**20])
def test_texts_of_a_png_do_not_cost_the_picture(size):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * size, zip=size < 2**22)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(io.BytesIO(encoded("red", pnginfo=texts, exif=exif)))
    assert found.size == (4, 6) and found.getpixel((0, 0)) == (255, 0, 0)


# Datasets in memory


def test_streams_whose_features_were_lost():
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    cells = [{"bytes": cell, "path": None} for cell in CELLS]
    dataset = datasets.Dataset.from_dict({"image": cells, "label": range(4)}, features=features)
    stream = dataset.to_iterable_dataset().map(lambda row: row)
    assert stream.features is None
    assert colours(as_source(stream)) == [*COLOURS]
    two = dataset.to_iterable_dataset().map(lambda row: row | {"mask": row["image"]})
    with pytest.raises(
        SecondLensError, match=r"--column\).*\['image', 'mask'\], and all are \['im"
    ):
        as_source(two)
    assert colours(as_source(two, Choice(column="mask"))) == [*COLOURS]


class Rows:
    """A dataset that plain pickle cannot send."""

    def __init__(self):
        self.of = lambda index: Image.new("RGB", (9 + index, 7), COLOURS[index])

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.of(index), index


def tiny(**options):
    def preprocess(picture):
        pixels = torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1)
        return pixels.float() / 255

    return from_open_clip(tiny_model(), preprocess=preprocess, name="tiny", **options)


def test_what_a_worker_gets_may_hold_a_lambda():
    decode = Decode(TorchDataset(Rows()), lambda picture: torch.zeros(3, 2, 2), None)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(decode.source)
    assert torch.equal(pickle.loads(pickle.dumps(decode))(2).pixels, torch.zeros(3, 2, 2))


@pytest.mark.long
def test_a_lambda_reaches_workers_that_are_spawned(monkeypatch):
    start = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        clip = tiny()
        found = [
            batch.pixels for batch in Reader(source=TorchDataset(Rows()), clip=clip, workers=1)
        ]
    finally:
        multiprocessing.set_start_method(start, force=True)
    expected = [batch.pixels for batch in Reader(source=TorchDataset(Rows()), clip=clip)]
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_tensors_that_nobody_normalised_are_told_once():
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    normalise = Normalize([0.5] * 3, [0.25] * 3)
    clip = from_open_clip(tiny_model(), Compose([Resize((16, 16)), ToTensor(), normalise]))
    for images in (pixels, [(each, 0) for each in pixels]):
        with pytest.warns(SecondLensWarning, match="as if they were not normalised") as told:
            fit(clip, images, [1], top=2)
        assert len(told) == 1
    fit(clip, normalise(pixels), [1], top=2)


@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_one_picture_that_gives_nan_is_skipped_and_listed(batch_size):
    clip = tiny()
    images = tiny_images(clip, 9)
    expected = fit(clip, InMemory(images[torch.arange(9) != 5]), [1], top=2)
    images[5, 0, 0, 0] = torch.nan
    lens = fit(clip, images, [1], top=2, batch_size=batch_size)
    assert lens.skipped == {"5": "its pixels hold NaN or infinity"}
    assert "5" not in lens.image_ids
    torch.testing.assert_close(lens[1].mean, expected[1].mean)


@pytest.mark.parametrize("store", ["never", "float32"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_so_is_one_on_which_the_network_overflows(batch_size, store):
    clip = tiny()
    images = tiny_images(clip, 9)
    expected = fit(clip, InMemory(images[torch.arange(9) != 5]), [1], top=2)
    images[5] = 3e38
    lens = fit(clip, images, [1], top=2, batch_size=batch_size, store=store)
    assert lens.skipped.keys() == {"5"} and "NaN or infinity in" in lens.skipped["5"]
    torch.testing.assert_close(lens[1].mean, expected[1].mean)
    with pytest.raises(SecondLensError, match=r"NaN or infinity in .*: check the images"):
        fit(clip, torch.full_like(images, 3e38), [1], top=2, batch_size=4)


# Words


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("w.json", '["red", "blue", "red"]', ""),
        ("w.json", '[{"word": "red"}, {"other": 1}, {"word": null}, {"word": "blue"}]', ":word"),
        ("w.jsonl", '{"word": "red"}\n\n{"word": null}\n{"word": "blue"}\n', ":word"),
        ("w.ndjson", '{"word": "red"}\n{"word": "blue"}', ":word"),
        ("w.tsv", "n\tword\n1\tred\n2\t\n3\n4\tblue\n", ":word"),
        ("w.csv", "n,word\n1,red\n2,\n3\n4,blue\n", ":word"),
    ],
)
def test_word_lists(tmp_path, name, text, column):
    (tmp_path / name).write_text(text)
    assert vocabulary(f"{tmp_path / name}{column}").labels == ("red", "blue")


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        (
            "w.json",
            '[{"word": "red"}]',
            "",
            r"not a list of texts: name an entry of its objects, as",
        ),
        ("w.json", '["red"]', ":word", "not a list of JSON objects: give it without a column"),
        ("w.json", '[{"word": "red"}]', ":wort", "no column 'wort': name one of word"),
        ("w.jsonl", '{"word": 3}', ":word", "holds no texts"),
        ("w.jsonl", "{", ":word", "cannot be read as JSON"),
        ("w.tsv", "a\tb\n", "", r"is a table: name a column of it, as .*w\.tsv:COLUMN"),
        ("w.json", "[" * 100_000, "", "cannot be read as JSON"),
    ],
)
def test_word_lists_that_are_none(tmp_path, name, text, column, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SecondLensError, match=message):
        vocabulary(f"{tmp_path / name}{column}")


# The command line


def test_fit_says_what_is_left_out_and_takes_the_choice(tmp_path):
    rows = [encoded(colour) for colour in (*COLOURS, "black", "navy")]
    for split in ("train", "validation"):
        path = tmp_path / "set" / "data" / f"{split}-0.parquet"
        table(path, image=rows, thumb=rows, key=[f"k{n}" for n in range(6)])
    common = [*("fit", str(tmp_path / "set"), "--layers", "5", "--top", "2"), "--out"]
    refused = CliRunner().invoke(main, [*common, str(tmp_path / "lens")])
    assert refused.exit_code == 2 and "choose one of image, thumb" in refused.output
    given = [*common, str(tmp_path / "lens"), "--column", "image", "--ids", "key"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    assert "validation-0.parquet: left out" in done.stderr
    assert "could not be read" not in done.stdout
    listed = json.loads(
        CliRunner()
        .invoke(main, [*given[:-5], str(tmp_path / "other"), *given[-4:], "--json"])
        .stdout
    )
    assert listed["images"] == 6 and listed["skipped"].keys() == {"validation-0.parquet"}
