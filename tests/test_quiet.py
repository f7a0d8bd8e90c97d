"""With --quiet, nothing but mistakes reaches standard error, from commands or from libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_world import CASES

from secondlens.commands.group import COMMANDS

SILENT = {
    "plan": "plan 9 ON",
    "search": "search lens sea ON",
    "steer": "steer --neuron 5:3 --text sea",
    "why-attention": "why-attention photo.png --layer 6 --head 1",
    "bench": "bench --rounds 1 --batch-size 1",
    "verify": "verify tiny:8",
    "verify with an adapter": "verify hf:adapted",
    "fit by workers": "fit classes --out by-workers --shard-size 4 --workers 2 ON",
    "list": "list pages",
    "old options": "attack demo-lens --draw cow --mistake-for lion --images 1 --captions 1 "
    "--out old --drawer sprites",
}
"""Commands that write nothing, and those that load other libraries or have something to note."""

MISTAKEN = {
    "no lens": "search nowhere sea",
    "no option": "search lens sea --no-such-option",
    "no model": "verify hf:given",
}

ELSEWHERE = {"explore"}
"""Commands that serve, and do not end."""


OFTEN = {name for name, case in CASES.items() if case.moments == 3 or name == "attack"}
"""Cases that take little time."""


def said(folder, lines):
    """By name, the exit code and the standard error of each command."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "silence.py", folder],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_command_is_asked():
    asked = {name.split()[0] for name in CASES} | {line.split()[0] for line in SILENT.values()}
    assert asked | ELSEWHERE == {command.name for command in COMMANDS}


@pytest.mark.long
def test_nothing_but_mistakes_is_said(tmp_path):
    found = said(tmp_path, dict.fromkeys(OFTEN) | SILENT | MISTAKEN)
    for name in MISTAKEN:
        code, text = found.pop(name)
        assert code == 2 and "Error: " in text
    assert {name: each for name, each in found.items() if each != [0, ""]} == {}


@pytest.mark.long
def test_nothing_is_said_by_commands_that_take_long(tmp_path):
    found = said(tmp_path, dict.fromkeys(CASES.keys() - OFTEN))
    assert {name: each for name, each in found.items() if each != [0, ""]} == {}
