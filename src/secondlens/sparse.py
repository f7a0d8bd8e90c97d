"""Sparse coding: write many vectors as short signed sums of texts from a large dictionary.

Orthogonal matching pursuit for a batch of targets at once (section 4 of arXiv 2406.04341). Nearly
all of its work is one product a step, all atoms by all residuals. Bounds from how far a residual
moved cannot spare it: a step moves the residual by at least the strongest correlation, so that
with unit atoms each of them might be the next. It can be done in low precision, though.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .errors import SecondLensError

TARGETS_PER_CHUNK = 256
ATOMS_PER_PRODUCT = 4096
ATOMS_PER_BLOCK = 8
BLOCKS_PER_GATHER = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class OmpPath:
    """Codes of every size up to K, from one pursuit: the code of size m has the first m atoms."""

    indices: Int64[Tensor, "targets K"]
    """Atoms in the order in which they were chosen; -1 once the pursuit of a row has ended."""
    steps: Float[Tensor, "targets K K"]
    """Row m - 1 holds the coefficients of the code of size m."""
    residual_norms: Float[Tensor, "targets K"]
    """Of what the code of each size leaves of the target."""
    cosines: Float[Tensor, "targets K"]
    """Between the target and what the code of each size makes of it; 0 if either is zero."""

    def coefficients(self, m: int) -> Float[Tensor, "targets m"]:
        """Coefficients of the first `m` atoms of `indices`; 0 where the index is -1.

        Raises
        ------
        SecondLensError
            The pursuit did not go to `m` atoms.
        """
        longest = self.indices.shape[1]
        if not 1 <= m <= longest:
            raise SecondLensError(f"this path has codes of 1 to {longest} atoms, not of {m}")
        return self.steps[:, m - 1, :m]


def omp(
    targets: Float[Tensor, "targets dim"],
    atoms: Float[Tensor, "atoms _dim"],
    k: int,
    *,
    nonnegative: bool = False,
) -> tuple[Int64[Tensor, "targets k"], Float[Tensor, "targets k"]]:
    """Code each target with `k` atoms by orthogonal matching pursuit.

    Each step adds the atom with the largest absolute inner product with the residual (atoms as
    given: longer ones are favoured; ties go to the lowest index), then fits all coefficients anew.
    Choices, coefficients and the rule for ending early are those of scikit-learn's
    `orthogonal_mp_gram` in float64, but no Gram matrix of the dictionary is built.

    Parameters
    ----------
    targets
        Vectors to code, float32 or float64, on any device.
    atoms
        The dictionary, one atom a row, of the same width, dtype and device.
    k
        Atoms in a code.
    nonnegative
        Choose by the largest positive inner product and fit coefficients >= 0. An atom chosen
        earlier can then end with coefficient 0.

    Returns
    -------
    indices
        Atoms in the order in which they were chosen; -1 once a row has ended early, which it does
        when the strongest inner product, squared, is below the dtype's epsilon, or the atom
        depends linearly on those chosen (squared distance from their span at most that epsilon).
    coefficients
        Theirs; 0 where the index is -1.

    Raises
    ------
    SecondLensError
        `k` below 1 or above the number or the width of the atoms; widths, dtypes or devices that
        differ; infinite or missing values.

    References
    ----------
    Y. Pati, R. Rezaiifar, P. Krishnaprasad, "Orthogonal matching pursuit: recursive function
    approximation with applications to wavelet decomposition", Asilomar 1993.
    """
    # cloned, because a view would keep the whole path
    parts = [(p.indices, p.coefficients(k).clone()) for p in _paths(targets, atoms, k, nonnegative)]
    indices, coefficients = map(torch.cat, zip(*parts, strict=True))
    return indices, coefficients


def omp_path(
    targets: Float[Tensor, "targets dim"],
    atoms: Float[Tensor, "atoms _dim"],
    k: int,
    *,
    nonnegative: bool = False,
) -> OmpPath:
    """Code each target with 1, 2, ... up to `k` atoms, at the cost of `omp` with `k`.

    Parameters and errors are those of `omp`. The result holds targets * k * k numbers.
    """
    parts = list(_paths(targets, atoms, k, nonnegative))
    return OmpPath(
        indices=torch.cat([p.indices for p in parts]),
        steps=torch.cat([p.steps for p in parts]),
        residual_norms=torch.cat([p.residual_norms for p in parts]),
        cosines=torch.cat([p.cosines for p in parts]),
    )


@torch.no_grad()
def lasso(
    targets: Float[Tensor, "targets dim"], atoms: Float[Tensor, "atoms _dim"], alpha: float
) -> tuple[Int64[Tensor, "targets longest"], Float[Tensor, "targets longest"]]:
    """Code each target x by minimising |x - c @ atoms|^2 / 2 + alpha * sum |c|, on the CPU.

    Needs scikit-learn, whose coordinate descent it is; one target takes it as long as a hundred
    take `omp`.

    Returns
    -------
    indices
        Atoms of each code, largest absolute coefficient first, filled with -1 up to the longest.
    coefficients
        Theirs; 0 where the index is -1.

    Raises
    ------
    SecondLensError
        scikit-learn is missing, `alpha` is not above 0, or inputs that `omp` refuses.
    """
    try:
        from sklearn.decomposition import sparse_encode
    except ImportError:
        raise SecondLensError("lasso needs scikit-learn: pip install scikit-learn") from None
    _check(targets, atoms, 1)
    if not alpha > 0:
        raise SecondLensError(f"alpha must be above 0, and it is {alpha}")
    dictionary, rows = atoms.cpu().numpy(), []
    for chunk in targets.split(TARGETS_PER_CHUNK):
        encoded = sparse_encode(
            chunk.cpu().numpy(), dictionary, algorithm="lasso_cd", alpha=alpha, max_iter=10_000
        )
        for code in torch.from_numpy(encoded):
            found = code.nonzero()[:, 0]
            rows.append((found, code[found]))
    longest = max((len(found) for found, _ in rows), default=0)
    indices = torch.full((len(targets), longest), -1)
    coefficients = torch.zeros(len(targets), longest, dtype=targets.dtype)
    for i, (found, values) in enumerate(rows):
        order = values.abs().argsort(descending=True, stable=True)
        indices[i, : len(found)], coefficients[i, : len(found)] = found[order], values[order]
    return indices.to(targets.device), coefficients.to(targets.device)


def _check(targets: Tensor, atoms: Tensor, k: int) -> None:
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
    if k < 1:
        raise SecondLensError(f"a code needs at least 1 atom, and k is {k}")
    if k > (count := len(atoms)):
        raise SecondLensError(f"k is {k}, and there are only {count} atoms to choose from")
    if k > (width := atoms.shape[1]):
        raise SecondLensError(f"k is {k}, and {width} atoms already span the {width} dimensions")
    for name, rows in (("targets", targets), ("atoms", atoms)):
        if not rows.isfinite().all():
            raise SecondLensError(f"{name} hold infinite or missing values: remove those rows")


@torch.no_grad()
def _paths(targets: Tensor, atoms: Tensor, k: int, nonnegative: bool) -> Iterator[OmpPath]:
    """Paths of one chunk of targets after another; their buffers are shared."""
    _check(targets, atoms, k)
    dictionary = _Dictionary(atoms, _product_dtype(atoms.device), signed=not nonnegative)
    shape = (min(len(targets), TARGETS_PER_CHUNK), k, atoms.shape[1])
    fit = _NonnegativeFit(shape, atoms) if nonnegative else _Fit(shape, atoms)
    for chunk in targets.split(TARGETS_PER_CHUNK):
        fit.start(chunk)
        yield _pursue(fit, dictionary, k)


def _pursue(fit: "_Fit", dictionary: "_Dictionary", k: int) -> OmpPath:
    rows, dtype, device = len(fit.targets), dictionary.atoms.dtype, fit.targets.device
    indices = torch.full((rows, k), -1, device=device)
    steps = torch.zeros(rows, k, k, dtype=dtype, device=device)
    left, made = torch.zeros(2, rows, k, dtype=dtype, device=device)
    live = torch.ones(rows, dtype=torch.bool, device=device)
    for m in range(k):
        picks = dictionary.strongest(fit.residual)
        live = live & (indices[:, :m] != picks[:, None]).all(dim=1)
        live = fit.add(m, dictionary.atoms[picks], live)
        indices[:, m] = picks.where(live, -1)
        # also fills the steps that never come if every row ends here
        ahead = slice(m, None) if not live.any() else slice(m, m + 1)
        steps[:, ahead] = fit.coefficients[:, None].to(dtype)
        left[:, ahead] = fit.residual.norm(dim=1, keepdim=True).to(dtype)
        made[:, ahead] = (fit.targets - fit.residual).norm(dim=1, keepdim=True).to(dtype)
        if not live.any():
            break
    # what is made is a projection, so its cosine with the target is the ratio of their norms
    cosines = made / fit.targets.norm(dim=1, keepdim=True).to(dtype).clamp_min(1e-30)
    return OmpPath(indices=indices, steps=steps, residual_norms=left, cosines=cosines.clamp_max(1))


class _Dictionary:
    """Atoms, and the search for the one that correlates most with a residual.

    A product in `narrow` precision gives all correlations up to a bound that is computed. Blocks of
    atoms whose best comes within that bound of the best of all, mostly one, are then computed in
    float64 and decide, so that the choice does not depend on `narrow`.
    """

    def __init__(self, atoms: Tensor, narrow: torch.dtype, *, signed: bool) -> None:
        missing = -len(atoms) % ATOMS_PER_BLOCK
        self.atoms = F.pad(atoms, (0, 0, 0, missing)) if missing else atoms
        self.signed = signed
        self.narrow = self.atoms.to(narrow)
        self.norm = atoms.norm(dim=1).amax()
        self.rounding = (self.atoms - self.narrow).norm(dim=1).amax()
        precision = torch.get_float32_matmul_precision() if narrow == torch.float32 else "highest"
        # inputs that float32 products may round again, their float32 sums
        inputs = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[precision]
        self.relative_error = inputs + atoms.shape[1] * 2.0**-24

    def strongest(self, residuals: Float[Tensor, "rows dim"]) -> Int64[Tensor, " rows"]:
        """The atom with the largest (absolute) inner product with each residual."""
        rounded = residuals.to(self.narrow.dtype)
        tops = self._block_tops(rounded.T.contiguous())
        top = tops.amax(dim=0).to(residuals.dtype)
        norms = residuals.norm(dim=1)
        error = (self.rounding + self.relative_error * self.norm) * norms
        error += self.norm * (residuals - rounded).norm(dim=1)
        error += top.abs() * torch.finfo(rounded.dtype).eps
        threshold = (top - 2 * error).to(tops.dtype)
        block, row = (tops >= threshold).nonzero(as_tuple=True)
        scores = self._scores(block, residuals, row)
        best = torch.full_like(top, -torch.inf).scatter_reduce_(0, row, scores.amax(1), "amax")
        index = block[:, None] * ATOMS_PER_BLOCK + torch.arange(
            ATOMS_PER_BLOCK, device=block.device
        )
        lowest = index.where(scores == best[row, None], len(self.atoms)).amin(dim=1)
        first = torch.full_like(top, len(self.atoms), dtype=torch.int64)
        return first.scatter_reduce_(0, row, lowest, "amin")

    def _block_tops(self, residuals: Float[Tensor, "dim rows"]) -> Float[Tensor, "blocks rows"]:
        """Largest (absolute) correlation within each block of atoms, in narrow precision."""
        rows = residuals.shape[1]
        tops = residuals.new_empty(len(self.atoms) // ATOMS_PER_BLOCK, rows)
        scores = residuals.new_empty(ATOMS_PER_PRODUCT, rows)
        for start in range(0, len(self.atoms), ATOMS_PER_PRODUCT):
            some = self.narrow[start : start + ATOMS_PER_PRODUCT]
            torch.mm(some, residuals, out=scores[: len(some)])
            by_block = scores[: len(some)].unflatten(0, (-1, ATOMS_PER_BLOCK))
            if self.signed:
                by_block.abs_()
            first = start // ATOMS_PER_BLOCK
            torch.amax(by_block, dim=1, out=tops[first : first + len(by_block)])
        return tops

    def _scores(
        self, block: Tensor, residuals: Tensor, row: Tensor
    ) -> Float[Tensor, "pairs _block"]:
        """Correlations of all atoms of each block with the residual of each row, pair by pair."""
        blocks, parts = self.atoms.unflatten(0, (-1, ATOMS_PER_BLOCK)), []
        pairs = zip(block.split(BLOCKS_PER_GATHER), row.split(BLOCKS_PER_GATHER), strict=True)
        for some, of in pairs:
            # not a product: equal atoms must give equal sums, so that ties are ties
            parts.append((blocks[some].to(residuals.dtype) * residuals[of, None]).sum(dim=-1))
        scores = torch.cat(parts)
        return scores.abs_() if self.signed else scores


class _Fit:
    """Least squares on the chosen atoms A of each row, by progressive Cholesky in float64.

    With G = A A^T = L L^T, `inverse` is L^-1, whose row m is all that the atom m adds: one multiple
    of it brings all coefficients from the code of size m to that of size m + 1.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        # float32 squares the condition number of near duplicates away; Metal has nothing wider
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.epsilon = torch.finfo(like.dtype).eps
        rows, k, _ = shape
        # of all rows and steps, because memory is slow when touched for the first time
        self.all_chosen = torch.empty(shape, dtype=wide, device=like.device)
        self.all_square = torch.empty(rows, k, k, dtype=wide, device=like.device)

    def start(self, targets: Float[Tensor, "rows dim"]) -> None:
        """Take new targets, with no atoms yet."""
        rows = len(targets)
        self.targets = self.residual = targets.to(self.all_chosen.dtype)
        self.chosen, self.square = self.all_chosen[:rows], self.all_square[:rows].zero_()
        self.coefficients = self.targets.new_zeros(rows, self.square.shape[1])

    def add(
        self, m: int, atoms: Float[Tensor, "rows dim"], live: Bool[Tensor, " rows"]
    ) -> Bool[Tensor, " rows"]:
        """Add atom `m` to each live row; return the rows where that was possible."""
        atoms = atoms.to(self.targets.dtype)
        score = (atoms * self.residual).sum(dim=1)
        live = live & self._correlates(score)
        self.chosen[:, m] = atoms
        live = self._solve(m, score, live)
        coefficients = self.coefficients[:, None, : m + 1]
        self.residual = torch.baddbmm(
            self.targets[:, None], coefficients, self.chosen[:, : m + 1], alpha=-1
        )[:, 0]
        return live

    def _correlates(self, score: Tensor) -> Bool[Tensor, " rows"]:
        return score.square() >= self.epsilon

    def _solve(self, m: int, score: Tensor, live: Tensor) -> Bool[Tensor, " rows"]:
        inverse, atom = self.square, self.chosen[:, m, None]
        known = torch.bmm(torch.bmm(atom, self.chosen[:, :m].mT), inverse[:, :m, :m].mT)
        height = atom.square().sum(dim=(1, 2)) - known.square().sum(dim=(1, 2))
        if m:
            live = live & (height > self.epsilon)
        scale = height.rsqrt().where(live, 0)[:, None]
        inverse[:, m, :m] = torch.bmm(known, inverse[:, :m, :m])[:, 0] * -scale
        inverse[:, m, m] = scale[:, 0]
        self.coefficients[:, : m + 1] += score[:, None] * scale * inverse[:, m, : m + 1]
        return live


class _NonnegativeFit(_Fit):
    """Non-negative least squares on the chosen atoms of each row; `square` is their Gram matrix."""

    def start(self, targets: Float[Tensor, "rows dim"]) -> None:
        super().start(targets)
        self.products = torch.zeros_like(self.coefficients)

    def _correlates(self, score: Tensor) -> Bool[Tensor, " rows"]:
        return super()._correlates(score) & (score > 0)

    def _solve(self, m: int, score: Tensor, live: Tensor) -> Bool[Tensor, " rows"]:
        gram, atom, old = self.square, self.chosen[:, m], self.coefficients[:, :m]
        known = torch.bmm(atom[:, None], self.chosen[:, : m + 1].mT)[:, 0]
        if m:
            span = _masked_solve(gram[:, :m, :m], known[:, :m], old > 0)
            live = live & (known[:, m] - (span * known[:, :m]).sum(dim=1) > self.epsilon)
        known = known.where(live[:, None], 0)
        gram[:, m, : m + 1] = gram[:, : m + 1, m] = known
        self.products[:, m] = (atom * self.targets).sum(dim=1).where(live, 0)
        some = slice(0, m + 1)
        self.coefficients[:, some] = _nnls(
            gram[:, some, some], self.products[:, some], self.coefficients[:, some]
        )
        return live


def _nnls(
    gram: Float[Tensor, "rows m m"],
    products: Float[Tensor, "rows m"],
    start: Float[Tensor, "rows m"],
) -> Float[Tensor, "rows m"]:
    """Minimise c G c / 2 - c . products over c >= 0, by row, from a feasible start.

    The active-set method of Lawson and Hanson, "Solving least squares problems", 1974, chapter 23.
    """
    solution, passive = start.clone(), start > 0
    tolerance = 1e-10 * products.abs().amax(dim=1)
    for _ in range(3 * gram.shape[1]):
        slope = products - torch.bmm(solution[:, None], gram)[:, 0]
        steepest, new = slope.masked_fill_(passive, -torch.inf).max(dim=1)
        rows = (steepest > tolerance).nonzero()[:, 0]
        if len(rows) == 0:
            break
        passive[rows, new[rows]] = True
        while len(rows):
            held, here = passive[rows], solution[rows]
            there = _masked_solve(gram[rows], products[rows], held)
            falls = held & (there < 0)
            # share of the way to `there` at which each coefficient reaches zero
            reach = (here / (here - there)).where(falls, torch.inf)
            share = reach.amin(dim=1, keepdim=True).clamp_max(1)
            passive[rows] = held & (reach > share)
            solution[rows] = torch.lerp(here, there, share).where(passive[rows], 0)
            rows = rows[falls.any(dim=1)]
    return solution


def _masked_solve(gram: Tensor, products: Tensor, mask: Tensor) -> Float[Tensor, "rows m"]:
    """Solve gram @ c = products in the variables of each row's mask; the others are 0."""
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    square = gram.where(mask[:, :, None] & mask[:, None], identity)
    return torch.linalg.solve(square, products.where(mask, 0)[:, :, None])[:, :, 0]


@cache
def _product_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the fastest products: bfloat16 on processors that have instructions for it."""
    if device.type != "cpu":  # others may also add up in bfloat16, which has no useful bound
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 256, dtype=dtype)
        seconds[dtype] = min(_seconds(left, right) for _ in range(3))
    faster = 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32


def _seconds(left: Tensor, right: Tensor) -> float:
    start = perf_counter()
    left @ right
    return perf_counter() - start
