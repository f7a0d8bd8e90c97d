"""Where a `Clip` comes from: the models shipped here, a name, a checkpoint, or a model in memory.

Towers that compute anything the mathematics does not describe are refused with the reason, and
every tower is checked against its own forward pass before it is handed out.

Models come by name as open_clip and transformers make them, with what prepares their inputs.
transformers is imported only when one of its models is loaded: it is an extra, and takes seconds.
"""

import difflib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..devices import check_device, undisturbed
from ..errors import SecondLensError, UnsupportedModel
from ..naming import shown_model
from . import named_models
from .checks import STATABLE, check_activation, trained_activation
from .open_clip import from_open_clip
from .strangers import UNLOADABLE, check_model, check_open_clip_model, no_code_runs
from .transformers import COVERED, from_transformers
from .view import Clip

DEMOS = ("demo", "demo-twin")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
        A checkpoint that is none, or that fits another model; the weights cannot be fetched; or a
        configuration names code to run.
    """
    options: dict[str, bool] = {}
    if activation is not None and ":" not in name:  # else the model's own configuration decides
        quick = activation == "quick_gelu"
        options = {"force_quick_gelu": True} if quick else {"quick_gelu": False}
    try:
        if ":" in name:
            check_open_clip_model(name)
        with no_code_runs():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=pretrained,
                device=device,
                precision=precision,
                weights_only=True,
                **options,
            )
            return model, preprocess, open_clip.get_tokenizer(name)
    except UNLOADABLE as error:
        weights = f" with {pretrained}" if pretrained else ""
        raise SecondLensError(f"open_clip cannot load {name}{weights}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # torch would advise to unpickle it anyway, which runs whatever the file says
    if isinstance(error, UnpicklingError):
        return "it is not a file of weights"
    if "TorchScript archive" in str(error):
        return "it is a TorchScript archive, which holds code: save its state_dict instead"
    return str(error).strip().split("\n")[0] or type(error).__name__


def load_transformers(
    name: str, device: str | torch.device, precision: str
) -> tuple[nn.Module, Any, Any]:
    """Model, image processor and tokenizer of a hub name or a folder; None for what it lacks.

    Raises
    ------
    SecondLensError
        transformers is missing, or cannot load the model or all of its weights; or a configuration
        names code to run.
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
        check_model(name)
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in kinds:
            raise UnsupportedModel(
                f"hf:{name} cannot be explained: it is a {kind} model, and only transformers' "
                f"{' and '.join(COVERED)} are covered"
            )
        with no_code_runs():
            model, report = kinds[kind].from_pretrained(
                name, output_loading_info=True, trust_remote_code=False
            )
    except (*UNLOADABLE, StrictDataclassError) as error:
        reason = _reason(error)
        raise SecondLensError(f"transformers cannot load hf:{name}: {reason}") from error
    # transformers would make them up at random, with no more than a log message
    if missing := sorted(report["missing_keys"]):
        raise SecondLensError(
            f"hf:{name} has no weights for {missing[0]} ({len(missing)} missing): choose a "
            f"checkpoint of a whole {type(model).__name__}"
        )
    model = model.to(device=device, dtype=DTYPES[precision.removeprefix("pure_")]).eval()
    with no_code_runs():
        return model, _image_processor(name), _tokenizer(name)


def _image_processor(name: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except UNLOADABLE:
        return None


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UNLOADABLE:
        return None
    # where there are no files, transformers may make up a tokenizer that knows no word
    knows_words = len(tokenizer) > len(tokenizer.all_special_tokens)
    return tokenizer if knows_words else None


PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@undisturbed
def load(
    name: str,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    activation: str | None = None,
    check: bool = True,
) -> Clip:
    """Load a CLIP by name, ready to explain.

    Parameters
    ----------
    name
        `"demo"` or `"demo-twin"`, the models shipped with this package; an open_clip name such as
        `"ViT-B-32"`; or `"hf:"` and the hub name or folder of a transformers model, such as
        `"hf:openai/clip-vit-base-patch32"`.
    pretrained
        An open_clip tag, such as `"openai"`, or the path of a checkpoint.
    device
        Where the model goes.
    precision
        Of the weights, one of open_clip's: fp32, fp16, bf16, pure_fp16, pure_bf16.
    activation
        The function that the weights were trained with, `"gelu"` or `"quick_gelu"`. Tags, published
        files and models with a configuration of their own record it; any other checkpoint file
        needs it, unless the name ends in `-quickgelu`.
    check
        Whether to run `check_parity`, and to refuse an activation function that is not known, or
        about which two sources disagree. Without it, `activation` wins over open_clip's records.

    Raises
    ------
    SecondLensError
        No such name, tag, checkpoint, device, precision or activation function, transformers is
        missing, the activation function of a checkpoint is not known or contradicted, or NaN or
        infinite weights.
    UnsupportedModel
        The tower computes something that the effects do not describe, or another activation
        function than the one stated.
    """
    if precision not in PRECISIONS:
        raise SecondLensError(f"no precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if activation not in (None, *STATABLE):
        raise SecondLensError(f"no activation {activation!r}: choose {' or '.join(STATABLE)}")
    device = check_device(device)
    kinds = [each for each in (name, name.partition(":")[0]) if each in named_models]
    clip = named_models[kinds[0] if kinds else "open_clip"](
        name,
        pretrained=pretrained,
        device=device,
        precision=precision,
        activation=activation,
        check=check,
    )
    if check and activation is not None:
        check_activation(clip, activation)
    return clip


def demo(
    name: str,
    *,
    pretrained: str | None,
    device: str | torch.device,
    precision: str,
    check: bool,
    **_: Any,
) -> Clip:
    """The members "demo" and "demo-twin" of `named_models`.

    Raises
    ------
    SecondLensError
        Other weights or another precision are asked for.
    """
    if pretrained is not None or precision != "fp32":
        raise SecondLensError(f"{name} has its own fp32 weights: drop pretrained and precision")
    from ..demo.model import load as load_demo

    model, preprocess, tokenizer = load_demo(name)
    return from_open_clip(model.to(device), preprocess, tokenizer, name=name, check=check)


def hugging_face(
    name: str,
    *,
    pretrained: str | None,
    device: str | torch.device,
    precision: str,
    check: bool,
    **_: Any,
) -> Clip:
    """The member "hf" of `named_models`.

    Raises
    ------
    SecondLensError
        Other weights are asked for, or what `load_transformers` raises.
    """
    if pretrained is not None:
        raise SecondLensError(f"{name} names its own weights: drop pretrained")
    parts = load_transformers(name.removeprefix("hf:"), device, precision)
    clip = from_transformers(*parts, name=name, check=check)
    return replace(clip, name=shown_model(name))


def by_open_clip(
    name: str,
    *,
    pretrained: str | None,
    device: str | torch.device,
    precision: str,
    activation: str | None,
    check: bool,
) -> Clip:
    """The member "open_clip" of `named_models`, which takes every name that no other one has.

    Raises
    ------
    SecondLensError
        What `check_name`, `trained_activation` and `load_open_clip` raise.
    """
    check_name(name, pretrained)
    known = trained_activation(name, pretrained, activation, check)
    model, preprocess, tokenizer = load_open_clip(name, pretrained, device, precision, known)
    clip = from_open_clip(model.eval(), preprocess, tokenizer, name=name, check=check)
    if check and known is not None:
        check_activation(clip, known)
    return clip
