"""Spherical and diag on the CPU: the E-step's product by torch, and everything after it in one compiled sweep.

    ln rho      of a tile of rows: one product, as in `fastclust.kernels.torch_forms.Linear`
    the sweep   of LANES rows: their peaks; a list of the components within the floor of each, most often two or three
                of fifty; exponentials, sums and responsibilities of those; these times rows, into the sums

Responsibilities below e^FLOOR of the row's largest are zero, as in the torch backend, and zeros are left out of the
sums rather than multiplied: half of that backend's arithmetic is not done. Where more than DENSE components share a
row, as in first passes over rows that overlap, a matrix product is faster after all, and the torch backend goes on.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.threads import over_parts
from fastclust.kernels.torch_forms import STRIP, Linear, form_of

TILE_BYTES = 1 << 20  # of logits, rows and squares: what the second-level cache of a core holds
TILE_ROWS = (64, 4096)

# Sums may be taken in any order, products fused, and maxima vectorised. A row with a NaN has nothing but NaN in its
# logits, and whichever way the comparisons go, its log-density is NaN.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"nnan", "nsz", "arcp", "contract", "reassoc"},
}
compiled = numba.njit(cache=True, **OPTIONS)
DENSE = 8.0  # components a row
LANES = 128  # rows that go through the sweep together
CHUNK = 16  # of them that are looked at together
# exp on [-ln 2 / 2, ln 2 / 2] after Cephes (Moshier 1989), to 2e-7; numba has no vectorised one.
EXP = tuple(np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5))
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
HALF, ONE = np.float32(0.5), np.float32(1.0)
inlined = numba.njit(inline="always", **OPTIONS)  # a call for each row, with all its arrays, costs as much as the row


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients; see the backend protocol."""
    form = _linear(coefficients, dtype)
    floor = plain.FLOOR[form.dtype]

    def work(start: int, stop: int) -> Statistics:
        space = _Space(form, min(_tile(form, block_rows), max(stop - start, 1)))
        sums = np.zeros((form.n_components, form.n_features + form.n_rest))  # of columns y and rest, in float64
        tight = np.zeros((len(space.tight), sums.shape[1]))
        scalars = np.zeros(2)
        for low in range(start, stop, space.n_rows):
            high = min(low + space.n_rows, stop)
            y, rest, logits = space.read(rows[low:high], frame)
            w = space.no_weights if weights is None else weights[low:high].numpy()
            outputs = (*space.partial, sums, tight, scalars)
            pairs = _sweep(y, rest, logits, w, floor, *space.tight_terms, *outputs, *space.scratch)
            if pairs > DENSE * (high - low) and high < stop:
                others = None if weights is None else weights[high:stop]
                found = plain.statistics(rows[high:stop], coefficients, frame, dtype, others, block_rows)
                return found + result(space, sums, tight, scalars)
        return result(space, sums, tight, scalars)

    def result(space: _Space, sums: np.ndarray, tight: np.ndarray, scalars: np.ndarray) -> Statistics:
        sums[space.tight] = tight
        both, (log_norm, entropy) = torch.from_numpy(sums), torch.from_numpy(scalars)
        squares = both[:, form.n_features : -1]
        squares = squares if form.kind == "diag" else squares[:, 0]
        return Statistics(both[:, -1], both[:, : form.n_features], squares, log_norm, entropy, form.about)

    return reduce(add, over_parts(len(rows), rows.device, work))


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    form = _linear(coefficients, dtype)
    labels = torch.empty(len(rows), dtype=torch.int32)
    density = torch.empty(len(rows), dtype=dtype)

    def work(start: int, stop: int) -> None:
        space = _Space(form, min(_tile(form, block_rows), max(stop - start, 1)))
        for low in range(start, stop, space.n_rows):
            high = min(low + space.n_rows, stop)
            y, _, logits = space.read(rows[low:high], frame)
            floor, out = plain.FLOOR[form.dtype], (labels[low:high].numpy(), density[low:high].numpy())
            _label(y, logits, floor, *space.tight_terms, *out, *space.scratch)

    over_parts(len(rows), rows.device, work)
    return labels, density


def _linear(coefficients: Coefficients, dtype: torch.dtype) -> Linear:
    form = form_of(coefficients, dtype)
    if not isinstance(form, Linear):
        raise TypeError(f"{coefficients.covariance_type} covariance is not linear in columns of a row")
    return form


def _tile(form: Linear, block_rows: int | None) -> int:
    width = form.n_components + form.n_features + form.n_rest
    least, most = TILE_ROWS
    return block_rows or max(least, min(most, TILE_BYTES // (width * form.first.element_size())))


class _Space:
    """The buffers of one thread, and what the sweep needs to know of tight components, for at most n_rows rows."""

    def __init__(self, form: Linear, n_rows: int) -> None:
        self.form, self.n_rows = form, n_rows
        k, d = form.n_components, form.n_features
        self._y, self._rest = (torch.empty(n_rows, width, dtype=form.dtype) for width in (d, form.n_rest))
        self._logits = torch.empty(k * n_rows, dtype=form.dtype)
        numbers = self._y.numpy().dtype
        self.partial = tuple(torch.zeros(k, width, dtype=form.dtype).numpy() for width in (d, form.n_rest))
        most = k * LANES + 1
        self.scratch = (
            np.zeros((3, LANES), dtype=numbers),
            np.zeros(most, dtype=np.uint32),
            np.zeros(most, dtype=np.uint32),
            np.zeros(most, dtype=numbers),
            np.zeros(most, dtype=numbers),
        )
        self.no_weights = np.empty(0)
        self.tight = np.empty(0, dtype=np.int64) if form.tight is None else form.tight.numpy()
        which = np.full(k, -1)
        which[self.tight] = np.arange(len(self.tight))
        empty = np.empty((0, d))
        means, scale, offset, reach = empty, empty, empty[:, 0], empty[:, 0]
        if form.tight is not None:
            means, scale, offset = (part[form.tight].numpy() for part in (form.means, form.scale, form.offset))
            reach = np.array(form.reach)
        self.tight_terms = self.tight, which, means, scale, offset, reach

    def read(self, rows: torch.Tensor, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows (n, D) in the frame, the columns that follow them (n, R), and ln rho (K, n)."""
        n = len(rows)
        plainly = frame.shift is None and frame.scale is None and rows.dtype == self._y.dtype
        y = rows if plainly and rows.is_contiguous() else frame.read(rows, self._y[:n])
        rest = self.form.squares(y, self._rest[:n])
        logits = self._logits[: n * self.form.n_components].view(-1, n)
        torch.mm(self.form.rest, rest.T, out=logits).addmm_(self.form.first, y.T)
        return y.numpy(), rest.numpy(), logits.numpy()


@inlined
def _add(sums: Any, r: Any, row: Any) -> None:  # pragma: no cover - compiled
    for d in range(len(row)):
        sums[d] += r * row[d]


@inlined
def _add_with_squares(sums: Any, squares: Any, r: Any, row: Any) -> None:  # pragma: no cover - compiled
    for d in range(len(row)):
        part = r * row[d]
        sums[d] += part
        squares[d] += part * row[d]


@compiled
def _sweep(
    y: Any,
    rest: Any,
    logits: Any,
    w: Any,
    floor: Any,
    tight: Any,
    which: Any,
    means: Any,
    scale: Any,
    offset: Any,
    reach: Any,
    sum_y: Any,
    sum_rest: Any,
    sums: Any,
    tight_sums: Any,
    scalars: Any,
    lanes: Any,
    component: Any,
    lane: Any,
    below: Any,
    power: Any,
) -> Any:  # pragma: no cover - compiled
    """Add the moments of rows (n, D) to sums (K, D + R), or to tight_sums, and log_norm and entropy to scalars (2,).

    sum_y (K, D), sum_rest (K, R): zeros, where at most STRIP rows are summed in the rows' own dtype.
    Return how many pairs of a row and a component there were.
    """
    n_features, n_rest = y.shape[1], rest.shape[1]
    diag = n_rest > 2
    peak, total, product = lanes[0], lanes[1], lanes[2]
    log_norm = entropy = 0.0
    pairs = 0
    for start in range(0, len(y), LANES):
        n = min(LANES, len(y) - start)
        count = _near(y, logits, floor, tight, means, scale, offset, reach, start, n, peak, component, lane, below)
        pairs += count
        _exp(below, power, count)
        for j in range(n):
            total[j] = 0
            product[j] = 0
        for h in range(count):
            total[lane[h]] += power[h]
            product[lane[h]] += power[h] * below[h]
        for j in range(n):
            weight = 1.0 if len(w) == 0 else w[start + j]
            log_sum = math.log(total[j])
            log_norm += weight * (peak[j] + log_sum)
            entropy += weight * (log_sum - product[j] / total[j])
            total[j] = weight / total[j]  # what turns powers into responsibilities
        for h in range(count):
            k, i = component[h], start + lane[h]
            r = power[h] * total[lane[h]]
            if len(tight) == 0 or which[k] < 0:
                sum_rest[k, n_rest - 1] += r
                if diag:  # not from rest: reading it takes longer than squaring
                    _add_with_squares(sum_y[k], sum_rest[k], r, y[i])
                else:
                    sum_rest[k, 0] += r * rest[i, 0]
                    _add(sum_y[k], r, y[i])
            else:
                wide = tight_sums[which[k]]
                squares = 0.0
                for d in range(n_features):
                    number = np.float64(y[i, d])
                    wide[d] += r * number
                    squares += number * number
                    if diag:
                        wide[n_features + d] += r * number * number
                if not diag:
                    wide[n_features] += r * squares
                wide[n_features + n_rest - 1] += r
        if (start + LANES) % STRIP == 0 or start + LANES >= len(y):
            for k in range(len(sums)):
                for d in range(n_features):
                    sums[k, d] += sum_y[k, d]
                    sum_y[k, d] = 0
                for d in range(n_rest):
                    sums[k, n_features + d] += sum_rest[k, d]
                    sum_rest[k, d] = 0
    scalars[0] += log_norm
    scalars[1] += entropy
    return pairs


@inlined
def _near(
    y: Any,
    logits: Any,
    floor: Any,
    tight: Any,
    means: Any,
    scale: Any,
    offset: Any,
    reach: Any,
    start: Any,
    n: Any,
    peak: Any,
    component: Any,
    lane: Any,
    below: Any,
) -> Any:  # pragma: no cover - compiled
    """List which components are within the floor of a row's peak, for n rows of logits (K, N); return how many.

    peak: (LANES,) the rows' largest logits. component, lane, below: (K LANES,) which component of which row, and how
    far below the peak, in nats. Logits of tight components that are near the peak are taken anew first.
    """
    _peaks(logits, start, n, peak)
    if len(tight) > 0:
        for t in range(len(tight)):
            for j in range(n):
                if logits[tight[t], start + j] > peak[j] - reach[t]:
                    square = 0.0
                    for d in range(y.shape[1]):
                        away = np.float64(y[start + j, d]) - means[t, d]
                        square += scale[t, d] * away * away
                    logits[tight[t], start + j] = offset[t] - 0.5 * square
        _peaks(logits, start, n, peak)
    count = 0
    bottom = peak.dtype.type(floor)
    for k in range(len(logits)):
        row = logits[k, start : start + n]
        for low in range(0, n, CHUNK):
            high = min(low + CHUNK, n)
            if high - low == CHUNK:
                some = False
                for j in range(CHUNK):
                    some |= row[low + j] - peak[low + j] > bottom
                if not some:
                    continue
            for j in range(low, high):
                component[count] = k
                lane[count] = j
                gap = row[j] - peak[j]
                below[count] = gap
                count += gap > bottom
    return count


@inlined
def _peaks(logits: Any, start: Any, n: Any, peak: Any) -> None:  # pragma: no cover - compiled
    for j in range(n):
        peak[j] = logits[0, start + j]
    for k in range(1, len(logits)):
        row = logits[k, start : start + n]
        for j in range(n):
            peak[j] = max(peak[j], row[j])


def _exp(below: Any, power: Any, count: int) -> None:
    """Write exp of below (n,), which is not positive and not far below the floor, into power (n,)."""


@overload(_exp, inline="always")
def _exp_of(below: Any, power: Any, count: Any) -> Any:
    if below.dtype != numba.float32:

        def exactly(below: Any, power: Any, count: Any) -> None:  # pragma: no cover - compiled
            for h in range(count):
                power[h] = math.exp(below[h])

        return exactly

    def by_polynomial(below: Any, power: Any, count: Any) -> None:  # pragma: no cover - compiled
        bits = power.view(np.int32)
        for h in range(count):
            whole = np.floor(below[h] * LOG2_E + HALF)
            f = (below[h] - whole * LN2_HIGH) - whole * LN2_LOW
            p = EXP[0]
            p = p * f + EXP[1]
            p = p * f + EXP[2]
            p = p * f + EXP[3]
            p = p * f + EXP[4]
            p = p * f + EXP[5]
            p = p * f * f + f + ONE
            power[h] = p
            bits[h] += np.int32(whole) << np.int32(23)

    return by_polynomial


@compiled
def _label(
    y: Any,
    logits: Any,
    floor: Any,
    tight: Any,
    which: Any,
    means: Any,
    scale: Any,
    offset: Any,
    reach: Any,
    labels: Any,
    density: Any,
    lanes: Any,
    component: Any,
    lane: Any,
    below: Any,
    power: Any,
) -> None:  # pragma: no cover - compiled
    """Write the first of the most probable components of each row, and its log-density."""
    peak, total = lanes[0], lanes[1]
    for start in range(0, len(y), LANES):
        n = min(LANES, len(y) - start)
        count = _near(y, logits, floor, tight, means, scale, offset, reach, start, n, peak, component, lane, below)
        _exp(below, power, count)
        for j in range(n):
            total[j] = 0
        for h in range(count - 1, -1, -1):
            total[lane[h]] += power[h]
            if below[h] == 0:
                labels[start + lane[h]] = component[h]
        for j in range(n):
            density[start + j] = peak[j] + math.log(total[j])
