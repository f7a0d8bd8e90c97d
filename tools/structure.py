"""Prints how the library is cut into files, beside other libraries of the field.

    python tools/structure.py                 # this library
    python tools/structure.py PATH [PATH …]   # any other package, beside it

A row has the number of files, their lines, the median and the longest, how many files are imported
by exactly one other, and the share of lines that are import statements. Of this library, files that
hold a command or a member of a registry are not counted among those read once: their registry reads
them. The stub of its public names reads what it names.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from secondlens.commands.group import COMMANDS
from secondlens.commands.list import REGISTRIES, registry

OWN = Path(__file__).parent.parent / "src" / "secondlens"


def members() -> set[str]:
    """Return the dotted names of the files that hold a command or a member of a registry."""
    made = [member.factory for kinds in REGISTRIES for member in registry(kinds)]
    places = [each.partition(":")[0] if isinstance(each, str) else each.__module__ for each in made]
    places += [command.callback.__module__ for command in COMMANDS if command.callback]
    return {place.removeprefix(f"{OWN.name}.") for place in places}


def modules(root: Path) -> dict[str, Path]:
    """Return the files of a package by dotted name; packages have the names of their folders."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def imported(name: str, path: Path, package: str, known: dict[str, Path]) -> set[str]:
    """Return the modules that a file imports, inside functions and for type-checking too."""
    own = name.split(".") if name else []
    here = own if path.stem == "__init__" else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            asked = node.module.split(".") if node.module else []
            if node.level:
                asked = here[: len(here) - node.level + 1] + asked
            elif asked[:1] == [package]:
                asked = asked[1:]
            else:
                continue
            for each in node.names:
                inner = ".".join([*asked, each.name])
                found.add(inner if inner in known else ".".join(asked))
    return found & set(known) - {name}


def row(root: Path) -> tuple[str, int, int, float, int, int, str]:
    """Return the numbers of one package."""
    known = modules(root)
    sources = {name: path.read_text(encoding="utf-8") for name, path in known.items()}
    lengths = [len(text.splitlines()) for text in sources.values()]
    readers: dict[str, set[str]] = defaultdict(set)
    statements = 0
    for name, path in known.items():
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.Import | ast.ImportFrom):
                statements += (node.end_lineno or node.lineno) - node.lineno + 1
        for each in imported(name, path, root.name, known):
            readers[each].add(name)
    if (stub := root / "__init__.pyi").is_file():
        for each in imported("", stub, root.name, known):
            readers[each].add(stub.name)
    not_counted = members() if root.samefile(OWN) else set()
    once = sum(len(each) == 1 for name, each in readers.items() if name not in not_counted)
    share = f"{100 * statements / sum(lengths):.1f} %"
    return root.name, len(known), sum(lengths), median(lengths), max(lengths), once, share


if __name__ == "__main__":
    heads = ("package", "files", "lines", "median", "longest", "read once", "imports")
    print("{:12} {:>6} {:>7} {:>7} {:>8} {:>10} {:>8}".format(*heads))
    for root in (OWN, *map(Path, sys.argv[1:])):
        print("{:12} {:>6} {:>7} {:>7.0f} {:>8} {:>10} {:>8}".format(*row(root)))
