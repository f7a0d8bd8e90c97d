"""Which activation function the neurons have, and whether the weights were trained with it.

OpenAI's weights, and some others, were trained with QuickGELU. Run with plain GELU they work, and
every activation and every text embedding is slightly wrong: so a function that is not known, or
about which two sources disagree, is refused.
"""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SecondLensError, UnsupportedModel
from .view import Clip

Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
STATABLE = ("gelu", "quick_gelu")
"""What open_clip can be told to build."""
TOLERANCE = 1e-6
"""Functions of one name agree to rounding; GELU and its tanh form differ by 5e-4."""

PUBLISHED_HASH = re.compile(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8})\.pth?$")
"""SHA-256 of a checkpoint, or how it starts, in the address it was published at."""


@torch.no_grad()
def difference(one: Function, other: Function) -> float:
    """Largest absolute difference of two functions between -8 and 8; outside, both are linear."""
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    return float((one(grid) - other(grid)).abs().max())


def activation_name(activation: nn.Module) -> str:
    """The key of `FUNCTIONS` that a module computes, whatever its class, or else its class name."""
    if next(activation.parameters(), None) is None:
        for name, function in FUNCTIONS.items():
            if difference(activation, function) <= TOLERANCE:
                return name
    return type(activation).__name__


def activation_error(clip: Clip, trained_with: str) -> float:
    """Largest absolute difference of any block's activation from the function of that name."""
    function = FUNCTIONS[trained_with]
    return max(difference(block.activation, function) for block in clip.blocks)


def check_activation(clip: Clip, trained_with: str) -> None:
    """Raise `UnsupportedModel` unless all blocks compute what the weights were trained with."""
    error = activation_error(clip, trained_with)
    if error > TOLERANCE:
        raise UnsupportedModel(
            f"{clip.name} computes {clip.activation}, and its weights are said to be trained with "
            f"{trained_with}: an activation differs by up to {error:.1e}, and {TOLERANCE:.0e} is "
            "allowed"
        )


def trained_activation(
    name: str, pretrained: str | None, stated: str | None = None, check: bool = True
) -> str | None:
    """The function that open_clip weights were trained with, or None if nothing says it.

    Three sources are heard, in this order: what the caller states; open_clip's own record, found
    by the tag or, for a file, by a published SHA-256; and a model name that stands for QuickGELU.
    `hf-hub:` and `local-dir:` models, and all that are not open_clip's, come with a configuration
    that builds them, so only a statement is heard.

    Parameters
    ----------
    name, pretrained
        As `load` takes them.
    stated
        "gelu" or "quick_gelu".
    check
        Whether to raise.

    Raises
    ------
    SecondLensError
        The sources disagree, or no source knows the function of a checkpoint file.
    """
    config = open_clip.get_model_config(name.replace("/", "-")) if ":" not in name else None
    if config is None:
        return stated
    record = None
    if pretrained is not None and open_clip.is_pretrained_cfg(name.replace("/", "-"), pretrained):
        record = _recorded(name.replace("/", "-"), pretrained)
    elif pretrained is not None:
        record = _published(Path(pretrained))
    by_source = {
        "activation": stated,
        f"open_clip's record of {pretrained}": record,
        f"the name {name}": "quick_gelu" if config.get("quick_gelu") else None,
    }
    known = {source: function for source, function in by_source.items() if function is not None}
    if check and len(set(known.values())) > 1:
        says = " and ".join(f"{source} says {function}" for source, function in known.items())
        error = difference(FUNCTIONS["gelu"], FUNCTIONS["quick_gelu"])
        raise SecondLensError(
            f"{says}, which differ by up to {error:.1e}: give what the weights were trained with"
        )
    if check and pretrained is not None and not known:
        raise SecondLensError(
            f"{pretrained} does not say which activation function it was trained with: state "
            "activation gelu or quick_gelu (weights that OpenAI trained need quick_gelu)"
        )
    return next(iter(known.values()), None)


def _recorded(model: str, tag: str) -> str:
    """What a tag was trained with: QuickGELU is recorded either with the tag or with the model."""
    configs = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
    return "quick_gelu" if any(config.get("quick_gelu") for config in configs) else "gelu"


def _published(checkpoint: Path) -> str | None:
    """The same for the tag whose address holds the SHA-256 of this file, if there is one."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for model, tag in open_clip.list_pretrained():
        found = PUBLISHED_HASH.search(open_clip.get_pretrained_cfg(model, tag).get("url", ""))
        if found and digest.startswith(found[1] or found[2]):
            return _recorded(model, tag)
    return None
