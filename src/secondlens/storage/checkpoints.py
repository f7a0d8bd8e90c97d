"""Tensors on disk: single files, and checkpoints of long work.

A checkpoint is written once, whole or not at all, and never changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SecondLensError
from ..formatting import differences
from . import remote
from .files import read_json, save_json, whole
from .regular import check_regular
from .validation import DAMAGED, reading


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file."""
    on_cpu = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with whole(path) as partial:
        save_file(on_cpu, partial, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises
    ------
    OSError, SafetensorError, ValueError
        There is none, or it is damaged; the message names it.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SafetensorError(f"{path.name}: {error}") from error


class Checkpoints:
    """Named tensors with some JSON beside them, in a folder, or in memory where there is none.

    A folder, here or in a store, belongs to one piece of work, which its `work.json` describes
    together with the version that began it. Opening it again for the same work finds the parts that
    exist, those of another version too as long as they have the same form. The JSON is written
    after the tensors and says that the part is whole. Several processes may write the same part:
    all of them write the same.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else str(folder)
        self._in_memory: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self._begun_by: str | None = version("secondlens")
        self._prefix = ""

    def claim(self, work: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        """The plan that this work goes by: the recorded one if it began earlier, else `plan`.

        Raises
        ------
        SecondLensError
            The folder holds something else, other work, or work of another version in another
            form.
        """
        if self.folder is None:
            return plan
        record = f"{self.folder}/work.json"
        # what a stopped write left beside its place says nothing
        there = {name for name in self._files() if not name.endswith(".partial")}
        if "work.json" not in there:
            if there:
                raise SecondLensError(f"{self.folder} holds other files: remove it first")
            save_json(record, {"work": work, "plan": plan, "version": self._begun_by})
            return plan
        try:
            found = read_json(record)
            begun_by, differing = found.get("version"), differences(found["work"], work)
            earlier: dict[str, Any] = found["plan"]
            same = set(found["work"]) == set(work) and set(earlier) == set(plan)
            if not isinstance(begun_by, str | None) or (not same and begun_by == self._begun_by):
                raise ValueError("its work or plan is another one")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SecondLensError(f"{record} is damaged: remove {self.folder}") from error
        self._begun_by = begun_by
        if not same:
            raise self._of_another_version()
        if differing:
            raise SecondLensError(
                f"{self.folder} holds unfinished work with {differing}: finish it with the "
                "settings it began with, or remove it"
            )
        return earlier

    def under(self, prefix: str) -> "Checkpoints":
        """The parts of these whose names begin with a prefix, without it."""
        found = Checkpoints(self.folder)
        found._in_memory, found._begun_by = self._in_memory, self._begun_by
        found._prefix = self._prefix + prefix
        return found

    def names(self) -> set[str]:
        """Of the parts that exist now."""
        if self.folder is None:
            there = set(self._in_memory)
        else:
            files = self._files()
            there = {name.removesuffix(".json") for name in files if name.endswith(".json")}
        own = {name for name in there if name.startswith(self._prefix)}
        return {name.removeprefix(self._prefix) for name in own}

    def save(self, name: str, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Write a part."""
        name = self._prefix + name
        if self.folder is None:
            # on the CPU: those of many shards would fill a GPU
            kept = {key: tensor.cpu() for key, tensor in tensors.items()}
            self._in_memory[name] = (kept, info)
            return
        save_tensors(f"{self.folder}/{name}.safetensors", tensors)
        save_json(f"{self.folder}/{name}.json", info)

    def info(self, name: str) -> dict[str, Any]:
        """The JSON beside the tensors of a part."""
        if self.folder is None:
            return self._in_memory[self._prefix + name][1]
        with self.reading(name):
            return read_json(f"{self.folder}/{self._prefix}{name}.json")

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Those whose name begins with `prefix`, which the keys returned lack."""
        if self.folder is None:
            stored = self._in_memory[self._prefix + name][0]
            return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        with self.reading(name), self._file(name) as path, safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Inside it, what fails is that a part is damaged, or of a version that wrote others."""
        try:
            with reading(
                f"the part {self._prefix}{name} of {self.folder}", f"remove {self.folder}"
            ):
                yield
        except SecondLensError as error:
            if self._begun_by == version("secondlens") or not isinstance(error.__cause__, DAMAGED):
                raise
            raise self._of_another_version() from error

    def _of_another_version(self) -> SecondLensError:
        begun_by = "an earlier version" if self._begun_by is None else f"version {self._begun_by}"
        return SecondLensError(
            f"{self.folder} was begun by {begun_by} of secondlens, whose parts "
            f"{version('secondlens')} cannot go on with: finish it with that version, or remove it "
            "and begin again"
        )

    def drop(self) -> None:
        """Remove all parts, and the folder.

        Raises
        ------
        SecondLensError
            A folder has the name of a part.
        """
        self._in_memory.clear()
        if self.folder is None:
            return
        if not remote.is_remote(self.folder):
            # the record goes last: what it stands for is known, wherever this is stopped
            for name in self._files() - {"work.json"}:
                part = Path(self.folder, name)
                if part.is_dir():
                    raise SecondLensError(
                        f"{part} is a folder where a file was written: remove {self.folder}"
                    )
                part.unlink(missing_ok=True)
        remote.remove(self.folder)

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        place = f"{self.folder}/{self._prefix}{name}.safetensors"
        if remote.is_remote(place):
            with remote.fetched(place) as copy:
                yield copy
        else:
            check_regular(Path(place))
            yield Path(place)

    def _files(self) -> set[str]:
        assert self.folder is not None
        if remote.is_remote(self.folder):
            return remote.names(self.folder)
        folder = Path(self.folder)
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
