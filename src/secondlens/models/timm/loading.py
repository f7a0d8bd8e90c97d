"""Models of timm by name: from its registry, from the hub, or from a folder."""

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL.Image import Image
from timm.data import create_transform, infer_imagenet_subset, resolve_data_config
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from ...errors import SecondLensError, SecondLensWarning, UnsupportedModel
from ...naming import shown_model
from ..elsewhere import elsewhere
from ..places import folder_of
from ..strangers import UNLOADABLE, check_model, no_code_runs
from ..view import Clip
from ..weights import file_of_weights, load_weights
from .views import check_covered, from_timm

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCHEMA = "timm:"
FILES = ("model.safetensors", "pytorch_model.bin")
"""Of weights in a repository, in the order in which they are looked for."""


def by_timm(
    name: str,
    *,
    pretrained: str | None,
    device: str | torch.device,
    precision: str,
    check: bool,
    **_: Any,
) -> Clip:
    """The member "timm" of `named_models`.

    `timm:` is followed by a name of timm's registry, with its tag (`vit_base_patch16_224.dino`) or
    without, which `pretrained` then names; or by a repository of the hub or a folder, as timm
    writes them. Classes of ImageNet have their names, and those of other models the names that lie
    beside the weights, if there are any.

    Raises
    ------
    SecondLensError
        There is no such model or tag, or the weights cannot be had or do not fit.
    UnsupportedModel
        The tower computes something that the effects do not describe, which is told before its
        weights are fetched.
    """
    place = name.removeprefix(SCHEMA)
    model, preprocess = load_timm(place, pretrained)
    model = model.to(device=device, dtype=DTYPES[precision.removeprefix("pure_")]).eval()
    clip = from_timm(model, preprocess, class_names(model), name=name, check=check)
    return replace(clip, name=shown_model(name))


def load_timm(place: str, pretrained: str | None) -> tuple[nn.Module, Callable[[Image], Tensor]]:
    """Model and inference transform of what stands after `timm:`, as timm makes them.

    Raises
    ------
    SecondLensError, UnsupportedModel
        As `by_timm`.
    """
    named, file = _checked(place, pretrained)
    weights = f" with {pretrained}" if pretrained else ""
    try:
        with no_code_runs():
            _check_before_fetching(named, place)
            # weights of strangers are read here, and those of the registry by timm, which knows
            # under what names and in what shapes others published them
            model = timm.create_model(named, pretrained=file is None and "." in named)
            if file is not None and (found := file()) is not None:
                load_weights(model, found)
        config = resolve_data_config({}, model=model)
        return model, create_transform(**config, is_training=False)
    except UnsupportedModel:
        raise
    except SecondLensError as error:
        raise SecondLensError(f"timm cannot load {place}{weights}: {error}") from error
    except UNLOADABLE as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SecondLensError(f"timm cannot load {place}{weights}: {reason}") from error


def class_names(model: Any) -> Sequence[str] | None:
    """Return the names of a model's classes, or None where nothing says them."""
    config = model.pretrained_cfg
    if names := config.get("label_names"):
        told = config.get("label_descriptions") or {}
        names = [told.get(each, each) for each in names] if isinstance(told, dict) else list(told)
        return names if len(names) == model.num_classes else None
    if config.get("num_classes") != model.num_classes:
        return None
    subset = infer_imagenet_subset(model)
    if subset == "imagenet-1k":
        return list(open_clip.IMAGENET_CLASSNAMES)
    if subset is None:
        return None
    return list(ImageNetInfo(subset).label_descriptions())


def _checked(place: str, pretrained: str | None) -> tuple[str, Callable[[], Path | None] | None]:
    """The name by which timm builds a model, and what gets its file where timm does not fetch it.

    Configurations of folders and repositories are read first, and name no code.
    """
    if "/" not in place and not Path(place).is_dir():
        return _registered(place, pretrained)
    if pretrained is not None:
        raise SecondLensError(f"{SCHEMA}{place} names its own weights: drop pretrained")
    folder = folder_of(place)
    try:
        here = check_model(str(folder or place))
    except UNLOADABLE as error:
        raise SecondLensError(f"timm cannot load {place}: {error}") from error
    if not (here / "config.json").is_file():
        raise SecondLensError(f"timm cannot load {place}: there is no config.json in it")
    local = folder is not None
    return f"local-dir:{here}", lambda: file_of_weights(here) if local else _fetched(place)


def check_registered(name: str, pretrained: str | None) -> str:
    """Return the tag of the weights of a model of timm's registry, or nothing where there is none.

    Raises
    ------
    SecondLensError
        timm knows no such model or tag, or two tags are named.
    """
    base, _, tag = name.removeprefix(SCHEMA).partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        meant = f" (did you mean {', '.join(close)}?)" if close else ""
        there = elsewhere(name.removeprefix(SCHEMA), "timm")
        raise SecondLensError(f"timm has no model {base!r}{there or meant}")
    if tag and pretrained is not None:
        raise SecondLensError(f"{name} names its own weights: drop pretrained")
    tag = tag or pretrained or ""
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags and not _is_file(pretrained):
        some = f": it has {', '.join(tags)}" if tags else ": it has none"
        raise SecondLensError(f"{SCHEMA}{base} has no pretrained tag {tag!r}{some}")
    return tag


def _registered(name: str, pretrained: str | None) -> tuple[str, Callable[[], Path | None] | None]:
    base = name.partition(".")[0]
    tag = check_registered(f"{SCHEMA}{name}", pretrained)
    if _is_file(pretrained):
        return base, lambda: Path(tag)
    if tag:
        return f"{base}.{tag}", None
    warnings.warn(
        f"{SCHEMA}{base} gets random weights: pass pretrained= to load some",
        SecondLensWarning,
        stacklevel=5,
    )
    return base, lambda: None


def _is_file(pretrained: str | None) -> bool:
    return pretrained is not None and Path(pretrained).is_file()


def _check_before_fetching(named: str, place: str) -> None:
    """Raise `UnsupportedModel` if the configuration decides that the model is not covered."""
    try:
        with torch.device("meta"):
            shape = timm.create_model(named, pretrained=False)
    except UNLOADABLE:
        return  # a stem that runs when it is built: the whole model will tell
    check_covered(shape, f"{SCHEMA}{place}")


def _fetched(place: str) -> Path:
    for file in FILES:
        try:
            return Path(hf_hub_download(place, file))
        except EntryNotFoundError:
            continue
    raise SecondLensError(f"it holds no {' or '.join(FILES)}")
