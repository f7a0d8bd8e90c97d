"""The record of what all cases gave: `python tests/unchanged/record.py` writes it anew.

It was written by version 0.1 and is what later code is held to, so that it is written again only
when a result is meant to change. `--folders` also writes the lens and the runs of that version.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ["SECONDLENS_CACHE"] = tempfile.mkdtemp()

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from secondlens.applications.adversarial import earlier
from unchanged import commands, library
from unchanged import materials as m

HERE = Path(__file__).parent
VALUES, TENSORS = HERE / "values.json", HERE / "tensors.safetensors"
CASES = library.CASES | commands.CASES


LIBRARIES = (
    *("torch", "torchvision", "numpy", "pillow", "matplotlib", "open_clip_torch", "transformers"),
    *("diffusers", "scikit-learn", "sentence-transformers"),
)


def fingerprint():
    """What decides in which order a sum is taken, and how a picture is drawn."""
    processor, info = "unknown", Path("/proc/cpuinfo")
    if info.exists() and (
        found := re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8"))
    ):
        processor = found[1]
    return {
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in LIBRARIES},
    }


@contextmanager
def one_thread():
    """Sums are taken in the same order, however many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def answer(name):
    """What a case gives: plain values, with notes on tensors in place of these; and these."""
    tensors = {}
    return _plain(CASES[name](), name, tensors), tensors


def _plain(value, place, tensors):
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return _noted(value.detach().cpu().contiguous(), place, tensors)
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value) if not each.name.startswith("_")]
        # what is made when it is asked for is no part of what was found
        value = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{place}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{place}/{i}", tensors) for i, each in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}")


def _noted(value, place, tensors):
    """What is kept of a tensor: its form, a digest of all bits, and values, of a large one some.

    The digest of floats counts on the machine of the record alone, the values elsewhere.
    """
    flat, form = value.flatten(), f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
    bits = commands.digest(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
    if not value.is_floating_point():
        return {"tensor": form, "bits": bits}
    largest = flat.nan_to_num(0, 0, 0).abs().amax(0, keepdim=True) if len(flat) else flat
    tensors[place] = torch.cat([flat[:: -(-len(flat) // KEPT) or 1], largest])
    return {"tensor": form, HERE_ONLY: bits}


def read():
    """The record: the machine that wrote it, plain values by case, and tensors."""
    found = json.loads(VALUES.read_text(encoding="utf-8"))
    return found["machine"], found["cases"], load_file(TENSORS)


def write(names=()):
    """Record all cases, or only those that changed on purpose, by name."""
    machine, values, tensors = read() if names else (fingerprint(), {}, {})
    for name in names or CASES:
        old = [place for place in tensors if place.startswith(f"{name}/")]
        for place in old:
            del tensors[place]
        values[name], own = answer(name)
        tensors |= own
    found = {"machine": machine, "cases": values}
    VALUES.write_text(json.dumps(found, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")
    save_file(tensors, TENSORS)
    TENSORS.chmod(0o644)


# Comparing

KEPT = 16
"""Values of a tensor that are compared one by one on another machine."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Of the largest absolute value of a tensor, on another machine than the record's: other kernels
sum in another order, so that the last digits differ although the code is the same."""

LOOSE = {"error", "histogram"}
"""Rounding errors, and counts between edges where they decide: not compared elsewhere."""

DRAWN = re.compile("null|control")
"""Tensors of random directions, which are drawn in float32 whatever the model's precision."""

HERE_ONLY = "here"
"""The key of what hangs on every bit, such as a digest: on another machine, only that it is
there."""

NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def differences(name, found, known, *, same_machine):
    """Sentences, one for each thing in which a case differs from its record."""
    (values, tensors), (old_values, old_tensors) = found, known
    if name == "options":
        values = _known_options(values, old_values)
    values, old_values = _known(values), _known(old_values)
    scales = {}
    if not same_machine:
        for each in (values, old_values):
            _largest(each, "", scales)
        for column, size in scales.items():
            whole = REST_OF.get(column.rpartition("/")[2])
            if whole is not None:
                scales[column] = max(size, scales[f"{column.rpartition('/')[0]}/{whole}"])
    said = list(_differ(values, old_values, "", scales, same_machine))
    for place in sorted(tensors.keys() | old_tensors.keys()):
        if place not in tensors or place not in old_tensors:
            said.append(f"{place} is {'new' if place in tensors else 'gone'}")
        elif not _equal(tensors[place], old_tensors[place], place, same_machine):
            said.append(f"{place}: {_shown(tensors[place], old_tensors[place])}")
    return said


REST_OF = {"others": "weight"}
"""What is left of a number after others were taken off: rounding errors are those of the number."""

NEWER = {
    "along",
    "area",
    "chosen",
    "comparable",
    "digests",
    "harmless",
    "holding",
    "named",
    "names",
}
NEWER |= {
    "all_paths",
    "axes",
    "constant",
    "pool",
    "pushes",
    "scored_on",
    "split",
    "tower",
    "unshown",
    "weights_hash",
}
NEWER |= earlier.NEWER
"""Keys that files and results have had since version 0.1."""


def _known(value):
    """Without what is newer."""
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items() if key not in NEWER}
    if isinstance(value, list):
        return [_known(each) for each in value if not _is_newer(each)]
    return value


NEWER_SETTINGS = {"of these"}
"""Settings that results have said since."""


def _is_newer(value):
    return isinstance(value, dict) and value.get("name") in NEWER_SETTINGS and "paper" in value


def _known_options(values, old):
    """Commands and options that there were; more of them are no difference."""
    return {
        command: {name: each for name, each in values[command].items() if name in old[command]}
        for command in old
        if command in values
    }


def _equal(one, other, place, same_machine):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if same_machine:
        return one.numpy().tobytes() == other.numpy().tobytes()
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return False
    apart = (one[finite].double() - other[finite].double()).abs()
    largest = float(other[-1]) if len(other) else 0.0
    strange = one[~finite].nan_to_num(nan=0.5), other[~finite].nan_to_num(nan=0.5)
    allowed = TOLERANCE[torch.float32 if DRAWN.search(place) else one.dtype] * largest
    return bool((apart <= allowed).all()) and torch.equal(*strange)


def _shown(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{one.dtype} {list(one.shape)}, was {other.dtype} {list(other.shape)}"
    apart = (one.double() - other.double()).abs().nan_to_num()
    return f"differs by {float(apart.max()):.3g} of {float(other.double().abs().max()):.3g}"


def _differ(one, other, place, scales, same):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            at = f"{place}/{key}"
            if key not in one or key not in other:
                yield f"{at} is {'new' if key in one else 'gone'}"
            elif same or (key != HERE_ONLY and key not in LOOSE):
                yield from _differ(one[key], other[key], at, scales, same)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from _differ(*pair, f"{place}/{i}", scales, same)
    elif not _alike(one, other, scales.get(_column(place), 0.0), same):
        yield f"{place}: {str(one)[:300]!r}, was {str(other)[:300]!r}"


def _alike(one, other, scale, same):
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if same or one == other:
        return one == other
    if isinstance(one, float):
        return abs(one - other) <= max(TOLERANCE[torch.float32] * scale, _step(repr(other)))
    return isinstance(one, str) and _said_alike(one, other, scale)


def _said_alike(one, other, scale):
    """Text whose words are the same, and whose numbers are so but for rounding."""
    if NUMBER.sub("#", one).split() != NUMBER.sub("#", other).split():
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(
        abs(_number(a) - _number(b)) <= max(TOLERANCE[torch.float32] * scale, _step(b))
        for a, b in pairs
    )


def _number(text):
    return float(text.replace("−", "-"))


def _step(text):
    """One of the last digit of a number that was rounded to a few, and 0 of any other."""
    digits, _, exponent = text.lower().strip("+-−").partition("e")
    whole, _, behind = digits.partition(".")
    if not behind or len((whole + behind).lstrip("0")) > 5:
        return 0.0
    return 1.01 * 10.0 ** (int(exponent or 0) - len(behind))


def _column(place):
    """Where a value is, whichever row it is in."""
    return re.sub(r"/\d+(?=/|$)", "/", place)


def _largest(value, place, scales):
    """The largest number of each column, in which rounding errors are measured."""
    if isinstance(value, dict):
        for key, each in value.items():
            _largest(each, f"{place}/{key}", scales)
    elif isinstance(value, list):
        for i, each in enumerate(value):
            _largest(each, f"{place}/{i}", scales)
    elif isinstance(value, float | str):
        try:
            size = abs(float(value))
        except ValueError:
            return
        if math.isfinite(size):
            column = _column(place)
            scales[column] = max(scales.get(column, 0.0), size)


# Folders of version 0.1


@one_thread()
def write_folders():
    """A lens with everything in it, an attack, an audit and a defence, as commands make them."""
    model = ("--model", "hf:model")
    with commands.copied() as root:
        for line in (
            "fit unseen --out old --top 4 --keep-coordinates",
            "describe old --texts words.txt -k 5",
            "score old --texts words.txt --images photos --referee hf:other --dissect --stability "
            "--fit-images unseen",
            "audit old --classes classes.txt --cues cues.txt --images photos --out audit",
            "defend audit old --usual usual --unusual unusual --out defence",
        ):
            assert not commands.run(*line.split(), *model)["code"], line
        assert not commands.attack("old", "run", "--draw", "ant", "--mistake-for", "eel")["code"]
        pairs = (("old", m.OLD_LENS), ("run", m.OLD_ATTACK), ("audit", m.OLD_AUDIT))
        for made, kept in (*pairs, ("defence", m.OLD_DEFENCE)):
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(root / made, kept)


if __name__ == "__main__":
    if "--folders" in sys.argv:
        write_folders()
    write([each for each in sys.argv[1:] if each != "--folders"])
