"""What a batch of a fit costs a GPU, counted kernel by kernel.

    python benchmarks/device.py --model ViT-L-14 --layers all --batch 256

No GPU is needed: the real code runs on fake tensors that have shapes only. A kernel takes as long
as the slower of its operations and its bytes, at the rates that are printed; launching is free.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import click
import open_clip
import torch
from open_clip.model import CLIP
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secondlens.models.open_clip import from_open_clip
from secondlens.models.view import Clip

console = Console(width=110)
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a GPU reaches in practice: operations and bytes a second."""

    half: float
    single: float
    bandwidth: float


CARDS = {
    "A100": Card(half=165e12, single=14e12, bandwidth=1.6e12),
    "H100": Card(half=330e12, single=42e12, bandwidth=2.7e12),
    "RTX 4090": Card(half=165e12, single=82e12, bandwidth=1.0e12),
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch."""

    name: str
    bytes: int
    operations: float
    half: bool

    def seconds(self, card: Card) -> float:
        """The slower of computing and moving."""
        rate = card.half if self.half else card.single
        return max(self.operations / rate, self.bytes / card.bandwidth)


@dataclass(kw_only=True)
class Count:
    """What some code does."""

    kernels: list[Kernel] = field(default_factory=list)
    synchronisations: Counter[str] = field(default_factory=Counter)

    def seconds(self, card: Card) -> float:
        """Of all kernels, one after another."""
        return sum(kernel.seconds(card) for kernel in self.kernels)

    def operations(self, half: bool) -> float:
        """Of all kernels in one precision."""
        return sum(kernel.operations for kernel in self.kernels if kernel.half == half)

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(kernel.bytes for kernel in self.kernels)


FREE = frozenset(
    "view _unsafe_view transpose permute expand select slice unsqueeze squeeze t as_strided detach "
    "unbind split alias unflatten reshape diagonal split_with_sizes lift_fresh device "
    "_reshape_alias empty new_empty empty_strided empty_like new_empty_strided lift".split()
)
"""What launches nothing."""
WRITES_ONLY = frozenset("copy_ fill_ zero_".split())
TOUCHES_FEW = frozenset("index_put_ index_copy_ index_add_ scatter_ scatter_add_".split())
"""Of what they write into, only as much as they write."""
READS_FEW = frozenset("index gather index_select embedding".split())
"""Of what they read, only as much as they return."""


class Counting(TorchDispatchMode):
    """Counts what is launched inside the `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name == "_local_scalar_dense":
            self.count.synchronisations["item"] += 1
            # fake tensors have no values: truth is what makes all checks pass
            return True if args[0].dtype == torch.bool else 1
        out = func(*args, **kwargs)
        if name == "nonzero":
            self.count.synchronisations[name] += 1
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        crosses = len({each.device.type for each in tensors}) > 1
        if name in ("_to_copy", "copy_") and crosses and not waits_not(func, args, kwargs):
            self.count.synchronisations["copy"] += 1
        if name not in FREE and any(each.device.type == "cuda" for each in tensors):
            self.count.kernels.append(kernel(name, func, args, kwargs, out))
        return out


def waits_not(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a copy was asked to return before it is done."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("non_blocking"))


def kernel(
    name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> Kernel:
    """Bytes and operations of one call."""
    written = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
    into = {id(each) for each in written}
    read = [
        each
        for each in tree_leaves((args, kwargs))
        if isinstance(each, Tensor)
        and (id(each) not in into or not (name in WRITES_ONLY or "out" in kwargs))
    ]
    if name in TOUCHES_FEW:
        values = [each for each in read if id(each) not in into]
        moved = 3 * sum(map(size, values))
    elif name in READS_FEW:
        moved = 2 * sum(map(size, written)) + sum(map(size, read[1:]))
    else:
        moved = sum(map(size, read)) + sum(map(size, written))
    packet = func._overloadpacket
    floats = [each.dtype for each in read if each.dtype.is_floating_point]
    operations = (
        float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0
    )
    return Kernel(
        name=name,
        bytes=moved,
        operations=operations,
        half=bool(floats) and all(dtype in HALF for dtype in floats),
    )


def size(tensor: Tensor) -> int:
    """Bytes, those of what is expanded only once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def counted(run: Callable[[], Any]) -> tuple[Any, Count]:
    """What it returns, and what it cost."""
    with Counting() as counting:
        result = run()
    return result, counting.count
