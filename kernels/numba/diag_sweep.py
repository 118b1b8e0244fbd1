"""What is compiled of spherical and diag: a sweep over rows for their moments, and one for their labels.

`fastclust.kernels.numba.diag` says what is computed, and how far.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastclust.kernels.numba.exp import exp
from fastclust.kernels.numba.vectors import (
    NARROW,
    ROWS,
    WIDE,
    compiled,
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

SCREENED = 64  # features, from which on a part of them is taken first
PART = (32, 64)  # a quarter of the features, but at least and at most
FINISH = 4  # what a distance that is finished by itself costs, in terms of one in a tile
PATIENCE = 15  # strips
TOTALS = 16  # rows, sums from 1 to K, whose product float64 holds: the logarithm takes longer than all else of a row
GROUP = 64  # components that one word has bits for


@compiled
def sweep(
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
def label(
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
    """Write the first of the most probable components of each row y (N, D), and its log-density; see `sweep`."""
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
