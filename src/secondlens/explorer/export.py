"""The pages as a static folder, for any web server that serves files."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from ..lens.published import published
from ..progress import tracked
from ..storage.files import check_empty, whole_folder
from . import page_kinds
from .atlas import Atlas
from .pages import PACKS, Pages, packed, static_files
from .runs import Runs

PACK = 64
"""Neurons, or images, in one file of data."""


def export(
    atlas: Atlas,
    out: Path,
    *,
    address: str = "",
    runs: Runs | None = None,
    more: Mapping[str, bytes] | None = None,
    progress: bool = False,
) -> None:
    """Write every page of a lens into a new folder.

    The pages are those of the server without a model: typed texts are looked up among those of the
    vocabulary, and new pictures cannot be shown. Names of folders of this machine are left out.

    Parameters
    ----------
    out
        A folder that does not exist or is empty.
    address
        Where it will be found, such as "https://example.org/neurons", for link previews.
    runs
        Finished runs to show.
    more
        Other files that the folder shall have, by name.
    progress
        Show a progress bar.

    Raises
    ------
    SecondLensError
        The folder is not empty or cannot be written.
    """
    check_empty(out)
    atlas = Atlas(published(atlas.lens), atlas.survey, atlas.layout)
    pages = Pages(atlas, served=False, address=address, runs=runs)
    written = chain(_files(atlas, pages), (more or {}).items())
    with whole_folder(out) as folder:
        for name, content in tracked(written, "pages", progress):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _files(atlas: Atlas, pages: Pages) -> Iterator[tuple[str, bytes]]:
    """Every file of the folder: its name and content."""
    yield "index.html", pages.home().encode()
    for name in page_kinds.names:
        yield f"{name}/index.html", pages.plain(name).encode()
    for name, what in PACKS.items():
        yield f"data/{name}.json.gz", getattr(pages, what)
    for name, content in static_files().items():
        yield f"static/{name}", content
    for layer, neurons in atlas.sizes.items():
        yield f"layer/{layer}/index.html", pages.layer(layer).encode()
        for start in range(0, neurons, PACK):
            some = range(start, min(start + PACK, neurons))
            pack = packed([pages.profiles.of(layer, neuron) for neuron in some])
            yield f"data/neuron/{layer}/{start // PACK}.json.gz", pack
            for neuron in some:
                page = pages.neuron(layer, neuron).encode()
                yield f"neuron/{layer}/{neuron}/index.html", page
    for number in range(len(pages.runs.pictures)):
        # with a suffix: a server of files would guess what a file without one is
        if found := pages.runs.picture(number):
            yield f"runs/pictures/{number}{found[1]}", found[0]
    images = range(len(atlas.lens.picture_ids))
    for start in range(0, len(images), PACK):
        pack = packed([atlas.image(position) for position in images[start : start + PACK]])
        yield f"data/image/{start // PACK}.json.gz", pack
    for position in images:
        if atlas.survey and (picture := atlas.survey.picture(position)):
            yield f"pictures/{position}.webp", picture
