r"""Full covariance on the CPU: distances computed a few features at a time, and only as far as they matter.

R_k is lower triangular, so the first rows of R_k (y - m_k) need the first features alone, and their squares sum up to a
distance (of what those features tell by themselves) that only grows with the rows that follow. Sixteen rows of R_k are
a block. A tile of rows is first taken through the first block of all components, rows side by side; then each row's
best component so far is finished. Where most of the others are still within reach of it, as in overlapping blobs, the
next block is taken of all of them, too; where they are not, those that are go on by themselves, block by block, until
they are not. What is left out has no part in the row (`fastclust.kernels.numba_diag` says how far that reaches).

What is left, a pair of a row and a component each, gives the moments, about m_k and in float64: float32 products lose
the small eigenvalues that ReLU features have. Of their symmetric sum the lower half is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.numba_cholesky import padded
from fastclust.kernels.numba_diag import NUMPY, reach_of
from fastclust.kernels.numba_vectors import (
    ABREAST,
    NARROW,
    ROTATED,
    ROWS,
    WIDE,
    add_products,
    compiled,
    exp,
    inlined,
    lowest,
    no_more_each,
    population,
    rotated,
    rotated_abreast,
    rotated_one,
    subtract,
    subtract_spread,
)
from fastclust.kernels.threads import over_items, over_parts

CHUNK_NUMBERS = 1 << 22  # of pairs, if every component had a part in every row, and of rows: read, then summed up
TILE_BYTES = 1 << 18  # of distances: they are read again from the second-level cache
TILE_ROWS = (64, 2048)
# The part of all pairs that is still within reach, from which on the next block is taken of all of them, which costs
# half as much as picking pairs out; and below which the next tile begins with one block fewer.
MANY, FEW = 0.5, 0.25
GATHERED = 64  # rows whose differences from a mean stand side by side


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
    over_items(torch.get_num_threads(), partial(_pack, precision, roots, torch.get_num_threads()))
    return Tables(means, high, (means - high).astype(kind), roots, (-2 * coefficients.offset.numpy()).astype(kind))


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
    nk, sx, sxx, scalars = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d)), np.zeros(2)
    for some, y in _chunks(rows, k, frame, dtype):
        w = None if weights is None else weights[some].numpy()
        find = partial(_pairs, rows[some], y, w, frame, given, reach, block_rows)
        parts = over_parts(len(y), rows.device, find)
        row, component, r = (np.concatenate(column) for column in zip(*(pairs for pairs, _ in parts), strict=True))
        order = np.argsort(component, kind="stable")
        row, r = row[order], r[order]
        ends = np.bincount(component, minlength=k).cumsum()
        over_items(k, partial(_moments, y, given.means, row, r, ends, nk, sx, sxx))
        scalars += sum(sums for _, sums in parts)
    found = (nk, sx, sxx, scalars[0], scalars[1], given.means)
    return Statistics(*(torch.as_tensor(part) for part in found))


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
    labels, density = torch.empty(len(rows), dtype=torch.int32), torch.empty(len(rows), dtype=dtype)
    for some, y in _chunks(rows, len(given.means), frame, dtype):
        out = labels[some].numpy(), density[some].numpy()
        over_parts(len(y), rows.device, partial(_labels, rows[some], y, frame, given, reach, block_rows, out))
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
        yield some, _near(y[some], reach, given.high, given.low, given.roots, given.start, *space.near)


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
        _share(
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
        _label(row, component, depth, space.best, out[0][some], out[1][some], *space.share)


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
    _add_moments(y, means[k], row[mine], r[mine], z, scatter, sx[k], sxx[k])


class _Space:
    """The buffers of one thread, for tiles of n_rows rows; see `_near` and `_share`."""

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


@compiled
def _pack(root: Any, packed: Any, step: Any, first: Any) -> None:  # pragma: no cover - compiled
    """Write the blocks of each `step`th lower triangular root (K, D, D) into packed (K, size); see `Tables`."""
    n_features = root.shape[1]
    for k in range(first, len(root), step):
        at = 0
        for low in range(0, n_features, WIDE):
            for d in range(low + WIDE):
                for v in range(WIDE):
                    i = low + v
                    packed[k, at + v] = root[k, i, d] if d <= i and i < n_features else 0.0
                at += WIDE


@inlined
def _subtract(
    y: Any, i: Any, stride: Any, high: Any, low: Any, k: Any, last: Any, z: Any, h: Any
) -> None:  # pragma: no cover - compiled
    """Write y_i - m_k, m = high + low, up to feature `last` into z[h]."""
    n_features, width, d = high.shape[1], z.shape[1], 0
    while d + WIDE <= last:
        subtract(y, i * stride + d, high, low, k * n_features + d, z, h * width + d)
        d += WIDE
    while d < last:
        z[h, d] = (y[i, d] - high[k, d]) - low[k, d]
        d += 1


@inlined
def _add_block(
    z: Any, slots: Any, count: Any, roots: Any, k: Any, b: Any, square: Any
) -> None:  # pragma: no cover - compiled
    """Add the squares of block b of R_k (y - m_k) to square, of the rows of z that `count` slots name."""
    width, last, at = z.shape[1], WIDE * (b + 1), k * roots.shape[1] + WIDE * WIDE * (b * (b + 1) // 2)
    whole = count - count % ROTATED
    for h in range(0, whole, ROTATED):
        rotated(z, width, slots, h, roots, at, last, square)
    for h in range(whole, count):
        rotated_one(z, width, slots, h, roots, at, last, square)


@inlined
def _abreast(
    y: Any, high: Any, low: Any, roots: Any, first: Any, last: Any, turned: Any, z: Any, distance: Any
) -> None:  # pragma: no cover - compiled
    """Add blocks first to last of R_k (y - m_k), squared and summed, to the distances (K, n) of all rows, side by side.

    turned: room for the rows on their side, (n / ABREAST, padded D, ABREAST); z: (padded D, ABREAST).
    """
    n_features = y.shape[1]
    columns = min(WIDE * last, n_features)
    for i in range(len(y)):
        for d in range(min(WIDE * first, n_features), columns):
            turned[i // ABREAST, d, i % ABREAST] = y[i, d]
    for k in range(len(high)):
        for group in range(-(-len(y) // ABREAST)):
            for d in range(columns):
                at = (group * turned.shape[1] + d) * ABREAST
                subtract_spread(turned, at, high, low, k * n_features + d, z, d * ABREAST)
            to = k * distance.shape[1] + group * ABREAST
            for b in range(first, last):
                at = k * roots.shape[1] + WIDE * WIDE * (b * (b + 1) // 2)
                for r in range(0, WIDE, ROWS):
                    rotated_abreast(z, roots, at + r, WIDE * b + r + ROWS, distance, to)


@compiled
def _near(
    y: Any,
    reach: Any,
    high: Any,
    low: Any,
    roots: Any,
    start: Any,
    state: Any,
    distance: Any,
    best: Any,
    finished: Any,
    limit: Any,
    who: Any,
    firsts: Any,
    turned: Any,
    abreast: Any,
    z: Any,
    lists: Any,
    of_slot: Any,
    square: Any,
    row: Any,
    component: Any,
    depth: Any,
) -> Any:  # pragma: no cover - compiled
    """List which components are within reach of the best of each row y (n, D), in the order of components.

    row, component, depth: of each pair; how far ln rho is below the row's largest, in nats, not positive.
    best: (n,), the smallest of -2 ln rho. state: (1,), how many blocks the next tile takes of all components at first.
    Return how many pairs there are.
    """
    n, n_features, n_components = len(y), y.shape[1], len(start)
    stride, blocks = y.strides[0] // y.itemsize, -(-n_features // WIDE)
    slots, some, order = lists[0], lists[1], lists[2]
    largest = np.finfo(distance.dtype).max
    for k in range(n_components):
        distance[k] = start[k]
    limit[:] = -np.inf  # what is padding is never within it
    done = 0
    while True:
        before, done = done, max(done + 1, min(state[0], blocks))
        _abreast(y, high, low, roots, before, done, turned, abreast, distance)
        best[:] = np.inf
        who[:] = 0
        for k in range(n_components):
            for i in range(n):
                closer = distance[k, i] < best[i]
                best[i] = distance[k, i] if closer else best[i]
                who[i] = k if closer else who[i]
        if done < blocks:
            firsts[:] = 0
            for i in range(n):
                firsts[who[i] + 1] += 1
            for k in range(n_components):
                firsts[k + 1] += firsts[k]
            for i in range(n):
                order[firsts[who[i]]] = i
                firsts[who[i]] += 1
            begin = 0
            for k in range(n_components):  # firsts[k] is where the rows of k end, now
                while begin < firsts[k]:
                    count = min(GATHERED, firsts[k] - begin)
                    for h in range(count):
                        slots[h] = h
                        square[h] = distance[k, order[begin + h]]
                        _subtract(y, order[begin + h], stride, high, low, k, n_features, z, h)
                    for b in range(done, blocks):
                        _add_block(z, slots, count, roots, k, b, square)
                    for h in range(count):
                        best[order[begin + h]] = square[h]
                    begin += count
        left = 0
        for i in range(n):
            finished[i] = best[i]
            limit[i] = min(best[i] + reach, largest)
        for k in range(n_components):
            for i in range(0, distance.shape[1], NARROW):
                left += population(no_more_each(distance, k * distance.shape[1] + i, limit, i))
        if done == blocks or left < MANY * n * n_components:
            break
    state[0] = done if left > FEW * n * n_components else max(done - 1, 1)
    if done < blocks:
        for k in range(n_components):
            going_on = _within(distance, k, limit, some)
            for begin in range(0, going_on, GATHERED):
                count = 0
                for g in range(begin, min(begin + GATHERED, going_on)):
                    i = some[g]
                    if who[i] != k:
                        slots[count] = count
                        of_slot[count] = i
                        square[count] = distance[k, i]
                        _subtract(y, i, stride, high, low, k, n_features, z, count)
                        distance[k, i] = np.inf
                        count += 1
                for b in range(done, blocks):
                    _add_block(z, slots, count, roots, k, b, square)
                    left = 0
                    for h in range(count):
                        slot = slots[h]
                        slots[left] = slot
                        left += square[slot] <= limit[of_slot[slot]]
                    count = left
                for h in range(count):
                    slot = slots[h]
                    i = of_slot[slot]
                    distance[k, i] = square[slot]
                    best[i] = min(best[i], square[slot])
                    limit[i] = min(best[i] + reach, largest)
        for i in range(n):
            distance[who[i], i] = finished[i]
    count = 0
    for k in range(n_components):
        near = _within(distance, k, limit, some)
        for g in range(near):
            i = some[g]
            row[count], component[count], depth[count] = i, k, 0.5 * (best[i] - distance[k, i])
            count += 1
    for i in range(n):
        if best[i] > largest:  # a row so far away that all its distances are infinite
            row[count], component[count], depth[count] = i, 0, 0.0
            count += 1
    return count


@inlined
def _within(distance: Any, k: Any, limit: Any, rows: Any) -> Any:  # pragma: no cover - compiled
    """List the rows whose distance from component k is within their limit; return how many."""
    count, padded = 0, distance.shape[1]
    for i in range(0, padded, NARROW):
        bits = no_more_each(distance, k * padded + i, limit, i)
        while bits != 0:
            rows[count] = i + lowest(bits)
            bits &= bits - 1
            count += 1
    return count


@compiled
def _share(
    row: Any, depth: Any, best: Any, w: Any, n: Any, sums: Any, r: Any, power: Any, of_rows: Any
) -> None:  # pragma: no cover - compiled
    """Write w r of each pair, and add log_norm and entropy of n rows to sums (2,). w: (n,) weights, or none."""
    exp(depth, power, len(depth))
    total, product = of_rows[0], of_rows[1]
    total[:n] = 0
    product[:n] = 0
    for h in range(len(row)):
        total[row[h]] += power[h]
        product[row[h]] += power[h] * depth[h]
    log_norm = entropy = 0.0
    for i in range(n):
        weight = 1.0 if len(w) == 0 else w[i]
        log_sum = math.log(total[i])
        log_norm += weight * (log_sum - 0.5 * best[i])
        entropy += weight * (log_sum - product[i] / total[i])
        total[i] = weight / total[i]
    for h in range(len(row)):
        r[h] = power[h] * total[row[h]]
    sums[0] += log_norm
    sums[1] += entropy


@compiled
def _label(
    row: Any,
    component: Any,
    depth: Any,
    best: Any,
    labels: Any,
    density: Any,
    power: Any,
    of_rows: Any,
) -> None:  # pragma: no cover - compiled
    """Write the first of the most probable components of each row, and its log-density."""
    exp(depth, power, len(depth))
    total = of_rows[0]
    total[: len(labels)] = 0
    for h in range(len(row) - 1, -1, -1):  # components fall, so the first of those at the peak is written last
        total[row[h]] += power[h]
        if depth[h] == 0:
            labels[row[h]] = component[h]
    for i in range(len(labels)):
        density[i] = math.log(total[i]) - 0.5 * best[i]


@compiled
def _add_moments(
    y: Any, mean: Any, row: Any, r: Any, z: Any, scatter: Any, sx: Any, sxx: Any
) -> None:  # pragma: no cover - compiled
    """Add sum_h r_h (y - m) to sx (D,), and its outer products to sxx (D, D). scatter: zeros, padded."""
    n_features, padded = len(mean), len(scatter)
    for begin in range(0, len(row), len(z)):
        count = min(len(z), len(row) - begin)
        for h in range(count):
            i, root = row[begin + h], math.sqrt(r[begin + h])
            for d in range(n_features):
                away = root * (np.float64(y[i, d]) - mean[d])
                z[h, d] = away
                sx[d] += root * away
        for i in range(0, padded, ROWS):
            for j in range(0, i + 1, WIDE):
                add_products(z, z, scatter, padded, 0, count, i, j)
    for i in range(n_features):
        for j in range(i + 1):
            sxx[i, j] += scatter[i, j]
            sxx[j, i] = sxx[i, j]
