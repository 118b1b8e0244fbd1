r"""Spherical and diag on the CPU: one compiled sweep, in which a row's distances are computed as far as they matter.

With root = sqrt(lambda) and shift = root m,

    -2 ln rho_nk = -2 a_k + sum_d (y_nd root_kd - shift_kd)^2

is two multiply-adds a term, as many as the products y . (lambda m) and y^2 . lambda take, and it does not cancel: the
error of a term is that of the difference y - m. Moments are about m_k, for the same reason.

A sum of squares only grows. So a strip of rows is first taken against all components in a quarter of the features;
then each row's best component so far is finished, and of the others only those that could still come within reach of
it, which LOST decides. What is left out would have no part in the row. Where too many components are left
(rows in wide, overlapping blobs), the whole strip is computed, and for PATIENCE strips it is not tried again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.numba_vectors import (
    NARROW,
    ROWS,
    WIDE,
    compiled,
    exp,
    inlined,
    least,
    lowest,
    no_more,
    rest_of_squares,
    square_narrow,
    square_wide,
    squares_narrow,
    squares_wide,
)
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
SCREENED = 64  # features, from which on a part of them is taken first
PART = (32, 64)  # a quarter of the features, but at least and at most
FINISH = 4  # what a distance that is finished by itself costs, in terms of one in a tile
PATIENCE = 15  # strips
TOTALS = 16  # rows, sums from 1 to K, whose product float64 holds: the logarithm takes longer than all else of a row
GROUP = 64  # components that one word has bits for


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


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients, about their means; see the backend protocol."""
    given = tables(coefficients, dtype)
    k, d = given.means.shape
    reach = reach_of(len(rows), dtype)

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        sums, scalars = np.zeros((k, 2 * d + 1)), np.zeros(2)  # y - m, its square, 1; log_norm, entropy
        space = _space(given, block_rows)
        for low, y in _read(rows[start:stop], frame, dtype):
            w = _NO_WEIGHTS if weights is None else weights[start + low : start + low + len(y)].numpy()
            _sweep(y, y.strides[0] // y.itemsize, w, reach, *_parts(given), sums, scalars, *space)
        return sums, scalars

    found = over_parts(len(rows), rows.device, work)
    sums, scalars = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
    squares = sums[:, d:-1] if coefficients.covariance_type == "diag" else sums[:, d:-1].sum(1)
    parts = sums[:, -1], sums[:, :d], squares, scalars[0], scalars[1], given.means.astype(np.float64)
    return Statistics(*(torch.as_tensor(part) for part in parts))


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    given = tables(coefficients, dtype)
    reach = reach_of(len(rows), dtype)
    labels = torch.empty(len(rows), dtype=torch.int32)
    density = torch.empty(len(rows), dtype=dtype)

    def work(start: int, stop: int) -> None:
        space = _space(given, block_rows)
        for low, y in _read(rows[start:stop], frame, dtype):
            out = (part[start + low : start + low + len(y)].numpy() for part in (labels, density))
            _label(y, y.strides[0] // y.itemsize, reach, *_parts(given), *out, *space)

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
    """Return the buffers of one thread: see `_sweep`."""
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


@compiled
def _sweep(
    y: Any,
    stride: Any,
    w: Any,
    reach: Any,
    means: Any,
    roots: Any,
    shifts: Any,
    tiles: Any,
    start: Any,
    sums: Any,
    scalars: Any,
    state: Any,
    distances: Any,
    places: Any,
    numbers: Any,
    best: Any,
    firsts: Any,
    moments: Any,
) -> None:  # pragma: no cover - compiled
    """Add the moments about the means of rows y (N, D) to sums (K, 2 D + 1), and log_norm and entropy to scalars (2,).

    w: (N,) weights, or none. state: strips that are still to be computed whole (1,). For strips of n rows: distances
    (n padded K,), places (3, n (K + 1)) int32, numbers (3, n (K + 1)), best (n,), firsts (K + 1,), moments (2, D).
    """
    n_components, n_features = means.shape
    row, component, depth, power = places[0], places[1], numbers[0], numbers[1]
    row_of, r_of = places[2], numbers[2]  # in the order of components
    sum_y, sum_yy = moments[0], moments[1]
    log_norm = entropy = 0.0
    for low in range(0, len(y), len(best)):
        n = min(len(best), len(y) - low)
        count = _near(
            y, stride, low, n, reach, roots, shifts, tiles, start, state, distances, row, component, depth, best
        )
        exp(depth, power, count)
        firsts[:] = 0
        h = 0
        totals = 1.0
        for j in range(n):
            first = h
            total = product = 0.0
            while h < count and row[h] == j:
                total += power[h]
                product += power[h] * depth[h]
                firsts[component[h] + 1] += 1
                h += 1
            if len(w) == 0:
                weight = 1.0
                totals *= total
                log_sum = 0.0
                if j % TOTALS == TOTALS - 1 or j == n - 1:
                    log_sum, totals = math.log(totals), 1.0
            else:
                weight = w[low + j]
                log_sum = math.log(total)
            log_norm += weight * (log_sum - 0.5 * best[j])
            entropy += weight * (log_sum - product / total)
            for g in range(first, h):
                power[g] *= weight / total  # the responsibility
        for k in range(n_components):
            firsts[k + 1] += firsts[k]
        for h in range(count):
            to = firsts[component[h]]
            firsts[component[h]] = to + 1
            row_of[to] = row[h]
            r_of[to] = power[h]
        h = 0
        for k in range(n_components):
            if h == firsts[k]:
                continue
            sum_y[:] = 0
            sum_yy[:] = 0
            nk = 0.0
            while h < firsts[k]:  # which is where the component's pairs end, now
                i, r = low + row_of[h], r_of[h]
                nk += r
                for d in range(n_features):
                    away = y[i, d] - means[k, d]
                    part = r * away
                    sum_y[d] += part
                    sum_yy[d] += part * away
                h += 1
            for d in range(n_features):
                sums[k, d] += sum_y[d]
                sums[k, n_features + d] += sum_yy[d]
            sums[k, 2 * n_features] += nk
    scalars[0] += log_norm
    scalars[1] += entropy


@compiled
def _label(
    y: Any,
    stride: Any,
    reach: Any,
    means: Any,
    roots: Any,
    shifts: Any,
    tiles: Any,
    start: Any,
    labels: Any,
    density: Any,
    state: Any,
    distances: Any,
    places: Any,
    numbers: Any,
    best: Any,
    firsts: Any,
    moments: Any,
) -> None:  # pragma: no cover - compiled
    """Write the first of the most probable components of each row y (N, D), and its log-density; see `_sweep`."""
    row, component, depth, power = places[0], places[1], numbers[0], numbers[1]
    for low in range(0, len(y), len(best)):
        n = min(len(best), len(y) - low)
        count = _near(
            y, stride, low, n, reach, roots, shifts, tiles, start, state, distances, row, component, depth, best
        )
        exp(depth, power, count)
        h = 0
        for j in range(n):
            label, total = len(means), 0.0
            while h < count and row[h] == j:
                total += power[h]
                if depth[h] == 0:
                    label = min(label, component[h])
                h += 1
            labels[low + j] = label
            density[low + j] = math.log(total) - 0.5 * best[j]


@inlined
def _near(
    y: Any,
    stride: Any,
    low: Any,
    n: Any,
    reach: Any,
    roots: Any,
    shifts: Any,
    tiles: Any,
    start: Any,
    state: Any,
    distances: Any,
    row: Any,
    component: Any,
    depth: Any,
    best: Any,
) -> Any:  # pragma: no cover - compiled
    """List which components are within reach of the best of each of n rows from `low` on; return how many pairs.

    row, component, depth: of each pair, in the order of rows; how far ln rho is below the row's largest, in nats, not
    positive. best: (n,), the smallest of -2 ln rho.
    """
    n_features, padded = y.shape[1], len(start)
    part = n_features
    if n_features >= SCREENED and state[0] == 0:
        part = max(PART[0], min(PART[1], n_features // 4))
    state[0] = max(state[0] - 1, 0)
    _add_squares(y, stride, low, n, tiles, start, 0, distances, padded, 0, part)
    if part < n_features:
        for j in range(n):
            base = j * padded
            k = _first(distances, base, padded, least(distances, base, padded))
            best[j] = distances[base + k] + _rest(y, stride, low + j, roots, shifts, k, part)
        count = _within(distances, n, padded, best, reach, row, component, n * padded // FINISH)
        if count >= 0:
            for h in range(count):
                j, k = row[h], component[h]
                depth[h] = distances[j * padded + k] + _rest(y, stride, low + j, roots, shifts, k, part)
            for h in range(count):
                best[row[h]] = min(best[row[h]], depth[h])
            kept = 0
            for h in range(count):
                row[kept], component[kept], depth[kept] = row[h], component[h], depth[h]
                kept += depth[h] <= best[row[h]] + reach
            return _deepen(row, depth, best, kept)
        state[0] = PATIENCE
        _add_squares(y, stride, low, n, tiles, distances, padded, distances, padded, part, n_features)
    for j in range(n):
        best[j] = least(distances, j * padded, padded)
    count = _within(distances, n, padded, best, reach, row, component, n * padded)
    for h in range(count):
        depth[h] = distances[row[h] * padded + component[h]]
    return _deepen(row, depth, best, count)


@inlined
def _deepen(row: Any, depth: Any, best: Any, count: Any) -> Any:  # pragma: no cover - compiled
    """Turn distances into nats below the row's largest ln rho: zero where both are infinite. Return how many."""
    for h in range(count):
        depth[h] = 0.5 * (best[row[h]] - depth[h]) if depth[h] > best[row[h]] else 0.0
    return count


@inlined
def _first(distances: Any, base: Any, count: Any, least: Any) -> Any:  # pragma: no cover - compiled
    """Return the first of `count` numbers from `base` on that is not above the least."""
    k = 0
    while k < count:
        bits = no_more(distances, base + k, least)
        if bits != 0:
            k += lowest(bits)
            break
        k += NARROW
    return min(k, count - 1)


@inlined
def _within(
    distances: Any, n: Any, padded: Any, best: Any, reach: Any, row: Any, component: Any, most: Any
) -> Any:  # pragma: no cover - compiled
    """List the components of n rows that are within reach of the row's best; return how many, or -1 if > most."""
    count = 0
    for j in range(n):
        base, limit = j * padded, best[j] + reach
        if limit == np.inf:  # the row is so far away that its distances are infinite, as those of padding are
            row[count], component[count] = j, 0
            count += 1
            continue
        for group in range(0, padded, GROUP):
            bits = 0
            for k in range(group, min(group + GROUP, padded), NARROW):
                bits |= no_more(distances, base + k, limit) << (k - group)
            while bits != 0:
                row[count], component[count] = j, group + lowest(bits)
                bits &= bits - 1
                count += 1
        if count > most:
            return -1
    return count


@inlined
def _rest(
    y: Any, stride: Any, i: Any, roots: Any, shifts: Any, k: Any, first: Any
) -> Any:  # pragma: no cover - compiled
    """Return sum_d (y_id root_kd - shift_kd)^2 from feature `first` on."""
    n_features = roots.shape[1]
    total = rest_of_squares(y, i * stride, roots, shifts, k * n_features, first, n_features)
    for d in range(n_features - (n_features - first) % WIDE, n_features):
        away = y[i, d] * roots[k, d] - shifts[k, d]
        total += away * away
    return total


@inlined
def _add_squares(
    y: Any, stride: Any, low: Any, n: Any, tiles: Any, start: Any, row: Any, out: Any, step: Any, first: Any, last: Any
) -> None:  # pragma: no cover - compiled
    """Write start + sum_d (y_d root_d - shift_d)^2, d from first to last, into out (n, step), for n rows from low on.

    start: (n, row), or (padded K,) with row = 0 for the same in every row.
    """
    n_features = y.shape[1]
    for k in range(0, step, WIDE):
        at, wide = 2 * n_features * k, step - k >= WIDE
        tiled = n - n % ROWS
        for j in range(0, tiled, ROWS):
            to = j * step + k
            if wide:
                squares_wide(y, stride, low + j, tiles, at, start, j * row + k, row, out, to, step, first, last)
            else:
                squares_narrow(y, stride, low + j, tiles, at, start, j * row + k, row, out, to, step, first, last)
        for j in range(tiled, n):
            to = j * step + k
            if wide:
                square_wide(y, stride, low + j, tiles, at, start, j * row + k, row, out, to, step, first, last)
            else:
                square_narrow(y, stride, low + j, tiles, at, start, j * row + k, row, out, to, step, first, last)
