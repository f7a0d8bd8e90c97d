"""Sparse codes by an L1 penalty, to compare those of the pursuit with."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError
from .dictionary import check_inputs


@checked
@undisturbed
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
    check_inputs(targets, atoms, 1)
    if not alpha > 0:
        raise SecondLensError(f"alpha must be above 0, and it is {alpha}")
    arrays = (rows.cpu().numpy() for rows in (targets, atoms))
    encoded = sparse_encode(*arrays, algorithm="lasso_cd", alpha=alpha, max_iter=10_000)
    codes = torch.from_numpy(encoded).to(targets)
    longest = int((codes != 0).sum(dim=1).amax()) if len(codes) else 0
    indices = codes.abs().topk(longest).indices
    coefficients = codes.gather(1, indices)
    return indices.where(coefficients != 0, -1), coefficients
