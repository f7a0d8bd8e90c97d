"""The explorer under pressure: other sites, other names, crowds, slow clients, files that go."""

import asyncio
import gzip
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest
import uvicorn
from explored import make, write_runs
from fastapi.testclient import TestClient
from PIL import Image
from scale import PATIENCE

from secondlens.errors import SecondLensError
from secondlens.explorer import safety
from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.export import export
from secondlens.explorer.live import Live
from secondlens.explorer.opening import open_lens
from secondlens.explorer.pages import Pages
from secondlens.explorer.runs import load_runs
from secondlens.explorer.safety import LITERAL, LOOPBACK, QUEUE, Busy, WorkQueue, served_names


def finished(coroutine):
    """What it gives, run in a thread: a browser of other tests may have left a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture
def live(made):
    clip, pictures, lens, seen, layout = made
    return Live(clip=clip, atlas=Atlas(lens, seen, layout), source=pictures)


@pytest.fixture
def app(live):
    beside = make_app(Pages(live.atlas, live=True), live)
    return make_app(Pages(live.atlas, live=True, beside=True), live, beside)


# -- other sites -------------------------------------------------------------------------------

LIVE = [
    ("GET", "/live/search?text=a"),
    ("GET", "/live/wall/0/3?text=a"),
    ("GET", "/live/budget/0/3"),
    ("HEAD", "/live/search?text=a"),
    ("POST", "/live/image?at=3"),
    ("POST", "/live/segment?text=a&at=3"),
    ("GET", "/beside/live/search?text=a"),
]
ELSEWHERE = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "http://127.0.0.1@evil.example"},
]
HERE = [
    {},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "same-origin", "origin": "https://public.example"},
    {"sec-fetch-site": "none"},
    {"origin": "http://127.0.0.1"},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_pages_of_other_sites_are_refused(app, headers):
    client = TestClient(app, base_url="http://127.0.0.1")
    for method, path in LIVE:
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert answer.headers["content-security-policy"]
        if method != "HEAD":
            assert answer.json()["detail"].startswith("a page of another site")
    for path in ("/", "/neuron/0/5/", "/data/neuron/0/5.json"):  # a link may lead here
        assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", HERE)
def test_own_pages_and_programs_are_answered(app, headers):
    client = TestClient(app, base_url="http://127.0.0.1")
    for method, path in LIVE:
        assert client.request(method, path, headers=headers).status_code == 200, (method, path)


def test_several_origins_are_none_of_ours(app):
    client = TestClient(app, base_url="http://127.0.0.1")
    twice = [("origin", "http://127.0.0.1"), ("origin", "https://evil.example")]
    assert client.get("/live/search?text=a", headers=twice).status_code == 403


def test_later_routes_are_guarded_too(app):
    """By one middleware, whoever adds them."""
    app.get("/live/new")(lambda: "new")
    app.post("/anything")(lambda: "new")
    app.delete("/anything")(lambda: "new")
    client = TestClient(app, base_url="http://127.0.0.1")
    for method, path in (("GET", "/live/new"), ("POST", "/anything"), ("DELETE", "/anything")):
        assert client.request(method, path).status_code == 200
        for headers in ELSEWHERE:
            assert client.request(method, path, headers=headers).status_code == 403


def test_behind_a_proxy_the_public_name_counts(live):
    app = make_app(Pages(live.atlas, live=True), live, address="https://clip.example/neurons")
    client = TestClient(app, base_url="http://10.0.0.7")
    for origin, status in (("https://clip.example", 200), ("https://evil.example", 403)):
        assert client.get("/live/search?text=a", headers={"origin": origin}).status_code == status


# -- other names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listening", "address", "answered", "refused"),
    [
        (
            "127.0.0.1",
            "",
            ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:8000", "localhost.", "[::1]",
             "[::1]:8000", "127.9.9.9", "[0:0:0:0:0:0:0:1]:1", "[::ffff:127.0.0.1]:1"],
            ["evil.example", "10.0.0.7", "localhost.evil.example", "", "[::2]", "a@localhost",
             "localhost:x", "::1", "evil.example:127.0.0.1", "[::ffff:10.0.0.1]"],
        ),
        ("::1", "", ["[::1]:8000", "localhost", "127.0.0.1"], ["evil.example", "[::2]"]),
        ("127.0.0.1", "https://clip.example/x", ["clip.example", "localhost"], ["evil.example"]),
        (
            "0.0.0.0",
            "https://clip.example:8443",
            ["clip.example", "CLIP.example:8443", "10.0.0.7:7860", "[2001:db8::1]", "localhost"],
            ["evil.example", "clip.example.evil.example", "xclip.example"],
        ),
        ("0.0.0.0", "", ["any.example", "10.0.0.7"], []),
    ],
)  # fmt: skip
def test_names_that_are_answered(live, listening, address, answered, refused):
    app = make_app(Pages(live.atlas), hosts=served_names(listening, address))
    client = TestClient(app)
    for host in answered:
        assert client.get("/", headers={"host": host}).status_code == 200, host
    for host in refused:
        assert client.get("/", headers={"host": host}).status_code == 400, host


def test_no_host_and_two_hosts():
    for hosts in (LOOPBACK, LITERAL):
        guard = safety.HostGuard(lambda *_: None, hosts)
        scope = {"type": "http", "headers": [(b"host", b"localhost")]}
        assert guard._knows(scope)
        assert not guard._knows({"headers": []})
        assert not guard._knows({"headers": scope["headers"] * 2})


# -- crowds ------------------------------------------------------------------------------------


@contextmanager
def serving(app):
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Slow:
    """In place of what a model does: it counts, and takes its time."""

    def __init__(self, seconds):
        self.seconds, self.texts, self.now, self.most = seconds, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, text):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.texts.append(text)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return {"text": text}


async def asked(address, paths, **options):
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client:
        return await asyncio.gather(*(client.get(path, **options) for path in paths))


def test_a_hundred_costly_requests_and_light_pages_meanwhile(app, live, monkeypatch, tmp_path):
    slow = Slow(0.05)
    monkeypatch.setattr(live, "search", slow)
    before = psutil.Process().memory_info().rss
    with serving(app) as address:
        httpx.get(address + "/neuron/0/5/")

        async def both():
            costly = asyncio.create_task(
                asked(address, [f"/live/search?text={i}" for i in range(100)])
            )
            await asyncio.sleep(0.1)
            times = []
            async with httpx.AsyncClient(base_url=address) as client:
                light = ("/", "/neuron/0/5/", "/data/neuron/0/5.json", "/pictures/3.webp")
                for path in light * 10:
                    start = time.perf_counter()
                    assert (await client.get(path)).status_code == 200
                    times.append(time.perf_counter() - start)
            return await costly, times

        answers, times = finished(both())
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 503}
    assert QUEUE <= codes.count(200) < 60
    assert slow.most == 1
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] and "too many wait" in refused.json()["detail"]
    assert statistics.quantiles(times, n=20)[-1] < 0.2
    assert psutil.Process().memory_info().rss < before + 50e6


def test_costly_previews_wait_too(app, monkeypatch):
    slow = Slow(0.05)
    monkeypatch.setattr("secondlens.explorer.app.preview", lambda *place: slow(place) and b"png")
    with serving(app) as address:
        answers = finished(asked(address, ["/preview/0/5.png"] * 60))
    assert {answer.status_code for answer in answers} == {200, 503}
    assert slow.most == 1


def test_who_hangs_up_is_not_worked_for(app, live, monkeypatch):
    slow = Slow(0.6)
    monkeypatch.setattr(live, "search", slow)
    with serving(app) as address:

        async def impatient():
            first = asyncio.create_task(asked(address, ["/live/search?text=first"]))
            await asyncio.sleep(0.2)
            others = [
                asyncio.create_task(asked(address, [f"/live/search?text=gone{i}"]))
                for i in range(10)
            ]
            await asyncio.sleep(0.1)
            for each in others:
                each.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            last = await asked(address, ["/live/search?text=last"])
            return await first + last

        assert [answer.status_code for answer in finished(impatient())] == [200, 200]
    assert slow.texts == ["first", "last"]


def test_a_queue_gives_its_place_back():
    """Also where work fails, and where one who waits is cancelled as its turn comes."""
    queue = WorkQueue()

    async def use():
        def fail():
            raise SecondLensError("no")

        for _ in range(3):
            with pytest.raises(SecondLensError, match="no"):
                await queue.do(None, fail)
        async with queue.turn(None):
            waiting = [asyncio.create_task(queue.do(None, lambda: 1)) for _ in range(QUEUE)]
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="try again"):
                await queue.do(None, lambda: 1)
            for each in waiting[::2]:
                each.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert done[1::2] == [1] * (QUEUE // 2)
        assert await queue.do(None, lambda: 2) == 2

    finished(use())


def upload(address, sent, length=100_000):
    """A connection on which an upload has begun."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /live/image HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_a_pause_ends_an_upload_and_others_pass(app, monkeypatch):
    monkeypatch.setattr(safety, "LONGEST_PAUSE", 0.5)
    picture = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(picture, "png")
    with serving(app) as address:
        slow = [upload(address, b"x" * 10) for _ in range(safety.UPLOADS + 20)]
        answer = httpx.post(address + "/live/image", content=picture.getvalue(), timeout=PATIENCE)
        assert answer.status_code == 200  # after the slow ones were given up
        for each in slow:
            each.settimeout(PATIENCE)
            assert b" 400 " in each.recv(100)
            each.close()


def test_uploads_that_wait_are_whole(app, monkeypatch):
    """Looking whether a client is still there must not take parts of its picture."""
    pictures = []
    for side in range(40):
        picture = io.BytesIO()
        Image.effect_noise((200 + side, 200), 90).save(picture, "png")
        pictures.append(picture.getvalue())
    with serving(app) as address:

        async def many():
            async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client:
                sent = (client.post("/live/image", content=each) for each in pictures)
                return await asyncio.gather(*sent)

        codes = {answer.status_code for answer in finished(many())}
    assert codes <= {200, 503} and 200 in codes


# -- the end -----------------------------------------------------------------------------------


@pytest.fixture
def saved(made, tmp_path):
    _, _, lens, seen, layout = made
    lens.save(tmp_path / "lens")
    seen.save(tmp_path / "lens" / "explorer")
    layout.save(tmp_path / "lens" / "explorer" / "layout.safetensors", lens)
    return tmp_path / "lens"


SERVING = """
import sys
from unittest.mock import patch
from explored import tiny_clip
from secondlens.commands.group import main

with patch("secondlens.models.loading.load", lambda name, **weights: tiny_clip()):
    main(["explore", sys.argv[1], "--model", "hf:tiny", "--port", sys.argv[2]])
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
@pytest.mark.parametrize("patience", [PATIENCE, 5])
def test_told_to_end_it_ends_while_uploads_crawl(saved, patience):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])  # noqa: PTH120
    server = subprocess.Popen(
        [sys.executable, "-c", SERVING, saved, str(port)],
        env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(address)
            break
        except httpx.TransportError:
            assert server.poll() is None
            time.sleep(0.1)
    crawling = [upload(address, b"x") for _ in range(3)]
    time.sleep(0.3)
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(patience)
    finally:
        server.kill()
    assert "Traceback" not in server.communicate()[1]
    for each in crawling:
        each.close()


# -- files that change or go -------------------------------------------------------------------

ALL = ["/", "/neuron/1/7/", "/data/neuron/0/5.json", "/pictures/3.webp", "/data/map.json.gz",
       "/live/search?text=a", "/live/budget/0/3", "/layer/1/", "/preview/0/5.png"]  # fmt: skip


@pytest.mark.parametrize("how", ["gone", "cut", "zeros", "another"])
def test_a_lens_that_changes_while_it_is_served(made, saved, how):
    clip, pictures, *_ = made
    atlas, live = open_lens(saved, clip, pictures)
    client = TestClient(make_app(Pages(atlas, live=True), live), base_url="http://127.0.0.1")
    before = [client.get(path).content for path in ALL]
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 6
    if how == "gone":
        shutil.rmtree(saved)
    for path in files:
        if how == "cut":
            os.truncate(path, 10)
        elif how == "zeros":
            with path.open("r+b") as file:
                file.write(b"\0" * path.stat().st_size)
        elif how == "another":
            path.write_bytes(path.read_bytes()[::-1])
    assert [client.get(path).content for path in ALL] == before
    fresh = TestClient(make_app(Pages(atlas, live=True), live), base_url="http://127.0.0.1")
    assert [fresh.get(path).content for path in ALL] == before


# -- pictures of runs --------------------------------------------------------------------------

PAGE = b"<!doctype html><script>location = 'stranger'</script>"


@pytest.fixture
def runs(tmp_path):
    write_runs(tmp_path / "runs")
    return tmp_path / "runs"


def served(made, runs):
    _, _, lens, seen, layout = made
    return TestClient(make_app(Pages(Atlas(lens, seen, layout), runs=load_runs([runs]))))


def test_run_pictures_that_go_or_change(made, runs):
    client, path = served(made, runs), runs / "a" / "images" / "0.png"
    assert client.get("/runs/pictures/0").headers["content-type"] == "image/png"
    changes = [
        lambda: path.write_bytes(PAGE),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"\x89PNG\r\n\x1a\n" + PAGE),
        path.unlink,
        lambda: path.mkdir(),
        lambda: (path.rmdir(), os.mkfifo(path)),
        lambda: shutil.rmtree(runs),
    ]
    for change in changes:
        change()
        answer = client.get("/runs/pictures/0")
        assert answer.status_code == 404
        assert "gone, or is not a picture" in answer.json()["detail"]


def test_a_page_named_like_a_picture_is_neither_served_nor_exported(made, runs, tmp_path):
    (runs / "a" / "images" / "0.png").write_bytes(PAGE)
    assert served(made, runs).get("/runs/pictures/0").status_code == 404
    _, _, lens, seen, layout = made
    export(Atlas(lens, seen, layout), tmp_path / "site", runs=load_runs([runs]))
    assert not (tmp_path / "site" / "runs" / "pictures").exists()
    told = json.loads(gzip.decompress((tmp_path / "site/data/runs.json.gz").read_bytes()))
    (attack,) = (each for each in told["reports"] if each["kind"] == "attack")
    assert attack["samples"][0]["picture"] is None
    for path in (tmp_path / "site").rglob("*"):
        assert not path.is_file() or PAGE not in path.read_bytes()


def test_a_picture_of_another_kind_than_its_name(made, runs, tmp_path):
    Image.new("RGB", (5, 5)).save(runs / "a" / "images" / "0.png", "webp")
    assert served(made, runs).get("/runs/pictures/0").headers["content-type"] == "image/webp"


def test_exported_pictures_have_suffixes(made, runs, tmp_path):
    _, _, lens, seen, layout = made
    export(Atlas(lens, seen, layout), tmp_path / "site", runs=load_runs([runs]))
    told = json.loads(gzip.decompress((tmp_path / "site/data/runs.json.gz").read_bytes()))
    (attack,) = (each for each in told["reports"] if each["kind"] == "attack")
    sample, outside = attack["samples"]
    assert sample["picture"] == "runs/pictures/0.png"
    assert (tmp_path / "site" / sample["picture"]).read_bytes() == (
        runs / "a" / "images" / "0.png"
    ).read_bytes()
    assert outside["picture"] is None
    assert all(path.suffix for path in (tmp_path / "site").rglob("*") if path.is_file())
