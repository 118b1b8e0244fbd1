r"""Spherical and diag on the CPU: one compiled sweep, in which a row's distances are computed as far as they matter.

With root = sqrt(lambda) and shift = root m,

    -2 ln rho_nk = -2 a_k + sum_d (y_nd root_kd - shift_kd)^2

is two multiply-adds a term, as many as the products y . (lambda m) and y^2 . lambda take, and it does not cancel: the
error of a term is that of the difference y - m. Moments are about m_k, for the same reason.

A sum of squares only grows. So a strip of rows is first taken against all components in a quarter of the features;
then each row's best component so far is finished, and of the others only those that could still come within reach of
it, which LOST decides. What is left out would have no part in the row. Where too many components are left
(rows in wide, overlapping blobs), the whole strip is computed, and for some strips it is not tried again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.numba.diag_sweep import label, sweep
from fastclust.kernels.numba.plan import Prepared
from fastclust.kernels.numba.vectors import NARROW, WIDE
from fastclust.kernels.threads import over_parts
from fastclust.kernels.torch import FLOOR

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
# Of many rows, responsibilities are zero from where a component loses less than LOST of a row to that altogether; of up
# to FEW_ROWS, where time does not matter, from where the torch backend has them zero.
LOST = {torch.float32: 1e-6, torch.float64: 1e-20}
FEW_ROWS = 10_000
STRIP_BYTES = 1 << 17  # of distances: they are read again from the second-level cache
STRIP_ROWS = (32, 512)  # no more: of 30,000 rows alike, all rounded the same way, a float32 variance erred by a third
READ_ROWS = 4096  # converted at a time, where rows are not read as they are


@dataclass(frozen=True)
class Tables:
    """Hold the E-step of one pass, K components padded to a multiple of NARROW, as the sweep reads it.

    means, roots, shifts: (K, D). tiles: roots and shifts once more, (D, 2, width) for each tile of components.
    start: (padded K,), -2 a_k, and infinity for what is padding.
    """

    means: np.ndarray
    roots: np.ndarray
    shifts: np.ndarray
    tiles: np.ndarray
    start: np.ndarray


def tables(coefficients: Coefficients, dtype: torch.dtype) -> Tables:
    """Return the tables of coefficients of spherical or diag covariance, in dtype.

    In NumPy: a second thread of torch's would go on spinning into the sweep, and costs it half.
    """
    m, precision, offset = (part.numpy() for part in (coefficients.means, coefficients.precision, coefficients.offset))
    kind = NUMPY[dtype]
    roots = np.sqrt(precision if precision.ndim == 2 else precision[:, None]).astype(kind)
    roots = np.ascontiguousarray(np.broadcast_to(roots, m.shape))
    shifts = (roots * m).astype(kind)
    (k, d), padded = m.shape, -(-len(m) // NARROW) * NARROW
    both = np.zeros((d, 2, padded), dtype=kind)
    both[:, 0, :k], both[:, 1, :k] = roots.T, shifts.T
    tiles = [both[:, :, low : low + WIDE].ravel() for low in range(0, padded, WIDE)]
    start = np.full(padded, np.inf, dtype=kind)
    start[:k] = -2 * offset
    return Tables(m.astype(kind), roots, shifts, np.concatenate(tiles), start)


class Plan(Prepared[Tables]):
    """An E-step of spherical or diag covariance; see `fastclust.kernels.contract.Plan`."""

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D), about the means; weights (n,) count a row w_n times."""
        given = self.tables
        k, d = given.means.shape
        reach = reach_of(len(rows), self.dtype)

        def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            sums, scalars = np.zeros((k, 2 * d + 1)), np.zeros(2)  # y - m, its square, 1; log_norm, entropy
            space = _space(given, self.block_rows)
            for low, y in _read(rows[start:stop], self.frame, self.dtype):
                w = _NO_WEIGHTS if weights is None else weights[start + low : start + low + len(y)].numpy()
                sweep(y, y.strides[0] // y.itemsize, w, reach, *_parts(given), sums, scalars, *space)
            return sums, scalars

        found = over_parts(len(rows), rows.device, work)
        sums, scalars = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
        squares = sums[:, d:-1] if self.coefficients.covariance_type == "diag" else sums[:, d:-1].sum(1)
        parts = sums[:, -1], sums[:, :d], squares, scalars[0], scalars[1], given.means.astype(np.float64)
        self.keep(Statistics(*(torch.as_tensor(part) for part in parts)))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        given, reach = self.tables, reach_of(len(rows), self.dtype)
        labels = torch.empty(len(rows), dtype=torch.int32)
        density = torch.empty(len(rows), dtype=self.dtype)

        def work(start: int, stop: int) -> None:
            space = _space(given, self.block_rows)
            for low, y in _read(rows[start:stop], self.frame, self.dtype):
                out = (part[start + low : start + low + len(y)].numpy() for part in (labels, density))
                label(y, y.strides[0] // y.itemsize, reach, *_parts(given), *out, *space)

        over_parts(len(rows), rows.device, work)
        return labels, density


def reach_of(n_rows: int, dtype: torch.dtype) -> Any:
    """Return how far above the least a distance may be, in its dtype, to have any part in a row: twice as many nats."""
    nats = -FLOOR[dtype] if n_rows <= FEW_ROWS else math.log(n_rows / LOST[dtype])
    return NUMPY[dtype](2 * nats)


_NO_WEIGHTS = np.empty(0)


def _parts(given: Tables) -> tuple[np.ndarray, ...]:
    return given.means, given.roots, given.shifts, given.tiles, given.start


def _read(rows: torch.Tensor, frame: Frame, dtype: torch.dtype) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over rows as seen in the frame, with the index of the first: all at once where they are stored so."""
    if frame.shift is None and frame.scale is None and rows.dtype == dtype and rows.stride(1) == 1:
        yield 0, rows.numpy()
        return
    space = torch.empty(min(READ_ROWS, len(rows)), rows.shape[1], dtype=dtype)
    for low in range(0, len(rows), READ_ROWS):
        some = rows[low : low + READ_ROWS]
        yield low, frame.read(some, space[: len(some)]).numpy()


def _space(given: Tables, block_rows: int | None) -> tuple[np.ndarray, ...]:
    """Return the buffers of one thread: see `fastclust.kernels.numba.diag_sweep`."""
    (k, d), padded, dtype = given.means.shape, len(given.start), given.start.dtype
    least, most = STRIP_ROWS
    n = max(least, min(most, STRIP_BYTES // (padded * dtype.itemsize)))
    n = min(n, block_rows or n)
    return (
        np.zeros(1, dtype=np.int64),
        np.empty(n * padded, dtype=dtype),
        np.empty((3, n * (k + 1)), dtype=np.int32),
        np.empty((3, n * (k + 1)), dtype=dtype),
        np.empty(n, dtype=dtype),
        np.empty(k + 1, dtype=np.int64),
        np.empty((2, d), dtype=dtype),
    )
