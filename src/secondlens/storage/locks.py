"""One process at a time writes an output."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import SecondLensError
from .files import settle
from .remote import is_remote

_here: set[Path] = set()
"""What this process holds: the system lets a process lock again what is its own."""
_changing = threading.Lock()


@contextmanager
def locked(out: str | Path) -> Iterator[None]:
    """Hold an output while the `with` lasts: by a file beside it, whose lock the system lifts when
    the process ends, however it ends.

    Stores have no locks: there, nothing is held.

    Raises
    ------
    SecondLensError
        Another process holds it, or none can be held there.
    """
    if is_remote(out):
        yield
        return
    place = Path(out).absolute()
    path = place.with_name(f"{place.name}.lock")
    with _changing:
        if path in _here:
            raise _busy(out, f"process {os.getpid()}")
        file = _taken(path, out)
        _here.add(path)
    try:
        yield
    finally:
        with _changing:
            _here.discard(path)
            # before it is let go, so that no one can take a file that is not there any more; where
            # open files cannot be removed, it stays
            with suppress(OSError):
                path.unlink()
            file.close()


@contextmanager
def writing(out: str | Path) -> Iterator[None]:
    """Hold an output as `locked` does, after `settle` dealt with what a stopped process left of it.

    Raises
    ------
    SecondLensError
        Another process holds it, or it cannot be written to.
    """
    with locked(out):
        if not is_remote(out):
            try:
                settle(Path(out))
            except OSError as error:
                raise SecondLensError(f"{out} cannot be written to: {error}") from error
        yield


def _taken(path: Path, out: str | Path) -> IO[bytes]:
    """The file, locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            reason = error.strerror or str(error)
            raise SecondLensError(f"{path.parent} cannot be written to: {reason}") from error
        if not _lock(file):
            with file:
                file.seek(0)
                raise _busy(out, file.read(40).decode(errors="replace") or "another process")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its holder removed it in this moment
    file.truncate(0)
    file.write(f"process {os.getpid()}".encode())
    file.flush()
    return file


def _busy(out: str | Path, who: str) -> SecondLensError:
    return SecondLensError(
        f"{out} is being written by {who}: wait until that is done, or name another place"
    )


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        """Whether this process has it now."""
        try:
            file.seek(2**30)  # behind what others read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import errno
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        """Whether this process has it now, or the file system has no locks."""
        try:
            # of this process alone: workers that are forked do not inherit it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True
