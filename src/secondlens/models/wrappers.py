"""What may stand around a model or in it: taken off, or refused with the reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModel

QUANTISED = ("bitsandbytes", "quantized", "quantization", "torchao")
"""Parts of the names of modules whose classes hold weights as whole numbers."""


def plain(model: Any, name: str) -> Any:
    """Return a model without what `torch.compile` and DataParallel put around it.

    Raises
    ------
    UnsupportedModel
        It has adapters, or weights that are not floating-point numbers.
    """
    model = unwrapped(model)
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        library = type(module).__module__.split(".")
        if library[0] == "peft":
            raise UnsupportedModel(
                f"{name} cannot be explained: it has adapters of PEFT in {path or 'its whole'}, "
                "which are not read: merge them first, with merge_and_unload()"
            )
        if set(QUANTISED) & set(library):
            raise UnsupportedModel(
                f"{name} cannot be explained: the weights of {path} are quantised, and effects are "
                "computed from floating-point ones: load it in fp32, fp16 or bf16"
            )
    return model


def unwrapped(module: Any) -> Any:
    """Return the module inside the wrappers of `torch.compile` and data parallelism."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(module, nn.Module) and "_orig_mod" in module._modules:
            module = module._orig_mod
        else:
            return module


@contextmanager
def not_compiled(module: nn.Module) -> Iterator[None]:
    """Inside the `with`, modules that were compiled in place run as they are written.

    Compiled code was made without the hooks by which a pass is read.
    """
    if all(each._compiled_call_impl is None for each in module.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
