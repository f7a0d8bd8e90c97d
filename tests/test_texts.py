import pytest
import torch
import torch.nn.functional as F
from models import tiny_model, tiny_tokenizer

from secondlens.clip import from_open_clip
from secondlens.errors import SecondLensError
from secondlens.texts import normalise, vocabulary


@pytest.fixture
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


def test_a_file_gives_its_lines_once(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffship\r\n\r\n car \nship\nKüche\n".encode())
    words = vocabulary(path)
    assert words.name == "words"
    assert words.labels == ("ship", "car", "Küche")
    assert words.prompts == (("ship",), ("car",), ("Küche",))
    assert vocabulary(words) is words
    assert len(words) == 3


def test_templates_are_averaged(clip):
    words = vocabulary(["ship", "{}"], templates=["a {}", "{}!"])
    assert words.prompts == (("a ship", "ship!"), ("a {}", "{}!"))
    rows = clip.encode_text(["a ship", "ship!"])
    torch.testing.assert_close(words.embed(clip)[0], F.normalize(rows.mean(0), dim=0))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no texts"),
        (["  ", ""], {}, "no texts"),
        (["a"], {"templates": ["a photo"]}, "no {} where"),
        ("nowhere.txt", {}, "no file nowhere.txt"),
    ],
)
def test_vocabulary_refuses(texts, options, message):
    with pytest.raises(SecondLensError, match=message):
        vocabulary(texts, **options)


def test_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Küche".encode("latin-1"))
    with pytest.raises(SecondLensError, match="cannot be read as UTF-8"):
        vocabulary(path)


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
