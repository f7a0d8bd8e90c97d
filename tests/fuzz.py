"""Whole artefacts, made by the real code, of which one thing is changed; then they are opened.

    python tests/fuzz.py --minutes 60

tries as many as that time allows and prints how many, and each fault with how it came about. A
fault is any exception but one `SecondLensError` of one line, or more memory than `ROOM`.
`tests/test_fuzz.py` tries some of each format.
"""

import collections
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from functools import cache
from pathlib import Path

import click
import torch
from artefacts import FORMATS, lens, made, refused
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from secondlens.commands import main as secondlens

ROOM = 2**29
"""Bytes that opening an artefact of kilobytes may take for a moment."""
PATIENCE = 300
"""Seconds after which something is waited for that never comes, such as the other end of a pipe."""

DEEP, LONG = "@deep@", "@long@"
VALUES = (
    *(None, True, False, "", "x", [], {}, [[]], [None], {"": ""}, -1, 0, 1, 2, 3.5, -0.0),
    *(2**24, 2**31, 2**53, 2**63, 2**64, 10**400, -(2**62), 1e308, -1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, "\ud800", "\x1b[31m", "\x00", "../../x", "/etc/passwd"),
    *("a" * 5000, "\u202e", "nan", "1", "world", DEEP, LONG, [DEEP], [1] * 3000, {"a": LONG}),
)


def places(value, path=()):
    """Paths of all values at any depth."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


def change_document(document, rng):
    """The text of a JSON document with one thing changed."""
    found = sorted(places(document), key=len)
    path = rng.choice([p for p in found if p] or found)
    # lists are long, and each kind of value shall be tried
    path = rng.choice([p for p in found if len(p) == len(path)][:200])
    how = rng.choice(["put", "put", "put", "drop", "twice", "more", "swap", "rename"])
    if not path:
        return written(rng.choice(VALUES))
    parent, key = at(document, path[:-1]), path[-1]
    if how == "drop":
        del parent[key]
    elif how == "twice" and isinstance(parent, list):
        parent.append(parent[key])
    elif how == "twice":
        parent["@twice@"] = rng.choice([parent[key], rng.choice(VALUES)])
        return written(document).replace('"@twice@"', json.dumps(key))
    elif how == "more" and isinstance(parent, dict):
        parent[rng.choice(["x", "files", "", "\ud800", "scores"])] = rng.choice(VALUES)
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(["x", "-1", "99", key + " "])] = parent.pop(key)
    elif how == "swap":
        other = rng.choice(found)
        parent[key] = json.loads(json.dumps(at(document, other)))
    else:
        parent[key] = rng.choice(VALUES)
    return written(document)


def written(document):
    text = json.dumps(document)
    return text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(
        f'"{LONG}"', '"' + "x" * 2**20 + '"'
    )


def change_header(path, rng):
    """A safetensors file whose header says something else."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = change_document(json.loads(content[8 : 8 + size]), rng).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def change_tensors(path, rng):
    """A sound safetensors file with other tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if not tensors:
        change_header(path, rng)
        return
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].clone()
    how = rng.choice(["drop", "copy", "kind", "less", "axis", "empty", "value", "value", "grow"])
    if how == "drop":
        del tensors[name]
    elif how == "copy":
        tensors[
            rng.choice([name + "x", name + "-1", "x-01", "a/b/c", rng.choice(sorted(tensors))])
        ] = tensor
    elif how == "kind":
        kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
        tensors[name] = tensor.to(rng.choice(kinds))
    elif how == "less" and tensor.ndim:
        tensors[name] = tensor[: max(1, len(tensor) // 2)]
    elif how == "grow" and tensor.ndim:
        tensors[name] = torch.cat([tensor] * 3, dim=rng.randrange(tensor.ndim))
    elif how == "axis":
        tensors[name] = tensor[None]
    elif how == "empty" and tensor.ndim:
        tensors[name] = tensor[:0]
    elif tensor.numel():
        wild = (math.nan, math.inf, -1.0, 1e38, 0.0)
        whole = (-1, -2, 2**31 - 1, -(2**31), 100, 7)
        value = rng.choice(wild if tensor.is_floating_point() else whole)
        flat = tensor.view(-1)
        place = rng.choice([slice(None), rng.randrange(len(flat))])
        low = (
            0
            if tensor.dtype in (torch.uint8, torch.bool)
            else -(2 ** (8 * tensor.element_size() - 1))
        )
        if not tensor.is_floating_point():
            value = max(low, min(value, -low - 1 if low else 255))
        flat[place] = value
        tensors[name] = tensor
    save_file({key: each.contiguous().clone() for key, each in tensors.items()}, path, metadata)


def change_bytes(path, rng):
    """Bytes flipped, cut off, put in or doubled; mostly near an end, where it matters."""
    content = bytearray(path.read_bytes())
    end = len(content)
    start = rng.choice(
        [rng.randrange(end + 1), min(end, rng.randrange(600)), max(0, end - rng.randrange(1, 600))]
    )
    how = rng.choice(["flip", "cut", "insert", "zero", "double", "ones"])
    if how == "flip" and start < end:
        content[start] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[start:]
    elif how == "insert":
        content[start:start] = rng.randbytes(rng.randrange(1, 9))
    elif how == "double":
        content += bytes(content)
    else:
        width = rng.randrange(1, 32)
        content[start : start + width] = bytes([255 if how == "ones" else 0]) * width
    path.write_bytes(content)


def change_file(path, rng):
    """Something else in the place of a file."""
    how = rng.choice(["gone", "folder", "loop", "pipe", "empty", "hollow", "other"])
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "hollow":
        path.write_bytes(content)
        os.truncate(path, 2**36)
    elif how == "other":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    return how


def change(folder, rng):
    """One change to one file of an artefact; says which."""
    path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
    kinds = ["bytes", "file"]
    if path.suffix == ".json":
        kinds = ["document"] * 6 + kinds
    if path.suffix in (".safetensors", ".st"):
        kinds = ["header", "header", "tensors", "tensors", "tensors", *kinds]
    kind = rng.choice(kinds)
    if kind == "document":
        path.write_text(change_document(json.loads(path.read_text()), rng))
    elif kind == "header":
        change_header(path, rng)
    elif kind == "tensors":
        change_tensors(path, rng)
    elif kind == "bytes":
        change_bytes(path, rng)
    else:
        kind = change_file(path, rng)
    return f"{path.relative_to(folder)}, {kind}"


# -- trials ------------------------------------------------------------------------------------


COMMANDS = {
    "lens": ("search lens --neuron 0:1", "share lens --to shared", "pull lens pulled"),
    "explorer": ("export lens site --no-model",),
    "attack": ("export SOUND site --no-model --runs run",),
    "audit": ("export SOUND site --no-model --runs .",),
    "defence": ("export SOUND site --no-model --runs .",),
}
"""What also opens an artefact, tried now and then."""


@cache
def sound():
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    lens().save(folder / "lens")
    return folder / "lens"


def command(line, folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(secondlens, line.replace("SOUND", str(sound())).split())
    finally:
        os.chdir(before)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 2), done.output
    said = done.output + done.stderr
    assert "\x1b" not in said and "Traceback" not in said, said
    if done.exit_code:
        assert done.stderr.count("Error: ") == 1 and done.stderr.endswith("\n"), said


def peak(reset=False):
    """The most memory that this process had, in bytes; from now on, if `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])


def lost(*_):
    raise AssertionError(f"nothing came in {PATIENCE} s")


def attempt(name, seed):
    """Change an artefact and open it; the change, and the fault if there is one."""
    rng = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place) / "a"
        shutil.copytree(made(name), folder)
        said = change(folder, rng)
        before = peak(reset=True)
        signal.signal(signal.SIGALRM, lost)
        signal.alarm(PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with refused():
                    FORMATS[name].open(folder)
                if name in COMMANDS and rng.random() < 0.1:
                    for left in ("copy", "shared", "pulled", "site"):
                        shutil.rmtree(folder / left, ignore_errors=True)
                    command(rng.choice(COMMANDS[name]), folder)
        except Exception:
            return said, traceback.format_exc()
        finally:
            signal.alarm(0)
        if (taken := peak() - before) > ROOM:
            return said, f"{taken:,} bytes of memory were taken"
    return said, None


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the first trial.")
@click.option("--only", type=click.Choice(list(FORMATS)), help="One format.")
def main(minutes, seed, only):
    """Change artefacts and open them."""
    end, counts, faults = time.monotonic() + 60 * minutes, collections.Counter(), {}
    for name in FORMATS:
        made(name)
    print(f"{'format':<16}{'seed':>8}  change", flush=True)
    while time.monotonic() < end:
        for name in [only] if only else FORMATS:
            counts[name] += 1
            said, fault = attempt(name, seed)
            if fault and (last := "\n".join(fault.strip().split("\n")[-3:])) not in faults:
                faults[last] = f"{name:<16}{seed:>8}  {said}\n{fault}"
                print(faults[last], flush=True)
        seed += 1
        if seed % 100 == 0:
            print(f"{sum(counts.values()):,} artefacts, {len(faults)} faults", flush=True)
    print(f"{sum(counts.values()):,} artefacts tried, {len(faults)} faults: {dict(counts)}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
