import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from secondlens.applications.discovery.words import group


def unit_rows(count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [-0.1, 0.1, 0.4])
def test_group_equals_scipys_average_linkage(seed, threshold):
    rows = unit_rows(8, 5, seed)
    similarity = rows @ rows.T
    distance = (1 - similarity).numpy()
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    labels = fcluster(tree, 1 - threshold, "distance")
    expected = {tuple(np.flatnonzero(labels == label)) for label in set(labels)}
    found = group(similarity.tolist(), threshold)
    assert {tuple(each) for each in found} == expected
    assert found == sorted(found)


def test_group_of_none_and_one():
    assert group([], 0.5) == []
    assert group([[1.0]], 0.5) == [[0]]
