"""What lies among pictures and is not one: files of other kinds, and what systems leave behind."""

from collections.abc import Iterator

_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found"})

HEIF = frozenset({".heic", ".heif"})
"""Of pictures that an extra reads."""


def is_stray_folder(name: str) -> bool:
    """Whether a system or an editor made a folder of this name, such as `.ipynb_checkpoints`."""
    return name in _FOLDERS or (name.startswith(".") and name.strip(".") != "")


def is_stray(path: str) -> bool:
    """Whether a file is in such a folder, or holds what macOS knows of another (`._x`).

    Parameters
    ----------
    path
        With "/" between its parts.
    """
    *folders, name = path.split("/")
    return name.startswith("._") or any(map(is_stray_folder, folders))


class LeftOut:
    """Counts what is left out, by a pattern of names, and keeps the first as an example."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str, str]] = {}

    def add(self, pattern: str, name: str, reason: str) -> None:
        """Count one file or folder; the reason ends a sentence about all of its pattern."""
        count, first, known = self._found.get(pattern, (0, name, reason))
        self._found[pattern] = count + 1, first, known

    def add_file(self, name: str, suffix: str) -> None:
        """Count a file that is not read as a picture, and say why."""
        if is_stray(name):
            stray = "._*" if name.rpartition("/")[2].startswith("._") else "hidden folders"
            self.add(stray, name, "not part of the set")
        elif suffix in HEIF:
            self.add(f"*{suffix}", name, "reading it needs pip install 'secondlens[heif]'")
        else:
            self.add(f"*{suffix}" if suffix else "no suffix", name, "not a picture by its name")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(pattern, sentence) for each pattern."""
        for pattern, (count, first, reason) in self._found.items():
            such = first if count == 1 else f"{count:,}, such as {first}"
            yield pattern, f"left out: {such}: {reason}"
