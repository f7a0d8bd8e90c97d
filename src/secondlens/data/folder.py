"""Pictures as files in folders, here or in an object store."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from ..errors import SecondLensError
from ..storage.remote import Place, filesystem, location, opened, reaching, read
from .decoding import SUFFIXES, decode, decode_file
from .strays import LeftOut, is_stray, is_stray_folder
from .tar import expand, names


class Folder:
    """All pictures under a folder, sorted by path; an id is the path relative to the folder.

    Links to folders are followed, and a folder that several of them reach counts once. `damaged`
    lists what is left out: files that are not pictures by their suffix, and what systems and
    editors leave behind, such as `.ipynb_checkpoints`, `__MACOSX` and `._x`.

    Raises
    ------
    SecondLensError
        There is no such folder, or no picture in it.
    """

    SUFFIXES = tuple(SUFFIXES)

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise SecondLensError(f"no folder {self.root}: name one that holds pictures")
        self.damaged: dict[str, str] = {}
        self._left_out = LeftOut()
        self.ids = sorted(self._pictures("", set()))
        self.damaged.update(self._left_out)
        if not self.ids:
            reasons = "".join(f"; {name}: {why}" for name, why in self.damaged.items())
            raise SecondLensError(f"no pictures in {self.root} or the folders in it{reasons}")

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        return decode_file(self.root / self.ids[index])

    def sizes(self) -> list[int]:
        """Bytes of each picture; 0 where the file cannot be reached."""
        return [_size(self.root / each) for each in self.ids]

    def _pictures(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        """Pictures in `folder`, which is empty or ends with a slash, and in the folders in it."""
        try:
            status = (self.root / folder).stat()
            with os.scandir(self.root / folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.damaged[folder or str(self.root)] = f"cannot be listed: {error.strerror}"
            return
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = folder + entry.name
            # a link that leads nowhere is a picture that cannot be read, not one to forget
            link = entry.is_symlink()
            suffix = Path(name).suffix.lower()
            if os.path.isdir(entry) if link else entry.is_dir():  # noqa: PTH112
                if is_stray_folder(entry.name):
                    self._left_out.add("hidden folders", name, "not part of the set")
                else:
                    yield from self._pictures(name + "/", seen)
            elif is_stray(entry.name) or suffix not in SUFFIXES:
                self._left_out.add_file(_shown(name), suffix)
            elif link or entry.is_file():
                if _shown(name) == name:
                    yield name
                else:
                    self.damaged[ascii(name)] = "has a name that is not UTF-8: rename it"


def _shown(name: str) -> str:
    """A name as it is, or, if it is not UTF-8, in ASCII."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name


class PictureFiles:
    """Pictures in files that are named one by one, here or in a store.

    An id is the path relative to the deepest folder that holds all of them.

    Raises
    ------
    SecondLensError
        One of them does not exist, or a pattern among them gives none.
    """

    def __init__(self, files: str | Place | Sequence[str | Place]) -> None:
        self.files = expand(files, Folder.SUFFIXES)
        self.ids = names(self.files)
        self.damaged: dict[str, str] = {}

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        place = self.files[index]
        return decode_file(place) if isinstance(place, Path) else decode(opened(place))

    def sizes(self) -> list[int]:
        """Bytes of each picture; 0 where the file cannot be reached."""
        return [_size(each) for each in self.files]


def _size(path: Place) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class ImageFolder(Folder):
    """A folder with one subfolder for each class, as torchvision's dataset of this name.

    Attributes
    ----------
    classes
        Names of the subfolders that hold pictures, sorted.
    labels
        The class of each picture, as an index into `classes`.

    Raises
    ------
    SecondLensError
        As `Folder`, or all pictures lie in no subfolder.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        outside = [each for each in self.ids if "/" not in each]
        if len(outside) == len(self.ids):
            raise SecondLensError(
                f"{self.root} has no folders for classes: put the pictures of each class in a "
                "folder of their own in it, named as the class is"
            )
        self.ids = [each for each in self.ids if "/" in each]
        self.damaged |= dict.fromkeys(outside, "left out: it lies in no class folder")
        names = [each.partition("/")[0] for each in self.ids]
        self.classes = sorted(set(names))
        place = {name: i for i, name in enumerate(self.classes)}
        self.labels = [place[name] for name in names]


class StoredFolder:
    """All pictures under a folder of a store, sorted by path; an id is the path from the folder on.

    A picture is one request. Many small ones are read faster from tar or Parquet files.

    Raises
    ------
    SecondLensError
        There is no picture there, or the store does not answer.
    """

    def __init__(self, root: str | Place) -> None:
        self.root = str(location(root)).rstrip("/")
        store, path = filesystem(self.root)
        with reaching(self.root):
            found = store.find(path, detail=True)
        sizes: dict[str, int] = {}
        left_out = LeftOut()
        for whole, entry in found.items():
            name = whole.removeprefix(path.rstrip("/") + "/")
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in SUFFIXES and not is_stray(name):
                sizes[name] = int(entry["size"] or 0)
            else:
                left_out.add_file(name, suffix)
        if not sizes:
            raise SecondLensError(f"no pictures in {self.root}: name a folder that holds some")
        self.ids = sorted(sizes)
        self.damaged: dict[str, str] = dict(left_out)
        self._sizes = [sizes[each] for each in self.ids]

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        # with its size, or the store would be asked for that first
        place, size = location(f"{self.root}/{self.ids[index]}"), self._sizes[index]
        return decode(io.BytesIO(read(place, 0, size) if size else b""))

    def sizes(self) -> list[int]:
        """Bytes of each picture."""
        return self._sizes
