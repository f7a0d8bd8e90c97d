"""Run commands with --quiet, one after another, and print what each wrote to standard error.

    python tests/silence.py FOLDER < LINES.json

A process of its own, because libraries read what they may print when they are imported, and some
write past Python's own standard error.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from secondlens.commands.group import main


def run(words):
    """The exit code of a command, and what reached the file descriptor of standard error."""
    kept, code = os.dup(2), 0
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        os.dup2(said.fileno(), 2)
        try:
            main(["--quiet", *words])
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        said.seek(0)
        return code, said.read().decode()


def answers(lines):
    """By name, what `run` gives for a line; for None, the command of that name in `CASES`."""
    run(["list", "pages"])  # imports no library, as the first thing that a command does
    from models import adapter, tiny_transformers_model
    from small_world import CASES, MODEL, small, write_given

    given = Path.cwd() / "given"
    given.mkdir()
    write_given(given)
    tiny_transformers_model().save_pretrained(given / "adapted")
    adapter(given / "adapted", given / "adapted")
    with small():
        for name, line in lines.items():
            place = given.parent / name.replace(" ", "-")
            if line is None:
                CASES[name].place(given, place)
                words = CASES[name].arguments
            else:
                place.symlink_to(given)
                words = line.replace(" ON", " " + " ".join(MODEL)).split()
            os.chdir(place)
            yield name, run(words)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    with Path(os.devnull).open("w") as nowhere:
        out, sys.stdout = sys.stdout, nowhere
        found = dict(answers(json.load(sys.stdin)))
    json.dump(found, out)
