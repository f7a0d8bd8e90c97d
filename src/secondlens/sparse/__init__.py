"""Sparse coding: many vectors at once, each as a short signed sum of texts of a large dictionary.

Section 4 of arXiv 2406.04341. `omp` and its like are orthogonal matching pursuit: `dictionary`
finds each next atom, `least_squares` fits all coefficients anew. `lasso` is there to compare with.
"""

from .l1 import lasso
from .pursuit import OmpPath, omp, omp_path, omp_paths

__all__ = ["OmpPath", "lasso", "omp", "omp_path", "omp_paths"]
