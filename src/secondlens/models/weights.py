"""Files of weights: what is in one, which part of it is the model, and why it does not fit.

A file is told by its content, never by its name. Nothing in it is run, and nothing that it has more
than the model is dropped in silence.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import SecondLensError, SecondLensWarning
from .archives import is_archive, read_tensors

POINTER = b"version https://git-lfs"
"""How the file begins that git-lfs leaves where it has not fetched the real one."""
LARGEST_POINTER = 1024
"""Bytes."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
USUAL_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Of the weights in a folder of open_clip, in the order in which it looks for them."""

COMPUTED = re.compile(
    r"(^|\.)(attn_mask|context_length|input_resolution|n_averaged|position_ids|vocab_size)$"
)
"""Tensors in files that a model computes or knows itself, or that only count steps."""
TRAINING = re.compile(r"optim|sched|scaler|rng|loop|callback", re.IGNORECASE)
"""Parts of a checkpoint that go on with a training, and are not weights."""
AVERAGE = re.compile(r"(^|[._])(ema|swa)([._]|$)|averag", re.IGNORECASE)
"""Parts that hold an average over the steps of a training."""
LOSS = ("logit_scale", "logit_bias")
"""Numbers that no embedding depends on: their lack or surplus is said and allowed."""
POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")

BLOCK = re.compile(r"(.*\b(?:resblocks|layers|blocks))\.(\d+)\.")
IMAGE_TOWER = re.compile(r"visual\.|vision_model\.|visual_projection\.")
FORMS = (
    (
        re.compile(r"lora_|adapter|\bia3|\bhada_|base_layer"),
        "an adapter: merge it into its base first, with merge_and_unload() of peft",
    ),
    (re.compile(r"zero_point|absmax|quant_|\bqweight"), "quantised weights: get the plain ones"),
    (
        re.compile(r"^(vision_model|text_model|visual_projection)\."),
        "a checkpoint of transformers: name its folder with hf:",
    ),
    (
        re.compile(r"^visual\.(trunk|class_embedding|conv1|transformer)\b"),
        "a checkpoint of open_clip: name its model, and the file with pretrained",
    ),
    (
        re.compile(r"(^|\.)(head|classifier|fc|fc_norm)\.(weight|bias)$"),
        "a model with a classification head: save it without",
    ),
)
"""What a surplus weight shows by its name, the surest first."""


def check_pointer(path: Path) -> None:
    """Raise `SecondLensError` for a file that git-lfs left in place of the real one."""
    if path.stat().st_size <= LARGEST_POINTER and path.read_bytes().startswith(POINTER):
        raise SecondLensError(
            f"{path} is a git-lfs pointer and not the file itself: run git lfs pull in its folder"
        )


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their places in it, such as "state_dict.module.visual.proj".

    Parameters
    ----------
    path
        safetensors; what `torch.save` wrote of a state dict, a trainer's checkpoint or a whole
        module; or a TorchScript archive, such as those that OpenAI published.

    Raises
    ------
    SecondLensError
        It is something else, damaged, or holds no tensors.
    """
    check_pointer(path)
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if start[8:9] == b"{":
            found = load_file(path)
        elif is_archive(path):
            found = read_tensors(path)
        elif start[:1] == b"\x80":
            found = _flat(torch.load(path, map_location="cpu", weights_only=True))
        else:
            raise SecondLensError(f"{path} is not a file of weights: {_what_it_is(start)}")
    except SecondLensError:
        raise
    except Exception as error:
        raise SecondLensError(f"{path} cannot be read: {_reason(error)}") from error
    if not found:
        raise SecondLensError(f"{path} holds no weights: name a file that holds a state dict")
    return found


def _what_it_is(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, so download it again"
    if start[:2] == b"PK":
        return "it is a zip that torch did not write"
    return "name one that ends in .safetensors, .pt, .pth or .bin"


def _reason(error: Exception) -> str:
    # torch would advise to unpickle it anyway, which runs whatever the file says
    if isinstance(error, ValueError):
        return str(error).split("\n")[0]
    return f"it is damaged, or holds more than weights ({type(error).__name__})"


def _flat(found: Any, place: str = "") -> dict[str, Tensor]:
    if isinstance(found, Tensor):
        return {place: found}
    if not isinstance(found, Mapping):
        return {}
    parts = (
        _flat(value, f"{place}.{key}" if place else key)
        for key, value in found.items()
        if isinstance(key, str)
    )
    return {key: tensor for part in parts for key, tensor in part.items()}


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights in a file into a model of open_clip.

    Raises
    ------
    SecondLensError
        As `read_file`, or they do not fit: the message names the first that are missing or surplus
        and what that looks like.
    """
    if path.suffix == ".npz":
        load_checkpoint(model, str(path))  # arrays of numbers, under the names of big_vision
        return
    wanted = model.state_dict()
    notes: list[str] = []
    weights = convert_state_dict(model, _of_the_model(read_file(path), wanted, path, notes))
    if "positional_embedding" in weights and "positional_embedding" not in wanted:
        weights = convert_to_custom_text_state_dict(weights)
    _fit_positions(model, weights, wanted, notes)
    _fit_scales(weights, wanted, notes)
    shapes = ({key: tensor.shape for key, tensor in each.items()} for each in (wanted, weights))
    if reason := misfit(*shapes):
        raise SecondLensError(f"{path} does not fit the model: {reason}")
    model.load_state_dict(weights, strict=False)  # what is computed may be there or not
    for note in notes:
        warnings.warn(f"{path} {note}", SecondLensWarning, stacklevel=2)


def _of_the_model(
    found: Mapping[str, Tensor], wanted: Mapping[str, Any], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    """What stands where most of the wanted keys are, such as "state_dict.module.", without that."""
    known = Counter(
        place.removesuffix(key) for place in found for key in _endings(place) if key in wanted
    )
    most = max(known.values(), default=0)
    whole = [place for place, count in known.items() if count == most] or [""]
    # of the model and an average of it, the model
    steady = [place for place in whole if not AVERAGE.search(place)] or whole
    if len(steady) > 1:
        names = " and ".join(repr(place.removesuffix(".")) for place in steady)
        raise SecondLensError(f"{path} holds several models, {names}: save one of them alone")
    start = steady[0]
    outside = [
        place
        for place in found
        if not place.startswith(start) and not COMPUTED.search(place) and not TRAINING.search(place)
    ]
    if outside:
        notes.append(f"holds {len(outside)} tensors beside the model, left out: {outside[0]} first")
    return {
        place.removeprefix(start): tensor
        for place, tensor in found.items()
        if place.startswith(start)
        and (
            place.removeprefix(start) in wanted
            or not (COMPUTED.search(place) or TRAINING.search(place.partition(".")[0]))
        )
    }


def _endings(place: str) -> Iterator[str]:
    """The place, and what remains of it after each of its dots."""
    yield place
    while "." in place:
        place = place.partition(".")[2]
        yield place


def _fit_positions(
    model: nn.Module,
    weights: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    notes: list[str],
) -> None:
    """Interpolate position embeddings of another number of positions, as open_clip does."""
    for key in POSITIONS:
        if key not in weights or key not in wanted:
            continue
        here, there = weights[key].shape, wanted[key].shape
        if len(here) == len(there) == 2 and here[0] != there[0] and here[1] == there[1]:
            weights[key] = weights[key].float()
            (resize_pos_embed if key.startswith("visual.") else resize_text_pos_embed)(
                weights, model
            )
            notes.append(
                f"has {here[0]} positions in {key} and the model {there[0]}: they are interpolated"
            )


def _fit_scales(weights: dict[str, Tensor], wanted: Mapping[str, Tensor], notes: list[str]) -> None:
    for key in LOSS:
        if key in weights and key not in wanted:
            del weights[key]
            notes.append(f"has a {key}, left out: no embedding depends on it")
        elif key in wanted and key not in weights:
            weights[key] = wanted[key]
            notes.append(f"has no {key}: no embedding depends on it")
        elif key in wanted and weights[key].numel() == 1:
            weights[key] = weights[key].reshape(wanted[key].shape)


def file_of_weights(folder: Path) -> Path:
    """The file of weights in a folder of open_clip.

    Raises
    ------
    SecondLensError
        There is none, an adapter lies there, or there are several of which none has a usual name.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if adapters := [path.name for path in found if path.name.startswith("adapter")]:
        raise SecondLensError(
            f"{folder} holds an adapter, {adapters[0]}: merge it into the model, and save that"
        )
    for name in USUAL_NAMES:
        if folder / name in found:
            return folder / name
    if len(found) != 1:
        names = f" ({', '.join(path.name for path in found)})" if found else ""
        raise SecondLensError(
            f"{folder} holds {len(found)} files of weights{names}: leave the one that belongs to "
            f"its configuration, or name it {USUAL_NAMES[0]}"
        )
    return found[0]


def misfit(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Why weights do not fit a model: what is missing or surplus, and what that looks like.

    Parameters
    ----------
    wanted, given
        Shapes by the names of weights, of the model and of the file.

    Returns
    -------
    The end of a sentence; empty if they fit.
    """
    missing = [key for key in wanted if key not in given and not COMPUTED.search(key)]
    surplus = [key for key in given if key not in wanted and not COMPUTED.search(key)]
    other = [key for key in wanted if key in given and tuple(wanted[key]) != tuple(given[key])]
    said = []
    if missing:
        said.append(f"{len(missing)} of {len(wanted)} weights are missing, {missing[0]} first")
    if surplus:
        said.append(f"{len(surplus)} are surplus, {surplus[0]} first")
    if other:
        key = other[0]
        said.append(f"{key} is {list(given[key])} in it and {list(wanted[key])} in the model")
    if not said:
        return ""
    looks = _looks_like(wanted, given, missing, surplus, other)
    return "; ".join(said) + (f". It looks like {looks}" if looks else "")


def _looks_like(
    wanted: Iterable[str],
    given: Iterable[str],
    missing: Sequence[str],
    surplus: Sequence[str],
    other: Sequence[str],
) -> str:
    for form, what in FORMS:
        if any(map(form.search, surplus)) and not any(map(form.search, wanted)):
            return what
    here, there = _blocks(given), _blocks(wanted)
    for tower in here.keys() & there.keys():
        if here[tower] != there[tower]:
            more = "more" if here[tower] > there[tower] else "fewer"
            return (
                f"a model with {more} blocks than the configuration says, {here[tower]} and not "
                f"{there[tower]}"
            )
    if other:
        ends = {key.rpartition(".")[0].rpartition(".")[2] for key in other}
        return (
            "one with another vocabulary"
            if ends == {"token_embedding"}
            else ("a model of another width, or with patches of another size")
        )
    if missing and not surplus and not any(IMAGE_TOWER.match(key) for key in missing):
        return "an image tower alone"
    return ""


def _blocks(keys: Iterable[str]) -> dict[str, int]:
    """Number of blocks by what stands before their number."""
    found: dict[str, int] = {}
    for key in keys:
        if match := BLOCK.match(key):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found
