"""Bad inputs of every command and of every format: one sentence, exit code 2, nothing written.

    pytest tests/test_bad_inputs.py -k count -s     # prints how many there are of each

Each is one entry of one table below, and counted once.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from scale import sampled
from unchanged import materials

from secondlens.commands.group import COMMANDS, main

M = " --model hf:model"

CUTS = {
    "cut": {"neurons": [[1, 2]]},
    "far": {"neurons": [[1, 99999]]},
    "head": {"paths": [[0, 1, 2, 99]]},
    "none": {},
    "of": {"neurons": [[1, 2]], "weights_hash": "0" * 64},
    "path": {"paths": [[0, 1, 2, 0]]},
}
"""What edits are given, by name of the file."""

LINES = {
    "demo": ("--out photos", "--out words.txt", "--no-such", "extra", "--out"),
    "plan": (
        *("5kM", "0", "-3", "x", "nowhere", "9 --gpus 1 --tflops 0", "9 --layers 3" + M),
        *("9 --layers x" + M, "9 --model ViT-B-33", "9 --top 0" + M, "9 --store mine" + M),
        *("9 --convention mine" + M, "9 --batch-size 0" + M, "9 --shard-size 0" + M),
        *("9 --model hf:nowhere", "9 --model hf:", "9 --device nonsense" + M),
    ),
    "fit": (
        *(
            "",
            "photos",
            "nowhere --out new" + M,
            "photos --out photos" + M,
            "words.txt --out new" + M,
        ),
        *("photos --out new --memory -1" + M, "photos --out new --layers five" + M),
        *("photos --out new --layers 3" + M, "photos --out new --layers 99" + M),
        *("photos --out new --model ViT-B-33", "photos --out new --model ViT-B-32"),
        *("photos --out new --address auto" + M, "photos --out new --store mine" + M),
        *("photos --out new --top 0" + M, "photos --out new --top 999" + M),
        *("photos --out new --batch-size 0" + M, "photos --out new --workers -1" + M),
        *("photos --out new --subset 0" + M, "photos --out new --model hf:words.txt"),
        *("photos --out new --pretrained nowhere.pt --model ViT-B-32", "empty --out new" + M),
        *("photos --out new --device mars" + M, "photos --out new --precision fp1" + M),
    ),
    "describe": (
        *("", "lens", "nowhere --texts words.txt", "lens --texts no.txt" + M),
        *("lens --texts words.txt -k 99" + M, "lens --texts words.txt -k 0" + M),
        *("lens --texts words.txt", "lens --texts words.txt --texts words.txt" + M),
        *(
            "lens --texts empty.txt" + M,
            "lens --texts table.csv:zzz" + M,
            "lens --texts table.csv" + M,
        ),
        *("lens --texts photo.png" + M, "lens --texts words.txt --template none" + M),
        *("lens --texts words.txt --normalise mine" + M, "lens --texts words.txt --model hf:other"),
        "lens --texts 'a\udcff'" + M,
    ),
    "search": (
        *("", "lens", "nowhere a", "lens --neuron 5", "lens --neuron 1:999", "lens --neuron 9:1"),
        *("lens --neuron a:b", "lens --neuron -1:4", "lens sea --model hf:other"),
        *("lens sea --model ViT-B-33", "lens sea --top 0" + M, "lens sea --description none" + M),
        *("lens ''" + M, "photos sea" + M, "lens sea --neuron 1:4" + M),
    ),
    "discover": (
        *("", "lens", "lens nowhere.png" + M, "lens words.txt" + M, "lens photo.png --top 0" + M),
        *("lens photo.png --page no/page.html" + M, "lens photo.png --texts no.txt" + M),
        *("nowhere photo.png" + M, "lens photo.png --model hf:other", "lens photos" + M),
        "lens bomb.png" + M,
    ),
    "segment": (
        *("lens photo.png --out new" + M, "lens photo.png --text sea --out photos" + M),
        *(
            "lens photo.png --text sea --out new --size 0" + M,
            "lens photo.png --text ''  --out new" + M,
        ),
        *(
            "lens photo.png --text sea --out new --weigh mine" + M,
            "lens words.txt --text a --out new" + M,
        ),
        *("lens photo.png --text sea --out new --neurons 0" + M, "lens photo.png --text sea" + M),
        *(
            "lens photo.png --text sea --out new --layers 9" + M,
            "nowhere photo.png --text a --out new",
        ),
        *(
            "lens photo.png --text sea --out new --windows 0" + M,
            "lens nowhere.png --text a --out new" + M,
        ),
        "lens bomb.png --text sea --out new" + M,
    ),
    "name": (
        *("", "lens" + M, "photos", "lens --images unseen --referee ViT-B-32"),
        *("lens --texts words.txt --images unseen" + M, "nowhere --texts words.txt"),
        "lens --texts words.txt --images nowhere --referee hf:other" + M,
        "lens --texts words.txt --images unseen --referee hf:nowhere" + M,
        "lens --texts words.txt --images unseen --referee hf:other" + M,
        "lens --texts words.txt --images unseen --referee hf:other --kind nowhere.txt" + M,
        "lens --referee-pretrained openai",
    ),
    "score": (
        *("", "lens" + M, "photos", "lens --images unseen --referee ViT-B-32"),
        *(
            "lens --texts words.txt --images nowhere --referee hf:other" + M,
            "lens --images unseen" + M,
        ),
        *("lens --texts cues.txt --images unseen --referee hf:other" + M,),
        *(
            "lens --texts words.txt --images unseen --referee hf:nowhere" + M,
            "nowhere --texts words.txt",
        ),
    ),
    "ablate": (
        *("lens photos" + M, "lens usual --sizes 4" + M, "lens usual --layers 3" + M),
        *("lens usual --texts words.txt --sizes 4,x" + M, "lens nowhere" + M, "lens" + M),
        *("lens usual --effect mine" + M, "lens usual --subset 0" + M, "nowhere usual" + M),
        *("lens usual --neurons 0 --effect indirect" + M, "lens usual --template none" + M),
        *("lens usual --model hf:other", "lens usual --out photos/1/2.txt --layers x" + M),
    ),
    "budget": (
        *("lens" + M, "lens unseen --neuron 999" + M, "lens unseen --layers 9" + M),
        *("lens nowhere" + M, "nowhere unseen" + M, "lens unseen --neurons -1" + M),
        *("lens unseen --model hf:other", "lens unseen --neuron x" + M),
    ),
    "steer": (
        *("usual" + M, "usual --neuron 1:999 --text a" + M, "usual --neuron 9:1 --text a" + M),
        *("usual --neuron 1 --text a" + M, "usual --neuron 1:2" + M, "--neuron 1:2 --text a" + M),
        *("nowhere --neuron 1:2 --text a" + M, "usual --neuron 1:2 --neuron 2:2 --text a" + M),
        *("usual --neuron 1:2 --times nan --text a" + M, "usual --direction words.txt" + M),
        *("usual --direction words.txt --layer 1 --text a" + M, "usual --neuron x --text a"),
        *("usual --neuron 1:2 --texts no.txt" + M, "usual --neuron 1:2 --model hf:nowhere"),
    ),
    "why-attention": (
        *("", "photo.png" + M, "photo.png --layer 9 --head 0" + M, "photo.png --layer 1 --head 99"),
        *("nowhere.png --layer 1 --head 0" + M, "photo.png --layer 1 --head 0 --token 999" + M),
        *("photo.png --layer 1 --head 0 --contrast" + M, "words.txt --layer 1 --head 0" + M),
        "photo.png --layer 1 --head 0 --lens photos" + M,
        "photo.png --layer 1 --head 0 --lens lens --description none" + M,
        "photo.png --layer 1 --head 0 --heat-map no/heat.png" + M,
        *("photo.png --layer 1 --head 0 --top 0" + M, "bomb.png --layer 1 --head 0" + M),
    ),
    "circuit": (
        *("", "lens" + M, "lens photo.png" + M, "lens photo.png --text a --neuron 1:2" + M),
        *("lens photo.png --rather-than a --neuron 1:2" + M, "lens photo.png --text a" + M),
        *("lens nowhere.png --text a --against photos" + M, "lens photo.png --neuron x" + M),
        *("nowhere photo.png --text a --against photos" + M, "lens photo.png --neuron 9:1" + M),
        "lens photo.png --neuron 1:999 --against photos" + M,
        "lens photo.png --text a --against nowhere" + M,
        "lens photo.png --text a --against photos --page no/page.html" + M,
        "lens photo.png --text a --against photos --nodes 0" + M,
        "lens photo.png --text a --against photos --gain none" + M,
        "lens bomb.png --text a --against photos" + M,
    ),
    "attack": (
        *("lens --draw cow --out new" + M, "lens --draw ant --mistake-for ant --out new" + M),
        *("lens --pairs some --out new" + M, "lens --draw ant --mistake-for bee --out new" + M),
        "lens --draw ant --mistake-for bee --out new --image-generator pencil --judge hf:other" + M,
        "lens --draw ant --mistake-for bee --out new --captioner me" + M,
        *("lens --out new" + M, "nowhere --draw a --mistake-for b --out new" + M, "", "lens"),
        "lens --draw ant --mistake-for bee --out photos" + M,
        "lens --draw ant --mistake-for bee --out new --images 0" + M,
    ),
    "audit": (
        *("lens --out photos" + M, "lens --out new" + M, "nowhere --out new" + M, "", "lens"),
        "lens --classes no.txt --cues cues.txt --images unseen --out new" + M,
        "lens --classes classes.txt --cues no.txt --images unseen --out new" + M,
        "lens --classes classes.txt --cues cues.txt --images nowhere --out new" + M,
        "lens --classes one.txt --cues cues.txt --images unseen --out new" + M,
        "lens --classes classes.txt --cues cues.txt --images unseen --out new --model hf:other",
        "lens --cues cues.txt --images usual --labelled --groups weather --out new" + M,
        "lens --classes classes.txt --cues cues.txt --images unseen --groups class --out new" + M,
    ),
    "defend": (
        *("nowhere lens --out new" + M, "audit lens --usual usual --out new" + M, "", "audit"),
        "attack lens --unusual unusual --out new" + M,
        "audit lens --usual nowhere --unusual unusual --out new" + M,
        "audit lens --usual usual --unusual unusual --out photos" + M,
        "audit lens --usual photos --unusual unusual --out new" + M,
        "photos lens --usual usual --unusual unusual --out new" + M,
    ),
    "edit": (
        *("lens --cut nowhere --out new" + M, "lens --cut photos --out new" + M, "", "lens" + M),
        *("nowhere --cut cut.json --out new" + M, "lens --cut words.txt --out new" + M),
        *("lens --cut cut.json --out photos" + M, "lens --cut far.json --out new" + M),
        *("lens --cut cut.json --strength 0 --out new" + M, "lens --cut none.json --out new" + M),
        *("lens --cut head.json --images unseen --out new" + M, "lens --cut of.json --out new" + M),
        *("lens --cut path.json --out new" + M, "lens --cut cut.json --template x --out new" + M),
        "lens --cut cut.json --usual nowhere --out new" + M,
        "lens --cut cut.json --usual usual --groups weather --out new" + M,
        "lens --cut cut.json --groups class --out new" + M,
        "lens --cut cut.json --usual photos --out new" + M,
        "lens --cut cut.json --images nowhere --out new" + M,
        "lens --cut cut.json --out new --model hf:other",
    ),
    "harden": (
        *("", "attack", "nowhere --out new", "photos --out new", "attack --out photos"),
        *("attack --out new --test attack", "attack --out new --usual nowhere"),
        *(
            "attack --out new --steps 0",
            "attack --out new --blocks 0",
            "attack --out new --keep -1",
        ),
        *("attack --out new --learning-rate 0", "attack --out new --batch-size 0"),
        *("attack --out new --model hf:model", "attack --out new --template x"),
        *("attack --out new --seed -1", "attack --out new --test nowhere --drawn 4"),
        "attack --out new --drawn 4 --groups weather",
        "attack --usual photos --out new" + M,
    ),
    "diff": (
        *("", "hf:model", "hf:model hf:nowhere --images photos", "hf:model hf:other"),
        *("hf:model hf:other --images nowhere", "hf:model ViT-B-32 --images photos"),
        *("hf:model hf:other --images photos --layers x", "hf:model demo --images photos"),
        *("hf:model hf:other --images photos --layers 9", "photos unseen --through nowhere" + M),
        "hf:model hf:other --images photos --classes one.txt",
        "hf:model hf:other --images photos --classes no.txt",
        "hf:model hf:other --images photos --lens lens --after-lens lens",
        "hf:model hf:other --images photos --lens photos",
        "hf:model hf:other --images photos --after-lens lens",
        "hf:model hf:other --images photos --out photos",
        "hf:model hf:other --images photos --tower text",
        *("photos nowhere --through lens" + M, "photos unseen --through photos" + M),
        *(
            "photos unseen --through lens --images photos" + M,
            "photos photo.png --through lens" + M,
        ),
        "photos unseen --through lens --model hf:other",
    ),
    "explore": (
        *("photos", "lens --beside photos", "nowhere", "", "lens --port -1", "lens --port 99999"),
        *("lens --host 203.0.113.9 --no-model", "lens --no-model --runs nowhere"),
        "lens --no-model --runs words.txt",
    ),
    "export": (
        *("lens photos", "lens", "nowhere new", "photos new", "lens new --no-model --runs photos"),
        *(
            "lens new --no-model --runs nowhere",
            "lens words.txt --no-model",
            "lens new --model hf:other",
        ),
    ),
    "share": (
        *(
            "lens",
            "nowhere --to new",
            "lens --to photos",
            "lens --to new --private",
            "photos --to new",
        ),
        *("lens --repo a/b --to new", "lens --to", ""),
    ),
    "pull": (
        *("lens photos", "photos new", "lens new --revision v1", "lens", "", "lens words.txt"),
    ),
    "verify": ("ViT-B-33", "hf:nowhere", "hf:words.txt", "", "hf:lens", "hf:model extra"),
    "bench": ("ViT-B-33", "hf:nowhere", "--no-such", "hf:words.txt", "hf:lens"),
    "reproduce": (
        *("fig99", "fig3", "fig3 --demo --images usual", "table4", "table3", "all"),
        *("fig3 --images nowhere --lens lens" + M, "fig3 --images usual --lens photos" + M),
        *(
            "fig3 --images usual --lens lens --subset 0" + M,
            "fig4 --images usual --lens lens --layer 9 --texts words.txt" + M,
        ),
        "table4 --images masked --layout mine --lens lens" + M,
        "fig3 --images usual --lens lens --model hf:other",
        *("all --images usual --second-pretrained openai" + M, "all --images usual --masks no" + M),
        *("all --demo --second-model hf:other", "all --images usual --second-model ViT-L-14" + M),
        "fig8 --images usual --lens lens --layer 2 --texts words.txt --follow me" + M,
        "table4 --images masked --lens lens --follow me" + M,
    ),
    "groundtruth": (
        *("run", "run --all --network keys", "run --network nothing", "nothing", "list extra"),
        *("run --network idle --named 1", "run --network idle --tested 1"),
        *("run --network idle --out photos", "run --network idle --seed x"),
        "run --network idle --contestant nobody",
    ),
    "pool": (
        *("", "--classes classes.txt --captioner template --out new"),
        *(
            f"--classes classes.txt --out new --captioner {each}"
            for each in ("me", "chat", "chat:", "chat:nowhere", "chat:words.txt", "http://[", "")
        ),
        "--classes nowhere --captioner http://localhost:1 --captioner-model a --out new",
        "--classes classes.txt --captioner http://localhost:1 --out new",
        "--classes classes.txt --captioner http://localhost:1 --captioner-model a --out photos",
        "--classes classes.txt --captioner chat:a --out new --per-class 0",
    ),
    "list": ("nothing", "models extra", "--no-such", "modles"),
}
"""What follows the name of a command."""

HUGE, DEEP = 10**400, "@deep@"


def document(path, value=None, *, gone=False):
    """A change of a JSON document at a path such as "model.layers" or "codes.0.name"."""

    def change(file):
        content = json.loads(file.read_text(encoding="utf-8"))
        *outer, last = (int(key) if key.isdigit() else key for key in path.split("."))
        parent = content
        for key in outer:
            parent = parent[key]
        if gone:
            del parent[last]
        else:
            parent[last] = value
        text = json.dumps(content).replace(f'"{DEEP}"', "[" * 50_000)
        file.write_text(text, encoding="utf-8")

    return change


def tensor(name, alter):
    """A change of one tensor of a safetensors file."""

    def change(file):
        tensors = load_file(file)
        made = alter(tensors[name].clone())
        tensors.pop(name)
        if made is not None:
            tensors[name] = made.contiguous()
        save_file(tensors, file)

    return change


def raw(content):
    return lambda file: file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def instead(make):
    def change(file):
        file.unlink()
        make(file)

    return change


FILES = (
    *(cut, raw(b""), raw(b"[]"), raw(b"\xff\xfe"), instead(lambda file: None), instead(Path.mkdir)),
    *(instead(os.mkfifo), instead(lambda file: file.symlink_to(file.name))),
)
"""Of any file that must be there."""


def each(paths, *values):
    return [document(path, value) for path in paths for value in values]


MANIFEST = (
    *each(("format",), None, 3, "2", -1, HUGE),
    *each(
        ("top", "model.neurons", "model.dim", "model.layers"), 0, -1, 2**40, HUGE, "4", None, 1.5
    ),
    *each(("convention",), "mine", 1, None),
    *each(("layers",), [], [0, 0], [99], [-1], "0", [0.5], None, list(range(2**17))),
    *each(("model",), {}, [], "x", None),
    *each(("model.grid",), [], [4], [0, 4], [2**30, 2**30], "44"),
    *each(("model.prefix",), -1, 2**20, "1", None),
    *each(("codes.0.labels",), ["a"], "abc", [1], ["a"] * 32, None),
    *each(("codes.0.normalise",), "mine", None),
    *each(("codes.0.name",), 5, "\ud800"),
    *each(("codes", "scores"), None, {}, [{}], DEEP),
    *each(("files",), {"x": "../../etc/passwd"}, {"x": 1}, [], DEEP),
    *each(("coordinates",), 1, True, "no"),
    *(document(key, gone=True) for key in ("format", "model", "layers", "codes", "top")),
    *(raw(b'{"format": 2, "format": 2}'), raw(b"[" * 100_000), raw(b'{"format": NaN}')),
)
_TENSORS = [
    tensor(name, alter)
    for name in ("directions", "mean", "energy", "top_norms", "activation_mean")
    for alter in (
        *(lambda t: t * float("nan"), lambda t: t[:1], lambda t: t[..., None], lambda t: t.int()),
        *(lambda t: None, lambda t: torch.cat([t, t])),
    )
]
TENSORS = (
    *_TENSORS,
    tensor("top_images", lambda t: t + 10**6),
    tensor("top_images", lambda t: t - 10**6),
    tensor("top_images", lambda t: t.float()),
    tensor("histogram", lambda t: torch.cat([t] * 9, 1)),
)
CODES = (
    tensor("indices-01", lambda t: t + 999),
    tensor("indices-01", lambda t: t - 999),
    tensor("coefficients-01", lambda t: t * float("inf")),
    tensor("coefficients-01", lambda t: None),
    tensor("cosine-00", lambda t: None),
    tensor("brief-00", lambda t: t[:2]),
)
AUDIT = (
    *each(("classes", "cues"), [], "abc", [1], None, ["x"]),
    *each(("effect",), [], [[1]], None, "x", [[float("inf")] * 6] * 5),
    *each(("neurons",), [], [[[0, -1]]] * 6, [[[0, HUGE]]] * 6, [[0]] * 6, None),
    *each(("prompts", "images"), [], [["x"]], None, [[1]] * 6),
    *each(("model",), None, [], {"name": {"deep": 1}}, {"x": HUGE}),
    *(document("spread", gone=True), document("classes.0", "bee")),
)
ATTACK = (
    *each(("shots.0.margin",), None, "x", float("nan"), float("inf")),
    *each(("shots.0.file", "shots.0.caption", "draw"), None, 5, []),
    *each(("shots.0.words", "words"), None, "abc", [5]),
    *each(("words.0.neurons",), [[0, -1, 0.5]], [[0, HUGE, 0.5]], "x", [[0]]),
    *each(("settings",), None, [], {"a": {"b": 1}}, {"a": HUGE}),
    *each(("counted", "planned"), -1, "x", None, HUGE),
    *each(("rates",), None, {"fooled": 5}, {"fooled": {}}),
)
DEFENCE = (
    *each(("neurons",), [[0]], [[-1, 0]], [[0, HUGE]], "x", None),
    *each(("points.0.count",), -1, "x", None, HUGE),
    *each(("points.0.method", "before", "results.0"), None, 5, {}),
    *each(("results",), [], "x", None),
)
RUNS = "export lens new --no-model --runs "
FORMATS = {
    "lens: lens.json": ("lens/lens.json", "search lens --neuron 1:4", (*MANIFEST, *FILES)),
    "lens: images.json": (
        *("lens/images.json", "search lens --neuron 1:4"),
        (
            *each(("ids",), [], "abc", [1], ["a"] * 50, None),
            *each(("skipped",), [], {"a": 1}),
            *FILES,
        ),
    ),
    "lens: layers": ("lens/layer-01.safetensors", "search lens --neuron 1:4", (*TENSORS, *FILES)),
    "lens: codes": ("lens/codes-00.safetensors", "search lens --neuron 1:4", (*CODES, *FILES)),
    "audit": ("audit/audit.json", RUNS + "audit", (*AUDIT, *FILES[:4], *FILES[5:])),
    "attack": ("attack/report.json", RUNS + "attack", (*ATTACK, *FILES[:4], *FILES[5:])),
    "defence": ("defence/defence.json", RUNS + "defence", (*DEFENCE, *FILES[:4], *FILES[5:])),
    "words": (
        *("words.txt", "describe lens --texts words.txt" + M),
        (FILES[1], *FILES[3:], raw(b"\n \n"), raw(b"\xff\xfea\x00")),
    ),
    "table": (
        "table.csv",
        "describe lens --texts table.csv:b" + M,
        (*FILES[1:], raw(b"b\n\x00\n\xff")),
    ),
    "picture": (
        *("photo.png", "discover lens photo.png" + M),
        (
            *FILES,
            raw(b"\x89PNG\r\n\x1a\n"),
            raw(b"%!PS-Adobe-3.0 EPSF-3.0"),
            raw(b"GIF89a" + b"\xff" * 9),
        ),
    ),
}
"""By format: the file that is changed, the command that reads it, and the changes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad") / "w"
    shutil.copytree(materials.workplace(), root)
    for name, old in (
        ("audit", materials.OLD_AUDIT),
        ("attack", materials.OLD_ATTACK),
        ("defence", materials.OLD_DEFENCE),
    ):
        shutil.copytree(old, root / name)
    (root / "empty").mkdir()
    (root / "empty.txt").write_text("")
    for name, cut in CUTS.items():
        (root / f"{name}.json").write_text(json.dumps(cut))
    (root / "one.txt").write_text("ant\n")
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (2**17).to_bytes(4, "big") * 2
    (root / "bomb.png").write_bytes(header + b"\x08\x02\x00\x00\x00" + b"\x00" * 8)
    return root


def state(root):
    """Everything in a folder, with sizes and times."""
    found = {}
    for path in root.rglob("*"):
        kept = path.lstat()
        found[path.relative_to(root).as_posix()] = kept.st_size, kept.st_mtime_ns
    return {name: each for name, each in found.items() if not (root / name).is_dir()} | {
        name: None for name in found if (root / name).is_dir()
    }


def refused(line, root):
    """Why a line is not, as it should be, refused; nothing if it is."""
    before = state(root)
    with contextlib.chdir(root), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(main, shlex.split(line))
    said = done.stdout + done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"{done.exception!r}"
    if done.exit_code != 2:
        return f"exit code {done.exit_code}: {said}"
    if (
        len(re.findall("^Error: ", done.stderr, re.MULTILINE)) != 1
        or "Traceback" in said
        or "\x1b" in said
    ):
        return said
    if done.stderr.rpartition("\nError: ")[2].strip().count("\n"):
        return f"several lines: {said}"
    changed = state(root)
    if changed != before:
        return f"written: {sorted(set(changed.items()) ^ set(before.items()), key=str)[:5]}"
    return ""


def test_every_command_has_bad_inputs():
    assert set(LINES) == {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", sampled(LINES, {"fit", "search", "pull"}))
def test_bad_command_lines(command, place):
    found = {line: refused(f"{command} {line}", place) for line in LINES[command]}
    assert not {line: why for line, why in found.items() if why}


@pytest.mark.parametrize("name", sampled(FORMATS, {next(iter(FORMATS))}))
def test_bad_files(name, place, tmp_path):
    file, line, changes = FORMATS[name]
    assert refused(f"{line} --no-such", place) == ""
    found = {}
    for number, change in enumerate(changes):
        root = tmp_path / str(number)
        shutil.copytree(
            place, root, ignore=shutil.ignore_patterns("photos", "un*", "masked", "other")
        )
        change(root / file)
        if why := refused(line, root):
            found[number] = why
        shutil.rmtree(root)
    assert not found


def test_count(capsys):
    counts = Counter({command: len(set(lines)) for command, lines in LINES.items()})
    counts.update({name: len(changes) for name, (_, _, changes) in FORMATS.items()})
    with capsys.disabled():
        print(f"\n{counts.total()} bad inputs: {dict(counts)}")
    assert all(len(set(lines)) == len(lines) for lines in LINES.values())
    assert counts.total() >= 300
