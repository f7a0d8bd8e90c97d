"""Where a `Clip` comes from: the models shipped here, a name, a checkpoint, or a model in memory.

Towers that compute anything the mathematics does not describe are refused with the reason, and
every tower is checked against its own forward pass before it is handed out.
"""

import torch

from ..errors import SecondLensError
from .activation import STATABLE, check_activation, trained_activation
from .open_clip_view import from_open_clip
from .pretrained import DEMOS, check_name, load_open_clip, load_transformers
from .transformers_view import from_transformers
from .view import Clip

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


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
    _check_device(device)
    trained_with = activation
    if name.startswith("hf:"):
        if pretrained is not None:
            raise SecondLensError(f"{name} names its own weights: drop pretrained")
        parts = load_transformers(name.removeprefix("hf:"), device, precision)
        clip = from_transformers(*parts, name=name, check=check)
    elif name in DEMOS:
        if pretrained is not None or precision != "fp32":
            raise SecondLensError(f"{name} has its own fp32 weights: drop pretrained and precision")
        from ..demo.model import load as load_demo

        model, preprocess, tokenizer = load_demo(name)
        clip = from_open_clip(model.to(device), preprocess, tokenizer, name=name, check=check)
    else:
        check_name(name, pretrained)
        trained_with = trained_activation(name, pretrained, activation, check)
        model, preprocess, tokenizer = load_open_clip(
            name, pretrained, device, precision, trained_with
        )
        clip = from_open_clip(model.eval(), preprocess, tokenizer, name=name, check=check)
    if check and trained_with is not None:
        check_activation(clip, trained_with)
    return clip


def _check_device(device: str | torch.device) -> None:
    """Raise `SecondLensError` for a device that torch does not know or cannot use here."""
    try:
        torch.zeros(1).to(device)
    # AssertionError where torch was built without the device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SecondLensError(f"there is no device {str(device)!r} here: {reason}") from error
