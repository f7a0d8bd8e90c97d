"""The documentation is true: its examples run, its commands exist, its tables are of the code."""

import doctest
import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import click
import nbformat
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient
from scale import PATIENCE, sampled
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

import secondlens as sl
from secondlens.commands.group import main
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import FIT_SEED, SCORE_SEED, Scenes, World, truth
from secondlens.lens.lens import Lens
from secondlens.lens.names import TENSORS, Names

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def commands(text):
    """The `secondlens` commands in a block, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["secondlens"]]


def run_console(example):
    """Run what follows `$`; what else stands there must be printed, `...` for anything."""
    for block in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        line, _, expected = block.partition("\n")
        (arguments,) = commands(line)
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        if expected.strip():
            assert doctest.OutputChecker().check_output(expected, result.output, ANY), result.output


def parse_commands(example):
    """Look whether commands, options and choices exist; run nothing."""
    for name, *arguments in commands(example.parsed):
        command = main.commands[name]
        if isinstance(command, click.Group):
            # a group may make its commands when they are asked for
            command = command.get_command(click.Context(command), arguments.pop(0))
        command.make_context(name, arguments)


def compile_python(example):
    compile(example.parsed, example.path, "exec")


EXAMPLES = Sybil(
    [
        PythonCodeBlockParser(),
        CodeBlockParser("console", run_console),
        CodeBlockParser("sh", parse_commands),
        CodeBlockParser("py", compile_python),
    ]
)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A small lens where the demo has its own, some photos, and one more."""
    folder = tmp_path_factory.mktemp("documented")
    clip, scenes = sl.load("demo"), Scenes(World(), FIT_SEED, 60)
    lens = sl.fit(clip, scenes, layers=[4, 5, 6])
    sl.describe(clip, lens, world_vocabulary(), 8)
    unseen = Scenes(World(), SCORE_SEED, 40)
    sl.score(clip, lens, world_vocabulary(), unseen, truth(unseen))
    lens.save(folder / "secondlens-demo" / "lens")
    (folder / "photos").mkdir()
    for i in range(24):
        World().scene(3, i).image.save(folder / "photos" / f"{i:02}.png")
    World().scene(4, 0, objects=["dog"], background="grass").image.save(folder / "photo.png")
    return folder


@pytest.fixture
def place(material, tmp_path, monkeypatch):
    """A copy of the material, which is where examples run."""
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# among 24 photos hardly a cue is shown beyond chance
@pytest.mark.filterwarnings("ignore:left out, since no picture shows")
@pytest.mark.parametrize(
    "page", PAGES, ids=[page.relative_to(ROOT / "docs").as_posix() for page in PAGES]
)
def test_examples_run(page, place):
    for example in EXAMPLES.parse(page).examples():
        example.evaluate()


def test_commands_of_the_readme_exist():
    for example in EXAMPLES.parse(ROOT / "README.md").examples():
        if "import secondlens" not in example.parsed:
            example.evaluate()


@pytest.mark.parametrize(
    "notebook",
    sampled(NOTEBOOKS, {ROOT / "notebooks" / "first-look.ipynb"}),
    ids=lambda path: path.stem,
)
def test_notebooks_run(notebook, place):
    assert notebook.stat().st_size < 100_000
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(
        content, timeout=PATIENCE, resources={"metadata": {"path": str(place)}}
    ).execute()


def test_the_library_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = {
        name.split(".")[-1] for name in re.findall(r"^\.\. auto\w+:: (\S+)$", page, re.MULTILINE)
    }
    assert set(sl.__all__) <= named


def keys(table):
    """The names in the first column of a Markdown table, several in one cell included."""
    return {name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def section(title):
    """The rows of the first tables below a heading of the page on the format."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    body = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [
        [row for row in table.splitlines()[2:] if row.startswith("|")]
        for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE)
    ]


def test_the_format_page_names_every_key_of_a_real_lens(material):
    lens = material / "secondlens-demo" / "lens"
    manifest = json.loads((lens / "lens.json").read_text())
    of_manifest, of_model = section("`lens.json`")
    # "files" has a lens that replaced another, "names" one whose neurons were named, "sample" one
    # of very many images, "all_paths" one that was fitted over all paths
    assert keys(of_manifest) == {*manifest, "files", "names", "sample", "all_paths"}
    # and these have towers that read something else than a class token before its patches
    assert keys(of_model) == {*manifest["model"], "prefix", "tower", "pool_heads"}
    (of_images,) = section("`images.json`")
    assert keys(of_images) == set(json.loads((lens / "images.json").read_text()))
    for entry in ("codes", "scores"):
        (row,) = [row for row in of_manifest if row.startswith(f"| `{entry}`")]
        for key in manifest[entry][0]:
            assert f"`{key}`" in row
    (row,) = [row for row in of_manifest if row.startswith("| `names`")]
    for field in fields(Names):
        assert field.name in TENSORS or f"`{field.name}`" in row


def test_the_format_page_names_every_file_of_a_real_lens(material, tmp_path):
    Lens.load(material / "secondlens-demo" / "lens").save(tmp_path)
    named = {row.split("`")[1] for table in section("Files") for row in table}
    patterns = [name.replace("LL", "??").replace("NN", "??") for name in named]
    for path in tmp_path.iterdir():
        assert any(path.match(pattern) for pattern in patterns), path.name
