"""The page on which people check the pictures under names, answered with keys."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import serve
from explored import NAMED_ON
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from secondlens.intervals import wilson
from secondlens.report.checking import write_check


@pytest.fixture(scope="module")
def address(explored, tmp_path_factory):
    clip, _, lens, *_ = explored
    folder = tmp_path_factory.mktemp("check")
    assert write_check(folder / "check.html", clip, lens.first_names, NAMED_ON, count=5) == 5
    url, stop = serve(Starlette(routes=[Mount("/", StaticFiles(directory=folder))]))
    yield url + "check.html"
    stop()


def test_keys_answer_and_the_interval_is_wilsons(page, address):
    page.goto(address)
    said = page.locator("#so-far")
    expect(said).to_have_text("5 to go.")
    texts = []
    for key in "ynyb":
        texts.append(page.locator(".asked:visible h2").inner_text())
        page.keyboard.press(key)
    low, high = (f"{100 * end:.0f} %" for end in wilson(1, 2))
    expect(said).to_have_text(f"1 of 2 hold their word: 50 % [{low}, {high}], 3 to go.")
    expect(page.locator(".asked:visible h2")).to_have_text(texts[2])
    page.get_by_role("button", name="Yes").click()
    page.keyboard.press("n")
    page.keyboard.press("y")
    low, high = (f"{100 * end:.0f} %" for end in wilson(3, 5))
    expect(said).to_have_text(f"3 of 5 hold their word: 60 % [{low}, {high}]. That was all.")
    expect(page.get_by_role("button", name="Yes")).to_be_disabled()
    rows = page.locator("#answers").input_value().splitlines()
    assert rows[0] == "layer,neuron,name,picture,holds"
    assert [row.rsplit(",", 1)[1] for row in rows[1:]] == ["true", "false", "true", "false", "true"]
    page.keyboard.press("b")
    expect(page.locator("#answers")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_accessible(page, address, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(width)
    assert Axe().run(page).response["violations"] == []
