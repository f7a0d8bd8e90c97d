"""Where a `Clip` comes from: the models shipped here, a name, a checkpoint, or a model in memory.

Towers that compute anything the mathematics does not describe are refused with the reason, and
every tower is checked against its own forward pass before it is handed out.

Models come by name as open_clip and transformers make them, with what prepares their inputs.
transformers is imported only when one of its models is loaded: it is an extra, and takes seconds.
"""

import difflib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from PIL.Image import Image
from torch import Tensor, nn

from ..arguments import checked
from ..devices import check_device, undisturbed
from ..errors import SecondLensError, SecondLensWarning, UnsupportedModel
from ..naming import shown_model
from . import named_models
from .checks import STATABLE, check_activation, trained_activation
from .elsewhere import elsewhere
from .open_clip.views import check_covered, from_open_clip
from .places import REPOSITORY, folder_of
from .strangers import UNLOADABLE, check_model, check_open_clip_model, no_code_runs
from .transformers.views import family_of_configuration, from_transformers
from .view import Clip
from .weights import file_of_weights, load_weights, misfit

ADAPTER = "adapter_config.json"
"""The file by which peft knows an adapter."""
DEMOS = ("demo", "demo-twin")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_name(name: str, pretrained: str | None) -> None:
    """Raise `SecondLensError` for a name or tag that open_clip does not know."""
    if schema(name):
        if pretrained is not None:
            raise SecondLensError(f"{name} names its own weights: drop pretrained")
        return
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        raise SecondLensError(
            f"no model is called {name!r}{_meant(name) or _did_you_mean(name, [*known, *DEMOS])}"
        )
    if pretrained is None:
        warnings.warn(
            f"{name} gets random weights: pass pretrained= to load some",
            SecondLensWarning,
            stacklevel=3,
        )
        return
    builtin = name.replace("/", "-")
    if open_clip.is_pretrained_cfg(builtin, pretrained) or Path(pretrained).is_file():
        return
    if Path(pretrained).is_dir():
        raise SecondLensError(
            f"{pretrained} is a folder: name a file of weights in it, or the folder as the model, "
            f"with {' or '.join(_schemas(Path(pretrained)))}"
        )
    tags = open_clip.list_pretrained_tags_by_model(builtin)
    raise SecondLensError(
        f"{name} has no pretrained tag {pretrained!r}{_did_you_mean(pretrained, tags)}, and no "
        "file has that path"
    )


def schema(name: str) -> str:
    """What stands before the colon where a name says by it where its model lies."""
    before, colon, _ = name.partition(":")
    return before if colon and before in ("hf-hub", "local-dir") else ""


def _meant(name: str) -> str:
    """How what is no name may be given, or nothing."""
    path = Path(name)
    if path.is_dir():
        return f": it is a folder, so name it {' or '.join(f'{s}{name}' for s in _schemas(path))}"
    if path.is_file():
        return ": it is a file, so name the model that its weights are of, and it with pretrained"
    if name.count("/") == 1 and REPOSITORY.fullmatch(name):
        return f": if it is on the hub, name it hf:{name}, or hf-hub:{name} for one of open_clip"
    return elsewhere(name, "open_clip")


def _schemas(folder: Path) -> list[str]:
    """Those by which the model in a folder is loaded."""
    kinds = (("config.json", "hf:"), ("open_clip_config.json", "local-dir:"))
    return [kind for file, kind in kinds if (folder / file).is_file()] or ["hf:", "local-dir:"]


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
        A file without weights, or whose weights fit another model; the weights cannot be fetched;
        or a configuration names code to run.
    UnsupportedModel
        A built-in configuration computes something that the effects do not describe, which is told
        before its weights are fetched.
    """
    options: dict[str, bool] = {}
    if activation is not None and ":" not in name:  # else the model's own configuration decides
        quick = activation == "quick_gelu"
        options = {"force_quick_gelu": True} if quick else {"quick_gelu": False}
    weights = f" with {pretrained}" if pretrained else ""
    try:
        named = _checked_place(name)
        if pretrained and not Path(pretrained).is_file():
            _check_before_fetching(name, options)
        with no_code_runs(), _without_weights():
            model, _, preprocess = open_clip.create_model_and_transforms(
                named,
                pretrained=pretrained,
                device=device,
                precision=precision,
                load_weights=False,
                pretrained_text=pretrained is None,
                **options,
            )
            tokenizer = open_clip.get_tokenizer(named)
        if file := _file(named, pretrained):
            load_weights(model, file)
    except UnsupportedModel:
        raise
    except SecondLensError as error:
        raise SecondLensError(f"open_clip cannot load {name}{weights}: {error}") from error
    except UNLOADABLE as error:
        raise SecondLensError(f"open_clip cannot load {name}{weights}: {_reason(error)}") from error
    return model, preprocess, tokenizer


def _checked_place(name: str) -> str:
    """The name by which open_clip finds a model whose configurations name no code."""
    kind = schema(name)
    if not kind:
        return name
    place = name.partition(":")[2]
    folder = folder_of(place)
    if kind == "local-dir" and folder is None:
        raise SecondLensError(f"there is no folder {place!r}: name one that holds a model")
    if folder is not None:
        if "local-dir:" not in _schemas(folder):
            raise SecondLensError(f"it is a model of transformers: name it hf:{place}")
        kind, place = "local-dir", str(folder)
    check_open_clip_model(place)
    return f"{kind}:{place}"


def _check_before_fetching(name: str, options: dict[str, bool]) -> None:
    """Raise `UnsupportedModel` if the configuration decides that the model is not covered."""
    try:
        with _without_weights(), torch.device("meta"):
            shape = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, device="meta", **options
            )
    except UNLOADABLE:
        return  # a text tower whose own configuration is on the hub: the whole model will tell
    check_covered(shape, name)


def _file(named: str, pretrained: str | None) -> Path | None:
    """The file of a model's weights, which is fetched if it is not here."""
    kind, place = schema(named), named.partition(":")[2]
    if kind == "local-dir":
        return file_of_weights(Path(place))
    if kind == "hf-hub":
        return Path(download_pretrained_from_hf(place))
    if pretrained is None:
        return None
    record = open_clip.get_pretrained_cfg(named.replace("/", "-"), pretrained)
    return Path(open_clip.download_pretrained(record) if record else pretrained)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Inside it, open_clip does not say that a model is random: its weights come afterwards."""

    def other(record: logging.LogRecord) -> bool:
        return "initialized" not in record.getMessage()

    logging.root.addFilter(other)
    try:
        yield
    finally:
        logging.root.removeFilter(other)


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def load_transformers(
    name: str, device: str | torch.device, precision: str
) -> tuple[nn.Module, Any, Any]:
    """Model, image processor and tokenizer of a hub name or a folder; None for what it lacks.

    A LoRA adapter that lies beside the model, or names it as its base, is merged into it.

    Raises
    ------
    SecondLensError
        transformers is missing, or peft for an adapter; the model cannot be loaded, or its weights
        and its configuration do not fit each other; or a configuration names code to run.
    UnsupportedModel
        The model is not covered, which its configuration tells before weights are fetched.
    """
    try:
        import transformers
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
    except ImportError as error:
        raise SecondLensError(
            f"hf:{name} needs transformers: pip install 'secondlens[hf]'"
        ) from error
    if library := elsewhere(name, "transformers"):
        raise SecondLensError(f"transformers cannot load hf:{name}{library}")
    try:
        place, adapter = _base_and_adapter(name)
        configuration = AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind, family = family_of_configuration(configuration, name)
        with no_code_runs():
            model, report = getattr(transformers, kind).from_pretrained(
                place,
                **family.options.get(kind, {}),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
                trust_remote_code=False,
                # an adapter is merged below: where there is none to be found, none is added
                **({"adapter_kwargs": {"subfolder": "none"}} if adapter else {}),
            )
            # what is missing transformers would make up at random, and what is surplus it drops
            _check_report(model, report, family.unread)
            if adapter:
                model = merged(model, adapter)
    except UnsupportedModel:
        raise
    except SecondLensError as error:
        raise SecondLensError(f"transformers cannot load hf:{name}: {error}") from error
    except (*UNLOADABLE, StrictDataclassError) as error:
        reason = _reason(error)
        raise SecondLensError(f"transformers cannot load hf:{name}: {reason}") from error
    model = model.to(device=device, dtype=DTYPES[precision.removeprefix("pure_")]).eval()
    with no_code_runs():
        return model, _image_processor(place), _tokenizer(place)


def _base_and_adapter(name: str) -> tuple[str, str | None]:
    """Place of a model whose configurations name no code, and of an adapter to merge into it."""
    place = str(folder_of(name) or name)
    here = check_model(place)
    if (here / "config.json").is_file():
        return place, place if (here / ADAPTER).is_file() else None
    if (here / ADAPTER).is_file():
        base = str(
            json.loads((here / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
            or ""
        )
        base = str(folder_of(base) or base)
        check_model(base)
        return base, place
    if (here / "open_clip_config.json").is_file():
        kind = "local-dir" if here == Path(place) else "hf-hub"
        raise SecondLensError(f"it is a model of open_clip: name it {kind}:{name}")
    raise SecondLensError("it holds no model: there is no config.json in it")


def _check_report(model: nn.Module, report: Mapping[str, Any], unread: tuple[str, ...]) -> None:
    """Raise `SecondLensError` unless the weights were those of the model, all and no others but
    those whose names begin with something `unread`."""
    wanted = {key: tensor.shape for key, tensor in model.state_dict().items()}
    given = {key: shape for key, shape in wanted.items() if key not in report["missing_keys"]}
    surplus = sorted(key for key in report["unexpected_keys"] if not key.startswith(unread))
    given |= dict.fromkeys(surplus, ())
    given |= {key: shape for key, shape, _ in report["mismatched_keys"]}
    if reason := misfit(wanted, given):
        raise SecondLensError(f"its weights do not fit its configuration: {reason}")


def merged(model: nn.Module, adapter: str) -> nn.Module:
    """A model with the adapter in a folder or repository merged into its weights.

    What the adapter names and has no weights for stays as it is, and a warning says so.

    Raises
    ------
    SecondLensError
        peft is missing, or the adapter has weights for what the model does not have.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise SecondLensError(
            "it comes with an adapter, and merging that needs peft: pip install "
            "'secondlens[adapters]', or save the merged model"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, which is told below in a sentence
        fitted = PeftModel.from_pretrained(model, adapter)
        given, taken = load_peft_weights(adapter, device="cpu"), get_peft_model_state_dict(fitted)
        whole: nn.Module = fitted.merge_and_unload()
    if surplus := sorted(given.keys() - taken.keys()):
        raise SecondLensError(
            f"its adapter has {len(surplus)} weights for what it does not have, such as "
            f"{surplus[0]}: name the base that the adapter was trained on"
        )
    if without := sorted(taken.keys() - given.keys()):
        warnings.warn(
            f"the adapter has no weights for {len(without)} of the {len(taken)} it names, such as "
            f"{without[0]}: these parts stay as the base has them",
            SecondLensWarning,
            stacklevel=2,
        )
    return whole


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


@checked
@undisturbed
def load(
    name: str,
    pretrained: str | Path | None = None,
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
        pretrained=None if pretrained is None else str(pretrained),
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
