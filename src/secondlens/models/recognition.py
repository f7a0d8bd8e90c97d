"""Weights that somebody published: which ones a name, a tag, a file or a folder stands for.

open_clip lists every model with its tags, their addresses, which hold a SHA-256 of the file, and
their places on the hub.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import open_clip

PUBLISHED_HASH = re.compile(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8})\.pth?$")
"""SHA-256 of a file, or how it starts, in the address it was published at."""
BY_TRANSFORMERS = {
    "openai/clip-vit-base-patch32": ("ViT-B-32", "openai"),
    "openai/clip-vit-base-patch16": ("ViT-B-16", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14", "openai"),
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336", "openai"),
}
"""Repositories of the hub that open_clip does not list."""
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
"""In the path of what a hub cache holds."""


def published_as(name: str, pretrained: str | None) -> str | None:
    """What the weights of a model were published as, such as "ViT-B-32 (openai)"; None if unknown.

    Parameters
    ----------
    name, pretrained
        What `load` takes. A file is known by its SHA-256, a repository of the hub by its name, also
        in the folder of a cache.
    """
    place = name.partition(":")[2]
    found = _of_repository(place) if place else _of_tag(name, pretrained)
    return None if found is None else f"{found[0]} ({found[1]})"


def published_files(checkpoint: Path) -> Iterator[tuple[str, str]]:
    """The models and tags of open_clip whose address holds the SHA-256 of this file."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for model, tag in open_clip.list_pretrained():
        found = PUBLISHED_HASH.search(open_clip.get_pretrained_cfg(model, tag).get("url", ""))
        if found and digest.startswith(found[1] or found[2]):
            yield model, tag


def _of_tag(name: str, pretrained: str | None) -> tuple[str, str] | None:
    if pretrained is None:
        return None
    if Path(pretrained).is_file():
        return next(published_files(Path(pretrained)), None)
    model = name.replace("/", "-").removesuffix("-quickgelu")
    tag = pretrained.lower().replace("-", "_")
    return (model, tag) if (model, tag) in open_clip.list_pretrained() else None


def _of_repository(place: str) -> tuple[str, str] | None:
    if found := _SNAPSHOT.search(Path(place).as_posix() + "/"):
        place = f"{found[1]}/{found[2]}"
    return _repositories().get(place.lower())


@cache
def _repositories() -> dict[str, tuple[str, str]]:
    """Model and tag by the name of a repository, in small letters."""
    found = dict(BY_TRANSFORMERS)
    for model, tag in reversed(open_clip.list_pretrained()):  # plain names before -quickgelu
        if place := open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/"):
            found[place.lower()] = model, tag
    return found
