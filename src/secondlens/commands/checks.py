"""Mistakes that are told before torch is imported, which takes seconds.

What is read or written afterwards is checked there once more, and more thoroughly.
"""

from pathlib import Path

from PIL import Image

from ..errors import SecondLensError
from ..storage.places import check_empty
from ..storage.remote import is_remote


def check_lens(*folders: Path | None) -> None:
    """Raise `SecondLensError` for a folder that holds no lens."""
    for folder in folders:
        if folder is not None and not (folder / "lens.json").is_file():
            raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")


def check_new(out: Path | str | None) -> None:
    """Raise `SecondLensError` if `out` is a file here, or a folder here with something in it."""
    if out is not None and not is_remote(out):
        check_empty(out)


def check_parents(*files: Path | None) -> None:
    """Raise `SecondLensError` for a file that cannot be written because its folder is missing."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise SecondLensError(
                f"there is no folder {file.parent} for {file.name}: make it first"
            )


def check_picture(file: Path) -> None:
    """Raise `SecondLensError` for a file that does not begin as a picture does."""
    try:
        Image.open(file).close()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SecondLensError(f"{file} cannot be read as a picture: {error}") from error


def check_pictures(images: Path | str) -> None:
    """Raise `SecondLensError` for a place of pictures where nothing is."""
    if not (is_remote(images) or set(str(images)) & set("*?[{") or Path(images).exists()):
        raise SecondLensError(f"no folder or file {images}: name one that holds pictures")


def check_class_folders(*folders: Path | None) -> None:
    """Raise `SecondLensError` for a folder of pictures that has no folder for any class."""
    for folder in folders:
        if folder is not None and folder.is_dir() and not any(p.is_dir() for p in folder.iterdir()):
            raise SecondLensError(
                f"{folder} has no folders for classes: put the pictures of each class in a folder "
                "of their own in it, named as the class is"
            )
