"""Whatever is written is the old or the new, stopped after any operation on files."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from crashing import crashes
from models import tiny_images, tiny_model, tiny_tokenizer
from outputs import leftovers

import secondlens as sl
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(layers=3), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def described(clip, tmp_path_factory):
    """A lens in a folder, over all paths too, described with two vocabularies."""
    folder = tmp_path_factory.mktemp("described") / "lens"
    lens = sl.fit(clip, tiny_images(clip, 8), top=2, paths="all", axes=clip.dim)
    for name, texts in {"first": ["a", "b", "c"], "second": ["d", "e", "f"]}.items():
        sl.describe(clip, lens, sl.vocabulary(texts, name=name), 2)
    lens.save(folder)
    return folder


def state(folder):
    """What a lens says, in a form that can be compared."""
    return said(lens := Lens.load(folder)), lens.all_paths and said(lens.all_paths)


def said(lens):
    return (
        lens.model,
        lens.image_ids,
        {n: lens[n].directions.tolist() for n in lens.layers},
        {
            name: (codes.labels, {n: each.tolist() for n, each in codes.indices.items()})
            for name, codes in lens.codes.items()
        },
    )


def other_words(clip, folder):
    """The same name for other texts: codes of one under the words of the other would be a lie."""
    lens = Lens.load(folder)
    sl.describe(clip, lens, sl.vocabulary(["z", "y", "x", "w"], name="first"), 3)
    lens.save(folder)


def one_more(clip, folder):
    lens = Lens.load(folder)
    sl.describe(clip, lens, sl.vocabulary(["u", "v"], name="third"), 1)
    lens.save(folder)


def one_less(clip, folder):
    lens = Lens.load(folder)
    lens.codes.pop("first", None)
    lens.save(folder)


def words_over_all_paths(clip, folder):
    lens = Lens.load(folder)
    sl.describe(clip, lens.over("all"), sl.vocabulary(["u", "v"], name="third"), 1)
    lens.save(folder)


def another_lens(clip, folder):
    sl.fit(clip, tiny_images(clip, 6, seed=4), [1], top=2).save(folder)


@pytest.mark.parametrize(
    "change",
    [
        one_less,
        other_words,
        pytest.param(one_more, marks=pytest.mark.long),
        pytest.param(words_over_all_paths, marks=pytest.mark.long),
        pytest.param(another_lens, marks=pytest.mark.long),
    ],
)
def test_a_lens_is_the_old_or_the_new_one(clip, described, tmp_path, change):
    place = tmp_path / "work" / "lens"
    shutil.copytree(described, place)
    with crashes(place.parent, tmp_path) as states:
        change(clip, place)
    old, new = state(described), state(place)
    assert old != new
    seen = []
    for each in states:
        found = state(each / "lens")
        assert found in (old, new), each.name
        seen.append(found == new)
        change(clip, each / "lens")  # goes on, or does it once more
        assert state(each / "lens") == new
        assert not leftovers(each)
    assert seen == sorted(seen) and not seen[0] and seen[-1]  # one moment from which it is new


OVER_ALL_PATHS = {"paths": "all", "axes": 12, "layers": [1]}


@pytest.mark.parametrize("over", [{}, pytest.param(OVER_ALL_PATHS, marks=pytest.mark.long)])
def test_a_fit_goes_on_wherever_it_was_stopped(clip, tmp_path, over):
    images = tiny_images(clip, 8)
    expected = sl.fit(clip, images, top=2, **over)
    (tmp_path / "work").mkdir()
    stops = 0

    def work(folder):
        sl.fit(clip, images, top=2, out=folder / "lens", shard_size=3, **over)

    with crashes(tmp_path / "work", tmp_path) as states:
        work(tmp_path / "work")
    for each in states:
        place = each / "lens"
        if (place / "lens.json").exists():
            found = Lens.load(place)
            with pytest.raises(sl.SecondLensError, match="holds a finished lens"):
                work(each)
        else:
            stops += 1
            work(each)
            found = Lens.load(place)
        for paths in ("value", "all") if over else ("value",):
            one, other = found.over(paths), expected.over(paths)
            for layer in expected.layers:
                torch.testing.assert_close(one[layer].directions, other[layer].directions)
                assert torch.equal(one[layer].top_images, other[layer].top_images)
        assert not Path(f"{place}.unfinished").exists()
    assert stops > 10


def test_a_lens_that_changed_since_it_was_read_is_not_overwritten(clip, described, tmp_path):
    place = tmp_path / "lens"
    shutil.copytree(described, place)
    mine = Lens.load(place)
    one_less(clip, place)
    with pytest.raises(sl.SecondLensError, match="changed since it was read: load it again"):
        mine.save(place)
    mine.save(tmp_path / "elsewhere")
    assert state(tmp_path / "elsewhere") == state(described)


def test_what_did_not_change_is_not_written_again(clip, described, tmp_path):
    place = tmp_path / "lens"
    shutil.copytree(described, place)
    before = {path.name: path.stat().st_ino for path in place.iterdir()}
    one_more(clip, place)
    after = {path.name: path.stat().st_ino for path in place.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        "lens.json",
        "codes-02.safetensors",
    }


def test_a_lens_that_is_written_while_it_is_read_is_read_anew(clip, described, tmp_path):
    place = tmp_path / "lens"
    shutil.copytree(described, place)
    folder = import_module("secondlens.lens.folder")
    load, left = folder.load_tensors, [1]

    def slow(path):
        if left:
            left.pop()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(folder, "load_tensors", load)
                other_words(clip, place)
        return load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "load_tensors", slow)
        found = Lens.load(place)
    assert found.codes["first"].labels == ("z", "y", "x", "w")
    assert found.codes["first"].indices[0].max() < 4
