"""Every page and interaction of the explorer in a real browser, on a desk and on a phone."""

import csv
import json
import re
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import serve
from explored import TWO, WORDS
from playwright.sync_api import expect

from secondlens.effects.attention_reasons import why_attention
from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.pages import Pages
from secondlens.formatting import number
from secondlens.lens.names import NO_NAME
from secondlens.words.describing import describe

PATHS = [
    *("", "neurons/", "layer/1/", "neuron/0/5/", "map/", "search/?q=word%20b", "how/"),
    *("image/", "image/?at=3", "compare/?a=0.5&b=1.7", "compare/?a=0&b=1", "lists/", "runs/"),
    *("runs/?run=0", "runs/?run=1", "runs/?run=2", "compare/"),
]
AXE = Axe()


READY = """() => [...document.querySelectorAll("main > div[id]")]
    .every(e => e.childElementCount > (e.id === "neuron"))
    && ![...document.querySelectorAll(".message")].some(e => e.textContent.endsWith("…"))"""
"""Whether the scripts of a page have drawn what it shows, and wait for no answer. The page of a
neuron comes with its heading."""


def go(page, url):
    page.goto(url)
    page.wait_for_function(READY)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_are_accessible(page, live_url, path, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    go(page, live_url + path)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    found = AXE.run(page).response["violations"]
    serious = [
        (each["id"], [node["target"] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("path", PATHS)
def test_static_pages_work_without_a_model(page, static_url, path):
    go(page, static_url + path)
    expect(page.locator("h1")).not_to_be_empty()
    expect(page.locator(".message.wrong")).to_have_count(0)


def test_neuron_page_shows_what_the_lens_knows(page, live_url, explored):
    go(page, live_url + f"neuron/1/{TWO}/")
    lens = explored[2]
    expect(page.locator("h1")).to_have_text(lens.title(1, TWO))
    for i, name in enumerate(lens.fires_on(1, TWO)):
        own = page.locator("#names .holding > div").nth(i)
        expect(own.locator("h3")).to_contain_text(name.text)
        expect(own.locator("h3")).to_contain_text(f"{name.held} of its {lens.first_names.shown}")
        expect(own.locator(".shots li")).to_have_count(min(4, len(name.pictures)))
    go(page, live_url + "neuron/0/5/")
    expect(page.locator("h1")).to_have_text(NO_NAME)
    expect(page.locator("#names")).to_contain_text("No reliable name")
    for text, _ in lens.codes["texts"].words(0, 5, 3):
        expect(page.locator("#vocabulary, .word").filter(has_text=text).first).to_be_visible()
    expect(page.locator("#wall .shots").first.locator("li")).to_have_count(6)
    expect(page.locator(".matrix button")).to_have_count(6)
    expect(page.locator(".band")).to_have_count(5)
    loaded = "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).length"
    assert page.evaluate(loaded) == 0


def test_word_slider_recomputes_the_code(page, live_url):
    go(page, live_url + "neuron/0/5/")
    bars = page.locator(".words").first.locator("li")
    expect(bars).to_have_count(8)
    all_of_them = float(page.locator("#cosine").inner_text())
    page.locator("#size").fill("1")
    expect(bars).to_have_count(1)
    one = float(page.locator("#cosine").inner_text())
    assert 0 < one < all_of_them <= 1


def test_without_a_survey_only_the_match_of_all_texts_is_known(page, explored):
    clip, _, lens, _, _ = explored
    longer = replace(lens, codes={})
    describe(clip, longer, WORDS, 12)
    whole = float(longer.codes["texts"].cosine[0][5])
    url, stop = serve(make_app(Pages(Atlas(longer))))
    try:
        go(page, url + "neuron/0/5/")
        expect(page.locator(".words").first.locator("li")).to_have_count(8)
        expect(page.locator("#cosine")).to_be_hidden()
        expect(page.get_by_text(f"All 12 texts: {number(whole)}.")).to_be_visible()
    finally:
        stop()


def test_modes_of_the_wall_are_addresses(page, live_url):
    go(page, live_url + "neuron/0/5/")
    page.get_by_role("button", name="Activation", exact=True).click()
    expect(page.locator("#wall h3")).to_have_text("Fires most on")
    expect(page).to_have_url(re.compile("by=activation"))
    page.reload()
    expect(page.locator("#wall h3")).to_have_text("Fires most on")
    page.get_by_role("button", name="Along a text").click()
    page.get_by_label("Text to rank images along").fill("word b")
    page.get_by_role("button", name="Rank").click()
    expect(page.locator("#wall h3").first).to_contain_text("Most towards")
    values = page.locator("#wall .shots").first.locator("small").all_inner_texts()
    numbers = [float(v.replace("−", "-")) for v in values]
    assert numbers == sorted(numbers, reverse=True)


def test_a_head_filters_the_images(page, live_url):
    go(page, live_url + "neuron/0/5/")
    cells = page.locator(".matrix button")
    cells.nth(2).click()
    paths = page.locator("#wall .shots li").evaluate_all("all => all.map(e => e.dataset.path)")
    dim = page.locator("#wall .shots li.dim")
    expect(dim).to_have_count(sum(path != "2" for path in paths))
    expect(cells.nth(2)).to_have_attribute("aria-pressed", "true")
    cells.nth(2).click()
    expect(dim).to_have_count(0)
    go(page, live_url + "neuron/0/5/?by=text&text=word%20b")
    expect(page.locator("#wall .shots li").first).to_be_visible()
    cells.nth(2).click()
    expect(page.locator(".message", has_text="by effect or activation")).to_be_visible()
    expect(dim).to_have_count(0)


def test_overlay_key_checkbox_and_opacity(page, live_url):
    go(page, live_url + "neuron/0/5/")
    canvas = page.locator(".shot canvas").first

    def opacity():
        return canvas.evaluate("e => getComputedStyle(e).opacity")

    page.emulate_media(reduced_motion="reduce")
    assert float(opacity()) == pytest.approx(0.6)
    expect(page.get_by_text("opacity", exact=True)).to_be_visible()
    page.get_by_label("Opacity of the heat map").fill("40")
    assert float(opacity()) == pytest.approx(0.4)
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("o")
    assert float(opacity()) == 0
    expect(page.locator("#overlay")).not_to_be_checked()
    page.locator("#overlay").check()
    assert float(opacity()) == pytest.approx(0.4)


def test_arrow_keys_search_and_help(page, live_url):
    go(page, live_url + "neuron/0/5/")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/neuron/0/6/")
    page.wait_for_function(READY)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/neuron/0/5/")
    page.wait_for_function(READY)
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_url("**/neuron/1/5/")
    page.wait_for_function(READY)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("previous and next neuron")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    page.keyboard.type("word b")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search/?q=word+b")
    expect(page.locator("#search .card")).to_have_count(3)
    expect(page.locator("#search .card").first.locator("li")).to_have_count(1)


def test_every_number_tells_how_it_is_computed(page, live_url):
    go(page, live_url + "how/")
    sections = set(page.locator("section.how").evaluate_all("all => all.map(e => e.id)"))
    assert page.locator("section.how").count() == page.locator("section.how:has(.eq)").count()
    for path in ("", "neuron/0/5/", "neurons/", "layer/1/", "image/?at=3", "search/?q=a", "map/"):
        go(page, live_url + path)
        keys = set(page.locator("[data-how]").evaluate_all("all => all.map(e => e.dataset.how)"))
        assert keys and keys <= sections
    go(page, live_url + "neuron/0/5/")
    page.locator("[data-how=selectivity]").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".eq")).to_contain_text("Σ")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_table_sorts_filters_and_remembers(page, live_url):
    go(page, live_url + "neurons/")
    expect(page.get_by_role("status").first).to_have_text("96 neurons")
    page.locator("[data-sort=selectivity]").click()
    shown = page.locator("tbody tr td:nth-child(5)").all_inner_texts()
    numbers = [float(text) for text in shown]
    assert numbers == sorted(numbers, reverse=True)
    page.locator("[data-sort=selectivity]").click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_count(1)
    page.get_by_label("Filter by word").fill("word b")
    rows = page.locator("tbody tr")
    for row in rows.all():
        fires, pushes = (row.locator(f"td:nth-child({i})").inner_text() for i in (2, 3))
        assert "word b" in f"{fires} {pushes}"
    page.reload()
    expect(page.get_by_label("Filter by word")).to_have_value("word b")
    page.get_by_label("Filter by word").fill("")
    page.get_by_label("Layer").select_option("1")
    expect(page.get_by_role("status").first).to_have_text("48 neurons")
    page.get_by_label("Layer").select_option("")
    page.get_by_role("button", name="Next →").click()
    expect(page).to_have_url(re.compile("page=2"))
    expect(rows).to_have_count(46)


def test_marks_are_listed_and_exported(page, live_url, tmp_path):
    go(page, live_url + "neuron/0/5/")
    page.keyboard.press("m")
    expect(page.locator("#mark")).to_have_text("★ Marked")
    go(page, live_url + "neuron/1/7/")
    page.locator("#mark").click()
    go(page, live_url + "lists/")
    expect(page.locator("#lists li")).to_have_count(2)
    for kind in ("json", "csv"):
        with page.expect_download() as started:
            page.locator(f"#{kind}").click()
        started.value.save_as(tmp_path / kind)
    listed = json.loads((tmp_path / "json").read_text())
    assert [(each["layer"], each["neuron"]) for each in listed] == [(0, 5), (1, 7)]
    lines = (tmp_path / "csv").read_bytes().split(b"\r\n")
    assert lines[0] == b"layer,neuron,name" and lines[2].startswith(b"1,7,") and lines[3] == b""
    page.get_by_label("Unmark L0 #5").click()
    expect(page.locator("#lists li")).to_have_count(1)


def test_names_that_look_like_formulas_are_text_in_spreadsheets(page, live_url, tmp_path):
    go(page, live_url + "lists/")
    marks = [{"layer": 0, "neuron": 5, "name": '=1+1, "a"'}]
    page.evaluate("text => localStorage.setItem('secondlens-marks', text)", json.dumps(marks))
    go(page, live_url + "lists/")
    with page.expect_download() as started:
        page.locator("#csv").click()
    started.value.save_as(tmp_path / "marked.csv")
    with (tmp_path / "marked.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1] == ["0", "5", '\'=1+1, "a"']


def test_lasso_lists_neurons(page, live_url):
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 1100})
    go(page, live_url + "map/")
    box = page.locator(".map canvas").bounding_box()
    left, top = box["x"] + 3, box["y"] + 3
    right, bottom = box["x"] + box["width"] - 3, box["y"] + box["height"] - 3
    page.mouse.move(left, (top + bottom) / 2)  # not in a corner: they are round
    page.mouse.down()
    for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    expect(page.locator(".map section h2")).to_contain_text("96 neurons")
    page.locator("#mark-all").click()
    go(page, live_url + "lists/")
    expect(page.locator("#lists li")).to_have_count(96)


def test_image_page_patches_concepts_and_segmentation(page, live_url):
    go(page, live_url + "image/?at=3")
    patches = page.locator(".patches button")
    expect(patches).to_have_count(6)
    patches.nth(4).click()
    expect(page.locator("#patch h2")).to_contain_text("row 2, column 2")
    assert page.locator("#patch li").count() > 0
    patches.nth(4).press("ArrowLeft")
    expect(patches.nth(3)).to_be_focused()
    page.get_by_label("Text to find").fill("word a")
    page.get_by_label("Second text").fill("word b")
    page.get_by_role("button", name="Find").click()
    status = page.locator("#segment ~ div .message")
    expect(status).to_contain_text("word a:")
    before = status.inner_text()
    page.locator("#threshold").fill("99")
    expect(status).not_to_have_text(before)


def test_why_a_head_looked_there_by_keys_alone(page, live_url, explored):
    clip, pictures, *_ = explored
    go(page, live_url + "image/?at=3")
    card = page.locator("#looked")
    card.get_by_label("Layer of the head").select_option("2")
    card.get_by_label("Head", exact=True).select_option("1")
    card.get_by_role("button", name="Look", exact=True).press("Enter")
    row = why_attention(clip, [pictures.load(3)], 2, 1)
    score = card.locator("#score")
    expect(score).to_have_text(number(row.score))
    expect(page.locator(".picture canvas.heat")).to_have_count(1)
    patches = page.locator(".patches button")
    patches.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(patches.nth(3)).to_have_attribute("aria-pressed", "true")
    there = why_attention(clip, [pictures.load(3)], 2, 1, 4, contrast=True)
    expect(score).to_have_text(number(there.score))
    expect(card.get_by_text("at row 2, column 1.")).to_be_visible()
    first = there.pairs(1)[0]
    expect(card.locator(".rows a").first).to_have_attribute(
        "href", f"../neuron/{first.query[0]}/{first.query[1]}/"
    )
    card.get_by_label("and not elsewhere").press("Space")
    plain = why_attention(clip, [pictures.load(3)], 2, 1, 4)
    expect(score).to_have_text(number(plain.score))
    card.get_by_label("Layer of the head").select_option("0")
    expect(card.get_by_text("reads no neurons")).to_be_visible()
    card.get_by_role("button", name="The whole row").press("Enter")
    expect(card.get_by_label("and not elsewhere")).to_be_hidden()
    expect(page.locator(".patches [aria-pressed=true]")).to_have_count(0)
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(width) <= 0
    found = AXE.run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_without_a_model_it_is_said_once_that_attention_is_not_shown(page, static_url):
    go(page, static_url + "image/?at=3")
    expect(page.get_by_text("not where heads look in them")).to_have_count(1)
    expect(page.locator("#looked")).to_have_count(0)


def test_a_picture_of_ones_own(page, live_url, tmp_path):
    from PIL import Image

    Image.new("RGB", (50, 30), "orange").save(tmp_path / "own.png")
    (tmp_path / "no.png").write_text("no picture")
    go(page, live_url + "image/")
    page.locator("#file").set_input_files(tmp_path / "own.png")
    expect(page.locator(".patches button")).to_have_count(6)


def test_comparing_with_the_lens_beside(page, live_url):
    go(page, live_url + "compare/?a=0.5")
    expect(page.locator(".two > div")).to_have_count(1)
    page.locator("#b").fill("beside:0.5")
    page.get_by_role("button", name="Compare").click()
    columns = page.locator(".two > div")
    expect(columns).to_have_count(2)
    assert (
        columns.nth(0).locator(".facts").inner_text()
        == columns.nth(1).locator(".facts").inner_text()
    )
    expect(page).to_have_url(re.compile("b=beside%3A0.5"))
    page.locator("#b").fill("nonsense")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".message.wrong")).to_contain_text("is no reference")


def test_comparing_nothing_shows_an_example(page, live_url):
    go(page, live_url + "compare/")
    page.get_by_role("link", name="1.0 beside 1.1").click()
    expect(page.locator(".two > div")).to_have_count(2)


def test_runs_show_words_pictures_and_matrix(page, live_url):
    go(page, live_url + "runs/")
    page.get_by_role("link", name="dog → deer").click()
    expect(page.locator(".pair img")).to_have_count(2)
    expect(page.get_by_text("a dog and <b>snow</b>").first).to_be_visible()
    go(page, live_url + "runs/")
    page.get_by_role("link", name="audit:").click()
    expect(page.locator(".heat td")).to_have_count(4)
    go(page, live_url + "runs/")
    page.get_by_role("link", name="defence:").click()
    expect(page.locator(".curve circle")).to_have_count(3)


def test_effect_budget_is_measured(page, live_url):
    go(page, live_url + "neuron/0/5/")
    page.locator("#budget").click()
    expect(page.get_by_text("Cosine of all of it")).to_be_visible()


def test_static_neuron_is_the_live_one(page, live_url, static_url):
    texts = []
    for url in (live_url, static_url):
        go(page, url + "neuron/1/7/")
        expect(page.locator(".matrix")).to_be_visible()
        texts.append([page.locator(part).inner_text() for part in ("h1", ".facts", "#names")])
    assert texts[0] == texts[1]
    go(page, static_url + "search/?q=word%20b")
    expect(page.locator("#search .card")).to_have_count(3)
    for unknown in ("zebra", "constructor"):  # the second is a name that all objects know
        go(page, static_url + f"search/?q={unknown}")
        expect(page.locator("#search .message")).to_contain_text("No model is running")


def test_keyboard_reaches_everything(page, live_url):
    go(page, live_url + "neuron/0/5/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
