"""What is printed: no name or text steers a terminal, and nothing passes by `terminal`."""

import ast
import io
import json
import re
from pathlib import Path

import pytest
from rich.markup import escape
from rich.table import Table

import secondlens as sl
from secondlens.errors import UnsupportedModel
from secondlens.progress import bars, tracked
from secondlens.terminal import Terminal, notes, one_line, say_json, say_mistake, visible

SOURCE = Path(sl.__file__).parent
STEERING = "\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202e\u2066\ufeff\ud800\x00\x7f"
SHOWN = r"\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202e\u2066\ufeff\ud800\x00\x7f"
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_what_acts_on_a_terminal_is_spelled_out():
    assert visible(STEERING) == SHOWN
    assert (
        visible("plain text\twith\nlines, Wörter, 日本語, 👩‍🔬")
        == "plain text\twith\nlines, Wörter, 日本語, 👩‍🔬"
    )
    assert one_line("a \n b\x1b") == r"a b\x1b"


@pytest.mark.parametrize("make", [str, escape])
def test_tables_titles_and_lines(make):
    out = io.StringIO()
    terminal = Terminal(file=out, width=200, emoji=False)
    table = Table(title=make(STEERING))
    table.add_column(make(STEERING))
    table.add_row(make(STEERING))
    terminal.print(table)
    terminal.print(STEERING, markup=False, highlight=False)
    said = out.getvalue()
    assert not ACTS.search(said)
    assert said.count(SHOWN) == 4
    assert len({len(line) for line in said.splitlines()[1:-1]}) == 1  # measured as printed


def test_a_text_without_markup_is_one_line():
    out = io.StringIO()
    terminal = Terminal(file=out, width=200, emoji=False)
    terminal.print("a name\nError: forged", markup=False, highlight=False)
    assert out.getvalue() == "a name\\nError: forged\n"


def test_what_rich_says_to_a_terminal_stays():
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, color_system="standard", width=60)
    terminal.print("[red]x[/red]" + escape("\x1b[32m"))
    assert out.getvalue() == "\x1b[31mx\x1b[0m\\x1b\\[32m\n" or "\x1b[31mx" in out.getvalue()
    assert "\x1b[32m" not in out.getvalue()


def test_json_means_the_same(capsys):
    say_json(json.dumps({"a": STEERING}, ensure_ascii=False))
    said = capsys.readouterr().out
    assert not ACTS.search(said)
    assert json.loads(said) == {"a": STEERING}


def test_mistakes_and_progress(capsys, monkeypatch):
    say_mistake(sl.SecondLensError(f"no file {STEERING}\nError: another"))
    said = capsys.readouterr().err
    assert said == f"Error: no file {SHOWN} Error: another\n"
    list(tracked([1], STEERING, True))
    with bars(True) as shown:
        shown.add_task(escape(STEERING), total=1)
    assert not ACTS.search(capsys.readouterr().err)
    assert isinstance(notes(), Terminal)


ELSEWHERE = {
    "terminal.py": "the one place",
    "commands/process.py": "a fixed sentence, when nothing else may be imported",
}
"""Files that may print, and why."""
PRINTERS = {
    "print",
    "click.echo",
    "click.secho",
    "rich.print",
    "Console",
    "rich.get_console",
    "get_console",
    "Progress",
    "track",
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_prints_past_the_terminal(path):
    if path.relative_to(SOURCE).as_posix() in ELSEWHERE:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            drawn = called in {"Progress", "track"} and path.name == "progress.py"
            assert called not in PRINTERS or drawn, f"line {node.lineno}: use secondlens.terminal"
            assert not re.search(r"std(out|err)\.write|getLogger\(\).addHandler", called)
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"sys.stdout", "sys.stderr"}, f"line {node.lineno}"


def test_a_mistake_is_one_line_whatever_a_library_says():
    assert str(sl.SecondLensError("no thrift: \n bad header.\n")) == "no thrift: bad header."
    assert str(UnsupportedModel("one\n\ntwo")) == "one two"
