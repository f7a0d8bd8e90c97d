"""Files of a lens: written beside their place and moved in, so that they are whole or absent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import SecondLensError


def check_empty(out: str | Path) -> None:
    """Raise `SecondLensError` if `out` is a file or a folder with something in it."""
    path = Path(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise SecondLensError(f"{path} exists already: name a new folder, or remove it first")


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file."""
    partial = path.with_name(path.name + ".partial")
    on_cpu = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with _whole(partial):
        save_file(on_cpu, partial, metadata)
        partial.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    partial = path.with_name(path.name + ".partial")
    with _whole(partial):
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.replace(path)


@contextmanager
def _whole(partial: Path) -> Iterator[None]:
    """Turn a failure to write into one sentence, and leave no partial file behind."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise SecondLensError(f"{partial.parent} cannot be written to: {error}") from error
