"""The directives `programs` and `parts`: what the compiled networks are made of, from the code."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from secondlens.groundtruth.program import PARTS, Program, Unit
from secondlens.groundtruth.registry import networks


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("programs", Programs)
    app.add_directive("parts", Parts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Parts(SphinxDirective):
    """A row for each part of the language."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows = [f"| {name} | {help} |" for name, help in PARTS.items()]
        return self.parse_text_to_nodes("\n".join(["| part | it … |", "|---|---|", *rows]))


class Programs(SphinxDirective):
    """A table for each network: its units, what they read and write, and how they act."""

    def run(self) -> list[nodes.Node]:
        """The tables, each after its name and line of help."""
        text = []
        for member in networks:
            program = member()
            text += [f"**{member.name}**: {member.help}.", "", *_units(program), ""]
            if heads := [_head(program, number) for number in range(len(program.heads))]:
                text += ["Heads: " + "; ".join(heads) + ".", ""]
        return self.parse_text_to_nodes("\n".join(text))


def _units(program: Program) -> list[str]:
    rows = [
        "| unit | layer | part | reads, with θ | writes | acts by |",
        "|---|---|---|---|---|---|",
    ]
    return [*rows, *map(_unit, program.units)]


def _unit(unit: Unit) -> str:
    read = _sum(unit.reads) or "nothing"
    acts = unit.acts or "nothing in total"
    cells = (unit.name, unit.layer, unit.part, f"{read}, {unit.threshold:g}", _sum(unit.writes))
    return "| " + " | ".join(map(str, (*cells, acts))) + " |"


def _sum(weights: Any) -> str:
    return ", ".join(f"{weight:g} {slot}" for slot, weight in weights.items())


def _head(program: Program, number: int) -> str:
    head = program.heads[number]
    moves = ", ".join(f"{slot} to {weight:g} {to}" for slot, (to, weight) in head.moves.items())
    looks = " + ".join(f"{weight:g} ({query}) × ({key})" for query, key, weight in head.looks)
    return f"block {head.block} moves {moves}, with scores {looks or '0'}"
