r"""Triangular roots of the inverses of many matrices on the CPU: R with R^T R = C^-1, from C = L L^T as R = L^-1.

With U = L^T, both are sums over the rows found before, a panel of sixteen rows at a time:

    U_ij = (C_ij - sum_{n < i} U_ni U_nj) / U_ii        Golub and Van Loan 2013, section 4.2.5
    R_ij = (1_ij - sum_{n < i} U_ni R_nj) / U_ii        section 3.1.3

so the same tiles of sums of products do the work of both. On two cores of an AMD EPYC, fifty matrices of 512 took
the matrix library 160 ms to factor and 150 to invert.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastclust.kernels.numba.vectors import ROWS, WIDE, compiled, subtract_products
from fastclust.kernels.threads import over_items

APART = 8  # numbers between rows: with 4 KiB from row to row, a column has one set of the cache to itself


def inverse_roots(covariances: torch.Tensor) -> torch.Tensor:
    """Return R (K, D, D), lower triangular, with R^T R the inverse of each covariance; float64, on the CPU.

    covariances: (K, D, D) float64, of which the upper half is read. NaN for one that is not positive definite.
    """
    k, d = covariances.shape[:2]
    given, found = (
        covariances.numpy(),
        np.empty((k, d, d)),
    )  # NumPy's large arrays are in large pages, torch's not
    threads = torch.get_num_threads()

    def some(first: int) -> None:
        width = padded(d)
        root, inverse = np.zeros((2, width, width + APART))
        for one in range(first, k, threads):
            if not _invert(given[one], root, inverse, found[one]):
                found[one] = np.nan

    over_items(min(threads, k), some)
    return torch.from_numpy(found)


def padded(n_features: int) -> int:
    """Return the least multiple of WIDE that is no smaller."""
    return -(-n_features // WIDE) * WIDE


@compiled
def _invert(covariance: Any, root: Any, inverse: Any, out: Any) -> Any:  # pragma: no cover - compiled
    """Write L^-1 into out (D, D); root and inverse: room, (padded D, APART more). False where there is none."""
    n_features, width, step = len(covariance), len(root), root.shape[1]
    for p in range(0, width, WIDE):
        for i in range(p, p + WIDE):
            for j in range(p, width):
                root[i, j] = covariance[i, j] if i < n_features and j < n_features else 1.0 if i == j else 0.0
        for j in range(p, width, WIDE):
            for i in range(p, p + WIDE, ROWS):
                subtract_products(root, root, root, step, 0, p, i, j)
        for i in range(p, p + WIDE):
            for n in range(p, i):
                factor = root[n, i]
                for j in range(i, width):
                    root[i, j] -= factor * root[n, j]
            if not root[i, i] > 0.0:
                return False
            scale = 1.0 / math.sqrt(root[i, i])
            if not scale > 0.0:  # of infinity
                return False
            for j in range(i, width):
                root[i, j] *= scale
    for p in range(0, width, WIDE):
        for i in range(p, p + WIDE):
            for j in range(p + WIDE):
                inverse[i, j] = 1.0 if i == j else 0.0
        for j in range(0, p, WIDE):
            for i in range(p, p + WIDE, ROWS):
                subtract_products(root, inverse, inverse, step, j, p, i, j)
        for i in range(p, p + WIDE):
            for n in range(p, i):
                factor = root[n, i]
                for j in range(n + 1):
                    inverse[i, j] -= factor * inverse[n, j]
            scale = 1.0 / root[i, i]
            for j in range(i + 1):
                inverse[i, j] *= scale
    for i in range(n_features):
        for j in range(n_features):
            out[i, j] = inverse[i, j] if j <= i else 0.0
    return True
