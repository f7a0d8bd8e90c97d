"""Pictures as files in a folder of an object store."""

import io
from pathlib import PurePosixPath

from PIL import Image

from ..errors import SecondLensError
from ..storage.remote import Place, filesystem, location, reaching, read
from .decode import SUFFIXES, decode


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
        sizes = {
            name.removeprefix(path.rstrip("/") + "/"): int(entry["size"] or 0)
            for name, entry in found.items()
            if PurePosixPath(name).suffix.lower() in SUFFIXES
        }
        if not sizes:
            raise SecondLensError(f"no pictures in {self.root}: name a folder that holds some")
        self.ids = sorted(sizes)
        self.damaged: dict[str, str] = {}
        self._sizes = [sizes[each] for each in self.ids]

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        # with its size, or the store would be asked for that first
        place, size = location(f"{self.root}/{self.ids[index]}"), self._sizes[index]
        return decode(io.BytesIO(read(place, 0, size) if size else b""))

    def sizes(self) -> list[int]:
        """Bytes of each picture."""
        return self._sizes
