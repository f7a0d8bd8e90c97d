"""The explorer as a server and as a folder: pages, safety, bad input."""

import asyncio
import gc
import gzip
import io
import json
import re
import shlex
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from importlib.resources import files

import click
import pytest
import schemathesis
import torch
import uvicorn
from click.testing import CliRunner
from explored import HOSTILE, LAYERS, make, write_runs
from fastapi import Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from PIL import Image
from scale import TIMES
from schemathesis.specs.openapi.checks import positive_data_acceptance
from towers import transformers_model

from secondlens.commands.group import main
from secondlens.effects.attention_maps import attention
from secondlens.effects.attention_reasons import why_attention
from secondlens.errors import SecondLensError
from secondlens.explorer import page_kinds, safety
from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.attention import refusal
from secondlens.explorer.export import export
from secondlens.explorer.live import Live
from secondlens.explorer.pages import SECURITY, Pages, static_files
from secondlens.explorer.runs import load_runs
from secondlens.explorer.safety import LARGEST_UPLOAD, LOOPBACK, MOST_PIXELS, UPLOADS, Uploads
from secondlens.lens.fitting import fit
from secondlens.models.transformers.views import from_transformers
from secondlens.words.summary import label


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def app(made):
    clip, pictures, lens, seen, layout = made
    atlas = Atlas(lens, seen, layout)
    beside = make_app(Pages(atlas, live=False))
    live = Live(clip=clip, atlas=atlas, source=pictures)
    return make_app(Pages(atlas, live=True, beside=True), live, beside)


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, base_url="http://127.0.0.1")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


PAGES = ["/", *(f"/{name}/" for name in page_kinds.names)]
PAGES += ["/layer/1/", "/neuron/0/5/", "/beside/neuron/0/5/"]


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_whole_safe_and_say_so(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith(SECURITY)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in SECURITY
    for tag, attrs in Tags(answer.text).tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs)
        if tag == "script":
            assert "src" in attrs or attrs["type"] == "application/json"
        for name in ("src", "href"):
            assert not attrs.get(name, "").startswith(("http:", "https:", "//", "javascript:"))


def test_hostile_words_stay_text(client, made):
    lens = made[2]
    words = {text for codes in lens.codes.values() for text in codes.labels}
    assert set(HOSTILE) <= words
    seen = ""
    for layer in LAYERS:
        for neuron in range(48):
            page = client.get(f"/neuron/{layer}/{neuron}/").text
            assert [tag for tag, _ in Tags(page).tags if tag == "script"] == ["script", "script"]
            assert not [1 for tag, _ in Tags(page).tags if tag == "img"]
            data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
            assert json.loads(data) == client.get(f"/data/neuron/{layer}/{neuron}.json").json()
            seen += data
    assert "\\u003cscript" in seen  # a hostile word was really shown


@pytest.mark.parametrize(
    "path",
    [
        *("/neuron/9/0/", "/neuron/0/48/", "/neuron/0/-1/", "/layer/7/", "/nowhere/"),
        *(
            "/data/neuron/0/999999999999999999999.json",
            "/data/image/200.json",
            "/pictures/200.webp",
        ),
        *("/static/nothing.js", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/app.py"),
        *("/pictures/..%2f..%2fetc%2fpasswd.webp", "/preview/0/48.png", "/docs", "/redoc"),
    ],
)
def test_what_is_not_there_is_not_found(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert "Traceback" not in answer.text
    assert answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "root", "said"),
    [
        ("/nowhere", "./", "This address leads nowhere."),
        ("/nowhere/", "../", "This address leads nowhere."),
        ("/layer/7/", "../../", "Layer 7 is not in this lens"),
        ("/neuron/0/x/", "../../../", "This address leads nowhere."),
        ("/neuron/0/99/", "../../../", "Layer 0 has no neuron 99"),
        ("/beside/neuron/0/99/", "../../../", "Layer 0 has no neuron 99"),
    ],
)
def test_a_page_that_does_not_exist_looks_like_the_others(client, path, root, said):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert said in answer.text and f'href="{root}static/explorer.css"' in answer.text


def test_scripts_are_told_in_json(client):
    for path in ("/data/neuron/0/99.json", "/live/budget/0/99", "/pictures/200.webp", "/data/x"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["detail"]
    assert client.get("/live/search?text=").json()["detail"]


def test_heads_are_those_of_what_is_there(client):
    for path in ("/", "/neuron/1/2/", "/static/common.js", "/data/neurons.json.gz", "/nowhere"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
    assert client.head("/live/image").status_code == 405


def test_static_names_are_all_that_is_served(client):
    for name, content in static_files().items():
        assert client.get(f"/static/{name}").content == content


def test_pictures_and_previews_are_images(client, made):
    thumbnail = Image.open(io.BytesIO(client.get("/pictures/3.webp").content))
    assert thumbnail.format == "WEBP" and thumbnail.size == (24, 16)
    preview = Image.open(io.BytesIO(client.get("/preview/1/2.png").content))
    assert preview.size == (1200, 630)
    bare = TestClient(make_app(Pages(Atlas(made[2]))))
    answer = bare.get("/pictures/3.webp")
    assert answer.status_code == 404 and "the survey has no picture 3" in answer.json()["detail"]
    assert bare.get("/preview/1/2.png").headers["content-type"] == "image/png"
    page = client.get("/neuron/1/2/").text
    assert '<meta property="og:image" content="http://127.0.0.1/preview/1/2.png">' in page


def test_live_answers(client):
    assert client.get("/live/search", params={"text": "word b"}).json()["for"]
    assert client.get("/live/wall/0/3", params={"text": "word b"}).json()["shots"]
    assert client.get("/live/budget/0/3").json()["total"] > 0
    buffer = io.BytesIO()
    Image.new("RGB", (70, 40), "red").save(buffer, "png")
    assert len(client.post("/live/image", content=buffer.getvalue()).json()["patches"]) == 6
    assert client.post("/live/image?at=3").json()["neurons"]
    found = client.post("/live/segment?text=a&text=b&at=3").json()
    assert found["texts"] == ["a", "b"]


@pytest.mark.parametrize("contrast", [True, False])
@pytest.mark.parametrize("patch", [None, 4])
def test_why_a_head_looked_there_is_a_sum(client, made, patch, contrast):
    clip, pictures, lens, *_ = made
    asked = {"layer": 2, "head": 1, "at": 3, "contrast": contrast}
    answer = client.post("/live/attention", params=asked | ({"patch": patch} if patch else {}))
    found = answer.json()
    token = None if patch is None else patch + 1
    contrasted = contrast and token is not None
    reasons = why_attention(clip, [pictures.load(3)], 2, 1, token, contrast=contrasted)
    assert found["score"] == pytest.approx(reasons.score, rel=0.01)
    terms = (*found["pairs"], *found["rests"], found["other_pairs"], found["other_rests"])
    listed = [each[-1] for each in terms]
    assert len(found["pairs"]) + found["other_pairs"][0] == (2 * clip.neurons) ** 2
    assert sum(listed) == pytest.approx(reasons.score, abs=0.005 * sum(map(abs, listed)))
    row = attention(clip, [pictures.load(3)])[0, 2, 1, 0]
    assert found["patches"] == pytest.approx(row[1:].tolist(), rel=0.01)
    assert found["elsewhere"] == pytest.approx(float(row[0]), rel=0.01)
    brightest = int(row[1:].argmax())
    assert found["heat"][brightest] == "f" and len(found["heat"]) == 6
    query, key, _ = found["pairs"][0]
    assert query == [*reasons.pairs(1)[0].query, label(lens, *query[:2])]
    assert key[2] == label(lens, *key[:2])
    assert found["looked_at"][0][:2] == list(reasons.single(reasons.by_key, 1)[0].neuron)


def test_the_first_layer_reads_no_neurons(client):
    found = client.post("/live/attention?layer=0&head=0&patch=0&at=3").json()
    assert found["pairs"] == found["looking"] == [] and found["other_pairs"] == [0, 0.0]
    listed = [each[-1] for each in (*found["rests"], found["other_rests"])]
    assert sum(listed) == pytest.approx(found["score"], rel=0.02)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("layer=3&head=0", "layer"),
        ("layer=1&head=3", "head"),
        ("layer=1&head=0&patch=6", "there is no patch 6: choose one of 0 to 5"),
    ],
)
def test_attention_that_is_not_there_is_told_in_one_sentence(client, asked, message):
    answer = client.post(f"/live/attention?at=3&{asked}")
    assert answer.status_code == 400 and message in answer.json()["detail"]


def test_neurons_without_a_page_have_no_name_and_pictures_may_be_ones_own(made):
    clip, pictures, *_ = made
    atlas = Atlas(fit(clip, pictures, layers=[1], top=6))
    app = make_app(Pages(atlas), Live(clip=clip, atlas=atlas))
    buffer = io.BytesIO()
    Image.new("RGB", (70, 40), "red").save(buffer, "png")
    client = TestClient(app, base_url="http://127.0.0.1")
    found = client.post("/live/attention?layer=2&head=1", content=buffer.getvalue()).json()
    sides = [side for pair in found["pairs"] for side in pair[:2]] + found["looked_at"]
    assert {side[0] for side in sides} == {0, 1}
    assert all((side[2] is None) == (side[0] == 0) for side in sides)


def test_a_model_whose_attention_is_not_divided_says_so(client, made):
    assert refusal(made[0]) is None and client.post("/live/image?at=3").json()["undivided"] is None
    pooled = from_transformers(transformers_model("SiglipVisionModel"))
    assert refusal(pooled) == f"{pooled.name} has no class token, whose attention could be shown"
    turned = from_transformers(transformers_model("DINOv3ViTModel"))
    said = refusal(turned)
    assert said is not None and "turns or normalises" in said
    with pytest.raises(SecondLensError, match=re.escape(said)):
        why_attention(turned, torch.zeros(1, 3, *turned.image_size), 1, 0)


def bomb():
    """A PNG that says it has 10^10 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"GIF89a", "cannot be used"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot be used"),
        (b"x" * (LARGEST_UPLOAD + 1), "more than 10 MB"),
        (bomb(), "cannot be used"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be used"),
    ],
    ids=["nothing", "cut gif", "cut png", "large", "bomb", "postscript"],
)
@pytest.mark.parametrize("path", ["/live/image", "/live/segment?text=a"])
def test_bad_uploads_are_told_in_one_sentence(client, path, body, message):
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    assert "Traceback" not in answer.text


def sent(body, pause=0.0):
    """A request whose body comes in parts."""

    async def receive():
        await asyncio.sleep(pause)
        part = {"type": "http.request", "body": body[:100], "more_body": len(body) > 100}
        del body[:100]
        return part

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def png(*size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "png")
    return bytearray(buffer.getvalue())


def test_pictures_with_too_many_pixels_are_not_decoded(client, monkeypatch):
    side = int(MOST_PIXELS**0.5)
    body, decoded = bytes(png(side + 1, side + 1)), []
    assert len(body) < LARGEST_UPLOAD
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size))
    answer = client.post("/live/image", content=body)
    assert answer.status_code == 400 and "more than 25,000,000 pixels" in answer.json()["detail"]
    assert decoded == []


def finished(coroutine):
    """What it gives, run in a thread: a browser of other tests may have left a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_few_uploads_are_in_memory_and_one_is_decoded():
    uploads, bodies = Uploads(), [png(20 + i, 10) for i in range(3 * UPLOADS)]
    whole, answered, decoded, held = list(map(len, bodies)), [], [], []

    def answer(picture):
        decoded.append(picture)
        held.append(sum(map(int.__gt__, whole, map(len, bodies))) - len(answered))
        time.sleep(0.01)
        assert decoded.pop() is picture and decoded == []
        answered.append(picture.size)
        return picture.size

    async def many():
        return await asyncio.gather(*(uploads.use(sent(body), answer) for body in bodies))

    assert finished(many()) == [(20 + i, 10) for i in range(3 * UPLOADS)]
    assert max(held) == UPLOADS


def test_a_picture_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(safety, "LONGEST_UPLOAD", 0.05)
    with pytest.raises(SecondLensError, match="was not there after"):
        finished(Uploads().use(sent(png(200, 200), pause=0.2), lambda picture: None))


def test_other_names_for_this_machine_are_refused(made):
    _, _, lens, seen, layout = made
    app = make_app(Pages(Atlas(lens, seen, layout)), hosts=LOOPBACK)
    for host, status in (("127.0.0.1:8000", 200), ("localhost", 200), ("evil.example", 400)):
        answer = TestClient(app).get("/", headers={"host": host})
        assert answer.status_code == status
        assert answer.headers["content-security-policy"]


def test_only_named_pages_may_frame_these(made):
    _, _, lens, seen, layout = made
    pages = Pages(Atlas(lens, seen, layout))
    for framed_by, said in (((), "'none'"), (("https://a.example", "https://b.example"),) * 2):
        client = TestClient(make_app(pages, framed_by=framed_by))
        said = said if isinstance(said, str) else " ".join(said)
        policy = client.get("/").headers["content-security-policy"]
        assert policy.endswith(f"; frame-ancestors {said}")


def test_browsers_keep_files_until_they_change(client):
    for path in ("/static/common.js", "/pictures/3.webp", "/data/neurons.json.gz"):
        answer = client.get(path)
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
    tags = {client.get(f"/pictures/{i}.webp").headers["etag"] for i in range(4)}
    assert len(tags) == 4


@pytest.mark.parametrize(
    "path", ["/live/search?text=", "/live/search?text=" + "a" * 201, "/live/search?text=%20"]
)
def test_bad_texts(client, path):
    assert client.get(path).status_code in (400, 422)


def test_nothing_sent_breaks_what_the_schema_says(app):
    """Schemathesis: whatever is sent, no server error, and nothing that the schema does not say."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=10 * TIMES, deadline=None, database=None, derandomize=True)
        def holds(case):
            # that a body is bytes does not make it a picture
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        holds()


def test_runs_are_known_and_their_pictures_stay_inside(tmp_path):
    write_runs(tmp_path)
    runs = load_runs([tmp_path])
    assert {each["kind"] for each in runs.reports} == {"attack", "audit", "defence"}
    (attack,) = (each for each in runs.reports if each["kind"] == "attack")
    shot, outside = attack["samples"]
    assert runs.pictures[shot["picture"]].read_bytes() == (tmp_path / "a/images/0.png").read_bytes()
    assert outside["picture"] is None and outside["plain"] is None
    json.dumps(runs.reports, allow_nan=False)
    with pytest.raises(SecondLensError, match="holds no finished"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "a" / "report.json").write_text(
        '{"draw": "dog", "mistake_for": "deer", "rates": {}, "shots": [{"caption": "a dog"}]}'
    )
    with pytest.raises(SecondLensError, match=r"report\.json is damaged"):
        load_runs([tmp_path])
    (tmp_path / "a" / "report.json").write_text("{")
    with pytest.raises(SecondLensError, match=r"report\.json"):
        load_runs([tmp_path])


def test_run_pictures_are_served_by_number_only(made, tmp_path):
    _, _, lens, seen, layout = made
    write_runs(tmp_path)
    client = TestClient(make_app(Pages(Atlas(lens, seen, layout), runs=load_runs([tmp_path]))))
    assert client.get("/runs/pictures/0").headers["content-type"] == "image/png"
    assert "no run has a picture 99" in client.get("/runs/pictures/99").json()["detail"]
    for path in ("/runs/pictures/99", "/runs/pictures/-1", "/runs/pictures/..%2f0.png"):
        assert client.get(path).status_code in (404, 422)


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    _, _, lens, seen, layout = made
    out = tmp_path_factory.mktemp("out") / "site"
    export(Atlas(lens, seen, layout), out, address="https://example.org/x/")
    return out


def test_export_holds_every_page_and_nothing_dangling(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) == 1 + len(page_kinds) + len(LAYERS) * 49
    for page in pages:
        for _, attrs in Tags(page.read_text()).tags:
            for name in ("src", "href", "action"):
                target = attrs.get(name, "").partition("?")[0].partition("#")[0]
                if target and not target.startswith("data:"):
                    found = (page.parent / target).resolve()
                    assert (found / "index.html").is_file() or found.is_file(), (page, target)
    text = (site / "neuron" / "1" / "2" / "index.html").read_text()
    assert 'content="https://example.org/x/pictures/' in text


def test_export_data_is_that_of_the_server(site, client):
    for layer in LAYERS:
        pack = json.loads(gzip.decompress((site / f"data/neuron/{layer}/0.json.gz").read_bytes()))
        assert pack[7] == client.get(f"/data/neuron/{layer}/7.json").json()
    for name in ("neurons", "map", "words"):
        served = client.get(f"/beside/data/{name}.json.gz").content  # without a model, as there
        assert (site / f"data/{name}.json.gz").read_bytes() == served


def test_export_refuses_a_full_folder_and_leaves_nothing_half_done(made, tmp_path):
    _, _, lens, seen, layout = made
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(SecondLensError, match="exists already"):
        export(Atlas(lens, seen, layout), tmp_path / "site")
    assert [p.name for p in tmp_path.rglob("*")] == ["site", "mine.txt"]


def test_export_where_nothing_can_be_written(made, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SecondLensError, match="site cannot be written"):
        export(Atlas(made[2]), tmp_path / "file" / "site")


def serve_nothing(monkeypatch, served):
    """Instead of serving, note the application and where it listens."""

    def run(server, sockets):
        served.update(app=server.config.app, address=sockets[0].getsockname())

    monkeypatch.setattr(uvicorn.Server, "run", run)


def test_explore_shows_the_model_alive_and_a_lens_beside(made, tmp_path, monkeypatch):
    clip, _, lens, seen, layout = made
    lens.save(tmp_path / "lens")
    seen.save(tmp_path / "lens" / "explorer")
    layout.save(tmp_path / "lens" / "explorer" / "layout.safetensors", lens)
    served, shown, loaded = {}, [], []

    def load(name, **weights):
        loaded.append((name, weights["device"]))
        return clip

    monkeypatch.setattr("secondlens.models.loading.load", load)
    serve_nothing(monkeypatch, served)
    monkeypatch.setattr(click, "launch", shown.append)
    lens_of = str(tmp_path / "lens")
    arguments = ["explore", lens_of, "--model", "hf:tiny", "--beside", lens_of, "--open"]
    try:
        result = CliRunner().invoke(main, [*arguments, "--port", "0"])
    finally:
        gc.unfreeze()
    assert result.exit_code == 0, result.output
    host, port = served["address"]
    assert host == "127.0.0.1" and shown == [f"http://127.0.0.1:{port}/"]
    assert loaded == [("hf:tiny", "cpu")]  # nothing says which model is that of the lens beside
    client = TestClient(served["app"], base_url="http://127.0.0.1")
    assert client.get("/live/search?text=word").json()["for"]
    assert client.get("/beside/neuron/0/5/").status_code == 200
    assert client.get("/beside/live/search?text=word").status_code == 404
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "the explorer needs uvicorn: pip" in result.stderr
    for name in [each for each in sys.modules if each.startswith("secondlens.explorer.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "orjson", None)
    result = CliRunner().invoke(main, ["export", lens_of, str(tmp_path / "site")])
    assert result.exit_code == 2 and "the explorer needs orjson: pip" in result.stderr


def test_commands(made, tmp_path, monkeypatch):
    _, _, lens, seen, layout = made
    lens.save(tmp_path / "lens")
    seen.save(tmp_path / "lens" / "explorer")
    layout.save(tmp_path / "lens" / "explorer" / "layout.safetensors", lens)
    out = tmp_path / "site"
    result = CliRunner().invoke(
        main, ["export", str(tmp_path / "lens"), str(out), "--no-model", "--space"]
    )
    assert "sdk: static" in (out / "README.md").read_text()
    assert result.exit_code == 0, result.output
    assert (out / "index.html").is_file()
    served = {}
    serve_nothing(monkeypatch, served)
    local = ["explore", str(tmp_path / "lens"), "--no-model", "--port", "0"]
    result = CliRunner().invoke(main, local)
    assert result.exit_code == 0, result.output
    host, port = served["address"]
    assert host == "127.0.0.1" and f"http://127.0.0.1:{port}/" in result.output
    for host, status in (("127.0.0.1", 200), ("evil.example", 400)):
        assert TestClient(served["app"]).get("/", headers={"host": host}).status_code == status
    space = files("secondlens.explorer") / "space" / "Dockerfile"
    command = space.read_text().splitlines()[-1].replace("$SPACE_HOST", "me-clip.example")
    arguments = [*shlex.split(command)[2:], "--no-model"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert served["address"] == ("0.0.0.0", 7860)
    answer = TestClient(served["app"]).get("/neuron/0/5/", headers={"host": "10.0.0.7"})
    assert 'content="https://me-clip.example/preview/0/5.png"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.endswith("frame-ancestors https://huggingface.co")
    taken = socket.create_server(("127.0.0.1", 0))
    busy = taken.getsockname()[1]
    for arguments, message in (
        (["export", tmp_path / "lens", out], "exists already"),
        (["export", tmp_path / "none", tmp_path / "new"], "holds no lens"),
        (["explore", tmp_path / "none"], "holds no lens"),
        (["explore", tmp_path / "lens", "--model", "demo"], "other weights"),
        (["explore", tmp_path / "lens", "--model", "nothing"], "no model is called"),
        (["explore", tmp_path / "lens", "--images", tmp_path / "none"], "no folder"),
        (["explore", tmp_path / "lens", "--beside", tmp_path / "none"], "holds no lens"),
        (["explore", tmp_path / "lens", "--port", "70000"], "--port"),
        (["explore", tmp_path / "lens", "--port", busy], "(Address already in use): choose"),
        (["explore", tmp_path / "lens", "--host", "192.0.2.1"], "Cannot assign requested address"),
        (
            ["explore", tmp_path / "lens", "--host", "a" * 99],
            "nothing can listen on port 8000 of a",
        ),
    ):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert "http://" not in result.output
    taken.close()
    assert not (tmp_path / "new").exists()
