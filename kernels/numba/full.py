r"""Full covariance on the CPU: distances computed a few features at a time, and only as far as they matter.

R_k is lower triangular, so the first rows of R_k (y - m_k) need the first features alone, and their squares sum up to a
distance (of what those features tell by themselves) that only grows with the rows that follow. Sixteen rows of R_k are
a block. A tile of rows is first taken through the first block of all components, rows side by side; then each row's
best component so far is finished. Where most of the others are still within reach of it, as in overlapping blobs, the
next block is taken of all of them, too; where they are not, those that are go on by themselves, block by block, until
they are not. What is left out has no part in the row (`fastclust.kernels.numba.diag` says how far that reaches).

What is left, a pair of a row and a component each, gives the moments, about m_k and in float64: float32 products lose
the small eigenvalues that ReLU features have. Of their symmetric sum the lower half is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.numba.cholesky import padded
from fastclust.kernels.numba.diag import NUMPY, reach_of
from fastclust.kernels.numba.full_sweep import GATHERED, add_moments, label, near, pack, share
from fastclust.kernels.numba.plan import Prepared
from fastclust.kernels.numba.vectors import ABREAST, WIDE
from fastclust.kernels.threads import over_items, over_parts

CHUNK_NUMBERS = 1 << 22  # of pairs, if every component had a part in every row, and of rows: read, then summed up
TILE_BYTES = 1 << 18  # of distances: they are read again from the second-level cache
TILE_ROWS = (64, 2048)


@dataclass(frozen=True)
class Tables:
    """Hold the E-step of one pass, as the kernel reads it.

    means: (K, D) float64. high, low: (K, D), which sum up to the means. roots: (K, size), the blocks of R_k^T one after
    the other, block b with 16 (b + 1) rows of 16 numbers. start: (K,), -2 a_k.
    """

    means: np.ndarray
    high: np.ndarray
    low: np.ndarray
    roots: np.ndarray
    start: np.ndarray


def tables(coefficients: Coefficients, dtype: torch.dtype) -> Tables:
    """Return the tables of coefficients of full covariance, in dtype."""
    kind = NUMPY[dtype]
    means, precision = coefficients.means.numpy(), coefficients.precision.numpy()
    high = means.astype(kind)
    blocks = -(-means.shape[1] // WIDE)
    roots = np.empty((len(means), WIDE * WIDE * blocks * (blocks + 1) // 2), dtype=kind)
    over_items(torch.get_num_threads(), partial(pack, precision, roots, torch.get_num_threads()))
    return Tables(means, high, (means - high).astype(kind), roots, (-2 * coefficients.offset.numpy()).astype(kind))


class Plan(Prepared[Tables]):
    """An E-step of full covariance; see `fastclust.kernels.contract.Plan`."""

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D), about the means; weights (n,) count a row w_n times."""
        given = self.tables
        k, d = given.means.shape
        reach = reach_of(len(rows), self.dtype)
        nk, sx, sxx, scalars = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d)), np.zeros(2)
        for some, y in _chunks(rows, k, self.frame, self.dtype):
            w = None if weights is None else weights[some].numpy()
            find = partial(_pairs, rows[some], y, w, self.frame, given, reach, self.block_rows)
            parts = over_parts(len(y), rows.device, find)
            row, component, r = (np.concatenate(column) for column in zip(*(pairs for pairs, _ in parts), strict=True))
            order = np.argsort(component, kind="stable")
            row, r = row[order], r[order]
            ends = np.bincount(component, minlength=k).cumsum()
            over_items(k, partial(_moments, y, given.means, row, r, ends, nk, sx, sxx))
            scalars += sum(sums for _, sums in parts)
        found = (nk, sx, sxx, scalars[0], scalars[1], given.means)
        self.keep(Statistics(*(torch.as_tensor(part) for part in found)))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        given, reach = self.tables, reach_of(len(rows), self.dtype)
        labels, density = torch.empty(len(rows), dtype=torch.int32), torch.empty(len(rows), dtype=self.dtype)
        for some, y in _chunks(rows, len(given.means), self.frame, self.dtype):
            out = labels[some].numpy(), density[some].numpy()
            find = partial(_labels, rows[some], y, self.frame, given, reach, self.block_rows, out)
            over_parts(len(y), rows.device, find)
        return labels, density


def _chunks(
    rows: torch.Tensor, n_components: int, frame: Frame, dtype: torch.dtype
) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over slices of the rows, with room for them, or the rows themselves where they are stored as wanted."""
    plain = frame.shift is None and frame.scale is None and rows.dtype == dtype and rows.stride(1) == 1
    size = max(CHUNK_NUMBERS // max(n_components, rows.shape[1]), TILE_ROWS[0])
    room = np.empty((0 if plain else min(size, len(rows)), rows.shape[1]), dtype=NUMPY[dtype])
    for low in range(0, len(rows), size):
        some = slice(low, min(low + size, len(rows)))
        yield some, rows[some].numpy() if plain else room[: some.stop - low]


def _tiles(
    stored: torch.Tensor, y: np.ndarray, frame: Frame, given: Tables, reach: Any, space: _Space, start: int, stop: int
) -> Iterator[tuple[slice, int]]:
    """Read rows start to stop of a chunk into y, find their pairs tile by tile, and iterate over tiles and counts."""
    if len(y) and y.ctypes.data != stored.data_ptr():
        frame.read(stored[start:stop], torch.from_numpy(y[start:stop]))
    for low in range(start, stop, space.n_rows):
        some = slice(low, min(low + space.n_rows, stop))
        yield some, near(y[some], reach, given.high, given.low, given.roots, given.start, *space.near)


def _pairs(
    stored: torch.Tensor,
    y: np.ndarray,
    w: np.ndarray | None,
    frame: Frame,
    given: Tables,
    reach: Any,
    block_rows: int | None,
    start: int,
    stop: int,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Return row (int32), component (int32) and w r (float64) of the pairs that count, log_norm and entropy (2,)."""
    space = _Space(given, block_rows)
    found, sums = [], np.zeros(2)
    for some, count in _tiles(stored, y, frame, given, reach, space, start, stop):
        row, component, depth = (part[:count] for part in space.near[-3:])
        r = np.empty(count)
        share(
            row, depth, space.best, np.empty(0) if w is None else w[some], some.stop - some.start, sums, r, *space.share
        )
        found.append((row + np.int32(some.start), component.copy(), r))
    row, component, r = (np.concatenate(column) for column in zip(*found, strict=True))
    return (row, component, r), sums


def _labels(
    stored: torch.Tensor,
    y: np.ndarray,
    frame: Frame,
    given: Tables,
    reach: Any,
    block_rows: int | None,
    out: tuple[np.ndarray, np.ndarray],
    start: int,
    stop: int,
) -> None:
    space = _Space(given, block_rows)
    for some, count in _tiles(stored, y, frame, given, reach, space, start, stop):
        row, component, depth = (part[:count] for part in space.near[-3:])
        label(row, component, depth, space.best, out[0][some], out[1][some], *space.share)


def _moments(
    y: np.ndarray,
    means: np.ndarray,
    row: np.ndarray,
    r: np.ndarray,
    ends: np.ndarray,
    nk: np.ndarray,
    sx: np.ndarray,
    sxx: np.ndarray,
    k: int,
) -> None:
    """Add the moments of component k about its mean, from the pairs in the order of components, to its sums."""
    mine = slice(ends[k - 1] if k else 0, ends[k])
    if mine.start == mine.stop:
        return
    width = padded(means.shape[1])
    z, scatter = np.zeros((GATHERED, width)), np.zeros((width, width))
    nk[k] += r[mine].sum()
    add_moments(y, means[k], row[mine], r[mine], z, scatter, sx[k], sxx[k])


class _Space:
    """The buffers of one thread, for tiles of n_rows rows; see `fastclust.kernels.numba.full_sweep`."""

    def __init__(self, given: Tables, block_rows: int | None) -> None:
        (k, d), kind = given.means.shape, given.start.dtype
        least, most = TILE_ROWS
        n = max(least, min(most, TILE_BYTES // (k * kind.itemsize)))
        self.n_rows = n = min(n, block_rows or n)
        width, side = padded(d), -(-n // ABREAST) * ABREAST
        self.best = np.empty(n, dtype=kind)
        self.near = (
            np.ones(1, dtype=np.int64),  # blocks of all components
            np.zeros((k, side), dtype=kind),  # distances
            self.best,
            np.empty(n, dtype=kind),  # the distance of the component that seemed best
            np.empty(side, dtype=kind),  # how far a component may be that has a part in the row
            np.empty(n, dtype=np.int32),  # the component that seems best
            np.empty(k + 1, dtype=np.int64),  # where the rows of each begin
            np.zeros((side // ABREAST, width, ABREAST), dtype=kind),  # rows on their side, zero beyond D
            np.zeros((width, ABREAST), dtype=kind),  # differences from a mean, zero beyond D: of rows side by side
            np.zeros((GATHERED, width + WIDE), dtype=kind),  # and of rows one after the other
            np.empty((3, max(side, GATHERED)), dtype=np.int32),  # places of these; rows; rows by component
            np.empty(GATHERED, dtype=np.int32),  # row of a place
            np.empty(GATHERED, dtype=kind),  # distances of them
            np.empty(n * (k + 1), dtype=np.int32),  # pairs: row
            np.empty(n * (k + 1), dtype=np.int32),  # component
            np.empty(n * (k + 1), dtype=kind),  # depth
        )
        self.share = np.empty(n * (k + 1), dtype=kind), np.empty((2, n))
