"""Finished pieces of long work: each is written once, whole or not at all, and never changed."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from .errors import SecondLensError
from .storage import save_json, save_tensors


class Parts:
    """Named tensors with some JSON beside them, in a folder, or in memory where there is none.

    A folder belongs to one piece of work, which its `work.json` describes. Opening it again for
    the same work finds the parts that exist.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._in_memory: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def claim(self, work: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        """The plan that this work goes by: the recorded one if it began earlier, else `plan`.

        Raises
        ------
        SecondLensError
            The folder holds something else, or other work.
        """
        if self.folder is None:
            return plan
        record = self.folder / "work.json"
        if not record.is_file():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise SecondLensError(f"{self.folder} holds other files: remove it first")
            self.folder.mkdir(parents=True, exist_ok=True)
            save_json(record, {"work": work, "plan": plan})
            return plan
        try:
            found = json.loads(record.read_text())
            differing = [key for key in work if found["work"].get(key) != work[key]]
            earlier: dict[str, Any] = found["plan"]
        except (ValueError, KeyError, AttributeError) as error:
            raise SecondLensError(f"{record} is damaged: remove {self.folder}") from error
        if differing:
            raise SecondLensError(
                f"{self.folder} holds unfinished work with another {differing[0]}: finish it with "
                "the settings it began with, or remove it"
            )
        return earlier

    def __contains__(self, name: str) -> bool:
        if self.folder is None:
            return name in self._in_memory
        return self._file(name).is_file()

    def save(self, name: str, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Write a part."""
        if self.folder is None:
            self._in_memory[name] = (tensors, info)
        else:
            save_tensors(self._file(name), tensors, {"info": json.dumps(info)})

    def info(self, name: str) -> dict[str, Any]:
        """The JSON beside the tensors of a part."""
        if self.folder is None:
            return self._in_memory[name][1]
        with safe_open(self._file(name), framework="pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["info"])
            return found

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Those whose name begins with `prefix`, which the keys returned lack."""
        if self.folder is None:
            stored = self._in_memory[name][0]
            return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        with safe_open(self._file(name), framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    def drop(self) -> None:
        """Remove all parts, and the folder."""
        self._in_memory.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"
