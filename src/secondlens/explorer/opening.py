"""From what the command line names to what can be shown."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..data.sources import ImageSource, as_source
from ..data.texts import Texts, source_for
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..models.loading import DEMOS
from ..models.open_clip.texts import TextClip
from ..models.view import Clip
from ..storage.locks import writing
from .atlas import Atlas
from .layout import lay_out, load_layout
from .live import Live
from .records import is_outdated, load_survey
from .survey import survey

FOLDER = "explorer"
"""Beside the files of the lens."""
Read = TypeVar("Read")


def open_lens(
    path: Path,
    clip: Clip | None,
    images: Any = None,
    named_on: Any = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Atlas, Live | None]:
    """A lens with everything that can be known of it, surveyed first if that was not done yet.

    Parameters
    ----------
    path
        The folder of the lens.
    clip
        The model, if there is one to answer.
    images
        What `fit` takes: the pictures of the fit. The embedded models draw theirs anew.
    named_on
        The pictures that the neurons were named on, likewise.
    say
        Told, in a sentence, what takes time and what is missing.

    Raises
    ------
    SecondLensError
        No lens, another model's lens, or pictures that are not those of the fit.
    """
    lens = held(replace(Lens.load(path), coordinates=None))  # which can be large, and no page shows
    if clip is not None:
        lens.check_model(clip)
    source = None
    if images is not None:
        source = as_source(images) if clip is None else source_for(clip, images)
    elif lens.model.get("tower") == "text":
        source = Texts(lens.image_ids)
    else:
        source = own_pictures(lens, lens.image_ids)
    holding = None
    if lens.first_names is not None:
        ids = lens.first_names.image_ids
        holding = as_source(named_on) if named_on is not None else own_pictures(lens, ids)
    folder = path / FOLDER
    if folder.with_name(f"{FOLDER}.lock").exists():  # of one that was stopped, or writes
        with suppress(SecondLensError), writing(folder):
            pass
    seen = load_survey(folder, lens)
    outdated = is_outdated(folder, lens)
    if seen is not None and not seen.named and None not in (clip, source, holding):
        seen = None
    if seen is None and clip is not None and source is not None and lens.codes:
        again = " again: it was described or named since it was surveyed" if outdated else " once"
        say(f"Looking at the pictures of {path}{again}; what is found is kept in {folder}.")
        seen = survey(clip, lens, source, holding, progress=True)
        with writing(folder):
            seen.save(folder)
    elif seen is None:
        missing = [
            what
            for what, there in (
                ("the model (--model)", clip),
                ("the pictures of the fit (--images)", source),
                ("a description (secondlens describe)", lens.codes),
            )
            if not there
        ]
        if outdated:
            say(
                f"{path} was described or named since it was surveyed, and pages lack pictures: "
                f"give {' and '.join(missing)} to look at its pictures again."
            )
        else:
            wanted = " and ".join(missing)
            say(f"{path} was not surveyed: pages lack pictures for want of {wanted}.")
    if seen is not None and not seen.named and lens.first_names is not None:
        say(
            f"No pictures stand under the names in {path}: give those that the neurons were named "
            "on with --named-on."
        )
    layout = load_layout(folder / "layout.safetensors", lens)
    if layout is None:
        say(f"Placing {sum(len(lens[n].directions) for n in lens.layers):,} neurons on the map.")
        layout = lay_out(lens)
        with writing(folder):
            layout.save(folder / "layout.safetensors", lens)
    atlas = Atlas(lens, held(seen), held(layout))
    return atlas, None if clip is None or isinstance(clip, TextClip) else Live(
        clip=clip, atlas=atlas, source=source, named_on=holding
    )


def held(read: Read) -> Read:
    """The same with copies of all tensors and arrays.

    What was read from a file is a view of it: if somebody writes into that file later, it changes,
    and if the file is cut off, the process is ended by the system.
    """
    found: Any = read
    if isinstance(read, Tensor):
        found = read.clone()
    elif isinstance(read, np.ndarray):
        found = read.copy()
    elif isinstance(read, Mapping):
        found = {key: held(value) for key, value in read.items()}
    elif is_dataclass(read) and not isinstance(read, type):
        changed = {each.name: held(getattr(read, each.name)) for each in fields(read)}
        found = replace(read, **changed)
    same: Read = found
    return same


def model_name(path: Path, given: str | None) -> str | None:
    """The model to load for a lens: the one given, or the embedded one it was fitted on."""
    if given is not None:
        return given
    name = Lens.load(path).model["name"]
    return name if name in DEMOS else None


def tower_of(path: Path) -> str:
    """Whose neurons a lens is of: "image" or "text"."""
    tower: str = Lens.load(path).model.get("tower", "image")
    return tower


def own_pictures(lens: Lens, ids: Sequence[str]) -> ImageSource | None:
    """The scenes of these ids, of the world of the embedded model that a lens is of."""
    from ..demo.scenes import SCENE, Scenes, World, are_scenes

    if lens.model["name"] not in DEMOS or not are_scenes(ids):
        return None
    found = [SCENE.fullmatch(each) for each in ids]
    numbers = [(int(match[1]), int(match[2])) for match in found if match]
    if len(seeds := {seed for seed, _ in numbers}) != 1:
        raise SecondLensError("this lens is of scenes of several seeds: give --images")
    world = World(planted=lens.model["name"] == "demo")
    return Scenes(world, seeds.pop(), 1 + max(index for _, index in numbers))
