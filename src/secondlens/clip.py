"""Where a `Clip` comes from: the models shipped here, open_clip names, or a model in memory.

Towers that compute anything the mathematics does not describe are refused with the reason, and
every tower is checked against its own forward pass before it is handed out.
"""

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import nn

from .errors import SecondLensError, UnsupportedModel
from .open_clip_view import from_open_clip
from .parity import check_parity
from .view import Block, Clip

__all__ = ["Block", "Clip", "check_parity", "from_open_clip", "load"]

DEMOS = ("demo", "demo-twin")
PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


def load(
    name: str,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    check: bool = True,
) -> Clip:
    """Load a CLIP by name, ready to explain.

    Parameters
    ----------
    name
        `"demo"` or `"demo-twin"`, the models shipped with this package, or an open_clip name such
        as `"ViT-B-32"`.
    pretrained
        An open_clip tag, such as `"openai"`, or the path of a checkpoint. A checkpoint that was
        trained with QuickGELU, like OpenAI's, needs a name that ends in `-quickgelu` when it is
        given as a path; with a tag the right activation is known.
    device
        Where the model goes.
    precision
        Of the weights, one of open_clip's: fp32, fp16, bf16, pure_fp16, pure_bf16.
    check
        Whether to run `check_parity`.

    Raises
    ------
    SecondLensError
        No such name, tag, checkpoint or precision.
    UnsupportedModel
        The tower computes something that the effects do not describe.
    """
    if precision not in PRECISIONS:
        raise SecondLensError(f"no precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if name.startswith("hf:"):
        raise UnsupportedModel(
            f"{name} is a transformers model, and this version reads open_clip models only: load "
            "the same weights by their open_clip name"
        )
    if name in DEMOS:
        if pretrained is not None or precision != "fp32":
            raise SecondLensError(f"{name} has its own fp32 weights: drop pretrained and precision")
        from .demo.model import load as load_demo

        model, preprocess, tokenizer = load_demo(name)
        model = model.to(device)
    else:
        _check_name(name, pretrained)
        model, preprocess, tokenizer = _create(name, pretrained, device, precision)
    return from_open_clip(model.eval(), preprocess, tokenizer, name=name, check=check)


def _check_name(name: str, pretrained: str | None) -> None:
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


def needs_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether open_clip must be told to use QuickGELU for these weights.

    OpenAI's weights, and some others, were trained with QuickGELU. A model name without
    `-quickgelu` builds plain GELU all the same, and open_clip only warns: every activation, and
    every text embedding, would be slightly wrong.
    """
    if pretrained is None or name.startswith(("hf-hub:", "local-dir:")):
        return False
    config = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    return bool(config.get("quick_gelu", False))


def _create(
    name: str, pretrained: str | None, device: str | torch.device, precision: str
) -> tuple[nn.Module, Callable, Callable]:
    """Model, inference transform and tokenizer, as open_clip makes them."""
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained=pretrained,
            device=device,
            precision=precision,
            force_quick_gelu=needs_quick_gelu(name, pretrained),
        )
        return model, preprocess, open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        weights = f" with {pretrained}" if pretrained else ""
        reason = str(error).strip().split("\n")[0]
        raise SecondLensError(f"open_clip cannot load {name}{weights}: {reason}") from error
