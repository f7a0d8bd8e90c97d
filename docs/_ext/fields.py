"""The directive `fields`: the tensors that a dataclass keeps, from annotations and docstrings."""

from dataclasses import fields
from importlib import import_module
from typing import Any, get_args

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive `fields`."""
    app.add_directive("fields", Fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Fields(SphinxDirective):
    """A row for each field of a dataclass that is a tensor, or a tensor for each layer."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].rpartition(".")
        kept = getattr(import_module(module), name)
        docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        rows = ["| tensor | type | shape | meaning |", "|---|---|---|---|"]
        for each in fields(kept):
            tensor = _tensor(each.type)
            if tensor is None:
                continue
            suffix = "-LL" if get_args(each.type)[:1] == (int,) else ""
            kind = "int64" if tensor.__name__.startswith("Int[") else "float"
            shape = ", ".join(tensor.dim_str.split())
            meaning = " ".join(docs.get((name, each.name), [])).strip()
            rows.append(f"| `{each.name}{suffix}` | {kind} | [{shape}] | {meaning} |")
        return self.parse_text_to_nodes("\n".join(rows))


def _tensor(annotation: Any) -> Any:
    """The tensor type in an annotation: the type itself, of a mapping's values, or beside None."""
    if hasattr(annotation, "dim_str"):
        return annotation
    return next((found for each in get_args(annotation) if (found := _tensor(each))), None)
