"""What sparse coding takes."""

from typing import Any

import torch
from torch import Tensor

from ..errors import SecondLensError


def check_inputs(targets: Any, atoms: Any, k: int) -> None:
    """Raise `SecondLensError` for vectors that cannot be coded with `k` of these atoms."""
    if not (isinstance(targets, Tensor) and isinstance(atoms, Tensor)):
        raise SecondLensError(
            f"targets and atoms must be tensors, and they are {type(targets).__name__} and "
            f"{type(atoms).__name__}: torch.as_tensor makes tensors of arrays"
        )
    if targets.ndim != 2 or atoms.ndim != 2 or targets.shape[1] != atoms.shape[1]:
        raise SecondLensError(
            f"targets and atoms need rows of the same width, and their shapes are "
            f"{list(targets.shape)} and {list(atoms.shape)}"
        )
    if targets.dtype != atoms.dtype or targets.dtype not in (torch.float32, torch.float64):
        raise SecondLensError(
            f"targets and atoms must both be float32 or both float64, and they are "
            f"{targets.dtype} and {atoms.dtype}"
        )
    if targets.device != atoms.device:
        raise SecondLensError(
            f"targets are on {targets.device} and atoms on {atoms.device}: move one of them"
        )
    count, width = atoms.shape
    if k < 1:
        raise SecondLensError(f"a code needs at least 1 atom, and k is {k}")
    if k > count:
        raise SecondLensError(f"k is {k}, and there are only {count} atoms to choose from")
    if k > width:
        raise SecondLensError(f"k is {k}, and {width} atoms already span all {width} dimensions")
    for name, rows in (("targets", targets), ("atoms", atoms)):
        if not rows.float().square().sum(dim=1).isfinite().all():
            raise SecondLensError(f"{name} hold values that are missing, infinite or beyond 1e18")
