"""A command that was stopped at any moment leaves the old or the new, and then goes on."""

import shutil
import subprocess
import sys

import click
import pytest
from crashing import crashes
from outputs import check_state, leftovers, read, run
from scale import sampled
from small_world import CASES, small, write_given

from secondlens.commands.group import main

pytestmark = pytest.mark.filterwarnings("ignore:.* longer than the context of tiny:UserWarning")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_given(folder)
    with small():
        yield folder


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


@pytest.mark.parametrize(
    "name",
    sampled([name for name, case in CASES.items() if case.moments], {"fit", "describe", "pull"}),
)
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
        "describe": ["lens"], "name": ["lens"], "score": ["lens"],
        "export": ["site"], "pull": ["pulled"],
    }[words[0]]  # fmt: skip


OUTPUTS = {"--out", "--to", "--page", "--parquet", "--heat-map"}


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


@pytest.mark.parametrize("name", sampled(CASES, {"fit", "audit", "share"}))
def test_of_two_at_once_one_is_refused(name, busy):
    folder, holder = busy
    before = read(folder)
    result = run(folder, CASES[name].arguments)
    assert result.exit_code == 2
    assert f" is being written by process {holder}: wait until that is done" in result.stderr
    assert read(folder) == before


# -- all of them -------------------------------------------------------------------------------

READING = {"groundtruth list", "plan", "search", "steer", "bench", "verify", "list", "explore"}
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
            own = [each for each in CASES.values() if each.command.startswith(f"{name} ")]
            assert writes <= {argument for each in own for argument in each.arguments}
