"""What all commands have in common: helps with examples, JSON, interruption, exit codes."""

import ast
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from explored import write_runs
from models import tiny_model

import secondlens as sl
from secondlens.commands import options
from secondlens.commands.group import main
from secondlens.commands.process import INTERRUPTED
from secondlens.data.embedding import NORMALISATIONS
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.errors import SecondLensError
from secondlens.lens.plan import STORES
from secondlens.models.loading import PRECISIONS

SOURCES = sorted((Path(__file__).parent.parent / "src").rglob("*.py"))
PROGRAM = Path(sys.executable).with_name("secondlens")


def contexts(context):
    """A command and all below it."""
    yield context
    if isinstance(group := context.command, click.Group):
        for name in group.list_commands(context):
            yield from contexts(click.Context(group.commands[name], context, name))


ALL = list(contexts(click.Context(main, info_name="secondlens", terminal_width=80)))


def examples(context):
    """As a terminal of 80 columns shows them."""
    return re.findall(r"^ *Example: secondlens (.*)$", context.get_help(), flags=re.MULTILINE)


LIGHT = {
    "plan photos",
    "fit photos --out lens",
    "describe secondlens-demo/lens --texts world",
    'search secondlens-demo/lens "a ship"',
    "discover secondlens-demo/lens photo.png",
    'segment secondlens-demo/lens photo.png --text "a dog" --out masks',
    "ablate secondlens-demo/lens --layers 5 --subset 10",
    "budget secondlens-demo/lens --layers 5 --neurons 4",
    "why-attention photo.png --layer 6 --head 0 --token 20",
    "steer --neuron 5:12 --neuron 5:40 --times 0 --times 3",
}
"""Examples that take seconds."""

HEAVY = sorted({each for context in ALL for each in examples(context)} - LIGHT)


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def strict(text):
    """The one document in a text; NaN and infinity are no JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small lens where the demo has its own, some photos, and one more."""
    folder = tmp_path_factory.mktemp("commands")
    clip, scenes = sl.load("demo"), Scenes(World(), FIT_SEED, 60)
    lens = sl.fit(clip, scenes, layers=[5])
    sl.describe(clip, lens, world_vocabulary(), 8)
    lens.save(folder / "secondlens-demo" / "lens")
    (folder / "photos").mkdir()
    for number in range(12):
        World().scene(3, number).image.save(folder / "photos" / f"{number:02}.png")
    World().scene(4, 0).image.save(folder / "photo.png")
    return folder


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize("context", ALL, ids=lambda each: each.command_path)
def test_every_help_ends_with_an_example(context):
    shown = examples(context)
    assert shown
    paragraphs = [each.strip() for each in context.command.help.split("\n\n")]
    given = [each for each in paragraphs if "Example: " in each]
    assert paragraphs[-len(given) :] == given
    assert [each.split("secondlens ", 1)[1] for each in given] == shown, "wrapped"
    if context.parent is not None:
        ours = context.command_path.split()[1:]
        assert all(shlex.split(each)[: len(ours)] == ours for each in shown)


@pytest.mark.parametrize("example", sorted(LIGHT))
def test_light_examples_run_as_they_stand(example, place):
    assert any(example in examples(context) for context in ALL)
    result = run(*shlex.split(example))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


@pytest.mark.parametrize("example", HEAVY)
def test_heavy_examples_are_valid(example):
    name, *arguments = shlex.split(example)
    command = main.commands[name]
    if isinstance(command, click.Group):
        command = command.get_command(click.Context(command), arguments.pop(0))
    command.make_context(name, arguments)


def test_every_command_with_figures_has_json():
    without = {"secondlens explore", "secondlens export", "secondlens pull", "secondlens share"}
    for context in ALL:
        if not isinstance(context.command, click.Group):
            has = any("--json" in each.opts for each in context.command.params)
            assert has == (context.command_path not in without), context.command_path


LENS = "secondlens-demo/lens"


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (
            ("plan", "photos", "--batch-size", 2),
            {"images", "layers", "memory", "passes", "seconds"},
        ),
        (("fit", "photos", "--out", "new", "--layers", 5), {"lens", "layers", "images", "skipped"}),
        (("describe", LENS, "--texts", "world", "-k", 2), {"world"}),
        (("search", LENS, "ship"), {"text", "like", "neurons"}),
        (("discover", LENS, "photo.png"), {"photo", "words"}),
        (("segment", LENS, "photo.png", "--text", "dog", "--out", "cut"), {"texts", "pictures"}),
        (("score", LENS, "--images", "photos", "--referee", "demo-twin"), {"scores", "stability"}),
        (("ablate", LENS, "--subset", 60), {"title", "rows", "notes", "settings"}),
        (("budget", LENS, "photos", "--neurons", 1), {"title", "rows", "notes", "settings"}),
        (
            (
                *("attack", LENS, "--draw", "cow", "--mistake-for", "lion", "--images", 1),
                *("--captions", 1, "--out", "attack"),
            ),
            {"pairs", "left_out", "gallery"},
        ),
        (
            ("audit", LENS, "--images", "photos", "--drawings", 0, "--out", "audit"),
            {"model", "ties", "report"},
        ),
        (
            ("defend", "audit", LENS, "--images", 12, "--out", "defence"),
            {"before", "methods", "report"},
        ),
        (
            (
                *("reproduce", "table4", "--demo", "--lens", LENS, "--out", "table4"),
                *("--test-images", 1, "--dev", 1),
            ),
            {"title", "rows", "notes", "settings", "facts", "choices", "files"},
        ),
        (
            ("reproduce", "fig3", "--demo", "--lens", LENS, "--subset", 60, "--out", "paper"),
            {"title", "rows", "notes", "settings"},
        ),
    ],
    ids=lambda each: " ".join(map(str, each[:2])) if isinstance(each, tuple) else "",
)
def test_json_is_one_document_and_all_that_is_printed(arguments, keys, place):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = strict(result.stdout)
    assert keys <= set(found)


def test_bench_prints_ratios_and_what_was_asked_for(place, monkeypatch):
    """On a model of three blocks: the command is tested, not what anything costs."""
    module = import_module("secondlens.bench")
    clip = sl.from_open_clip(tiny_model(layers=5), lambda image: torch.zeros(3, 16, 16))
    monkeypatch.setattr(module, "random_clip", lambda name, device: clip)
    small = partial(module.ranking_cost, neurons=4, images=200, rank=3)
    monkeypatch.setattr(module, "ranking_cost", small)
    monkeypatch.setattr("secondlens.models.loading.load", lambda name, device: clip)
    monkeypatch.setattr(module, "memory_cost", lambda clip, counts: {"memory_images": counts})
    threads = torch.get_num_threads()
    arguments = ("bench", "--model", "tiny", "--batch-size", 2, "--rounds", 1, "--threads", 1)
    try:
        table = run(*arguments)
        found = strict(
            run(
                *(*arguments, "--json", "--directions"),
                *("--memory-images", 200, "--clock", "processor"),
            ).stdout
        )
    finally:
        torch.set_num_threads(threads)
    assert table.exit_code == 0
    assert "tiny, batch 2, 1 thread" in table.output and "one_layer_ratio" in table.output
    assert (found["model"], found["batch"], found["threads"]) == ("tiny", 2, 1)
    assert found["clock"] == "processor"
    assert found["directions_s"] > 0 and found["memory_images"] == [20, 200]
    assert set(found["coordinates_bytes_per_image"]) == {"1", "2", "3"}


def test_bench_refuses_a_name_that_open_clip_does_not_know():
    result = run("bench", "--model", "ViT-B-33")
    assert result.exit_code == 2
    assert "no model is called 'ViT-B-33' (did you mean ViT-B-32" in result.stderr


def test_a_cluster_is_planned_as_json_too(place):
    arguments = ("plan", "--images", "2k", "--gpus", 2, "--tflops", 1, "--decoded", 100)
    found = strict(
        run(*arguments, "--layers", 5, "--batch-size", 20, "--shard-size", 100, "--json").stdout
    )
    assert (found["images"], found["shards"], found["shard_size"]) == (2000, 20, 100)
    assert found["stages"][0]["stage"] == "start"
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    assert found["rates"]["flops"] == 1e12
    for stage in found["stages"]:
        assert 0 <= stage["idle"] <= 1 and stage["tasks"] >= 1
    # one shape is known without weights; the demo is no model of open_clip
    table = run(*arguments, "--layers", 9, "--model", "ViT-B-32")
    assert "ViT-B-32, 2,000 images, 2 workers" in table.output
    assert "decode 800 (given, times 8 cores)" in table.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan",), "say how many images"),
        (("plan", "5kM"), "no folder"),
        (("plan", "²"), "no folder"),
        (("plan", "0"), "at least 2 images"),
        (("plan", "9", "--gpus", 1, "--tflops", 0), "--tflops"),
        (("plan", "9", "--gpus", 1, "--network", 0), "--network"),
        (("fit", "photos", "--out", "fresh", "--memory", -1), "--memory"),
        (("ablate", LENS, "photos"), "photos has no folders for classes: put the pictures"),
        (("segment", LENS, "photo.png", "--text", "a", "--out", "fresh", "--size", 0), "--size"),
        (("search", LENS), "either a text to search for or --neuron"),
        (("search", LENS, "--neuron", "5"), "such as 9:123"),
        (("discover", LENS, "photo.png", "--page", "no/page.html"), "there is no folder no"),
        (("audit", LENS, "--model", "ViT-B-32", "--out", "fresh"), "needs --classes, --cues, --im"),
        (("defend", "runs/b", LENS, "--usual", "a", "--out", "fresh"), "give both --usual and"),
        (
            ("defend", "runs/b", LENS, "--model", "ViT-B-32", "--out", "fresh"),
            "no pictures of its own: name some with --usual",
        ),
        (
            ("defend", "runs/a", LENS, "--unusual", "photos", "--out", "fresh"),
            "the unusual ones: drop --unusual",
        ),
        (("budget", LENS, "--address", "auto"), "--address"),
        (("fit", "photos", "--out", "fresh", "--address", "auto"), "add --engine ray"),
        (("describe", LENS, "--texts", "world", "--texts", "world"), "are called world"),
        (("score", LENS, "--images", "photos"), "need a referee"),
        (("score", LENS, "--model", "ViT-B-32"), "needs --images, --referee"),
        (
            ("fit", "photos", "--out", "fresh", "--model", "ViT-B-32"),
            "random weights without --pre",
        ),
        (("search", LENS, "ship", "--model", "ViT-B/32"), "ViT-B/32 has random weights without"),
        (("describe", LENS, "--texts", "world", "--model", "ViT-B-33"), "did you mean ViT-B-32"),
        (("explore", LENS, "--model", "ViT-B-32", "--port", 0), "random weights without --pretrai"),
        (
            ("score", LENS, "--images", "photos", "--referee", "ViT-B-32"),
            "random weights without --referee-pretrained",
        ),
    ],
    ids=lambda each: " ".join(map(str, each[:2])) if isinstance(each, tuple) else "",
)
def test_mistakes_of_every_kind_exit_with_2(arguments, message, place, finished_runs):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not Path("fresh").exists()


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from click.testing import CliRunner
from secondlens.commands import main
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, arguments)
    said = result.output.strip().splitlines() or [repr(result.exception)]
    print(result.exit_code, said[-1])
"""


def test_mistakes_that_need_no_model_need_no_torch(place):
    """They are told at once: torch takes seconds, and a model longer."""
    mistakes = {
        "fit photos --out photos": "photos exists already",
        "fit nowhere --out fresh": "no folder or file nowhere",
        "fit photos --out fresh --layers five": "layers must be numbers",
        "plan 100 --layers five": "layers must be numbers",
        f"segment {LENS} photo.png --text dog --out photos": "photos exists already",
        f"segment {LENS} photo.png --text dog --out fresh --layers x": "layers must be numbers",
        f"segment {LENS} photo.txt --text dog --out fresh": "photo.txt cannot be read as a picture",
        f"discover {LENS} {LENS}/lens.json": "lens.json cannot be read as a picture",
        "search photos ship": "photos holds no lens",
        "describe photos --texts world": "photos holds no lens",
        "score photos": "photos holds no lens",
        "share photos --repo a/b": "photos holds no lens",
        "pull a/b photos": "photos exists already",
        "explore photos": "photos holds no lens",
        f"explore {LENS} --beside photos": "photos holds no lens",
        f"export {LENS} photos": "photos exists already",
        f"ablate {LENS} --layers x": "layers must be numbers",
        f"ablate {LENS} --out photos": "photos exists already",
        f"budget {LENS} --layers x": "layers must be numbers",
        f"attack {LENS} --draw a --mistake-for b --out fresh --layers x": "layers must be numbers",
        f"audit {LENS} --out photos": "photos exists already",
        f"defend audit {LENS} --out photos": "photos exists already",
        f"edit {LENS} --cut defence --out photos": "photos exists already",
        "demo --out photos": "photos exists already",
        "reproduce fig3 --demo --lens photos": "photos holds no lens",
        "reproduce table4 --demo --out photos": "photos exists already",
        "reproduce table3 --demo --lens photos": "photos holds no lens",
    }
    given = json.dumps([each.split() for each in mistakes])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, given], capture_output=True, text=True, check=True
    )
    for (arguments, message), said in zip(mistakes.items(), done.stdout.splitlines(), strict=True):
        assert said.startswith("2 ") and message in said, arguments


def test_a_shape_alone_is_one_note(place, caplog, recwarn):
    arguments = ("plan", "--images", "2k", "--gpus", 2, "--tflops", 1, "--decoded", 100)
    shape = ("--model", "ViT-B-32", "--layers", 9)
    said = run(*arguments, *shape).stderr
    assert said == "ViT-B-32 has random weights here: only its shape counts\n"
    assert run("--quiet", *arguments, *shape).stderr == ""
    assert not caplog.records and not recwarn.list
    assert run(*arguments, "--layers", 5).stderr == ""


@pytest.fixture(scope="module")
def finished_runs(made):
    """An audit and an attack, where the commands look for them."""
    write_runs(made / "runs")


def test_what_is_no_number_is_null(capsys):
    import torch

    options.print_json(
        {"a": float("nan"), "b": torch.tensor([1.5, float("inf")]), "c": (1, Path("x")), 4: None}
    )
    found = strict(capsys.readouterr().out)
    assert found == {"a": None, "b": [1.5, None], "c": [1, "x"], "4": None}


def test_notes_and_progress_go_to_standard_error_unless_quiet(place):
    arguments = ("budget", LENS, "photos", "--neurons", 1)
    loud = run(*arguments)
    assert "runs from each layer on" in loud.stderr and "runs from each" not in loud.stdout
    quiet = run("--quiet", *arguments)
    assert quiet.exit_code == 0 and quiet.stderr == ""
    assert quiet.stdout == loud.stdout
    mistaken = run("--quiet", "search", "nowhere", "ship")
    assert mistaken.exit_code == 2 and "holds no lens" in mistaken.stderr
    both = run("--quiet", "--verbose", *arguments)
    assert both.exit_code == 2 and "exclude each other" in both.stderr


def test_quiet_and_verbose_may_stand_after_the_command(place):
    quiet = run("budget", LENS, "photos", "--neurons", 1, "--quiet")
    assert quiet.exit_code == 0 and quiet.stderr == ""
    both = run("search", LENS, "--verbose", "ship", "--quiet")
    assert both.exit_code == 2 and "exclude each other" in both.stderr
    text = run("search", "nowhere", "--", "--quiet")
    assert text.exit_code == 2 and "holds no lens" in text.stderr


def test_names_are_printed_as_they_are(place):
    assert "“:smile:”" in run("search", LENS, ":smile:").stdout
    (place / "t.csv").write_text("b,c\nship,1\ndog,2\n", encoding="utf-8")
    copy = shutil.copytree(LENS, place / "named")
    assert "t:b: 2 texts" in run("describe", copy, "--texts", "t.csv:b").stdout


def test_an_embedded_model_says_that_it_knows_no_photographs(place):
    World().scene(4, 0).image.resize((80, 60)).save(place / "photograph.png")
    said = "the embedded model demo knows drawn scenes only: its words for photographs mean little"
    cut = ("segment", LENS, "photograph.png", "--text", "dog", "--out")
    for arguments in (("discover", LENS, "photograph.png"), (*cut, "loud")):
        assert run(*arguments).stderr == said + "\n"
    assert run("discover", LENS, "photograph.png", "--quiet").stderr == ""
    assert run("discover", LENS, "photo.png").stderr == ""


def test_a_plan_adds_up(place):
    said = run("plan", 1000, "--layers", 5, "--batch-size", 4).stdout.replace("\n", " ")
    found = re.search(
        r"about (\d+) s in all: (\d+) s however many images there are, and ([\d.]+) ms an image",
        said,
    )
    total, fixed, each = map(float, found.groups())
    assert total == pytest.approx(fixed + each, abs=1 + each / 100)


def test_verbose_shows_what_libraries_log(place, monkeypatch):
    def load(path):
        logging.getLogger("some.library").info("it is opened")
        raise SecondLensError("that is enough")

    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr("secondlens.lens.lens.Lens.load", load)
    level = logging.root.level
    try:
        said = [run(*first, "search", LENS, "ship").stderr for first in ((), ("--verbose",))]
    finally:
        logging.root.setLevel(level)
    assert ["some.library: it is opened" in each for each in said] == [False, True]
    assert all("Error: that is enough" in each for each in said)


INTERRUPTED_EARLY = """
import sys
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from secondlens.commands import main
main(["search", sys.argv[2], "ship"])
"""


@pytest.mark.parametrize("module", ["click", "secondlens.commands.ablate", "secondlens.lens"])
def test_an_interruption_while_modules_are_imported(module, tmp_path):
    (tmp_path / "lens.json").touch()  # no more is asked of a lens before modules are imported
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_EARLY, module, str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == INTERRUPTED
    assert done.stderr.startswith("Interrupted: ") and len(done.stderr.splitlines()) == 1


HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
from secondlens.commands import main
main()
"""


@pytest.mark.parametrize(
    "workers",
    [(), pytest.param(("--workers", "1"), marks=pytest.mark.long)],
    ids=["here", "workers"],
)
def test_an_interrupted_fit_says_so_and_goes_on(made, tmp_path, workers):
    """Ctrl-C as a terminal sends it, to all processes, while shards are read."""
    out = tmp_path / "lens"
    shards = ("--layers", "5", "--batch-size", "1", "--shard-size", "1")
    command = ("fit", str(made / "photos"), "--out", str(out), *shards)
    running = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *command, *workers],
        start_new_session=True,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    finished = tmp_path / "lens.unfinished"
    while running.poll() is None and not list(finished.glob("group-*.json")):
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == INTERRUPTED, said
    assert said.splitlines()[-1].startswith("Interrupted: what is finished stays")
    assert "Traceback" not in said
    parts = {each: each.stat().st_mtime_ns for each in finished.glob("group-*")}
    assert parts and not out.exists()
    resumed = run("--quiet", *command)
    assert resumed.exit_code == 0 and "over 12 images" in resumed.stdout
    assert not finished.exists()


def test_exit_codes_and_completion_are_named_in_the_help():
    shown = run("--help").output
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"^ +{code}", shown, flags=re.MULTILINE)
    for shell in ("bash", "zsh", "fish"):
        assert f"_SECONDLENS_COMPLETE={shell}_source" in shown


def test_the_shell_completes_commands_without_torch():
    heavy = "{'torch', 'open_clip', 'matplotlib'}"
    code = f"import sys, secondlens.commands; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    words = {"COMP_WORDS": "secondlens se", "COMP_CWORD": "1"}
    environment = os.environ | {"_SECONDLENS_COMPLETE": "bash_complete"} | words
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,search", "plain,segment"]


def test_the_shell_completes_paths_and_choices():
    complete = ShellComplete(main, {}, "secondlens", "_SECONDLENS_COMPLETE").get_completions
    assert [each.value for each in complete(["reproduce"], "fig1")] == ["fig10", "fig11", "fig12"]
    assert [each.type for each in complete(["discover"], "")] == ["file"]
    assert [each.type for each in complete(["fit", "photos", "--out"], "")] == ["file"]
    stores = complete(["fit", "photos", "--store"], "float")
    assert [each.value for each in stores] == ["float32", "float16"]


def test_commands_know_the_choices_of_the_library():
    assert options.PRECISIONS == PRECISIONS
    assert options.STORES == STORES
    (how,) = (each for each in main.commands["describe"].params if each.name == "how")
    assert tuple(how.type.choices) == NORMALISATIONS


OPENERS = {"Image", "tarfile", "webbrowser", "archive", "fs", "filesystem", "click"}
"""Whose `open` opens no text."""


def not_portable(tree):
    """What breaks on another system or with another locale, as (line, reason)."""
    asked = {each for node in ast.walk(tree) if asks_system(node) for each in ast.walk(node)}
    for node in ast.walk(tree):
        if node in asked:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("/tmp"):
                yield node.lineno, "/tmp"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {each.name for each in node.names} | {getattr(node, "module", None)}
            if names & {"fcntl", "msvcrt", "pwd", "grp", "resource"}:
                yield node.lineno, "a module that other systems lack"
        elif isinstance(node, ast.Attribute) and node.attr in {"fork", "SIGKILL", "symlink_to"}:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and reads_text(node):
            yield node.lineno, "text without its encoding"


def asks_system(node):
    """Whether it does one thing on one system and another thing on others."""
    return isinstance(node, ast.If) and ast.unparse(node.test).startswith("sys.platform ")


def reads_text(call):
    if any(each.arg == "encoding" for each in call.keywords):
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if name in {"read_text", "write_text"}:
        return True
    if name != "open" or getattr(getattr(call.func, "value", None), "id", None) in OPENERS:
        return False
    modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
    modes += [each.value.value for each in call.keywords if each.arg == "mode"]
    return not any(isinstance(mode, str) and "b" in mode for mode in modes)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", 1),
        ('path.open("w")', 1),
        ("open(path)", 1),
        ("import fcntl", 1),
        ("if sys.platform == 'win32':\n    import msvcrt\nelse:\n    import fcntl", 0),
        ("if sys.version:\n    import fcntl", 1),
        ("os.kill(1, signal.SIGKILL)", 1),
        ('Path("/tmp/x")', 1),
        ('path.open("rb"), path.write_text("", encoding="utf-8"), Image.open(file)', 0),
    ],
)
def test_the_scan_finds_what_it_looks_for(source, found):
    assert len(list(not_portable(ast.parse(source)))) == found


def test_sources_run_on_every_system():
    found = {
        f"{path.name}:{line}: {reason}"
        for path in SOURCES
        for line, reason in not_portable(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found
