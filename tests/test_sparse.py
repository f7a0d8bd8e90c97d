"""Sparse codes against scikit-learn, a slow pursuit in NumPy, and the published code's output."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from scale import TIMES
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp_gram
from torch.utils._python_dispatch import TorchDispatchMode

from secondlens.errors import SecondLensError
from secondlens.sparse import dictionary, pursuit
from secondlens.sparse.l1 import lasso
from secondlens.sparse.pursuit import omp, omp_path

GOLDEN = Path(__file__).parent / "golden" / "components-and-codes.safetensors"
GAP = 1e-5


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def problem(seed, targets=5, atoms=40, dim=12, correlation=0.0, dtype=torch.float64):
    """Unit targets and unit atoms; with correlation, atoms crowd around a few centres."""
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(atoms, dim, generator=make, dtype=torch.float64)
    centres = torch.randn(8, dim, generator=make, dtype=torch.float64)
    centres = centres[torch.randint(8, (atoms,), generator=make)]
    rows = (1 - correlation) * unit(rows) + correlation * unit(centres)
    x = torch.randn(targets, dim, generator=make, dtype=torch.float64)
    return unit(x).to(dtype), unit(rows).to(dtype)


def dense(indices, coefficients, atoms):
    codes = coefficients.new_zeros(len(indices), atoms + 1)
    return codes.scatter(1, indices.where(indices >= 0, atoms), coefficients)[:, :atoms]


def slow_omp(x, atoms, k, nonnegative=False):
    """One target, from the definition; also the smallest gap by which an atom was chosen."""
    chosen, code, gap = [], np.zeros(0), np.inf
    for _ in range(k):
        scores = atoms @ (x - code @ atoms[chosen])
        scores = scores if nonnegative else np.abs(scores)
        ranked = np.sort(scores)
        if ranked[-1] <= 1e-7:
            break
        gap = min(gap, ranked[-1] - ranked[-2])
        chosen.append(int(scores.argmax()))
        some = atoms[chosen].T
        code = nnls(some, x)[0] if nonnegative else np.linalg.lstsq(some, x)[0]
    return chosen, code, gap


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def products(request, monkeypatch):
    """Both precisions of the products, whichever is the faster on this machine."""
    monkeypatch.setattr(pursuit, "product_dtype", lambda device: request.param)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scikit_learn_agrees(products, dtype, correlation):
    x, atoms = problem(0, targets=80, atoms=500, dim=32, correlation=correlation, dtype=dtype)
    indices, coefficients = omp(x, atoms, 12)
    wide_x, wide = x.double().numpy(), atoms.double().numpy()
    reference = orthogonal_mp_gram(wide @ wide.T, wide @ wide_x.T, n_nonzero_coefs=12).T
    slow = [slow_omp(row, wide, 12) for row in wide_x]
    sure = torch.tensor([gap > GAP for _, _, gap in slow])
    assert sure.sum() >= 64
    assert indices.dtype == torch.int64 and coefficients.dtype == dtype
    assert indices[sure].tolist() == [chosen for chosen, _, gap in slow if gap > GAP]
    codes = dense(indices, coefficients, len(atoms)).double().numpy()
    np.testing.assert_array_equal(codes[sure] != 0, reference[sure] != 0)
    np.testing.assert_allclose(codes[sure], reference[sure], atol=1e-5)


def column_scaled(texts):
    """The published code's normalisation: centred, then every dimension to unit norm, times 100."""
    centred = texts - texts.mean(dim=0)
    return 100 * centred / centred.norm(dim=0)


def row_scaled(texts):
    return unit(texts - texts.mean(dim=0))


@pytest.mark.parametrize(
    ("name", "normalise"), [("codes_reference", column_scaled), ("codes_unit", row_scaled)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_published_codes(products, dtype, name, normalise):
    golden = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        k = int(file.metadata()["nonzero"])
    atoms = normalise(golden["texts"].to(dtype))
    indices, coefficients = omp(golden["components"].to(dtype), atoms, k)
    codes = dense(indices, coefficients, len(atoms))
    # the file holds the bytes of a Fortran-ordered array: texts vary slowest in them
    reference = golden[name].reshape(len(atoms), -1).T.to(dtype)
    assert ((reference != 0).sum(dim=1) == k).all()
    torch.testing.assert_close(codes != 0, reference != 0)
    torch.testing.assert_close(codes, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_nonnegative_is_the_slow_one(products, correlation):
    x, atoms = problem(1, targets=24, atoms=300, dim=24, correlation=correlation)
    indices, coefficients = omp(x, atoms, 12, nonnegative=True)
    assert (coefficients >= 0).all()
    sure = 0
    for row, found, code in zip(x.numpy(), indices.tolist(), coefficients.numpy(), strict=True):
        chosen, expected, gap = slow_omp(row, atoms.numpy(), 12, nonnegative=True)
        if gap < GAP:
            continue
        sure += 1
        assert found == chosen + [-1] * (12 - len(chosen))
        np.testing.assert_allclose(code[: len(chosen)], expected, atol=1e-9)
    assert sure >= 20
    if correlation:
        assert (coefficients[indices >= 0] == 0).any(), "no coefficient had to be held at zero"


def test_nonnegative_replaces_an_atom_by_its_opposite():
    """The opposite depends linearly on an atom whose coefficient has gone to zero; it is added."""
    wanted = torch.tensor([-0.3, 1.0, 1.0], dtype=torch.float64)
    across = torch.tensor([[0.9, 0.8, 0.8], [0.6, 0.75, 0.3], [0.6, 0.3, 0.75]]).double()
    atoms = torch.cat([across, -across])
    for x in (wanted[None], problem(3, targets=40, dim=3)[0]):
        indices, coefficients = omp(x, atoms, 3, nonnegative=True)
        residual = x - dense(indices, coefficients, 6) @ atoms
        for found, code, left in zip(indices, coefficients, residual, strict=True):
            slope = atoms[found[found >= 0]] @ left
            assert (slope < 1e-12).all() and (slope * code[found >= 0]).abs().max() < 1e-10


@pytest.mark.parametrize("nonnegative", [False, True])
def test_path_holds_every_size(nonnegative):
    x, atoms = problem(2, targets=6, correlation=0.7)
    path = omp_path(x, atoms, 8, nonnegative=nonnegative)
    for m in range(1, 9):
        indices, coefficients = omp(x, atoms, m, nonnegative=nonnegative)
        torch.testing.assert_close(path.indices[:, :m], indices)
        torch.testing.assert_close(path.coefficients(m), coefficients)
        made = dense(indices, coefficients, len(atoms)) @ atoms
        torch.testing.assert_close(path.residual_norms[:, m - 1], (x - made).norm(dim=1))
        cosines = torch.cosine_similarity(x, made)
        torch.testing.assert_close(path.cosines[:, m - 1], cosines)
    with pytest.raises(SecondLensError, match="codes of 1 to 8 atoms, not of 9"):
        path.coefficients(9)


def test_path_goes_on_after_an_early_end():
    x, atoms = torch.eye(3)[:2] + torch.eye(3)[1:2], torch.eye(3)
    path = omp_path(x, atoms, 3)
    assert path.indices.tolist() == [[0, 1, -1], [1, -1, -1]]
    assert path.coefficients(3).tolist() == [[1, 1, 0], [2, 0, 0]]
    assert path.residual_norms.tolist() == [[1, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(path.cosines[0], torch.tensor([math.sqrt(0.5), 1, 1]))


quick = settings(max_examples=20 * TIMES, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 2**32)
correlations = st.sampled_from([0.0, 0.5, 0.9])


@quick
@given(seeds, correlations)
def test_residual_is_orthogonal_to_chosen_atoms(seed, correlation):
    x, atoms = problem(seed, correlation=correlation)
    indices, coefficients = omp(x, atoms, 6)
    residual = x - dense(indices, coefficients, len(atoms)) @ atoms
    assert torch.einsum("nkd,nd->nk", atoms[indices], residual).abs().max() < 1e-10


@quick
@given(seeds, correlations, st.booleans())
def test_permuted_atoms_permute_supports(seed, correlation, nonnegative):
    x, atoms = problem(seed, correlation=correlation)
    order = torch.randperm(len(atoms), generator=torch.Generator().manual_seed(seed))
    indices, coefficients = omp(x, atoms, 6, nonnegative=nonnegative)
    moved, same = omp(x, atoms[order], 6, nonnegative=nonnegative)
    torch.testing.assert_close(order[moved].where(moved >= 0, -1), indices)
    torch.testing.assert_close(same, coefficients)


@quick
@given(seeds, correlations, st.floats(0.1, 100), st.sampled_from([-1, 1]))
def test_scaled_targets_scale_coefficients(seed, correlation, size, sign):
    x, atoms = problem(seed, correlation=correlation)
    indices, coefficients = omp(x, atoms, 6)
    same, scaled = omp(sign * size * x, atoms, 6)
    torch.testing.assert_close(same, indices)
    torch.testing.assert_close(scaled, sign * size * coefficients)


@quick
@given(seeds, correlations, st.booleans())
def test_short_codes_begin_long_ones(seed, correlation, nonnegative):
    x, atoms = problem(seed, correlation=correlation)
    short, _ = omp(x, atoms, 3, nonnegative=nonnegative)
    long, _ = omp(x, atoms, 8, nonnegative=nonnegative)
    torch.testing.assert_close(long[:, :3], short)


@quick
@given(seeds, correlations, st.booleans())
def test_batch_is_one_by_one(seed, correlation, nonnegative):
    x, atoms = problem(seed, correlation=correlation, dtype=torch.float32)
    together = omp(x, atoms, 6, nonnegative=nonnegative)
    alone = [omp(row[None], atoms, 6, nonnegative=nonnegative) for row in x]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole)


@quick
@given(seeds, st.integers(2, 4))
def test_copies_of_atoms_are_never_chosen(products_of_both, seed, copies):
    x, atoms = problem(seed, atoms=37, dtype=torch.float32)
    indices, coefficients = omp(x, atoms, 6)
    again, same = omp(x, atoms.repeat(copies, 1), 6)
    torch.testing.assert_close(again, indices)
    torch.testing.assert_close(same, coefficients)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def products_of_both(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pursuit, "product_dtype", lambda device: request.param)
        yield


def test_ties_go_to_the_lowest_index(products):
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    indices, coefficients = omp(signs, torch.eye(4), 4)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2
    assert coefficients.tolist() == signs.tolist()
    indices, _ = omp(signs, torch.eye(4), 4, nonnegative=True)
    assert indices.tolist() == [[0, 2, -1, -1], [-1] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_target_in_the_span_of_two_atoms_ends_early(products, dtype, nonnegative):
    _, atoms = problem(4, dtype=dtype)
    x = 2 * atoms[30:31] + 0.01 * atoms[7]
    indices, coefficients = omp(torch.cat([x, 0 * x]), atoms, 5, nonnegative=nonnegative)
    assert indices.tolist()[1] == [-1] * 5, "the zero target has no atoms"
    assert coefficients.tolist()[1] == [0] * 5
    path = omp_path(atoms[30:31] + 0.5 * atoms[7], atoms[[7, 30]], 2, nonnegative=nonnegative)
    assert path.indices.tolist() == [[1, 0]]
    together = problem(4, atoms=2, dtype=dtype)[1]
    padded = torch.cat([together, 0 * atoms[:3]])
    indices, coefficients = omp(together.sum(0, keepdim=True), padded, 4, nonnegative=nonnegative)
    assert sorted(indices.tolist()[0]) == [-1, -1, 0, 1], "zero atoms are never chosen"
    torch.testing.assert_close(coefficients, torch.tensor([[1, 1, 0, 0]], dtype=dtype))


def test_one_row_ends_while_others_go_on():
    x, atoms = problem(5)
    whole = torch.cat([x[:2], 3 * atoms[11:12], x[2:]])
    indices, coefficients = omp(whole, atoms, 6)
    assert indices[2].tolist() == [11] + [-1] * 5
    assert coefficients[2, 1:].tolist() == [0] * 5
    expected = omp(x, atoms, 6)
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close((indices[rest], coefficients[rest]), expected)


def test_dependent_atom_ends_as_in_scikit_learn():
    """The atom nearest to the residual is the first one, all but 1e-4 of it, in float32."""
    e = torch.eye(3)
    near = e[0] + 1e-4 * e[1]
    x, atoms = (e[0] + 0.1 * e[1])[None], torch.stack([e[0] * 2, near, e[2]])
    indices, coefficients = omp(x, atoms, 3)
    assert indices.tolist() == [[0, -1, -1]]
    torch.testing.assert_close(coefficients, torch.tensor([[0.5, 0, 0]]))


def test_blocks_and_chunks_do_not_show(monkeypatch):
    x, atoms = problem(6, targets=23, atoms=101, correlation=0.5)
    expected = omp(x, atoms, 7), omp(x, atoms, 7, nonnegative=True)
    monkeypatch.setattr(pursuit, "TARGETS_PER_CHUNK", 5)
    monkeypatch.setattr(dictionary, "ATOMS_PER_PRODUCT", 16)
    monkeypatch.setattr(dictionary, "BLOCKS_PER_GATHER", 3)
    torch.testing.assert_close((omp(x, atoms, 7), omp(x, atoms, 7, nonnegative=True)), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_relaxed_float32_products_do_not_show(precision):
    x, atoms = problem(7, targets=64, atoms=500, dim=64, dtype=torch.float32)
    expected, before = omp(x, atoms, 12), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        torch.testing.assert_close(omp(x, atoms, 12), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_tensor_is_as_large_as_a_gram_matrix():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    x, atoms = problem(8, targets=20, atoms=3000)
    with Watch():
        omp(x, atoms, 4)
    assert 3000 * 12 <= largest < 3000 * 3000 / 50


def test_no_targets():
    _, atoms = problem(9)
    indices, coefficients = omp(atoms[:0], atoms, 3)
    assert indices.shape == coefficients.shape == (0, 3)
    assert omp_path(atoms[:0], atoms, 3, nonnegative=True).steps.shape == (0, 3, 3)


def test_lasso_is_optimal_and_its_codes_are_ordered():
    x, atoms = problem(10, targets=6)
    alpha = 0.1
    indices, coefficients = lasso(x, atoms, alpha)
    codes = dense(indices, coefficients, len(atoms))
    slope = (x - codes @ atoms) @ atoms.T
    assert slope.abs().max() < alpha + 1e-6
    torch.testing.assert_close(slope[codes != 0], alpha * codes.sign()[codes != 0])
    assert (coefficients.abs().diff(dim=1) <= 0).all()
    assert ((indices == -1) == (coefficients == 0)).all() and (indices[:, -1] >= 0).any()
    empty, _ = lasso(x, atoms, 10.0)
    assert empty.shape == (6, 0)


def test_lasso_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(SecondLensError, match="lasso needs scikit-learn"):
        lasso(*problem(0), 0.1)


def test_lasso_refuses_no_penalty():
    with pytest.raises(SecondLensError, match="alpha must be above 0, and it is 0"):
        lasso(*problem(0), 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "at least 1 atom, and k is 0"),
        ({"k": 41}, "k is 41, and there are only 40 atoms"),
        ({"k": 13}, "k is 13, and 12 atoms already span all 12 dimensions"),
        ({"atoms": torch.ones(40, 11, dtype=torch.float64)}, "same width"),
        ({"atoms": torch.ones(40, 12)}, "both be float32 or both float64"),
        ({"targets": torch.full((2, 12), math.nan).double()}, "targets hold values"),
        ({"atoms": torch.full((40, 12), math.inf).double()}, "atoms hold values"),
        ({"atoms": torch.full((40, 12), 1e30).double()}, "beyond 1e18"),
        ({"atoms": torch.ones(40, 12, device="meta").double()}, "atoms on meta"),
    ],
)
def test_refusals_are_one_sentence(change, message):
    x, atoms = problem(0)
    given = {"targets": x, "atoms": atoms, "k": 3} | change
    for pursue in (omp, omp_path):
        with pytest.raises(SecondLensError, match=message) as error:
            pursue(**given)
        assert "\n" not in str(error.value)
