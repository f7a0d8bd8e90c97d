"""The page on which people check the pictures under names."""

import re
from html import unescape

import pytest
from explored import HOSTILE, NAMED_ON, Pictures, make

from secondlens.errors import SecondLensError
from secondlens.intervals import wilson
from secondlens.report.checking import CHECKED, write_check


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    clip, _, lens, *_ = made
    path = tmp_path_factory.mktemp("check") / "check.html"
    count = write_check(path, clip, lens.first_names, NAMED_ON)
    return path.read_text(encoding="utf-8"), count


def asked(html):
    row = r'data-layer="(\d+)" data-neuron="(\d+)" data-picture="(.*?)" data-text="(.*?)" hidden'
    return [(int(a), int(b), unescape(c), unescape(d)) for a, b, c, d in re.findall(row, html)]


def test_what_is_asked_stands_under_the_names_and_nothing_twice(made, page):
    names = made[2].first_names
    html, count = page
    rows = asked(html)
    under = {
        (layer, neuron, picture, each.text)
        for layer, texts in names.texts.items()
        for neuron in range(len(texts))
        for each in names.of(layer, neuron)
        for picture in each.pictures
    }
    assert count == len(rows) == len(under) < CHECKED
    assert set(rows) == under
    assert len({row[2:] for row in rows}) == len(rows)


def test_the_page_is_whole_and_hostile_texts_stay_texts(page):
    html, count = page
    assert html.count("data:image/webp") == count
    assert not re.search(r"https?:|@import|<img|fetch\(", html)
    assert all(text not in html for text in HOSTILE[:3])


def test_the_draw_is_random_and_repeatable(made, tmp_path):
    clip, _, lens, *_ = made
    drawn = []
    for seed in (0, 0, 1):
        write_check(tmp_path / "a.html", clip, lens.first_names, NAMED_ON, count=4, seed=seed)
        drawn.append(asked((tmp_path / "a.html").read_text(encoding="utf-8")))
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1] != drawn[2]


def test_fifty_right_ones_say_what_is_promised():
    assert wilson(CHECKED, CHECKED)[0] > 0.92


def test_refusals(made, tmp_path):
    clip, _, lens, *_ = made
    names = lens.first_names
    with pytest.raises(SecondLensError, match="which the neurons were named on: give the pictures"):
        write_check(tmp_path / "a.html", clip, names, Pictures())
    nothing = {n: each.new_full(each.shape, -1) for n, each in names.texts.items()}
    object.__setattr__(empty := type(names)(**vars(names)), "texts", nothing)
    with pytest.raises(SecondLensError, match="there is nothing to check"):
        write_check(tmp_path / "a.html", clip, empty, NAMED_ON)
    assert not (tmp_path / "a.html").exists()
