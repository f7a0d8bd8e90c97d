"""Which of open_clip's models can be explained, and what of them, with nothing downloaded.

Towers are built with shapes and no numbers, and asked what a model with weights would be asked.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.model import CustomTextCLIP

from .effects.linearised import check_paths
from .errors import UnsupportedModel
from .models.open_clip.views import from_open_clip
from .models.readers import AttentionPool, ClassToken, MeanOfPatches
from .models.strangers import UNLOADABLE
from .models.view import Clip
from .models.wrappers import unwrapped

READS = {ClassToken: "class token", MeanOfPatches: "patch mean", AttentionPool: "pool"}
"""What a family's output is read from."""
NO_TEXTS = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
"""A text tower that costs nothing: no image tower hangs on it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture."""

    name: str
    tags: tuple[str, ...]
    """Of its published weights."""
    tower: str
    """Class of the image tower."""
    reads: str = ""
    """What its output is read from."""
    layers: int = 0
    neurons: int = 0
    """Of one layer."""
    direct: bool = False
    second_order: bool = False
    segmentation: bool = False
    all_paths: bool = False
    """What is defined."""
    refused: str = ""
    """Why nothing is."""


def entries(names: Sequence[str]) -> Iterator[Entry]:
    """Yield what is known of architectures of open_clip; equal image towers are built once."""
    built: dict[str, Entry] = {}
    for name in names:
        config = open_clip.get_model_config(name)
        same = json.dumps([config["vision_cfg"], config.get("quick_gelu")], sort_keys=True)
        if same not in built:
            built[same] = _entry(name, config)
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        yield Entry(**vars(built[same]) | {"name": name, "tags": tags})


def _entry(name: str, config: dict[str, Any]) -> Entry:
    vision = dict(config["vision_cfg"])
    try:
        with torch.device("meta"):
            model = CustomTextCLIP(
                embed_dim=config["embed_dim"],
                vision_cfg=vision,
                text_cfg=dict(NO_TEXTS),
                quick_gelu=config.get("quick_gelu", False),
            ).eval()
    except UNLOADABLE as error:
        return Entry(name=name, tags=(), tower="", refused=f"it cannot be built: {error}")
    tower: Any = unwrapped(model.visual)
    kind = type(getattr(tower, "trunk", tower)).__name__
    try:
        clip = from_open_clip(model, name=name, check=False)
    except UnsupportedModel as error:
        return Entry(name=name, tags=(), tower=kind, refused=_reason(error))
    second_order = bool(clip.last_effect_layer >= 0 and clip.attentions(0))
    return Entry(
        name=name,
        tags=(),
        tower=kind,
        reads=READS.get(type(clip.reader), type(clip.reader).__name__),
        layers=clip.layers,
        neurons=clip.neurons,
        direct=not isinstance(clip.reader, AttentionPool),
        second_order=second_order,
        segmentation=second_order,
        all_paths=_has_paths(clip),
    )


def _has_paths(clip: Clip) -> bool:
    try:
        check_paths(clip)
    except UnsupportedModel:
        return False
    return True


def _reason(error: UnsupportedModel) -> str:
    """What stands after the name of the model."""
    return str(error).partition("cannot be explained: ")[2] or str(error)
