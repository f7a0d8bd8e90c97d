"""Devices: which ones are there, and what is not the same on all of them.

A lens is on the CPU unless told. Functions move what they need to the device of the model; tables
and lenses come back on the CPU, tensors stay on the model's device.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from torch import Tensor

from .errors import SecondLensError

CPU = torch.device("cpu")


P = ParamSpec("P")
Returned = TypeVar("Returned")


def undisturbed(function: Callable[P, Returned]) -> Callable[P, Returned]:
    """Decorate a function that a caller's autocast and default device are not to reach.

    Autocast would round the sums that effects are made of; and where nothing says where a tensor
    is made, it is made on the CPU.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> Returned:
        kinds = {"cpu", "cuda", _accelerator() or "cpu"}
        with ExitStack() as stack:
            if torch.get_default_device().type != "cpu":
                stack.enter_context(CPU)
            for kind in filter(torch.is_autocast_enabled, kinds):
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return called


def check_device(device: str | int | torch.device) -> torch.device:
    """Return a device that torch knows and that can be used here, with its number.

    Raises
    ------
    SecondLensError
        torch does not know it, this machine lacks it, or it holds no numbers.
    """
    there = f"choose one of {', '.join(available())}"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SecondLensError(f"torch knows no device {device!r}: {there}") from error
    try:
        placed = torch.zeros(1, device="cpu").to(found).device
    # AssertionError where torch was built without the device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise SecondLensError(
            f"there is no device {str(found)!r} here ({reason}): {there}"
        ) from error
    if found.type == "meta":
        raise SecondLensError(f"the device meta holds shapes and no numbers: {there}")
    return placed


def available() -> list[str]:
    """Names of the devices of this machine, the CPU first."""
    kinds = dict.fromkeys(("cuda", "xpu", "mps", _accelerator()))
    return ["cpu", *(str(each) for kind in kinds if kind for each in every(kind))]


def every(device: str | torch.device) -> list[torch.device]:
    """All devices of this machine that a name stands for: of "cuda", each GPU; of "cuda:1", one."""
    wanted = torch.device(device)
    if wanted.index is not None or wanted.type in ("cpu", "meta"):
        return [wanted]
    module = _module(wanted.type)
    count = module.device_count() if module is not None and module.is_available() else 0
    return [torch.device(wanted.type, number) for number in range(count)]


def free_memory(device: torch.device) -> int:
    """Bytes that are free: of the device's own memory, or of this machine where it has none."""
    module = _module(device.type) if device.type != "cpu" else None
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    if module is None or not hasattr(module, "mem_get_info"):
        return int(psutil.virtual_memory().available)
    free: int = module.mem_get_info(device)[0]
    # what torch holds for tensors to come is free too
    reserved, used = (getattr(module, f"memory_{what}", None) for what in ("reserved", "allocated"))
    return free + (reserved(device) - used(device) if reserved and used else 0)


def empty_cache(device: torch.device) -> None:
    """Give back what torch holds of a device's memory for tensors to come."""
    clear = getattr(_module(device.type), "empty_cache", None)
    if clear is not None:
        clear()


def smaller(images: int, device: torch.device) -> int:
    """Half as many images as filled the memory of a device, of which what can be is given back.

    Raises
    ------
    SecondLensError
        It was a single one.
    """
    empty_cache(device)
    if images > 1:
        return images // 2
    raise SecondLensError(
        f"the memory of {device} does not hold the work on one picture, so a smaller --batch-size "
        "does not help: take fewer --layers, or a smaller --memory, which fits them in groups"
    )


def wait(device: torch.device) -> None:
    """Return when a device has done all that it was given."""
    if device.type != "cpu":
        _module(device.type).synchronize(device)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Metal does not."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).square()
    except (TypeError, RuntimeError):
        return False
    return True


def wide(tensor: Tensor) -> Tensor:
    """The same numbers in float64: where they are, or on the CPU if that device has no float64.

    What is computed from it goes back by `.to(tensor)`, which takes device and dtype.
    """
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


def _accelerator() -> str | None:
    """The kind of accelerator that this torch was built for, whatever its name."""
    if not hasattr(torch, "accelerator"):
        return None
    found = torch.accelerator.current_accelerator()
    return None if found is None else found.type


def _module(kind: str) -> Any:
    """The module of torch for a kind of device, None without one."""
    try:
        return torch.get_device_module(kind)
    except RuntimeError:
        return None
