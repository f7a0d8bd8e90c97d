"""Models by name, as open_clip and transformers make them, with what prepares their inputs.

transformers is imported only when one of its models is loaded: it is an extra, and takes seconds.
"""

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import SecondLensError, UnsupportedModel
from .transformers_view import COVERED

DEMOS = ("demo", "demo-twin")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    StopIteration,
    TypeError,
    UnpicklingError,
    ValueError,
)
"""What open_clip and torch raise for files that are no checkpoints, or that fit another model."""


def check_name(name: str, pretrained: str | None) -> None:
    """Raise `SecondLensError` for a name or tag that open_clip does not know."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        raise SecondLensError(f"no model is called {name!r}{_did_you_mean(name, [*known, *DEMOS])}")
    if pretrained is None:
        warnings.warn(f"{name} gets random weights: pass pretrained= to load some", stacklevel=3)
        return
    builtin = name.replace("/", "-")
    if not open_clip.is_pretrained_cfg(builtin, pretrained) and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(builtin)
        raise SecondLensError(
            f"{name} has no pretrained tag {pretrained!r}{_did_you_mean(pretrained, tags)}, and no "
            "file has that path"
        )


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word.lower(), [each.lower() for each in known], n=3)
    matches = [each for each in known if each.lower() in close]
    return f" (did you mean {', '.join(matches)}?)" if matches else ""


def load_open_clip(
    name: str,
    pretrained: str | None,
    device: str | torch.device,
    precision: str,
    activation: str | None,
) -> tuple[nn.Module, Callable[[Image], Tensor], Callable[..., Tensor]]:
    """Model, inference transform and tokenizer, as open_clip makes them.

    Raises
    ------
    SecondLensError
        A checkpoint that is none, or that fits another model; or the weights cannot be fetched.
    """
    options: dict[str, bool] = {}
    if activation is not None and ":" not in name:  # else the model's own configuration decides
        quick = activation == "quick_gelu"
        options = {"force_quick_gelu": True} if quick else {"quick_gelu": False}
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained=pretrained,
            device=device,
            precision=precision,
            **options,
        )
        return model, preprocess, open_clip.get_tokenizer(name)
    except UNREADABLE as error:
        weights = f" with {pretrained}" if pretrained else ""
        # torch would advise to unpickle it anyway, which runs whatever the file says
        pickled = isinstance(error, UnpicklingError)
        reason = "it is no file of weights" if pickled else str(error).strip().split("\n")[0]
        raise SecondLensError(f"open_clip cannot load {name}{weights}: {reason}") from error


def load_transformers(
    name: str, device: str | torch.device, precision: str
) -> tuple[nn.Module, Any, Any]:
    """Model, image processor and tokenizer of a hub name or a folder; None for what it lacks.

    Raises
    ------
    SecondLensError
        transformers is missing, or cannot load the model or all of its weights.
    UnsupportedModel
        The model is no CLIP.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, CLIPModel, CLIPVisionModelWithProjection
    except ImportError as error:
        raise SecondLensError(
            f"hf:{name} needs transformers: pip install 'secondlens[hf]'"
        ) from error
    kinds = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in kinds:
            raise UnsupportedModel(
                f"hf:{name} cannot be explained: it is a {kind} model, and only transformers' "
                f"{' and '.join(COVERED)} are covered"
            )
        model, report = kinds[kind].from_pretrained(name, output_loading_info=True)
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        raise SecondLensError(f"transformers cannot load hf:{name}: {reason}") from error
    # transformers would make them up at random, with no more than a log message
    if missing := sorted(report["missing_keys"]):
        raise SecondLensError(
            f"hf:{name} has no weights for {missing[0]} ({len(missing)} missing): choose a "
            f"checkpoint of a whole {type(model).__name__}"
        )
    model = model.to(device=device, dtype=DTYPES[precision.removeprefix("pure_")]).eval()
    return model, _image_processor(name), _tokenizer(name)


def _image_processor(name: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return None
    # where there are no files, transformers may make up a tokenizer that knows no word
    knows_words = len(tokenizer) > len(tokenizer.all_special_tokens)
    return tokenizer if knows_words else None
