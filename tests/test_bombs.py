"""Files that say they are larger than memory, or become so: refused or listed, in little memory."""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image

import secondlens as sl
from secondlens.data.decoding import LARGEST_FILE, Unreadable, decode
from secondlens.data.parquet import Parquet
from secondlens.data.tar import Tar
from secondlens.data.vocabularies import vocabulary
from secondlens.storage.files import LARGEST_JSON, read_json


def png(size=(20, 20)):
    body = io.BytesIO()
    Image.new("RGB", size).save(body, "png")
    return body.getvalue()


def padded(content):
    return content + b"\0" * (-len(content) % 512)


def header(name, size, kind=b"0", format=tarfile.GNU_FORMAT):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(format, errors="surrogateescape")


def signed(block):
    """A header with the checksum of its content."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def of_size(number):
    block = bytearray(header("b.png", 0))
    block[124:136] = (number % 2**96).to_bytes(12, "big")
    return signed(block)


def pax(key, value):
    record = b" " + key + b"=" + value + b"\n"
    length = len(record) + 1
    while len(str(length)) + len(record) != length:
        length = len(str(length)) + len(record)
    body = str(length).encode() + record
    return header("pax", len(body), b"x") + padded(body)


GOOD = header("a.png", len(png())) + padded(png())
NEXT = header("b.png", len(png())) + padded(png())
END = bytes(1024)


@pytest.mark.parametrize(
    "second",
    [
        header("b.png", 2**62) + padded(png()),
        of_size(-1),
        of_size(-512),
        of_size(-(2**40)),
        pax(b"size", b"9" * 30) + NEXT,
        pax(b"size", b"-5") + NEXT,
        pax(b"GNU.sparse.size", b"9" * 17) + NEXT,
        pax(b"path", b"\xff\xfe.png") + NEXT,
        header("pax", 2**62, b"x"),
        header("long", 2**62, b"L"),
        header(b"\xff\xfe.png".decode(errors="surrogateescape"), len(png())) + padded(png()),
    ],
)
def test_members_that_cannot_be(tmp_path, second):
    (tmp_path / "a.tar").write_bytes(GOOD + second + END)
    found = Tar(tmp_path / "a.tar")
    assert found.ids == ["a"]
    assert found.damaged
    assert all("\n" not in why and each.isprintable() for each, why in found.damaged.items())
    assert found.load(0).size == (20, 20)


def test_absurd_numbers_of_no_consequence(tmp_path):
    for key, value in ((b"mtime", b"9e999"), (b"uid", b"9" * 5000), (b"hdrcharset", b"BINARY")):
        (tmp_path / "a.tar").write_bytes(GOOD + pax(key, value) + NEXT + END)
        assert Tar(tmp_path / "a.tar").ids == ["a", "b"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"label": 1' + "0" * 5000 + "}", "{"])
def test_notes_that_cannot_be_read(tmp_path, content):
    note = header("a.json", len(content)) + padded(content.encode())
    (tmp_path / "a.tar").write_bytes(GOOD + note + END)
    with pytest.raises(sl.SecondLensError):
        print(Tar(tmp_path / "a.tar").labels)


def test_rows_that_cannot_be(tmp_path, monkeypatch):
    pq.write_table(pyarrow.table({"image": [png()]}), tmp_path / "a.parquet")
    monkeypatch.setattr("secondlens.data.parquet.INFLATION", 0)
    with pytest.raises(sl.SecondLensError, match="is said to have 1 rows in"):
        Parquet(tmp_path / "a.parquet")


def test_pictures_that_would_be_large():
    body = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(body, "png")
    assert len(body.getvalue()) < 100_000
    with pytest.raises(Unreadable, match="it has more than 89,478,485 pixels"):
        decode(body)


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import secondlens as sl
from secondlens.data.sources import as_source
from secondlens.data.vocabularies import vocabulary
from secondlens.storage.files import read_json
for name in sys.argv[1:]:
    try:
        if name.endswith(".json"):
            read_json(name)
        elif ":" in name or name.endswith(".txt"):
            vocabulary(name)
        else:
            source = as_source(name)
            for index in range(2):
                source.load(index)
        print("read")
    except (sl.SecondLensError, ValueError) as error:
        print(type(error).__name__, str(error)[:200].replace(chr(10), " "))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_gigabytes_from_little(tmp_path):
    """Each would take tens of gigabytes; the process may have six, address space counted."""
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    with (hollow / "a.png").open("wb") as file:
        file.write(png())
        file.truncate(2**36)
    for name in ("a.json", "a.txt", "a.csv"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**36)
    # one picture of four megabytes, told of by each of thirty thousand rows
    encoded = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 30_000, pyarrow.int32()), pyarrow.array([os.urandom(2**18) * 16])
    )
    dense = pyarrow.table({"image": encoded}).cast(
        pyarrow.schema({"image": pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())})
    )
    pq.write_table(dense, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array(["x" * 2**20])
    )
    pq.write_table(
        pyarrow.table({"t": texts}), tmp_path / "b.parquet", compression="zstd", store_schema=False
    )
    names = ["a.json", "a.txt", "a.csv:x", "a.parquet", "b.parquet:t", "hollow"]
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)),
    )
    *said, used = done.stdout.splitlines()
    assert len(said) == len(names), done.stderr
    assert not [each for each in said if each == "read"], said
    assert int(used) < 2**31, said


def test_what_is_just_too_long(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 100}))
    monkeypatch.setattr("secondlens.storage.files.LARGEST_JSON", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.txt").write_text("word\n" * 100)
    monkeypatch.setattr("secondlens.data.vocabularies.LARGEST_LIST", 100)
    with pytest.raises(sl.SecondLensError, match="more than 100 bytes"):
        vocabulary(tmp_path / "a.txt")
    assert LARGEST_JSON < LARGEST_FILE
