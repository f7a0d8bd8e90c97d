"""Sparse coding: many vectors at once, each as a short signed sum of texts of a large dictionary.

Section 4 of arXiv 2406.04341. Nearly all the work of orthogonal matching pursuit is one product a
step, all atoms by all residuals. Bounds on how far a residual has moved cannot spare it: with unit
atoms a step moves it by at least the strongest correlation, so that any atom may be the next. But
a product of low precision is enough to find the few atoms that are worth an exact look.
"""

import timeit
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .errors import SecondLensError

TARGETS_PER_CHUNK = 512
ATOMS_PER_PRODUCT = 4096
ATOMS_PER_BLOCK = 8
BLOCKS_PER_GATHER = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class OmpPath:
    """Codes of every size up to K from one pursuit: that of size m is made of the first m atoms."""

    indices: Int64[Tensor, "targets K"]
    """Atoms in the order in which they were chosen; -1 once the pursuit of a row has ended."""
    steps: Float[Tensor, "targets K K"]
    """Row m - 1 holds the coefficients of the code of size m."""
    residual_norms: Float[Tensor, "targets K"]
    """Of what the code of each size leaves of the target."""
    cosines: Float[Tensor, "targets K"]
    """Between the target and what the code of each size makes of it; 0 if either is zero."""

    def coefficients(self, m: int) -> Float[Tensor, "targets m"]:
        """Coefficients of the first `m` atoms; 0 where the index is -1.

        Raises
        ------
        SecondLensError
            The path has no code of that size.
        """
        longest = self.steps.shape[1]
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
    given, so that longer ones are favoured; ties go to the lowest index) and fits all coefficients
    anew. Choices, coefficients and early ends are those of scikit-learn's `orthogonal_mp_gram`,
    decided in float64, and no Gram matrix of the dictionary is built.

    Parameters
    ----------
    targets
        Vectors to code, float32 or float64, on any device.
    atoms
        The dictionary, one atom a row, with the width, dtype and device of the targets.
    k
        Atoms in a code.
    nonnegative
        Choose by the largest positive inner product and fit coefficients >= 0; an atom chosen
        early may end with coefficient 0.

    Returns
    -------
    indices
        Atoms in the order in which they were chosen. -1 once the row has ended: the square of the
        largest inner product was below the epsilon of the dtype, or the squared distance of the
        atom from the span of those chosen at most that.
    coefficients
        Theirs; 0 where the index is -1.

    Raises
    ------
    SecondLensError
        `k` below 1 or above the number or the width of the atoms; widths, dtypes or devices that
        differ; values that are missing, infinite or beyond 1e18.

    References
    ----------
    Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal matching pursuit: recursive function
    approximation with applications to wavelet decomposition", Asilomar 1993.
    """
    # cloned, because a view would keep the whole path
    paths = omp_paths(targets, atoms, k, nonnegative=nonnegative)
    parts = [(path.indices, path.coefficients(k).clone()) for path in paths]
    return torch.cat([i for i, _ in parts]), torch.cat([c for _, c in parts])


def omp_path(
    targets: Float[Tensor, "targets dim"],
    atoms: Float[Tensor, "atoms _dim"],
    k: int,
    *,
    nonnegative: bool = False,
) -> OmpPath:
    """Code each target with 1, 2, ... up to `k` atoms, in the time that `omp` takes for `k`.

    Parameters and errors are those of `omp`; the result holds targets * k * k numbers.
    """
    parts = list(omp_paths(targets, atoms, k, nonnegative=nonnegative))
    return OmpPath(
        indices=torch.cat([p.indices for p in parts]),
        steps=torch.cat([p.steps for p in parts]),
        residual_norms=torch.cat([p.residual_norms for p in parts]),
        cosines=torch.cat([p.cosines for p in parts]),
    )


@torch.no_grad()
def omp_paths(
    targets: Float[Tensor, "targets dim"],
    atoms: Float[Tensor, "atoms _dim"],
    k: int,
    *,
    nonnegative: bool = False,
) -> Iterator[OmpPath]:
    """What `omp_path` gives, for a few hundred targets after another, in their order.

    Parameters and errors are those of `omp`; only one part is held at a time.
    """
    _check(targets, atoms, k)
    dictionary = _Dictionary(atoms, _product_dtype(atoms.device), signed=not nonnegative)
    shape = (min(len(targets), TARGETS_PER_CHUNK), k, atoms.shape[1])
    fit = _NonnegativeFit(shape, atoms) if nonnegative else _Fit(shape, atoms)
    for chunk in targets.split(TARGETS_PER_CHUNK):
        fit.start(chunk)
        yield _pursue(fit, dictionary, k)


@torch.no_grad()
def lasso(
    targets: Float[Tensor, "targets dim"], atoms: Float[Tensor, "atoms _dim"], alpha: float
) -> tuple[Int64[Tensor, "targets longest"], Float[Tensor, "targets longest"]]:
    """Code each target x by minimising ``|x - c @ atoms|^2 / 2 + alpha * sum |c|``, on the CPU.

    The coordinate descent is scikit-learn's, one target after another, and holds a number for
    every target and atom: for comparisons on a few hundred targets.

    Returns
    -------
    indices
        Atoms of each code, the largest absolute coefficient first, and -1 up to the longest code.
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
        raise SecondLensError("lasso needs scikit-learn: pip install 'secondlens[lasso]'") from None
    _check(targets, atoms, 1)
    if not alpha > 0:
        raise SecondLensError(f"alpha must be above 0, and it is {alpha}")
    arrays = (rows.cpu().numpy() for rows in (targets, atoms))
    encoded = sparse_encode(*arrays, algorithm="lasso_cd", alpha=alpha, max_iter=10_000)
    codes = torch.from_numpy(encoded).to(targets)
    longest = int((codes != 0).sum(dim=1).amax()) if len(codes) else 0
    indices = codes.abs().topk(longest).indices
    coefficients = codes.gather(1, indices)
    return indices.where(coefficients != 0, -1), coefficients


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


def _pursue(fit: "_Fit", dictionary: "_Dictionary", k: int) -> OmpPath:
    rows, like = len(fit.targets), dictionary.atoms
    indices = torch.full((rows, k), -1, device=like.device)
    steps = like.new_zeros(rows, k, k)
    left, made = like.new_zeros(2, rows, k)
    live = torch.ones(rows, dtype=torch.bool, device=like.device)
    for m in range(k):
        picks = dictionary.strongest(fit.residual)
        live = live & (indices[:, :m] != picks[:, None]).all(dim=1)
        live = fit.add(m, dictionary.atoms[picks], live)
        ended = not live.any()
        ahead = slice(m, k if ended else m + 1)
        indices[:, m] = picks.where(live, -1)
        steps[:, ahead] = fit.coefficients[:, None].to(like)
        left[:, ahead] = fit.residual.norm(dim=1, keepdim=True).to(like)
        made[:, ahead] = (fit.targets - fit.residual).norm(dim=1, keepdim=True).to(like)
        if ended:
            break
    # what is made is a projection of the target: their cosine is the ratio of their norms
    norms = fit.targets.norm(dim=1, keepdim=True).to(like)
    cosines = (made / norms).where(norms > 0, 0).clamp_max(1)
    return OmpPath(indices=indices, steps=steps, residual_norms=left, cosines=cosines)


class _Dictionary:
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


class _Fit:
    """Least squares on the chosen atoms A of each row, by progressive Cholesky in float64.

    `square` is the inverse of L in A A^T = L L^T. Its row m is all that the atom m adds: a multiple
    of it turns the coefficients of the code of size m into those of size m + 1.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        # A A^T squares the condition number, too much for float32; Metal has nothing wider
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.epsilon = torch.finfo(like.dtype).eps
        # for all chunks, because fresh memory is slow to touch
        self.all_chosen = torch.empty(shape, dtype=wide, device=like.device)
        self.all_square = self.all_chosen.new_empty(shape[0], shape[1], shape[1])

    def start(self, targets: Float[Tensor, "rows dim"]) -> None:
        """Take new targets, with no atoms yet."""
        rows = len(targets)
        self.targets = self.residual = targets.to(self.all_chosen)
        self.chosen, self.square = self.all_chosen[:rows], self.all_square[:rows].zero_()
        self.coefficients = self.square.new_zeros(self.square.shape[:2])

    def add(self, m: int, atoms: Float[Tensor, "rows dim"], live: Tensor) -> Tensor:
        """Add the atom `m` of each live row; return the rows that are still live."""
        self.chosen[:, m] = atoms
        score = (self.chosen[:, m] * self.residual).sum(dim=1)
        live = self._solve(m, score, live & (score.square() >= self.epsilon))
        made = torch.bmm(self.coefficients[:, None, : m + 1], self.chosen[:, : m + 1])
        self.residual = self.targets - made[:, 0]
        return live

    def _solve(self, m: int, score: Tensor, live: Tensor) -> Tensor:
        """Bring the coefficients of live rows up to date; return those where that was possible."""
        inverse, atom = self.square, self.chosen[:, m, None]
        # with one row, because products with one column are ten times slower
        known = torch.bmm(torch.bmm(atom, self.chosen[:, :m].mT), inverse[:, :m, :m].mT)
        height = atom.square().sum(dim=(1, 2)) - known.square().sum(dim=(1, 2))
        if m:
            live = live & (height > self.epsilon)
        scale = height.rsqrt().where(live, 0)[:, None]
        inverse[:, m, :m] = torch.bmm(known, inverse[:, :m, :m])[:, 0] * -scale
        inverse[:, m, m] = scale[:, 0]
        self.coefficients += score[:, None] * scale * inverse[:, m]
        return live


class _NonnegativeFit(_Fit):
    """Non-negative least squares on the chosen atoms A of each row; `square` is A A^T."""

    def start(self, targets: Float[Tensor, "rows dim"]) -> None:
        super().start(targets)
        self.products = torch.zeros_like(self.coefficients)

    def _solve(self, m: int, score: Tensor, live: Tensor) -> Tensor:
        gram, atom, some = self.square, self.chosen[:, m], slice(0, m + 1)
        known = torch.bmm(atom[:, None], self.chosen[:, some].mT)[:, 0]
        live = live & (score > 0)
        if m:
            span = _masked_solve(gram[:, :m, :m], known[:, :m], self.coefficients[:, :m] > 0)
            live = live & (known[:, m] - (span * known[:, :m]).sum(dim=1) > self.epsilon)
        gram[:, m, some] = gram[:, some, m] = known.where(live[:, None], 0)
        self.products[:, m] = (atom * self.targets).sum(dim=1).where(live, 0)
        self.coefficients[:, some] = _nnls(
            gram[:, some, some], self.products[:, some], self.coefficients[:, some]
        )
        return live


def _nnls(gram: Tensor, products: Tensor, start: Tensor) -> Float[Tensor, "rows m"]:
    """Minimise c @ gram @ c / 2 - c @ products over c >= 0 in each row, from a feasible start.

    The active-set method of Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23.
    """
    solution, passive = start.clone(), start > 0
    tolerance = 1e-10 * products.abs().amax(dim=1)
    for _ in range(3 * gram.shape[1]):
        slope = products - torch.bmm(solution[:, None], gram)[:, 0]
        steepest, new = slope.masked_fill(passive, -torch.inf).max(dim=1)
        rows = (steepest > tolerance).nonzero()[:, 0]
        if len(rows) == 0:
            break
        passive[rows, new[rows]] = True
        while len(rows):
            held, here = passive[rows], solution[rows]
            there = _masked_solve(gram[rows], products[rows], held)
            falls = held & (there < 0)
            # the share of the way to `there` at which each coefficient reaches zero
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
    if device.type != "cpu":  # others may also add up in bfloat16, and the bound would not hold
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        pair = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 256, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(torch.mm, *pair), number=1))
    faster = 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32
