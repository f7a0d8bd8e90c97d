"""What the JSON files of a lens hold, checked as it is read."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from ..storage.validation import Digest, Position, Size, Texts, check_distinct

OWN = re.compile(
    r"((lens|images)|(all-paths-)?(axes|(layer|codes|names|scores|stability|coordinates)-\d\d+))"
    r"(-[0-9a-f]{16})?"
    r"\.(json|safetensors)(\.new)?(\.[0-9a-f]{8}\.partial)?"
)
"""Names of files that a lens may leave in its folder beside `lens.json`."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """The model of a lens, as its manifest names it."""

    name: str
    weights: str
    activation: str
    layers: Size
    heads: Size
    neurons: Size
    dim: Size
    grid: tuple[Size, Size]
    prefix: Position = 1
    tower: Literal["image", "text"] = "image"
    pool_heads: Size | None = None


@dataclass(frozen=True, kw_only=True)
class CodesEntry:
    """A description, whose tensors are in a file of their own."""

    name: str
    normalise: Literal["unit", "centred", "official"]
    labels: Texts

    def __post_init__(self) -> None:
        check_distinct(self.labels, "the texts of a description")


@dataclass(frozen=True, kw_only=True)
class NamesEntry:
    """Names of neurons, whose tensors are in a file of their own."""

    vocabulary: str
    referee: str
    labels: Texts
    image_ids: Texts
    shown: Size
    tested: Position
    shuffled: Position
    rare: Position
    constant: Position = 0
    alike: tuple[Texts, ...] = ()
    pairs: Position = 0

    def __post_init__(self) -> None:
        check_distinct(self.labels, "the texts of names")
        check_distinct(self.image_ids, "the ids of images of names")


@dataclass(frozen=True, kw_only=True)
class ScoresEntry:
    """Scores of a description, whose tensors are in a file of their own."""

    vocabulary: str
    referee: str
    images: Size
    top: Size
    pictures: str = ""
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class StabilityEntry:
    """Two halves compared, whose tensors are in a file of their own."""

    vocabulary: str
    images: Size


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What `lens.json` holds of the effects over some paths.

    Raises
    ------
    ValueError
        A name or text twice.
    """

    codes: tuple[CodesEntry, ...]
    scores: tuple[ScoresEntry, ...] = ()
    stability: tuple[StabilityEntry, ...] = ()
    names: tuple[NamesEntry, ...] = ()
    sample: Size | None = None

    def __post_init__(self) -> None:
        check_distinct([each.name for each in self.codes], "its descriptions")
        scores = [(each.vocabulary, each.referee, each.pictures) for each in self.scores]
        check_distinct(scores, "its scores")
        check_distinct([each.vocabulary for each in self.stability], "its comparisons of halves")
        check_distinct([(each.vocabulary, each.referee) for each in self.names], "its names")


@dataclass(frozen=True, kw_only=True)
class Manifest(Evidence):
    """What `lens.json` holds; other keys say nothing to this version.

    Raises
    ------
    ValueError
        Layers that are not the model's, or a name or text twice.
    """

    format: int
    model: ModelEntry
    convention: Literal["exact", "official"]
    top: Size
    layers: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=2**16)]
    all_paths: Evidence | None = None
    coordinates: bool = False
    files: dict[str, str] = field(default_factory=dict)
    """By its own name, the name of a file that replaced another one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(map(OWN.fullmatch, self.files.values())):
            raise ValueError("it names a file that is not part of a lens")
        if not 0 <= min(self.layers) <= max(self.layers) < self.model.layers:
            raise ValueError("it has layers that its model has not")
        check_distinct(self.layers, "its layers")


@dataclass(frozen=True, kw_only=True)
class Images:
    """What `images.json` holds."""

    ids: Texts
    skipped: dict[str, str]
    digests: tuple[Digest, ...] = ()

    def __post_init__(self) -> None:
        check_distinct(self.ids, "the ids of images")
        if self.digests and len(self.digests) != len(self.ids):
            raise ValueError(f"it has {len(self.digests)} digests of {len(self.ids)} images")
