"""Atoms, and the search for the one that correlates most with a residual, among very many.

The search is nearly all the work of orthogonal matching pursuit: one product a step, all atoms by
all residuals. Bounds on how far a residual has moved cannot spare it: with unit atoms a step moves
it by at least the strongest correlation, so that any atom may be the next. But a product of low
precision is enough to find the few atoms that are worth an exact look.
"""

import timeit
from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import SecondLensError


def check_inputs(targets: Tensor, atoms: Tensor, k: int) -> None:
    """Raise `SecondLensError` for vectors that cannot be coded with `k` of these atoms."""
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


ATOMS_PER_PRODUCT = 4096
ATOMS_PER_BLOCK = 8
BLOCKS_PER_GATHER = 64


class Dictionary:
    """Atoms, and the search for the one that correlates most with a residual.

    A product in `narrow` precision gives the correlations of all atoms up to a computed bound.
    Blocks of atoms whose best is within that bound of the best of all, mostly one block, are then
    done again in float64 and decide, so that the choice does not depend on `narrow`.
    """

    def __init__(self, atoms: Tensor, narrow: torch.dtype, *, signed: bool) -> None:
        missing = -len(atoms) % ATOMS_PER_BLOCK
        self.atoms = F.pad(atoms, (0, 0, 0, missing)) if missing else atoms
        self.narrow, self.signed = self.atoms.to(narrow), signed
        self.norm = atoms.norm(dim=1).amax()
        self.rounding = (self.atoms - self.narrow).norm(dim=1).amax()
        # float32 sums, and float32 factors that torch may have been told to round once more
        setting = torch.get_float32_matmul_precision() if narrow == torch.float32 else "highest"
        factors = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[setting]
        self.relative_error = factors + atoms.shape[1] * 2.0**-24

    def strongest(self, residuals: Float[Tensor, "rows dim"]) -> Int64[Tensor, " rows"]:
        """The atom with the largest (absolute) inner product with each residual."""
        rounded = residuals.to(self.narrow.dtype)
        tops = self._block_tops(rounded.T.contiguous())
        top = tops.amax(dim=0).to(residuals)
        error = (self.rounding + self.relative_error * self.norm) * residuals.norm(dim=1)
        error += (self.norm + self.rounding) * (residuals - rounded).norm(dim=1)
        error += torch.finfo(rounded.dtype).eps * top.abs()
        block, row = (tops >= (top - 2 * error).to(tops)).nonzero(as_tuple=True)
        scores = self._scores(block, residuals, row)
        best = torch.full_like(top, -torch.inf).scatter_reduce(0, row, scores.amax(1), "amax")
        index = block[:, None] * ATOMS_PER_BLOCK + torch.arange(scores.shape[1], device=row.device)
        lowest = index.where(scores == best[row, None], len(self.atoms)).amin(dim=1)
        return torch.full_like(top, len(self.atoms), dtype=torch.int64).scatter_reduce(
            0, row, lowest, "amin"
        )

    def _block_tops(self, residuals: Float[Tensor, "dim rows"]) -> Float[Tensor, "blocks rows"]:
        """The largest (absolute) correlation in each block of atoms, in narrow precision."""
        tops = residuals.new_empty(len(self.atoms) // ATOMS_PER_BLOCK, residuals.shape[1])
        buffer = residuals.new_empty(ATOMS_PER_PRODUCT, residuals.shape[1])
        parts = zip(
            self.narrow.split(ATOMS_PER_PRODUCT),
            tops.split(ATOMS_PER_PRODUCT // ATOMS_PER_BLOCK),
            strict=True,
        )
        for atoms, part in parts:
            scores = torch.mm(atoms, residuals, out=buffer[: len(atoms)])
            if self.signed:
                scores.abs_()
            torch.amax(scores.unflatten(0, (-1, ATOMS_PER_BLOCK)), dim=1, out=part)
        return tops

    def _scores(self, block: Tensor, residuals: Tensor, row: Tensor) -> Float[Tensor, "pairs _"]:
        """Correlations of the atoms of each block with the residual of the row beside it."""
        blocks = self.atoms.unflatten(0, (-1, ATOMS_PER_BLOCK))
        # not a matrix product: equal atoms must give equal sums, for ties to be ties
        parts = [
            (blocks[some].to(residuals) * residuals[of, None]).sum(dim=-1)
            for some, of in zip(
                block.split(BLOCKS_PER_GATHER), row.split(BLOCKS_PER_GATHER), strict=True
            )
        ]
        scores = torch.cat(parts)
        return scores.abs() if self.signed else scores


@cache
def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the fastest products: bfloat16 on processors that have instructions for it."""
    if device.type != "cpu":  # others may also add up in bfloat16, and the bound would not hold
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        pair = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 256, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(torch.mm, *pair), number=1))
    faster = 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32
