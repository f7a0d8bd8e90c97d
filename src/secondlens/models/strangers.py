"""Models from strangers: what their files may say, checked before any library reads them.

Configurations of models can name code: a module beside the weights, a class by its dotted path, a
kernel of the hub. Libraries run it when asked to, and some of them can be asked to by the
configuration itself. Here each configuration of a folder or a repository is read as plain data
first and refused if it names code, and while a library loads, its door to such code is shut.
"""

import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

from safetensors import SafetensorError

from ..errors import SecondLensError
from .weights import check_pointer

UNLOADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StopIteration,
    TypeError,
    UnpicklingError,
    ValueError,
)
"""What libraries raise for files that are not models, or that fit other models."""

CONFIGURATIONS = ("config*.json", "*config.json", "modules.json", "*model_index.json")
"""Names of the files that tell a library what to build, in any folder of a model."""
MOST_FILES = 20_000
LARGEST = 16 * 2**20
"""Bytes of a configuration."""

NAMES_CODE = frozenset(
    {"auto_map", "auto_mapping", "custom_generate", "custom_pipeline", "trust_remote_code"}
)
"""Keys that name code to run, or allow it; empty and false ones do no harm."""
DOTTED = re.compile(r"(sentence_transformers|torch\.nn)(\.\w+)*\.[A-Z]\w*")
"""Classes that a sentence model may name by path: of its library, and layers of torch."""
BY_PATH = frozenset({"type", "types", "activation_function", "tokenizer_class"})
"""Keys by which it does."""
KERNEL = re.compile(r"\w*")
"""Ways to compute that transformers has itself; others are repositories of compiled code."""
LIBRARIES = ("diffusers", "transformers")
"""Of the parts of a pipeline, beside packages of diffusers' own pipelines."""
TOKENIZER_OPTIONS = frozenset({"clean", "language", "strip_sep_token"})
"""That a configuration of open_clip may set: the others reach transformers, or open files."""
NAMED_MODELS = ("hf_model_name", "hf_tokenizer_name")
"""Keys by which a configuration of open_clip leads to other models."""

DOORS = (
    ("transformers.dynamic_module_utils", "get_class_in_module"),
    ("diffusers.utils.dynamic_modules_utils", "get_class_in_module"),
)
"""The functions that run Python files of models."""
QUESTION = ("transformers.dynamic_module_utils", "TIME_OUT_REMOTE_CODE")
"""Seconds that transformers waits for an answer to "run the custom code?"; at 0, it never asks."""

_shutting = threading.RLock()


def check_model(name: str) -> Path:
    """Read the configurations of a folder, or of a repository of the hub, and refuse code.

    Returns
    -------
    The folder in which the configurations are.

    Raises
    ------
    SecondLensError
        A configuration names code, a file is a pointer of git-lfs, or there are too many files to
        look at.
    OSError, ValueError, RuntimeError
        A configuration is damaged or too large, or the repository cannot be had.
    """
    folder = _folder_of_configurations(name)
    for path, content in _configurations(folder):
        _check(content, path.name, f"{path.name} of {name}")
    return folder


def check_open_clip_model(name: str) -> None:
    """The same for a folder or repository of open_clip, and the models that it names.

    Raises
    ------
    SecondLensError, OSError, ValueError, RuntimeError
        As `check_model`; or options reach a tokenizer that open_clip does not define.
    """
    for path, content in _configurations(check_model(name)):
        if path.name != "open_clip_config.json" or not isinstance(content, dict):
            continue
        parts = content.get("model_cfg", content)
        for each in parts.values() if isinstance(parts, dict) else ():
            if isinstance(each, dict):
                _check_tower(each, f"{path.name} of {name}")


def _check_tower(tower: dict[str, Any], where: str) -> None:
    options = tower.get("tokenizer_kwargs") or {}
    for option, value in options.items() if isinstance(options, dict) else [(str(options), None)]:
        if option not in TOKENIZER_OPTIONS or not isinstance(value, str | bool | None):
            _refuse(where, f"sets {option!r} of its tokenizer")
    if ":" in str(tower.get("timm_model_name", "")):
        _refuse(where, f"takes its image tower from {tower['timm_model_name']}")
    for key in NAMED_MODELS:
        if isinstance(other := tower.get(key), str) and other:
            check_model(other)


@contextmanager
def no_code_runs() -> Iterator[None]:
    """While the `with` lasts, transformers and diffusers run no Python file of a model, and do not
    ask whether they may, whatever they read.

    One thread at a time: the doors are those of the whole process.
    """
    with _shutting:
        kept: list[tuple[Any, str, Any]] = []
        try:
            for module, name in (*DOORS, QUESTION):
                if module.partition(".")[0] in sys.modules:
                    library = importlib.import_module(module)
                    kept.append((library, name, getattr(library, name)))
                    setattr(library, name, 0 if (module, name) == QUESTION else _shut)
            yield
        finally:
            for library, name, before in kept:
                setattr(library, name, before)


def _shut(*_: Any, **__: Any) -> NoReturn:
    raise SecondLensError(
        "the model brings Python code to run, which is refused: take a model that its library "
        "knows by itself"
    )


def _folder_of_configurations(name: str) -> Path:
    """A folder itself; of a repository, those files alone are fetched."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = [*CONFIGURATIONS, *(f"*/{each}" for each in CONFIGURATIONS)]
    return Path(snapshot_download(name, allow_patterns=patterns))


def _configurations(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Path and content of each."""
    for path in _files(folder):
        if _is_read(path):
            check_pointer(path)
        if any(fnmatch(path.name, pattern) for pattern in CONFIGURATIONS):
            yield path, _content(path)


def _is_read(path: Path) -> bool:
    """Whether a library may open it, which prefers safetensors and no variant such as `.fp16`."""
    if "." in path.stem or not path.is_file():
        return False
    old = path.suffix in (".bin", ".pt", ".pth") and not any(path.parent.glob("*.safetensors"))
    return old or path.suffix in (".json", ".safetensors", ".txt")


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder, also in folders that links lead to, as libraries follow them."""
    seen: set[str] = set()
    count = 0
    for parent, folders, files in os.walk(folder, followlinks=True):
        count += len(files)
        if count > MOST_FILES:
            raise SecondLensError(
                f"{folder} holds more than {MOST_FILES} files: name a folder with the model alone"
            )
        seen.add(os.path.realpath(parent))
        folders[:] = [each for each in folders if os.path.realpath(Path(parent, each)) not in seen]
        yield from (Path(parent, each) for each in sorted(files))


def _content(path: Path) -> Any:
    # a pipe would be waited for, and a device never ends
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} is not a file, or too large")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def _check(content: Any, file: str, where: str) -> None:
    """Look at every key at any depth."""
    waiting: list[Any] = [content]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        if not isinstance(found, dict):
            continue
        waiting += found.values()
        for key, value in found.items():
            if key in NAMES_CODE and value:
                _refuse(where, f"names code of its own ({key})")
            if key in BY_PATH:
                for each in _texts(value):
                    if "." in each and not DOTTED.fullmatch(each):
                        _refuse(where, f"names the class {each}")
            if key.endswith("_implementation"):
                for each in _texts(value):
                    if not KERNEL.fullmatch(each):
                        _refuse(where, f"names the compiled code {each}")
    if file.endswith("model_index.json") and isinstance(content, dict):
        _check_parts(content, where)


def _texts(value: Any) -> list[str]:
    """Those in a value: itself, or its entries."""
    entries = value.values() if isinstance(value, dict) else [value]
    return [each for each in entries if isinstance(each, str)]


def _check_parts(index: dict[str, Any], where: str) -> None:
    """Each part of a pipeline is of a known library."""
    if not isinstance(index.get("_class_name"), str):
        _refuse(where, "names a pipeline of its own")
    for name, part in index.items():
        if name.startswith("_") or not isinstance(part, list) or not part or part[0] is None:
            continue
        if part[0] not in LIBRARIES and not _is_pipeline(str(part[0])):
            _refuse(where, f"takes its {name} from {part[0]}")


def _is_pipeline(name: str) -> bool:
    """Whether diffusers has a package of pipelines of that name."""
    library = sys.modules.get("diffusers")
    if library is None or not name.isidentifier():
        return False
    return Path(str(library.__file__)).with_name("pipelines").joinpath(name).is_dir()


def _refuse(where: str, what: str) -> NoReturn:
    raise SecondLensError(
        f"{where} {what}, which is refused because it could run a stranger's code: take a model "
        "that its library knows by itself"
    )
