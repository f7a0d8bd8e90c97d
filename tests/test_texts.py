import sys

import pyarrow
import pytest
import torch
import torch.nn.functional as F
from models import tiny_model, tiny_tokenizer
from open_clip import IMAGENET_CLASSNAMES
from pyarrow import parquet
from wordfreq import zipf_frequency

from secondlens.data import embedding
from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip

MANY = tuple(f"{a}{b}" for a in "abcde" for b in "vwxyz")


@pytest.fixture
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


def test_a_file_gives_its_lines_once(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffship\r\n\r\n car \nship\nKüche\rline\u2028separator\n".encode())
    words = vocabulary(path)
    assert words.name == "words"
    assert words.labels == ("ship", "car", "Küche", "line\u2028separator")
    assert words.prompts == (("ship",), ("car",), ("Küche",), ("line\u2028separator",))
    assert vocabulary(words) is words
    assert vocabulary(str(path)) == words
    assert len(words) == 4


def test_templates_are_averaged(clip):
    words = vocabulary(["ship", "{}"], templates=["a {}", "{}!"])
    assert words.prompts == (("a ship", "ship!"), ("a {}", "{}!"))
    rows = clip.encode_text(["a ship", "ship!"])
    torch.testing.assert_close(words.embed(clip)[0], F.normalize(rows.mean(0), dim=0))


def test_a_vocabulary_takes_other_templates_and_another_name():
    words = vocabulary(vocabulary("world"), templates=["{}?"], name="asked")
    assert words.name == "asked"
    assert words.prompts[0] == (f"{words.labels[0]}?",)


def test_csv_column(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(
        '\ufeffid,text\r\n1,"a ship, at sea"\r\n2,\r\n3\r\n4,"two\nlines"\r\n'.encode()
    )
    words = vocabulary(f"{path}:text")
    assert words.name == "table:text"
    assert words.labels == ("a ship, at sea", "two\nlines")


def test_parquet_column(tmp_path):
    path = tmp_path / "table.parquet"
    columns = {"text": ["ship", None, "car", "ship"], "number": [1, 2, 3, 4]}
    parquet.write_table(pyarrow.table(columns), path)
    assert vocabulary(f"{path}:text").labels == ("ship", "car")
    with pytest.raises(SecondLensError, match=r"'number' of .* holds no texts"):
        vocabulary(f"{path}:number")
    with pytest.raises(SecondLensError, match="no column 'words': name one of text, number"):
        vocabulary(f"{path}:words")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "table.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SecondLensError, match=r"pip install 'secondlens\[parquet\]'"):
        vocabulary(f"{tmp_path}/table.parquet:text")


@pytest.mark.parametrize(("name", "count"), [("english-10k", 10_000), ("english-30k", 30_000)])
def test_english_words(name, count):
    words = vocabulary(name)
    assert words.name == name
    assert len(set(words.labels)) == len(words) == count
    assert [word for word in words.labels if len(word) == 1] == ["a", "i"]
    assert all(word.replace("'", "").isalpha() and word.isascii() for word in words.labels)
    assert {"dog", "don't", "the"} <= set(words.labels)
    frequencies = [zipf_frequency(word, "en") for word in words.labels]
    assert frequencies == sorted(frequencies, reverse=True)
    missed = [w for w in ("ship", "whale", "snow", "guitar") if w not in words.labels]
    assert not missed, "a common word was dropped"


def test_english_without_wordfreq(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(SecondLensError, match=r"pip install 'secondlens\[words\]'"):
        vocabulary("english-10k")


def test_imagenet_and_world():
    classes = vocabulary("imagenet")
    assert classes.labels == tuple(IMAGENET_CLASSNAMES)
    assert classes.prompts[1][0] == "a bad photo of a goldfish."
    assert {len(prompts) for prompts in classes.prompts} == {80}
    assert {"ship", "snow", "red"} <= set(vocabulary("world").labels)


def test_a_file_goes_before_a_builtin_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert len(vocabulary("imagenet")) == 1000
    (tmp_path / "world").write_text("one\n")
    assert vocabulary("world").labels == ("one",)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no texts in texts"),
        (["  ", ""], {}, "no texts in texts"),
        (["a"], {"templates": ["a photo"]}, "no {} where"),
        (["a"], {"templates": []}, "no templates"),
        ("nowhere.txt", {}, "no file nowhere.txt"),
        ("a ship, a car, " * 30, {}, "no vocabulary of that name: name a text file"),
        ("english-20k", {}, r"no file english-20k .* \(did you mean english-30k, english-10k"),
        ("nowhere.csv:text", {}, "no file nowhere.csv"),
    ],
)
def test_vocabulary_refuses(texts, options, message):
    with pytest.raises(SecondLensError, match=message) as error:
        vocabulary(texts, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "Küche".encode("latin-1"), "cannot be read as UTF-8"),
        ("empty.txt", b"\n\n", "no texts in empty"),
        ("table.csv", b"text\nship\n", "table.csv is a table: name a column"),
        ("table.csv:words", b"text\nship\n", "no column 'words': name one of text"),
        ("empty.csv:words", b"", "no column 'words': name one of none"),
        ("latin.csv:a", "a\nKüche".encode("latin-1"), "cannot be read as CSV"),
        ("huge.csv:a", b"a\n" + 200_000 * b"x", "cannot be read as CSV"),
        ("bad.parquet:a", b"PAR1 and more", "cannot be read as Parquet"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(SecondLensError, match=message):
        vocabulary(tmp_path / name)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """A model whose embeddings are kept on disk, and the prompts that it has embedded."""
    monkeypatch.setenv("SECONDLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedding, "TEXTS_PER_BATCH", 10)
    seen = []

    def tokenizer(texts):
        seen.extend(texts)
        return tiny_tokenizer(texts)

    return from_open_clip(tiny_model(), tokenizer=tokenizer, name="tiny"), seen


def test_embeddings_are_kept(counted, clip, tmp_path):
    model, seen = counted
    words = vocabulary(MANY, templates=["{}", "a {}"])
    rows = words.embed(model)
    assert len(seen) == 50
    torch.testing.assert_close(words.embed(model), rows, rtol=0, atol=0)
    assert len(seen) == 50
    expected = [F.normalize(clip.encode_text([m, f"a {m}"]).mean(0), dim=0) for m in MANY]
    torch.testing.assert_close(rows, torch.stack(expected))
    vocabulary(MANY).embed(model)
    assert len(seen) == 75, "other prompts have rows of their own"
    vocabulary(MANY[:10]).embed(model)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2, "a single batch is not worth a file"
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"quick_gelu": True}])
def test_another_model_has_rows_of_its_own(counted, change):
    model, _ = counted
    other = from_open_clip(tiny_model(**change), tokenizer=tiny_tokenizer, name="tiny")
    words = vocabulary(MANY)
    words.embed(model)
    torch.testing.assert_close(words.embed(other), other.encode_text(MANY))
    assert (words.embed(other) - words.embed(model)).abs().max() > 1e-3


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_damaged_file_is_made_again(counted, tmp_path, damage):
    model, seen = counted
    words = vocabulary(MANY)
    rows = words.embed(model)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] if damage is None else damage)
    torch.testing.assert_close(words.embed(model), rows)
    assert len(seen) == 50
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_left_out(counted, tmp_path, monkeypatch):
    model, seen = counted
    (tmp_path / "file").touch()
    monkeypatch.setenv("SECONDLENS_CACHE", str(tmp_path / "file"))
    assert vocabulary(MANY).embed(model).shape == (25, 12)
    assert len(seen) == 25


def test_prompts_without_their_ends_are_counted(counted):
    """Seven letters and the mark of the end fill the context of the tiny model."""
    model, _ = counted
    assert vocabulary(["abcdefg", "one two", "x"]).embed(model).shape == (3, 12)
    long = vocabulary([*MANY, "abcdefgh", "a b c d e", "abcdefg"])
    for _ in ("embedded", "kept"):
        with pytest.warns(UserWarning, match="2 of 28 prompts are longer than the context of tiny"):
            long.embed(model)


def test_normalisations():
    texts = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) + 3
    centred = texts - texts.mean(0)
    torch.testing.assert_close(normalise(texts, "unit"), texts / texts.norm(dim=1, keepdim=True))
    torch.testing.assert_close(
        normalise(texts, "centred"), centred / centred.norm(dim=1, keepdim=True)
    )
    torch.testing.assert_close(normalise(texts, "official"), 100 * centred / centred.norm(dim=0))
    with pytest.raises(SecondLensError, match="no normalisation 'l2'"):
        normalise(texts, "l2")
