"""A command that was stopped at any moment leaves the old or the new, and then goes on."""

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from crashing import crashes, is_passing
from small_world import CASES, small, write_given

from secondlens.commands.group import main
from secondlens.lens import folder as lens_folder
from secondlens.lens.lens import Lens
from secondlens.storage.files import MOVING

pytestmark = pytest.mark.filterwarnings("ignore:.* longer than the context of tiny:UserWarning")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_given(folder)
    with small():
        yield folder


def run(folder, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read(folder):
    """What is in a folder, as a reader finds it: lenses as such, and the bytes of other files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or is_passing(name) or MOVING in name.parts or "unfinished" in str(name):
            continue
        if path.name == "lens.json":
            lens = Lens.load(path.parent)
            tensors = {
                own: {key: each.numpy().tobytes() for key, each in inside.items()}
                for own, inside in lens_folder._tensors(lens)
            }
            found[str(name)] = lens_folder.manifest(lens), lens.image_ids, lens.skipped, tensors
        elif not (lens_folder.OWN.fullmatch(path.name) and is_lens(path.parent)):
            found[str(name)] = path.read_bytes()
    return found


def is_lens(folder):
    """Whether it holds a lens, or what a fit wrote of it when it was stopped."""
    return (folder / "lens.json").exists() or any(folder.glob("layer-*.safetensors"))


def leftovers(folder):
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if is_passing(path.name) or path.name == MOVING or path.name.endswith(".unfinished")
    ]


def check_state(case, found, old, new, folder):
    """Every file is the old or the new one; what does not grow is all old or all new."""
    for name, content in found.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither old nor new"
    for top in {Path(name).parts[0] for name in old | new} - {*case.grows}:
        if not (folder / top / MOVING).exists():
            versions = [
                {name: content for name, content in each.items() if Path(name).parts[0] == top}
                for each in (found, old, new)
            ]
            assert versions[0] in versions[1:], f"{top} is a mixture"


def stop(case, given, tmp_path, moments):
    """Stop a command at some moments, look at what is there, and run it again."""
    place = tmp_path / "place"
    case.place(given, place)
    old = read(place)
    with crashes(place, tmp_path) as states:
        result = run(place, case.arguments)
    assert result.exit_code == 0, result.output
    new = read(place)
    assert new != old and not leftovers(place)
    assert len(states) > 5
    for state in moments(states):
        found = read(state)
        check_state(case, found, old, new, state)
        again = run(state, case.arguments)
        if again.exit_code:
            assert found == new, f"{state.name}: {again.output}"
            assert "exists already" in again.output
        assert read(state) == new, f"{state.name} ends otherwise"
        assert not leftovers(state), state.name
        shutil.rmtree(state)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.moments])
def test_stopped_at_some_moments(name, given, tmp_path):
    case = CASES[name]

    def some(states):
        last = len(states) - 1
        places = {1: [last // 2], 3: [0, last // 2, last]}[case.moments]
        return [states[each] for each in places]

    stop(case, given, tmp_path, some)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_stopped_at_any_moment(name, given, tmp_path):
    stop(CASES[name], given, tmp_path, list)


# -- two at once -------------------------------------------------------------------------------

HOLDING = """
import sys
from contextlib import ExitStack
from secondlens.storage.locks import locked
with ExitStack() as stack:
    for place in sys.argv[1:]:
        stack.enter_context(locked(place))
    print("held", flush=True)
    sys.stdin.read()
"""


def outputs(case):
    """The names that a command writes."""
    words = case.arguments
    return [words[i + 1] for i, word in enumerate(words) if word in OUTPUTS] or {
        "describe": ["lens"], "score": ["lens"], "export": ["site"], "pull": ["pulled"],
    }[words[0]]  # fmt: skip


OUTPUTS = {"--out", "--to", "--page", "--parquet"}


@pytest.fixture(scope="module")
def busy(given, tmp_path_factory):
    """A folder in which another process writes all that commands write."""
    folder = tmp_path_factory.mktemp("busy")
    for case in CASES.values():
        for name in case.given:
            if not (folder / name).exists():
                copy = shutil.copytree if (given / name).is_dir() else shutil.copy
                copy(given / name, folder / name)
    places = {str(folder / name) for case in CASES.values() for name in outputs(case)}
    command = [sys.executable, "-c", HOLDING, *sorted({*places, str(folder / "lens")})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield folder, process.pid
        process.stdin.close()


@pytest.mark.parametrize("name", CASES)
def test_of_two_at_once_one_is_refused(name, busy):
    folder, holder = busy
    before = read(folder)
    result = run(folder, CASES[name].arguments)
    assert result.exit_code == 2
    assert f" is being written by process {holder}: wait until that is done" in result.stderr
    assert read(folder) == before


# -- all of them -------------------------------------------------------------------------------

READING = {"plan", "search", "bench", "verify", "list", "explore"}
"""Commands that write nothing, or what they find anew when it is not there."""


def commands(group, words=()):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def test_every_command_that_writes_is_stopped():
    """So that a new one is noticed: it is among the cases, or takes what one of them takes."""
    covered = {name: each for name, each in commands(main) if name in CASES}
    shapes = {frozenset(p.name for p in each.params) for each in covered.values()}
    for name, command in commands(main):
        shape = frozenset(each.name for each in command.params)
        writes = {flag for each in command.params for flag in each.opts} & OUTPUTS
        assert name in CASES or name in READING or (name[:9] == "reproduce" and shape in shapes)
        if name in READING:
            assert not writes or name == "plan"  # which says what a fit there would need
        elif name in CASES:
            assert writes <= set(CASES[name].arguments)


