"""Models as folders that open_clip and transformers load by themselves, wherever they are."""

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from open_clip.constants import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
)
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL.Image import new as new_image
from safetensors.torch import save_file
from torch import Tensor

from ...devices import CPU
from ...errors import SecondLensError, UnsupportedModel
from ...models.conversion import (
    as_open_clip,
    as_transformers,
    open_clip_configuration,
    transformers_configuration,
)
from ...models.strangers import check_model
from ...models.view import Clip
from ...storage.files import read_json, save_json, whole

OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
USUAL = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, IMAGENET_MEAN, IMAGENET_STD)
"""What preprocessing takes off, and divides by, in nearly every model."""
ROUNDING = 1e-6
HUB, FOLDER = "hf-hub:", "local-dir:"


def save_open_clip(clip: Clip, folder: Path) -> None:
    """Write a model as a folder that open_clip loads by `local-dir:`, in its own precision.

    Parameters
    ----------
    clip
        A model of open_clip, or a `CLIPModel` of transformers.
    folder
        Made where it is not there.

    Raises
    ------
    UnsupportedModel
        open_clip cannot build it, or nothing says how.
    SecondLensError
        The folder cannot be written to.
    """
    own = isinstance(clip.model, CLIP) or hasattr(clip.model, "visual")
    weights = clip.model.state_dict()
    if not own:
        configuration, weights = open_clip_configuration(clip), as_open_clip(weights)
    else:
        configuration = _configuration_of(clip)
    mean, std = _normalisation(clip)
    stated = getattr(getattr(clip.model, "visual", None), "preprocess_cfg", None) or {}
    preprocessing = {
        "size": list(clip.image_size),
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": stated.get("interpolation", "bicubic"),
        "resize_mode": stated.get("resize_mode", "shortest"),
    }
    save_json(
        folder / OPEN_CLIP_FILES[0],
        {"model_cfg": configuration, "preprocess_cfg": preprocessing},
    )
    _save_weights(weights, folder / OPEN_CLIP_FILES[1])
    if hasattr(clip.tokenizer, "save_pretrained"):
        clip.tokenizer.save_pretrained(str(folder))  # open_clip looks for it beside the model


def save_transformers(clip: Clip, folder: Path) -> None:
    """Write a model as a folder that transformers loads by `from_pretrained`, in its own precision.

    Parameters
    ----------
    clip
        A model of transformers, or a plain CLIP of open_clip.
    folder
        Made where it is not there.

    Raises
    ------
    UnsupportedModel
        transformers cannot build it.
    SecondLensError
        transformers is missing, or the folder cannot be written to.
    """
    try:
        from transformers import PreTrainedModel
    except ImportError as error:
        raise SecondLensError(
            "a folder of transformers needs transformers: pip install 'secondlens[hf]'"
        ) from error
    model: Any = clip.model
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        processor = getattr(clip.preprocess, "processor", None)
        for part in (processor, clip.tokenizer):
            if part is not None:
                part.save_pretrained(folder)
        return
    converted(clip).save_pretrained(folder)
    _save_processor(clip, folder)
    tokenizer = getattr(clip.tokenizer, "tokenizer", clip.tokenizer)
    if isinstance(tokenizer, SimpleTokenizer):
        _save_tokenizer(tokenizer, clip.context_length, folder)


def converted(clip: Clip) -> Any:
    """Return a plain CLIP of open_clip as a `CLIPModel` of transformers on the CPU, in the same
    precision.

    Raises
    ------
    UnsupportedModel
        It is not a plain CLIP.
    """
    from transformers import CLIPConfig, CLIPModel

    configuration = CLIPConfig(**transformers_configuration(clip))
    with torch.device("meta"):
        model = CLIPModel(configuration)
    weights = as_transformers(clip.model.state_dict())
    model = model.to_empty(device=CPU).to(clip.dtype)
    for module in model.modules():  # what is counted and not learnt is made anew
        ids = getattr(module, "position_ids", None)
        if ids is not None:
            module.position_ids = torch.arange(ids.shape[-1]).expand(1, -1)
    model.load_state_dict({name: each.to(CPU) for name, each in weights.items()})
    return model.eval()


def keeps_tokenizer(clip: Clip) -> bool:
    """Return whether the tokenizer is one that both libraries make again from what is written."""
    tokenizer = getattr(clip.tokenizer, "tokenizer", clip.tokenizer)
    return isinstance(tokenizer, SimpleTokenizer) or hasattr(tokenizer, "save_pretrained")


def _configuration_of(clip: Clip) -> dict[str, Any]:
    """open_clip's configuration of one of its models: by its name, else by its shapes."""
    try:
        return open_clip_configuration(clip)
    except UnsupportedModel:
        if named := _named_configuration(clip.origin):
            return named
        raise UnsupportedModel(
            f"nothing says how open_clip builds {clip.name}: load it by its name in open_clip, or "
            "from a folder with an open_clip_config.json"
        ) from None


def _named_configuration(name: str) -> dict[str, Any] | None:
    if name.startswith((HUB, FOLDER)):
        folder = check_model(name.partition(":")[2])
        found: dict[str, Any] = read_json(folder / OPEN_CLIP_FILES[0])["model_cfg"]
        return found
    known: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    return known


def _normalisation(clip: Clip) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the preprocessing takes off, by channel: they are read off
    a black and a white picture, whatever library prepares them."""
    if clip.preprocess is None:
        raise SecondLensError(
            f"{clip.name} came without preprocessing, and a saved model needs it: pass preprocess= "
            "when wrapping the model"
        )
    side = clip.image_size[::-1]
    black, white = (
        clip.preprocess(new_image("RGB", side, colour)).double().mean(dim=(1, 2))
        for colour in ("black", "white")
    )
    std: Float[Tensor, " 3"] = 1 / (white - black)
    return _usual((-black * std).tolist()), _usual(std.tolist())


def _usual(values: list[float]) -> list[float]:
    """The numbers that everybody uses where these are those, but for rounding."""
    for known in USUAL:
        if all(abs(v - k) < ROUNDING for v, k in zip(values, known, strict=True)):
            return list(known)
    return [round(value, 6) for value in values]


def _save_processor(clip: Clip, folder: Path) -> None:
    from transformers import CLIPImageProcessor

    height, width = clip.image_size
    mean, std = _normalisation(clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = CLIPImageProcessor(
            size={"shortest_edge": min(height, width)},
            crop_size={"height": height, "width": width},
            image_mean=mean,
            image_std=std,
        )
    processor.save_pretrained(folder)


def _save_tokenizer(tokenizer: SimpleTokenizer, context_length: int, folder: Path) -> None:
    """open_clip's tokenizer in the files of transformers': the same pieces, under the names that
    transformers has for the marks of start and end."""
    from transformers import CLIPTokenizer

    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {marks.get(piece, piece): number for piece, number in tokenizer.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.bpe_ranks)]
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(merges),
    }
    for name, text in files.items():
        with whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=context_length)
    made.save_pretrained(folder)


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    with whole(path) as partial:
        save_file({name: each.to(CPU).contiguous() for name, each in weights.items()}, partial)
