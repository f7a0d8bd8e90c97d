import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
import tarfile
from contextlib import ExitStack, suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from PIL import Image, ImageOps
from scale import TIMES
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from webdataset.shardlists import expand_urls

import secondlens as sl
from secondlens.data.decoding import Unreadable, decode
from secondlens.data.folder import Folder, ImageFolder
from secondlens.data.huggingface import HuggingFace
from secondlens.data.parquet import Parquet
from secondlens.data.reader import Reader
from secondlens.data.sources import InMemory, Subset, TorchDataset, as_source, dataset_hash
from secondlens.data.streams import Spooled
from secondlens.data.tar import Tar
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip

COUNT = 7


def preprocess(picture):
    """A module's function, so that it pickles."""
    pixels = torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1)
    return pixels.double() / 255


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64), preprocess=preprocess, name="tiny")


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    sizes = [(18 + i, 30 - 2 * i) for i in range(COUNT)]
    return [Image.fromarray(random.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def encode(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def encoded(pictures):
    return [encode(picture) for picture in pictures]


def write_folder(root, encoded):
    for i, data in enumerate(encoded):
        path = root / ("cat" if i < 3 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
    return root


def write_tars(root, encoded, per_shard=4):
    """As webdataset writes them, with classes and captions."""
    root.mkdir(exist_ok=True)
    for shard in range(0, len(encoded), per_shard):
        with webdataset.TarWriter(str(root / f"data-{shard // per_shard:03}.tar")) as writer:
            for i in range(shard, min(shard + per_shard, len(encoded))):
                sample = {"__key__": f"{i:06}", "png": encoded[i], "cls": i % 3, "txt": f"no {i}"}
                writer.write(sample)
    return root


def write_parquet(path, encoded, raw=False, **columns):
    kind = pa.binary() if raw else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = encoded if raw else [{"bytes": each, "path": "x.png"} for each in encoded]
    table = pa.table({"caption": [f"no {i}" for i in range(len(cells))], **columns})
    table = table.append_column("jpg" if raw else "image", pa.array(cells, kind))
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def hugging_face(encoded):
    cells = [{"bytes": each, "path": None} for each in encoded]
    columns = {"image": cells, "label": list(range(len(cells)))}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    return datasets.Dataset.from_dict(columns, features=features)


def saved(folder, encoded):
    hugging_face(encoded).save_to_disk(folder)
    return folder


# What holds the same pictures in the same order, from pictures, encoded pictures and a folder.
KINDS = {
    "folder": lambda p, e, at: write_folder(at, e),
    "class folders": lambda p, e, at: ImageFolder(write_folder(at, e)),
    "tar pattern": lambda p, e, at: write_tars(at, e) / "data-{000..001}.tar",
    "folder of tars": lambda p, e, at: str(write_tars(at, e)),
    "list of tars": lambda p, e, at: sorted(write_tars(at, e).iterdir()),
    "parquet": lambda p, e, at: write_parquet(at / "x.parquet", e),
    "parquet of bytes": lambda p, e, at: write_parquet(at / "x.parquet", e, raw=True).parent,
    "hugging face": lambda p, e, at: hugging_face(e),
    "hugging face on disk": lambda p, e, at: saved(at, e),
    "hugging face stream": lambda p, e, at: hugging_face(e).to_iterable_dataset(),
    "torchvision": lambda p, e, at: torchvision.datasets.ImageFolder(write_folder(at, e)),
    "labelled pairs": lambda p, e, at: [(picture, 3) for picture in p],
    "named pairs": lambda p, e, at: [(f"x{i}", picture) for i, picture in enumerate(p)],
    "generator": lambda p, e, at: (picture for picture in p),
    "named stream of bytes": lambda p, e, at: ((f"x{i}.a/b", each) for i, each in enumerate(e)),
    "lazy files": lambda p, e, at: [Image.open(io.BytesIO(each)) for each in e],
}


@pytest.fixture(scope="module")
def expected_lens(clip, pictures):
    return fit(clip, pictures, [1], top=3, batch_size=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pictures_give_the_same_lens(
    kind, clip, pictures, encoded, expected_lens, tmp_path
):
    source = as_source(KINDS[kind](pictures, encoded, tmp_path / "at"))
    assert len(set(source.ids)) == COUNT
    lens = fit(clip, source, [1], top=3, batch_size=3)
    assert list(lens.image_ids) == list(source.ids)
    assert not lens.skipped
    for name, value in vars(expected_lens[1]).items():
        torch.testing.assert_close(getattr(lens[1], name), value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_sources_pickle_after_use_and_in_any_order(kind, pictures, encoded, tmp_path):
    source = as_source(KINDS[kind](pictures, encoded, tmp_path / "at"))
    source.load(3)
    other = source if kind == "lazy files" else pickle.loads(pickle.dumps(source))
    assert other.ids == source.ids
    for index in (COUNT - 1, 0, 4):
        assert np.array_equal(np.asarray(other.load(index)), np.asarray(pictures[index]))


# --- decoding ---


def rgb(data):
    return np.asarray(decode(io.BytesIO(data)))


def test_transparency_lies_over_white():
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (8, 9, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert abs(rgb(encode(Image.fromarray(pixels))) - expected).max() <= 1
    grey = np.ascontiguousarray(pixels[..., 2:])
    expected = (grey[..., :1] * alpha + 255 * (1 - alpha)).repeat(3, 2)
    assert abs(rgb(encode(Image.fromarray(grey))) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_entries_of_a_palette_are_white(kind):
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putpixel((2, 1), 0)
    found = rgb(encode(picture, kind, transparency=0))
    assert found[1, 2].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [200, 100, 0]
    assert rgb(encode(picture, kind))[1, 2].tolist() == [10, 20, 30]


def test_16_bit_grey_keeps_its_range():
    values = np.array([[0, 255, 256, 32768], [40000, 65280, 65534, 65535]], dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.array_equal(rgb(encode(Image.fromarray(values))), expected)
    assert np.array_equal(rgb(encode(Image.fromarray(values), "TIFF")), expected)
    pgm = b"P5 4 2 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(rgb(pgm), expected)


def test_other_modes():
    colours = Image.new("RGB", (8, 8), (40, 90, 200))
    for kind, mode in (("TIFF", "CMYK"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "1")):
        picture = colours.convert(mode)
        difference = rgb(encode(picture, kind)).astype(int) - np.asarray(picture.convert("RGB"))
        assert abs(difference).max() <= 3, (kind, mode)


def test_animations_are_their_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert (rgb(data) == [255, 0, 0]).all(), kind


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(pictures, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = rgb(encode(pictures[0], kind, exif=exif, **options))
    assert np.array_equal(found, TURNS[orientation](np.asarray(pictures[0])))


def test_damaged_exif_does_not_cost_the_picture(pictures):
    data = encode(pictures[0], "JPEG", exif=b"Exif\0\0rubbish that is no TIFF header at all")
    assert np.array_equal(rgb(data), rgb(encode(pictures[0], "JPEG")))


def test_pictures_in_memory_are_decoded_alike(clip, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encode(pictures[0], exif=exif)))
    see_through = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    (batch,) = Reader(source=InMemory([turned, see_through]), clip=clip)
    upright = ImageOps.exif_transpose(turned)
    assert upright.size == pictures[0].size[::-1]
    torch.testing.assert_close(batch.pixels[0], preprocess(upright))
    assert (batch.pixels[1] == 1).all()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


def broken():
    noise = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    jpeg = encode(Image.fromarray(noise), "JPEG")
    return {
        "empty.jpg": (b"", "it is empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "header.png": (encode(Image.fromarray(noise))[:20], "damaged"),
        "text.jpg": (b"not a picture", "no picture"),
        "page.jpg": (POSTSCRIPT, "no picture"),
        "bomb.png": (encode(Image.new("1", (120, 120))), "more than 10,000 pixels"),
        "line.png": (encode(Image.new("1", (1001, 1))), "too long and thin"),
        "float.tif": (encode(Image.new("F", (3, 3)), "TIFF"), "floats"),
        "deep.tif": (encode(Image.new("I", (3, 3), 70_000), "TIFF"), "beyond 16 bits"),
    }


@pytest.fixture
def small_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)


@pytest.mark.usefixtures("small_bombs")
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_skipped_with_a_reason(clip, encoded, tmp_path, workers):
    for name, (data, _) in broken().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    write_folder(tmp_path, encoded[:4])
    reader = Reader(source=Folder(tmp_path), clip=clip, batch_size=3, workers=workers)
    read = [reader.source.ids[i] for batch in reader for i in batch.positions]
    assert read == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/3.png"]
    assert reader.skipped.keys() == broken().keys() | {"gone.png"}
    for name, (_, reason) in broken().items():
        assert reason in reader.skipped[name], name
    assert reader.skipped["gone.png"] == "No such file or directory"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000"])
@settings(max_examples=40 * TIMES, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_any_damage_is_decoded_or_refused(kind, data):
    noise = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = bytearray(encode(Image.fromarray(noise), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    file = bytes(file[: data.draw(st.integers(0, len(file)))])
    # any other error, and any warning, fails the test
    with suppress(Unreadable):
        assert decode(io.BytesIO(file)).mode == "RGB"


# --- reading ---


def read(reader):
    return [(batch.positions, batch.pixels) for batch in reader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "folder of tars", "parquet", "generator"])
def test_readers_read_the_positions_they_are_given(
    kind, clip, pictures, encoded, tmp_path, workers
):
    source = as_source(KINDS[kind](pictures, encoded, tmp_path / "at"))
    # opened here, so that forked workers start from a source in use
    source.load(0)
    reader = Reader(
        source=source, clip=clip, batch_size=2, workers=workers, positions=range(1, COUNT - 1)
    )
    assert len(reader) == 3
    for _ in range(2):
        batches = read(reader)
        assert [positions for positions, _ in batches] == [[1, 2], [3, 4], [5]]
        for positions, pixels in batches:
            expected = torch.stack([preprocess(pictures[i]) for i in positions])
            torch.testing.assert_close(pixels, expected, rtol=0, atol=0)


def test_no_positions(clip, pictures):
    reader = Reader(source=InMemory(pictures), clip=clip, workers=2, positions=range(0))
    assert len(reader) == 0
    assert read(reader) == []


class Counting:
    """Says how many torch threads there are where it is read."""

    ids = ("a", "b")

    def load(self, index):
        raise ValueError(f"{torch.get_num_threads()} threads")


def test_workers_use_one_thread(clip):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here, there = (Reader(source=Counting(), clip=clip, workers=n) for n in (0, 1))
        assert read(here) == read(there) == []
    finally:
        torch.set_num_threads(threads)
    assert here.skipped == dict.fromkeys("ab", "ValueError: 2 threads")
    assert there.skipped == dict.fromkeys("ab", "ValueError: 1 threads")


@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_arrive_as_one_sentence(clip, pictures, workers):
    without = from_open_clip(tiny_model(), name="bare")
    uneven = from_open_clip(
        tiny_model(), name="uneven", preprocess=torchvision.transforms.ToTensor()
    )
    for reader, message in (
        (Reader(source=InMemory(pictures), clip=without, workers=workers), "preprocess="),
        (Reader(source=InMemory(pictures), clip=uneven, workers=workers), "different shapes"),
        (Reader(source=TorchDataset(np.zeros((3, 4))), clip=clip, workers=workers), "ndarray"),
    ):
        with pytest.raises(SecondLensError, match=message) as caught:
            read(reader)
        assert "\n" not in str(caught.value)


# --- folders ---


def test_image_folder_agrees_with_torchvision(encoded, tmp_path):
    write_folder(tmp_path, encoded)
    expected = torchvision.datasets.ImageFolder(tmp_path)
    source = ImageFolder(tmp_path)
    assert source.classes == expected.classes
    assert source.labels == expected.targets
    paths = [str(Path(path).relative_to(tmp_path)) for path, _ in expected.samples]
    assert source.ids == paths
    (tmp_path / "stray.png").write_bytes(encoded[0])
    with_stray = ImageFolder(tmp_path)
    assert with_stray.ids == paths
    assert with_stray.damaged == {"stray.png": "left out: it lies in no class folder"}
    with pytest.raises(SecondLensError, match="has no folders for classes"):
        ImageFolder(tmp_path / "cat")


def test_links_are_followed_once(encoded, tmp_path):
    write_folder(tmp_path / "real", encoded[:2])
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "a").symlink_to(tmp_path / "real" / "cat")
    (chosen / "b").symlink_to(tmp_path / "real" / "cat")
    (chosen / "back").symlink_to(chosen)
    (chosen / "self").symlink_to(chosen / "self")
    assert Folder(chosen).ids == ["a/0.png", "a/1.png"]


def test_what_cannot_be_listed_is_told(clip, encoded, tmp_path, monkeypatch):
    write_folder(tmp_path, encoded[:4])
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(encoded[0])
    scan = os.scandir

    def guarded(path):
        if isinstance(path, Path) and path.name == "cat":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    source = Folder(tmp_path)
    assert source.ids == ["dog/3.png"]
    reader = Reader(source=source, clip=clip)
    assert reader.skipped["cat/"] == "cannot be listed: Permission denied"
    assert any("not UTF-8" in reason for reason in reader.skipped.values())
    json.dumps(reader.skipped, ensure_ascii=False).encode()
    shutil.rmtree(tmp_path / "dog")
    with pytest.raises(SecondLensError, match="cannot be listed: Permission denied"):
        Folder(tmp_path)


# --- tar ---


def test_tar_agrees_with_webdataset(encoded, tmp_path):
    write_tars(tmp_path, encoded)
    shards = [str(path) for path in sorted(tmp_path.iterdir())]
    samples = []
    for shard in shards:
        with Path(shard).open("rb") as stream:
            files = webdataset.tariterators.tar_file_iterator(stream)
            named = ({**file, "__url__": shard} for file in files)
            samples += webdataset.tariterators.group_by_keys(named)
    source = Tar(tmp_path)
    assert source.ids == [each["__key__"] for each in samples]
    assert source.labels == [int(each["cls"]) for each in samples]
    assert source.captions == [each["txt"].decode() for each in samples]
    assert source.sizes() == [len(each["png"]) for each in samples]
    assert not source.damaged


@pytest.mark.parametrize("pattern", ["{000..003}", "{8..12}", "{08..12}", "a{0..1}b{2..3}c", "x"])
def test_brace_patterns_agree_with_webdataset(pattern, encoded, tmp_path):
    pattern = str(tmp_path / f"{pattern}.tar")
    expected = expand_urls(pattern)
    for path in expected:
        write_tar(Path(path), {f"{Path(path).stem}.png": encoded[0]})
    assert [str(path) for path in Tar(pattern).shards] == expected


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_json_of_other_kinds_says_nothing(encoded, tmp_path):
    files = {}
    for i, values in enumerate([["label"], "label", 5, None]):
        files |= {f"{i}.png": encoded[i], f"{i}.json": json.dumps(values).encode()}
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(SecondLensError, match=r"0 has no \.cls beside it, nor a \.json"):
        _ = Tar(tmp_path / "x.tar").labels


def test_annotations_from_json(encoded, tmp_path):
    annotations = [{"label": 4, "caption": "a"}, {"label": 5}]
    files = {}
    for i, each in enumerate(annotations):
        files |= {f"in.side/{i}.png": encoded[i], f"in.side/{i}.json": json.dumps(each).encode()}
    source = Tar(write_tar(tmp_path / "x.tar", files))
    assert source.ids == ["in.side/0", "in.side/1"]
    assert source.labels == [4, 5]
    with pytest.raises(SecondLensError, match=r"in.side/1 has no \.txt"):
        _ = source.captions
    write_tar(tmp_path / "y.tar", {"0.png": encoded[0], "0.cls": b"cat"})
    with pytest.raises(SecondLensError, match=r"whole numbers.*'cat'"):
        _ = Tar(tmp_path / "y.tar").labels
    write_tar(tmp_path / "y.tar", {"0.png": encoded[0], "0.txt": b"\xff", "0.json": b"{"})
    with pytest.raises(SecondLensError, match=r"0\.json in .*y\.tar is not JSON"):
        _ = Tar(tmp_path / "y.tar").labels
    with pytest.raises(SecondLensError, match=r"0\.txt in .*y\.tar is not a UTF-8 text"):
        _ = Tar(tmp_path / "y.tar").captions


def test_several_pictures_with_one_key(encoded, tmp_path):
    path = write_tar(tmp_path / "x.tar", {"0.png": encoded[0], "0.mask.png": encoded[1]})
    with pytest.raises(SecondLensError, match=r"x\.tar/0\.png and x\.tar/0\.mask\.png"):
        Tar(path)
    assert Tar(path, ids="name").ids == ["x.tar/0.png", "x.tar/0.mask.png"]
    masks = Tar(path, extension="mask.png")
    assert masks.ids == ["0"]
    assert np.array_equal(np.asarray(masks.load(0)), rgb(encoded[1]))


def test_shards_that_count_from_zero_each(encoded, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", {"0.png": encoded[0]})
    with pytest.raises(SecondLensError, match="id '0'"):
        Tar(str(tmp_path / "*" / "x.tar"), ids="key")
    for ids in (None, "name"):
        source = Tar(str(tmp_path / "*" / "x.tar"), ids=ids)
        assert source.ids == ["a/x.tar/0.png", "b/x.tar/0.png"]


def damaged_tars(encoded):
    """Name -> (how to damage an archive of five pictures, what can be read, and the reason)."""

    def place(path, number):
        with tarfile.open(path) as archive:
            return archive.getmembers()[number]

    def cut_inside(path):
        member = place(path, 3)
        os.truncate(path, member.offset_data + member.size // 2)

    def cut_between(path):
        os.truncate(path, place(path, 3).offset)

    def break_header(path):
        with path.open("r+b") as file:
            file.seek(place(path, 2).offset)
            file.write(b"\xff" * 512)

    def append_half(path):
        write_tar(path.with_name("more"), {"9.png": encoded[0]})
        os.truncate(path.with_name("more"), 512 + len(encoded[0]) // 2)
        with tarfile.open(path) as archive:
            end = archive.getmembers()[-1].offset_data + 512 * -(-len(encoded[4]) // 512)
        path.write_bytes(path.read_bytes()[: end + 1024] + path.with_name("more").read_bytes())

    return {
        "cut inside": (cut_inside, 3, "unexpected end of data"),
        "cut between": (cut_between, 3, "end is missing"),
        "broken header": (break_header, 2, "no file can be found behind byte"),
        "appended": (append_half, 5, "unexpected end of data"),
    }


@pytest.mark.parametrize("damage", ["cut inside", "cut between", "broken header", "appended"])
def test_a_damaged_tar_gives_what_is_before_the_damage(clip, encoded, tmp_path, damage):
    hurt, intact, reason = damaged_tars(encoded)[damage]
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": encoded[i] for i in range(5)})
    write_tar(tmp_path / "b.tar", {"z.png": encoded[5]})
    hurt(path)
    reader = Reader(source=as_source(tmp_path), clip=clip)
    found = [reader.source.ids[i] for batch in reader for i in batch.positions]
    assert found == [*map(str, range(intact)), "z"]
    assert reason in reader.skipped["a.tar"]
    if damage == "cut inside":
        assert "cut off" in reader.skipped["3"]


def test_no_tar_at_all(encoded, tmp_path):
    (tmp_path / "x.tar").write_bytes(encoded[0])
    with pytest.raises(SecondLensError, match=r"no pictures in .*; x\.tar: only"):
        as_source(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", {"notes.txt": b"nothing"})
    with pytest.raises(SecondLensError, match="no pictures in"):
        as_source(tmp_path / "x.tar")
    write_tar(tmp_path / "x-000.tar", {"0.png": encoded[0]})
    with pytest.raises(SecondLensError, match=r"no file .*x-001\.tar"):
        as_source(tmp_path / "x-{000..003}.tar")
    with pytest.raises(SecondLensError, match="counts backwards"):
        Tar("x-{3..1}.tar")


# --- Parquet ---


def test_row_groups_are_read_once_in_order(encoded, tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", encoded[:3])
    write_parquet(tmp_path / "b.parquet", encoded[3:])
    source = as_source(tmp_path)
    assert source.ids[2:5] == ["a.parquet/2", "b.parquet/0", "b.parquet/1"]
    groups = []
    read_group = Parquet._read
    monkeypatch.setattr(Parquet, "_read", lambda self, n: groups.append(n) or read_group(self, n))
    for i in range(COUNT):
        assert np.array_equal(np.asarray(source.load(i)), rgb(encoded[i]))
    assert groups == [0, 1, 2, 3]


def test_columns_beside_the_pictures(encoded, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", encoded[:3], raw=True, key=[7, 8, 9])
    source = Parquet(path, ids="key")
    assert source.ids == ["7", "8", "9"]
    assert source.values("caption") == ["no 0", "no 1", "no 2"]
    with pytest.raises(
        SecondLensError, match=r"no column 'nose': its columns are caption \(string"
    ):
        source.values("nose")


def test_which_column(encoded, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", encoded[:2], raw=True, thumb=[b"1", b"2"])
    with pytest.raises(SecondLensError, match="choose one of thumb, jpg with column="):
        Parquet(path)
    assert Parquet(path, column="jpg").load(1).size == decode(io.BytesIO(encoded[1])).size
    with pytest.raises(SecondLensError, match="no pictures in a column 'nose'"):
        Parquet(path, column="nose")
    pq.write_table(pa.table({"url": ["a"], "n": [1]}), path)
    with pytest.raises(
        SecondLensError, match=r"no column of pictures.*url \(string\), n \(int64\)"
    ):
        as_source(path)


def test_damage_in_parquet_files(clip, encoded, tmp_path):
    write_parquet(tmp_path / "whole.parquet", [*encoded[:2], None])
    cut = write_parquet(tmp_path / "cut.parquet", encoded[3:5])
    os.truncate(cut, cut.stat().st_size - 10)
    holed = write_parquet(tmp_path / "holed.parquet", encoded[3:6])
    start = pq.read_metadata(holed).row_group(0).column(1).data_page_offset
    with holed.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    reader = Reader(source=as_source(tmp_path), clip=clip)
    found = [reader.source.ids[i] for batch in reader for i in batch.positions]
    assert found == ["holed.parquet/2", "whole.parquet/0", "whole.parquet/1"]
    assert "no whole Parquet file" in reader.skipped["cut.parquet"]
    assert "row group 0 of its file is damaged" in reader.skipped["holed.parquet/1"]
    assert reader.skipped["whole.parquet/2"] == "No such file or directory"
    with pytest.raises(SecondLensError, match=r"column 'image' of .*holed\.parquet is damaged"):
        Parquet(holed).values("image")
    with pytest.raises(SecondLensError, match=r"no rows in .*cut\.parquet is no whole"):
        Parquet(cut)


# --- datasets ---


def test_hugging_face_columns(encoded):
    dataset = hugging_face(encoded)
    assert HuggingFace(dataset, ids="label").ids == [str(i) for i in range(COUNT)]
    assert HuggingFace(dataset.select([4, 2]), ids="label").ids == ["4", "2"]
    with pytest.raises(SecondLensError, match="no column 'key': choose from image, label"):
        HuggingFace(dataset, ids="key")
    with pytest.raises(SecondLensError, match="choose a column of pictures"):
        as_source(dataset.select_columns(["label"]))
    two = datasets.concatenate_datasets(
        [dataset, dataset.select_columns("image").rename_column("image", "mask")], axis=1
    )
    with pytest.raises(SecondLensError, match=r"choose a column .*\['image', 'mask'\]"):
        as_source(two)
    assert len(HuggingFace(two, column="image").ids) == COUNT


def test_hugging_face_splits(encoded, tmp_path):
    splits = datasets.DatasetDict(train=hugging_face(encoded), test=hugging_face(encoded[:2]))
    with pytest.raises(SecondLensError, match="mapping of train, test"):
        as_source(splits)
    splits.save_to_disk(tmp_path)
    with pytest.raises(SecondLensError, match="several splits: name one of train, test"):
        as_source(tmp_path)
    assert len(as_source(tmp_path / "test").ids) == 2
    next((tmp_path / "test").glob("*.arrow")).unlink()
    with pytest.raises(SecondLensError, match="damaged dataset"):
        as_source(tmp_path / "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_rows_that_name_files(clip, encoded, tmp_path, streaming):
    write_folder(tmp_path, encoded[:2])
    paths = [tmp_path / "cat" / "0.png", tmp_path / "gone.png", tmp_path / "cat" / "1.png"]
    dataset = datasets.Dataset.from_dict({"image": [*map(str, paths), None]})
    dataset = dataset.cast_column("image", datasets.Image())
    source = as_source(dataset.to_iterable_dataset() if streaming else dataset)
    reader = Reader(source=source, clip=clip)
    (batch,) = reader
    assert [source.ids[i] for i in batch.positions] == ["0", "2"]
    assert reader.skipped == {"1": "No such file or directory", "3": "it is empty"}


# --- streams ---


def test_streams_are_read_once_and_kept(pictures, caplog):
    reads = []

    def stream():
        for picture in pictures:
            reads.append(picture)
            yield picture

    with caplog.at_level(logging.INFO, logger="secondlens"):
        source = as_source(stream())
    assert [np.asarray(source.load(i)).tolist() for _ in range(2) for i in range(COUNT)] == [
        np.asarray(picture).tolist() for picture in pictures
    ] * 2
    assert len(reads) == COUNT
    (file,) = (path for path in Path(caplog.messages[0].split(" in ")[1].split(": ")[0]).iterdir())
    assert source.size == sum(source.sizes()) == file.stat().st_size
    assert f"{source.size} bytes" in caplog.messages[0]
    child = multiprocessing.get_context("fork").Process(
        target=source.__class__.sizes, args=(source,)
    )
    child.start()
    child.join()
    assert file.exists()
    copy = pickle.loads(pickle.dumps(source))
    del copy
    assert file.exists()
    del source
    assert not file.parent.exists()


def test_what_a_stream_cannot_keep_is_told(clip, pictures, encoded, tmp_path):
    cut = Image.open(io.BytesIO(encoded[1][: len(encoded[1]) // 2]))
    items = [("a", pictures[0]), ("b", cut), ("c", b""), ("d", tmp_path / "gone.png")]
    reader = Reader(source=as_source(iter(items)), clip=clip)
    assert [batch.positions for batch in reader] == [[0]]
    assert reader.source.ids == ["a", "c"]
    assert reader.skipped.keys() == {"b", "c", "d"}
    assert "truncated" in reader.skipped["b"]
    assert reader.skipped["c"] == "it is empty"


def test_streams_of_something_else(pictures, tmp_path):
    with pytest.raises(SecondLensError, match="item 1 is of the type dict"):
        as_source(iter([pictures[0], {"jpg": b""}]))
    with pytest.raises(SecondLensError, match=r"item 0 is \(Image, int\)"):
        as_source(iter([(pictures[0], 3)]))
    with pytest.raises(SecondLensError, match=r"no pictures.*read already"):
        as_source(iter([]))
    with pytest.raises(SecondLensError, match=r"kept in .*nowhere"):
        Spooled(iter(pictures), tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(encoded, tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(encoded[0]) + 10, old[1]))
    try:
        with pytest.raises(SecondLensError, match="picture 2 of the stream cannot be kept"):
            Spooled(iter(encoded), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())


# --- choosing and telling apart ---


def test_what_is_no_source(pictures, encoded, tmp_path):
    write_tars(tmp_path / "both", encoded)
    write_parquet(tmp_path / "both" / "x.parquet", encoded)
    (tmp_path / "one.png.txt").write_bytes(encoded[0])
    (tmp_path / "empty").mkdir()
    for images, message in (
        (tmp_path / "both", r"holds \.parquet and \.tar files"),
        (tmp_path / "one.png.txt", "is neither a picture nor a folder of pictures"),
        (["a.tar", "b.parquet"], r"no folder or file a\.tar"),
        (tmp_path / "empty", "no pictures"),
        (tmp_path / "nowhere", "no folder or file"),
        (tmp_path / "nowhere.tar", "no file"),
        (str(tmp_path / "*.parquet"), "no file"),
        ([], "no images"),
        ({"a": pictures[0]}, "mapping of a"),
        ([pictures[0], np.zeros(3)], "number 1 of the list is of the type ndarray"),
        ([("a", pictures[0]), ("a", pictures[1])], "two images have the id 'a'"),
        (3, "not int"),
    ):
        with pytest.raises(SecondLensError, match=message):
            as_source(images)
    with pytest.raises(SecondLensError, match=r"no \.tar file in"):
        Tar(tmp_path / "empty")
    assert len(as_source(f"{tmp_path}/both/*.tar").ids) == COUNT


def test_files_of_pictures_by_name(pictures, encoded, tmp_path):
    folder = write_folder(tmp_path / "a", encoded)
    whole = Folder(folder)
    files = [folder / each for each in whole.ids]
    for images in (files, [str(each) for each in files], str(folder / "*" / "*.png")):
        source = as_source(images)
        assert sorted(source.ids) == sorted(whole.ids)
        other = whole.load(whole.ids.index(source.ids[0]))
        assert np.array_equal(np.asarray(source.load(0)), np.asarray(other))
    assert as_source(files[0]).ids == [files[0].name]
    with pytest.raises(SecondLensError, match="no file"):
        as_source([files[0], folder / "gone.png"])


def test_the_hash_tells_sets_apart(pictures, encoded, tmp_path):
    first = dataset_hash(Folder(write_folder(tmp_path / "a", encoded)))
    write_folder(tmp_path / "b", encoded)
    os.utime(tmp_path / "b" / "cat" / "0.png", (1, 1))
    assert dataset_hash(Folder(tmp_path / "b")) == first
    (tmp_path / "b" / "cat" / "0.png").write_bytes(encoded[0] + b"x")
    assert dataset_hash(Folder(tmp_path / "b")) != first
    (tmp_path / "b" / "cat" / "0.png").unlink()
    assert dataset_hash(Folder(tmp_path / "b")) != first
    assert dataset_hash(InMemory(pictures)) != dataset_hash(InMemory(pictures[:-1]))
    assert dataset_hash(InMemory(pictures, list("abcdefg"))) != dataset_hash(InMemory(pictures))
    tar, table = (
        write_tars(tmp_path / "tar", encoded),
        write_parquet(tmp_path / "x.parquet", encoded),
    )
    for make, change in (
        (lambda: Tar(tar), lambda: write_tars(tar, [*encoded[:-1], encoded[0]])),
        (lambda: Parquet(table), lambda: write_parquet(table, [*encoded[:-1], encoded[0]])),
    ):
        before = dataset_hash(make())
        assert dataset_hash(make()) == before
        change()
        assert dataset_hash(make()) != before
    assert dataset_hash(Spooled(encoded)) == dataset_hash(Spooled(encoded)) != first


def test_a_subset_of_files_notices_that_files_change(encoded, tmp_path):
    folder = Folder(write_folder(tmp_path, encoded))
    some = Subset(folder, range(0, len(folder.ids), 2))
    assert some.ids == folder.ids[::2]
    assert some.load(1).tobytes() == folder.load(2).tobytes()
    before = dataset_hash(some)
    assert before == dataset_hash(Subset(Folder(tmp_path), some.positions))
    (tmp_path / folder.ids[0]).write_bytes(encoded[0] + b"x")
    assert dataset_hash(Subset(Folder(tmp_path), some.positions)) != before
    assert Subset(InMemory([Image.new("RGB", (4, 4))]), [0]).damaged == {}


def test_missing_libraries_are_named(tmp_path, monkeypatch, encoded):
    write_parquet(tmp_path / "x.parquet", encoded[:1])
    saved(tmp_path / "saved", encoded[:1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SecondLensError, match=r"pip install 'secondlens\[parquet\]'"):
        as_source(tmp_path / "x.parquet")
    with pytest.raises(SecondLensError, match=r"pip install 'secondlens\[datasets\]'"):
        as_source(tmp_path / "saved")


# --- the same pictures in Python as on the command line ---


@pytest.fixture
def taken(tmp_path):
    """Pictures as people have them: turned by EXIF, transparent, of 16 bits, in a palette."""
    scene = Image.effect_mandelbrot((96, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    scene.save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=95)
    clear = scene.convert("RGBA")
    clear.putalpha(scene.convert("L"))
    clear.save(tmp_path / "b.png")
    grey = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "c.png")
    scene.convert("P").save(tmp_path / "d.gif")
    return tmp_path


def test_pictures_are_the_same_however_they_are_given(clip, taken):
    files = sorted(taken.iterdir())
    (batch,) = Reader(source=Folder(taken), clip=clip)
    expected = clip.prepare(batch.pixels)
    with ExitStack() as stack:
        opened = [stack.enter_context(Image.open(each)) for each in files]
        for images in (
            taken,
            str(taken),
            files,
            [str(each) for each in files],
            opened,
            Folder(taken),
            zip([each.name for each in files], opened, strict=True),
        ):
            assert torch.equal(clip.prepare(images), expected)
        for file, image, row in zip(files, opened, expected, strict=True):
            for one in (file, str(file), image):
                assert torch.equal(clip.prepare(one), row[None])


def test_functions_take_what_names_pictures(taken):
    clip = from_open_clip(tiny_model(), preprocess, tiny_tokenizer)
    pixels = clip.prepare(taken)
    lens = sl.fit(clip, taken, [0], top=2)
    words = sl.vocabulary(["a", "b", "c"])
    mean = lens[0].activation_mean
    for function in (
        lambda images: sl.second_order(clip, images, 0),
        lambda images: sl.direct(clip, images, 0),
        lambda images: sl.indirect(clip, images, 0, [0], mean),
        lambda images: clip.encode_image(images),
        lambda images: sl.AblatedClip(clip, lens, {0: [0]}).encode_image(images),
    ):
        assert torch.equal(function(taken), function(pixels))
    assert len(sl.segment(clip, lens, str(taken), "a")) == 4
    file = taken / "a.jpg"
    named, seen = (sl.discover(clip, lens, each, 1, texts=words) for each in (file, pixels[0]))
    assert repr(named) == repr(seen)
    found = sl.discover(clip, lens, taken, 1, texts=words)
    assert len(found) == 4 and repr(found[as_source(taken).ids.index("a.jpg")]) == repr(named)


def test_a_picture_that_cannot_be_read_is_named(clip, taken):
    (taken / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SecondLensError, match=r"the picture 'broken\.png' cannot be used"):
        clip.prepare(taken)


def test_pictures_that_were_not_normalised_are_noticed():
    normalised = Compose([Resize((16, 16)), ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])
    pixels = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    clip = from_open_clip(tiny_model(), normalised)
    with pytest.warns(SecondLensWarning, match="look as if they were not normalised"):
        clip.encode_image(pixels)
    clip.encode_image((pixels - 0.5) / 0.25)
    raw = Compose([Resize((16, 16)), ToTensor()])
    from_open_clip(tiny_model(), raw).encode_image(pixels)  # as that model has them
