"""What a crash would leave of a folder, at every operation on files of some work.

The work runs once, to its end. Before each operation on a file below the folder (it is opened to be
written, moved, removed, made ...), Python's audit events tell of it, and the folder is copied as a
crash in that moment would leave it: content that no one has told the system to write down, with
`fsync`, is lost, the whole file or its second half. The names are there, as after a crash of the
process; content survives that, and so both are copied where they differ in what is read later.
"""

import hashlib
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

CHANGING = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
    "os.truncate", "os.chmod", "os.utime",
}  # fmt: skip
"""Audit events of one operation each; what shutil does is made of these."""

PASSING = re.compile(r".*(\.[0-9a-f]{8}\.partial|\.lock)", re.DOTALL)
"""Names of files that nobody reads after a crash."""

_watching = []


def _hear(event, arguments):
    if _watching and event in CHANGING:
        _watching[-1].hear(event, arguments)


sys.addaudithook(_hear)  # for as long as the process lives: hooks cannot be removed


class Watch:
    """Copies a folder whenever an operation is about to change it."""

    def __init__(self, folder, copies):
        self.folder, self.copies = folder.resolve(), copies
        self.synced, self.before = {}, {}
        self.seen, self.states, self.busy = set(), [], False

    def hear(self, event, arguments):
        if self.busy or (event == "open" and not _writes(*arguments[1:])):
            return
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        if event == "open":
            paths = paths[:1]
        if any(Path(each).absolute().is_relative_to(self.folder) for each in paths):
            self.copy()

    def sync(self, descriptor):
        stat = os.fstat(descriptor)
        self.synced[stat.st_ino] = _version(stat)

    def copy(self):
        self.busy = True
        try:
            lost = [path for path in self.files() if not self.is_durable(path)]
            if any(not is_passing(path.relative_to(self.folder)) for path in lost):
                self.add(())
            self.add(lost)
        finally:
            self.busy = False

    def files(self):
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def is_durable(self, path):
        stat = path.stat()
        return _version(stat) in (self.synced.get(stat.st_ino), self.before.get(stat.st_ino))

    def add(self, lost):
        state, cut = hashlib.sha256(), len(self.states) % 2 + 1
        copy = self.copies / f"{len(self.states):04}"
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            state.update(f"{name}{path.is_dir()}".encode())
            if path.is_file():
                content = path.read_bytes()
                if path in lost:  # by turns half of it, and all of it
                    content = content[: len(content) // 2] if cut == 1 else b""
                state.update(hashlib.sha256(content).digest())
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(content)
            else:
                (copy / name).mkdir(parents=True, exist_ok=True)
        copy.mkdir(parents=True, exist_ok=True)
        if state.digest() in self.seen:
            shutil.rmtree(copy)
            return
        self.seen.add(state.digest())
        self.states.append(copy)


def _writes(mode, flags):
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _version(stat):
    return stat.st_size, stat.st_mtime_ns


def is_passing(path):
    """Whether a path, or a folder that it is in, has a name that nobody reads after a crash."""
    return any(PASSING.fullmatch(part) for part in Path(path).parts)


@contextmanager
def crashes(folder, copies):
    """The list of copies of a folder, in order, of what a crash inside the `with` would leave."""
    watch = Watch(folder, copies)
    watch.before = {path.stat().st_ino: _version(path.stat()) for path in watch.files()}
    really = os.fsync

    def fsync(descriptor):
        really(descriptor)
        watch.sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        _watching.append(watch)
        try:
            yield watch.states
        finally:
            _watching.pop()
