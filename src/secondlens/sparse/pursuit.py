"""Orthogonal matching pursuit of many targets at once (section 4 of arXiv 2406.04341)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..arguments import checked
from ..devices import has_float64, undisturbed
from ..errors import SecondLensError
from .dictionary import Dictionary, check_inputs, product_dtype
from .least_squares import Fit, NonnegativeFit

TARGETS_PER_CHUNK = 512


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

    def to(self, device: torch.device) -> "OmpPath":
        """Return the same on a device."""
        return OmpPath(**{name: tensor.to(device) for name, tensor in vars(self).items()})

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


@checked
@undisturbed
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
    anew. Choices, coefficients and early ends are those of scikit-learn's `orthogonal_mp_gram` for
    targets of norm 1, decided in float64, and no Gram matrix of the dictionary is built. Targets of
    other norms are coded as if they had that norm: the atoms of a code do not depend on it.

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
        largest inner product, of a target with norm 1, was below the epsilon of the dtype, or the
        squared distance of the atom from the span of those chosen at most that.
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


@checked
@undisturbed
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


@checked
@torch.no_grad()
def omp_paths(
    targets: Float[Tensor, "targets dim"],
    atoms: Float[Tensor, "atoms _dim"],
    k: int,
    *,
    nonnegative: bool = False,
) -> Iterator[OmpPath]:
    """What `omp_path` gives, for a few hundred targets after another, in their order.

    Parameters and errors are those of `omp`; only one part is held at a time. Where the device has
    no float64, the CPU does the work.
    """
    check_inputs(targets, atoms, k)
    device = targets.device
    if not has_float64(device):
        for path in omp_paths(targets.cpu(), atoms.cpu(), k, nonnegative=nonnegative):
            yield path.to(device)
        return
    dictionary = Dictionary(atoms, product_dtype(atoms.device), signed=not nonnegative)
    shape = (min(len(targets), TARGETS_PER_CHUNK), k, atoms.shape[1])
    fit = NonnegativeFit(shape, atoms) if nonnegative else Fit(shape, atoms)
    for chunk in targets.split(TARGETS_PER_CHUNK):
        wide = chunk.to(fit.all_chosen)
        unit = _power_of_two(wide)
        fit.start(wide / unit)
        path = _pursue(fit, dictionary, k)
        unit = unit.to(targets)
        yield replace(
            path, steps=path.steps * unit[:, None], residual_norms=path.residual_norms * unit
        )


def _power_of_two(targets: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows 1"]:
    """The one nearest to each norm: dividing by it rounds nothing, so only the ends move."""
    norms = targets.norm(dim=1, keepdim=True) * 2**0.5
    return torch.ldexp(torch.ones_like(norms), torch.frexp(norms).exponent - 1)


def _pursue(fit: Fit, dictionary: Dictionary, k: int) -> OmpPath:
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
