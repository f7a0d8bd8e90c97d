"""Counts the files that run on five ways through the library, import time excluded.

    python tools/ways.py            # every way, one line each
    python tools/ways.py --files    # the files of each way, in the order of their first call

A file counts if a function of it runs. A call goes back if what it calls ran for the first time
before its caller did; every pair of files counts once. Each way runs in a process of its own, on
the embedded model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import secondlens as sl

ROOT = Path(sl.__file__).parent


class Calls:
    """Which files of the library call which, while it is traced."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.pairs: set[tuple[str, str]] = set()

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Trace this thread, and those that begin inside."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or (name := _name(frame)) is None or _is_importing(frame):
            return
        self.files[name] = None
        caller = frame.f_back
        while caller is not None and _name(caller) is None:
            caller = caller.f_back
        if caller is not None and (calling := _name(caller)) != name:
            self.pairs.add((calling, name))  # type: ignore[arg-type]


def _name(frame: FrameType) -> str | None:
    path = frame.f_code.co_filename
    own = path.startswith(str(ROOT) + "/") and path.endswith(".py")  # templates have frames too
    return path[len(str(ROOT)) + 1 :] if own else None


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _name(frame) is not None:
            return True
        frame = frame.f_back
    return False


def effect() -> Callable[[], Any]:
    """A name of a model and an image to the effects of neurons."""
    picture = _pictures(1)[0]

    def run() -> None:
        clip = sl.load("demo")
        sl.second_order(clip, clip.preprocess(picture)[None], layer=5)

    return run


def fit() -> Callable[[], Any]:
    """`secondlens fit`: a folder of pictures to the folder of a lens."""
    folder = Path(tempfile.mkdtemp())
    for i, picture in enumerate(_pictures(40)):
        picture.save(folder / f"{i}.png")
    out = f"{folder}-lens"
    return _command("fit", folder, "--model", "demo", "--layers", 5, "--out", out)


def mask() -> Callable[[], Any]:
    """`secondlens segment`: a word to its mask in a picture."""
    lens, picture = _lens(), Path(tempfile.mkdtemp()) / "picture.png"
    _pictures(1)[0].save(picture)
    return _command("segment", lens, picture, "--text", "a dog", "--out", picture.parent / "masks")


def gallery() -> Callable[[], Any]:
    """`secondlens attack`: a pair of classes to the gallery of an attack."""
    out = Path(tempfile.mkdtemp()) / "attack"
    return _command(
        "attack", _lens(), "--draw", "dog", "--mistake-for", "horse", "--images", 2, "--out", out
    )


def page() -> Callable[[], Any]:
    """A folder of a lens to the page of one of its neurons, served."""
    from fastapi.testclient import TestClient

    from secondlens.explorer.app import make_app
    from secondlens.explorer.opening import open_lens
    from secondlens.explorer.pages import Pages

    folder = _lens()

    def run() -> None:
        atlas, live = open_lens(folder, sl.load("demo"))
        app = make_app(Pages(atlas, live=live is not None), live)
        with TestClient(app) as browser:
            assert browser.get("/neuron/5/3/").is_success

    return run


WAYS = {"effect": effect, "fit": fit, "mask": mask, "gallery": gallery, "page": page}


def _command(*words: object) -> Callable[[], None]:
    from secondlens.commands import main

    def run() -> None:
        main([str(word) for word in words], standalone_mode=False)

    return run


def _pictures(count: int) -> list[Any]:
    from secondlens.demo.scenes import World

    world = World()
    return [world.scene(1, i).image for i in range(count)]


def _lens() -> Path:
    """Return the folder of a small described lens on the embedded model."""
    from secondlens.demo.scenes import Scenes, World

    clip, folder = sl.load("demo"), Path(tempfile.mkdtemp()) / "lens"
    lens = sl.fit(clip, Scenes(World(), 1, 60), layers=[5], out=folder)
    sl.describe(clip, lens, "world", k=8)
    lens.save(folder)
    return folder


def measure(name: str) -> dict[str, Any]:
    """Return the files of a way, and the pairs of them whose call goes back."""
    way, calls = WAYS[name](), Calls()
    with calls.traced():
        way()
    order = {file: number for number, file in enumerate(calls.files)}
    back = sorted(pair for pair in calls.pairs if order[pair[0]] > order[pair[1]])
    return {"files": list(calls.files), "back": back}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="list the files, too")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        sys.exit()
    for name, way in WAYS.items():
        child = [sys.executable, __file__, "--one", name]
        told = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        found = json.loads(told.splitlines()[-1])
        counts = f"{len(found['files']):3} files, {len(found['back']):3} calls back"
        print(f"{name:8} {counts}  {way.__doc__}")
        if arguments.files:
            for file in found["files"]:
                print("   ", file)
            for pair in found["back"]:
                print("    back:", *pair)
