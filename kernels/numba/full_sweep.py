"""What is compiled of full covariance: pairs of rows and components that count, and their moments.

`fastclust.kernels.numba.full` says what is computed, and how far.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastclust.kernels.numba.exp import exp
from fastclust.kernels.numba.vectors import (
    ABREAST,
    NARROW,
    ROTATED,
    ROWS,
    WIDE,
    add_products,
    compiled,
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

# The part of all pairs that is still within reach, from which on the next block is taken of all of them, which costs
# half as much as picking pairs out; and below which the next tile begins with one block fewer.
MANY, FEW = 0.5, 0.25
GATHERED = 64  # rows whose differences from a mean stand side by side


@compiled
def pack(root: Any, packed: Any, step: Any, first: Any) -> None:  # pragma: no cover - compiled
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
def near(
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
def share(
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
def label(
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
def add_moments(
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
