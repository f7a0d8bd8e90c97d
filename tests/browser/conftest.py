"""A real browser, and the explorer running behind it as a user runs it."""

import shutil
import socket
import threading
import time

import pytest
import uvicorn
from explored import NAMED_ON, make, write_runs
from playwright.sync_api import sync_playwright
from scale import PATIENCE

from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.export import export
from secondlens.explorer.live import Live
from secondlens.explorer.pages import Pages
from secondlens.explorer.runs import load_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("the browser tests need Chromium: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def explored():
    return make()


def serve(app):
    """Serve on a free port of this machine until the returned function is called."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop():
        server.should_exit = True
        thread.join()

    return f"http://127.0.0.1:{port}/", stop


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder)
    return load_runs([folder])


@pytest.fixture(scope="session")
def live_url(explored, runs):
    clip, pictures, lens, seen, layout = explored
    atlas = Atlas(lens, seen, layout)
    live = Live(clip=clip, atlas=atlas, source=pictures, named_on=NAMED_ON)
    app = make_app(Pages(atlas, live=True, beside=True, runs=runs), live, make_app(Pages(atlas)))
    url, stop = serve(app)
    yield url
    stop()


@pytest.fixture(scope="session")
def static_url(explored, runs, tmp_path_factory):
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    _, _, lens, seen, layout = explored
    out = tmp_path_factory.mktemp("site") / "explorer"
    export(Atlas(lens, seen, layout), out, runs=runs)
    files = StaticFiles(directory=out, html=True)
    # not at the root, as static hosts often have it
    url, stop = serve(Starlette(routes=[Mount("/some/where", files)]))
    yield url + "some/where/"
    stop()


@pytest.fixture(params=[1280, 390])
def page(browser, request):
    """A page that must stay free of errors and of requests to anyone else."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    wrong = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))

    def asked(ask):
        if not ask.url.startswith(("http://127.0.0.1:", "blob:", "data:")):
            wrong.append(ask.url)

    page.on("request", asked)
    yield page
    context.close()
    assert wrong == []
