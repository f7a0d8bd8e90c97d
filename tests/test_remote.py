"""Pictures and lenses in an object store: a real S3 server on this machine."""

import io
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engines import close
from models import tiny_model
from PIL import Image
from stores import put_pictures, s3
from test_fit import same

from secondlens.data.folder import Folder, StoredFolder
from secondlens.data.labelled import labelled, training_pictures
from secondlens.data.parquet import Parquet
from secondlens.data.reader import Reader
from secondlens.data.sources import as_source, dataset_hash
from secondlens.data.tar import Tar
from secondlens.engine.local import Local
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.storage import remote
from secondlens.storage.remote import Unreachable, location, opened

OPTIONS = {"layers": [1, 2], "top": 4, "batch_size": 3, "shard_size": 3, "store": "never"}


def preprocess(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=4), preprocess=preprocess, name="tiny")


def png(number):
    """An encoded picture whose first value is a number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server():
    with s3() as server:
        yield server


@pytest.fixture(autouse=True)
def mended(server):
    yield
    server.failing, server.after = 0, None


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoded(server, pictures):
    return put_pictures("s3://lab/photos/deeper", pictures)


@pytest.fixture(scope="module")
def expected(clip, encoded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    for number, content in enumerate(encoded):
        (folder / "deeper" / f"{number:02}.png").write_bytes(content)
    return fit(clip, folder, **OPTIONS)


@pytest.fixture
def impatient(monkeypatch):
    """The store's library gives up at once."""
    once = {"config_kwargs": {"retries": {"total_max_attempts": 1, "mode": "standard"}}}
    monkeypatch.setattr(remote, "OPTIONS", {"s3": once})
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    fsspec.filesystem("s3").clear_instance_cache()
    yield
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_folder_and_a_lens_in_a_store(clip, expected):
    lens = fit(clip, "s3://lab/photos", out="s3://lab/one", **OPTIONS)
    same(lens, expected)
    same(Lens.load("s3://lab/one"), expected)
    assert remote.names("s3://lab/one.unfinished") == set()
    assert not remote.names("s3://lab/one") & {"lens.json.partial"}
    with pytest.raises(SecondLensError, match="exists already"):
        fit(clip, "s3://lab/photos", out="s3://lab/one", **OPTIONS)
    with pytest.raises(SecondLensError, match="holds no lens"):
        Lens.load("s3://lab/photos")


def write_tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_tar_shards_in_a_store(clip, encoded, pictures, tmp_path):
    store = fsspec.filesystem("s3")
    names = [f"{n:02}.png" for n in range(len(encoded))]
    halves = [
        dict(zip(names[:6], encoded[:6], strict=True)),
        dict(zip(names[6:], encoded[6:], strict=True)),
    ]
    for number, half in enumerate(halves):
        store.pipe_file(f"lab/tars/{number}.tar", write_tar(half))
        (tmp_path / f"{number}.tar").write_bytes(write_tar(half))
    here = Tar(tmp_path)
    for name in ("s3://lab/tars", "s3://lab/tars/{0..1}.tar", "s3://lab/tars/*.tar"):
        source = as_source(name)
        assert isinstance(source, Tar)
        assert source.ids == here.ids and dataset_hash(source) == dataset_hash(here)
    assert all((np.array(source.load(n)) == pictures[n]).all() for n in range(11))
    store.pipe_file("lab/cut.tar", write_tar(halves[0])[:2000])
    assert set(Tar("s3://lab/cut.tar").damaged) == {"cut.tar"}
    with pytest.raises(SecondLensError, match="no file s3://lab/none"):
        Tar("s3://lab/none.tar")


def test_parquet_in_a_store(encoded, pictures, tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": encoded, "text": [f"number {n}" for n in range(11)]})
    parquet.write_table(table, tmp_path / "0.parquet", row_group_size=4)
    fsspec.filesystem("s3").put_file(str(tmp_path / "0.parquet"), "lab/tables/0.parquet")
    source, here = as_source("s3://lab/tables"), Parquet(tmp_path)
    assert isinstance(source, Parquet)
    assert source.ids == here.ids and dataset_hash(source) == dataset_hash(here)
    assert source.values("text")[3] == "number 3"
    assert all((np.array(source.load(n)) == pictures[n]).all() for n in (10, 0, 5))
    fsspec.filesystem("s3").pipe_file("lab/cut.parquet", b"PAR1 no more")
    with pytest.raises(SecondLensError, match="no whole Parquet file"):
        Parquet("s3://lab/cut.parquet")


def test_processes_that_decode_from_a_store(clip, encoded):
    """A forked process has connections of its own."""
    source = as_source("s3://lab/photos")
    one, two = (
        torch.cat([b.pixels for b in Reader(source=source, clip=clip, batch_size=4, workers=n)])
        for n in (0, 2)
    )
    assert torch.equal(one, two)


def labelled_folders(root, splits=("train", "val")):
    """Pictures of two classes in each split; the first values of one tell its class."""
    store = fsspec.filesystem("s3")
    for split in splits:
        for label, name in enumerate(("bee", "ant")):
            for number in range(2):
                picture = Image.new("RGB", (4, 4), (label, number, len(split)))
                file = io.BytesIO()
                picture.save(file, "PNG")
                store.pipe_file(f"{root}/{split}/{name}/{number}.png", file.getvalue())


def test_labelled_class_folders_in_a_store(server):
    labelled_folders("s3://lab/set")
    found = labelled("s3://lab/set/")
    assert found.name == "set validation"
    assert found.classes.labels == ("ant", "bee")
    shown = [found.source.load(i).getpixel((0, 0)) for i in range(4)]
    assert [("bee", "ant")[red] for red, *_ in shown] == ["ant", "ant", "bee", "bee"]
    assert [found.classes.labels[label] for label in found.labels] == ["ant", "ant", "bee", "bee"]
    assert {blue for *_, blue in shown} == {len("val")}
    training = training_pictures("s3://lab/set")
    assert training.ids == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]
    assert training.load(0).getpixel((0, 0))[2] == len("train")
    assert labelled("s3://lab/set/train").name == "set train"
    labelled_folders("s3://lab/half", ["train"])
    with pytest.raises(SecondLensError, match="has no folder val: add one, or name s3://lab/half/"):
        labelled("s3://lab/half")
    with pytest.raises(SecondLensError, match="there is no folder s3://lab/none with labelled"):
        labelled("s3://lab/none")


def test_labelled_archives_in_a_store(server, tmp_path):
    store = fsspec.filesystem("s3")
    for split, count in (("train", 3), ("validation", 2)):
        names = [f"{split}-{n}" for n in range(count)]
        cells = [{"bytes": png(number), "path": each} for number, each in enumerate(names)]
        labels = [("ant", "bee")[n % 2] for n in range(count)]
        pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "x.parquet")
        store.put_file(str(tmp_path / "x.parquet"), f"s3://lab/hub/data/{split}-0.parquet")
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for number, (name, label) in enumerate(zip(names, labels, strict=True)):
                for kind, content in (("png", png(number)), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{name}.{kind}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        store.put_file(str(tmp_path / "x.tar"), f"s3://lab/shards/set-{split}-0.tar")
    for root in ("s3://lab/hub", "s3://lab/hub/data", "s3://lab/shards"):
        found = labelled(root)
        assert [found.classes.labels[label] for label in found.labels] == ["ant", "bee"]
        assert found.source.load(1).getpixel((0, 0))[0] == 1
        assert len(training_pictures(root).ids) == 3
    assert len(labelled("s3://lab/hub/data/train-0.parquet")) == 3


def test_files_in_a_store_read_as_others_do(server):
    content = bytes(range(256)) * 9000
    fsspec.filesystem("s3").pipe_file("lab/bytes", content)
    with opened(location("s3://lab/bytes")) as file:
        assert file.read(5) == content[:5]
        assert file.seek(-7, io.SEEK_END) == len(content) - 7
        assert file.read() == content[-7:] and file.read(1) == b""
        assert file.seek(100) == 100 and file.seek(2, io.SEEK_CUR) == 102
        assert file.read(2**20 + 5) == content[102 : 102 + 2**20 + 5]


@pytest.mark.long
def test_a_store_that_fails_for_a_while(server, clip, expected):
    """The library asks again; nothing is lost, and nothing counts as broken."""
    server.fail(3, after=lambda method, path: path.endswith("05.png"))
    lens = fit(clip, "s3://lab/photos", out="s3://lab/two", **OPTIONS)
    assert server.after is None and server.failing == 0
    same(lens, expected)
    assert not lens.skipped


@pytest.mark.parametrize("place", ["05.png", "means-0-00002.json", "top-images-0-00001.json"])
def test_a_store_that_is_down_ends_a_fit_which_goes_on_later(
    server, clip, expected, impatient, place
):
    out = f"s3://lab/{place.partition('.')[0]}"
    server.fail(10**9, after=lambda method, path: path.endswith(place))
    with pytest.raises(Unreachable, match="cannot be reached"):
        fit(clip, "s3://lab/photos", out=out, **OPTIONS)
    server.fail(0)
    server.requests.clear()
    lens = fit(clip, "s3://lab/photos", out=out, **OPTIONS)
    again = sum(path.endswith("00.png") for _, path in server.requests)
    assert again == (0 if place.startswith("top") else 1), "finished shards are not read again"
    same(lens, expected)


def test_a_picture_that_is_gone_is_skipped(server, clip, pictures):
    put_pictures("s3://lab/short", pictures[:5])
    source = StoredFolder("s3://lab/short")
    fsspec.filesystem("s3").rm_file("lab/short/03.png")
    lens = fit(clip, source, **OPTIONS)
    assert lens.image_ids == ("00.png", "01.png", "02.png", "04.png")
    assert set(lens.skipped) == {"03.png"}


def test_what_is_no_place():
    with pytest.raises(SecondLensError, match="cannot be opened"):
        as_source("nowhere://bucket/photos")
    with pytest.raises(SecondLensError, match="no folder or file s3://lab/none"):
        as_source("s3://lab/none")


def test_local_addresses(clip, encoded, expected, tmp_path):
    """file:// goes through the same code as stores do."""
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for number, content in enumerate(encoded):
        (tmp_path / "photos" / "deeper" / f"{number:02}.png").write_bytes(content)
    out = f"file://{tmp_path}/lens"
    same(fit(clip, f"file://{tmp_path}/photos", out=out, **OPTIONS), expected)
    same(Lens.load(tmp_path / "lens"), expected)
    assert Folder(tmp_path / "photos").ids == StoredFolder(f"file://{tmp_path}/photos").ids


@pytest.mark.long
def test_processes_share_a_folder_in_a_store(server, clip, expected):
    engine = Local(workers=2)
    close(fit(clip, "s3://lab/photos", out="s3://lab/many", engine=engine, **OPTIONS), expected)
