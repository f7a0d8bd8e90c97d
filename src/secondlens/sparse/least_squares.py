"""Least squares on the atoms that many pursuits have chosen, brought up to date atom by atom."""

import torch
from jaxtyping import Float
from torch import Tensor


class Fit:
    """Least squares on the chosen atoms A of each row, by progressive Cholesky in float64.

    `square` is the inverse of L in A A^T = L L^T. Its row m is all that the atom m adds: a multiple
    of it turns the coefficients of the code of size m into those of size m + 1.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self.epsilon = torch.finfo(like.dtype).eps
        # for all chunks, because fresh memory is slow to touch; float64, because A A^T squares the
        # condition number, too much for float32
        self.all_chosen = torch.empty(shape, dtype=torch.float64, device=like.device)
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


class NonnegativeFit(Fit):
    """Non-negative least squares on the chosen atoms A of each row; `square` is A A^T."""

    def start(self, targets: Float[Tensor, "rows dim"]) -> None:
        """Take new targets, with no atoms yet."""
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
    solution: Tensor = torch.linalg.solve(square, products.where(mask, 0)[:, :, None])
    return solution[:, :, 0]
