"""Full covariance on the CPU: a lower bound of every distance first, and only those that can matter in full.

With Q_k (D, r) orthonormal columns, || Q_k^T R_k (y - m_k) ||^2 never exceeds || R_k (y - m_k) ||^2, and costs r / D of
it. So

    ln rho_nk <= a_k - 1/2 || P_k (y_n - m_k) ||^2,  P_k = Q_k^T R_k

and where that is FLOOR below what some component reaches, r_nk is zero in any case, and ln rho_nk is not computed. What
rounding can do to the bound is taken off it, so nothing is left out that would have counted: responsibilities and
statistics are those of the torch backend.

Q_k spans the directions in which a sample of the rows lies farthest from m_k, as k's own metric sees it: a few steps of
subspace iteration. The sample also tells how many components of a row would be left; where that is most of them, as of
rows in few overlapping blobs, every distance is computed as in the torch backend.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame
from fastclust.kernels.numba_vectors import compiled
from fastclust.kernels.torch import FLOOR
from fastclust.kernels.torch_forms import Full, Space, Sums

SAMPLE_ROWS = 128
DIRECTIONS = 8  # r
STEPS = 3  # of the subspace iteration
ROUNDING = 1e-6  # of the terms of a float32 sum of D products; 64 of them err by 1e-7 or so
GATHER = 2.0  # what a distance that is picked out costs, in terms of one of a whole block
TILE_ROWS = 4096


class Pruned(Full):
    """The E-step of full covariance for float32 rows, without what cannot count."""

    def __init__(self, coefficients: Coefficients, rows: torch.Tensor, frame: Frame) -> None:
        super().__init__(coefficients, torch.float32)
        k, d, r = self.n_components, self.n_features, DIRECTIONS
        self.worth_it = d > 2 * r and k > 2 and len(rows) >= 4 * SAMPLE_ROWS
        if not self.worth_it:
            return
        some = rows[:: len(rows) // SAMPLE_ROWS]
        sample = frame.read(some, torch.empty(some.shape))
        R, bias = self.roots[:, :, :d], self.roots[:, :, d]
        whitened = R @ (sample - self.means[:, None]).mT  # (K, D, s)
        square = whitened.square().sum(1)  # (K, s)
        whitened /= square.sqrt().clamp(min=1e-30)[:, None]
        span = torch.randn(k, d, r, generator=torch.Generator().manual_seed(0))
        for _ in range(STEPS):
            span = whitened @ (whitened.mT @ span)
            span /= span.norm(dim=1, keepdim=True).clamp(min=1e-30)
        Q = torch.linalg.qr(span)[0]  # (K, D, r)
        P = Q.double().mT @ coefficients.precision
        self.P = P.float().reshape(k * r, d)
        self.shift = -(P @ coefficients.means[:, :, None]).float().reshape(k * r, 1)
        self.terms = P.abs().sum(2).reshape(k * r), self.shift[:, 0].abs().double()
        self.r = r
        self.transposed, self.bias = R.mT.contiguous(), bias.contiguous()
        # How many components of a row would be left?
        near = (Q.mT @ R @ (sample - self.means[:, None]).mT).square().sum(1)
        exact = self.const - 0.5 * square
        left = (self.const - 0.5 * near > exact.amax(0) + FLOOR[torch.float32]).sum(0).float().mean()
        self.worth_it = r * k + GATHER * (1 + float(left)) * d < 0.8 * k * d

    def row_bytes(self) -> int:
        """Return what makes a tile TILE_ROWS long."""
        return (4 << 20) // TILE_ROWS if self.worth_it else super().row_bytes()

    def log_rho(self, y: torch.Tensor, space: Space) -> torch.Tensor:
        """Return ln rho (K, n) of rows (n, D), and -inf where r is zero whatever ln rho is."""
        if not self.worth_it:
            return super().log_rho(y, space)
        n, k = len(y), self.n_components
        along = torch.addmm(self.shift, self.P, y.T, out=space.room("along", k * self.r, n))  # (K r, n)
        slope, offset = self.terms
        doubt = (ROUNDING * (slope * float(y.abs().max()) + offset)).float()
        logits = space.logits(n).fill_(-torch.inf)
        bound = space.room("bound", k, n)
        best = np.empty(n, dtype=np.int64)
        rows, starts = np.empty(n * k, dtype=np.int64), np.empty(k + 1, dtype=np.int64)
        lowest = np.empty(n, dtype=np.float32)
        _bound(along.numpy(), doubt.numpy(), self.const.numpy()[:, 0], self.r, bound.numpy(), best)
        _list_best(best, rows, starts)
        self._exactly(y, rows, starts, logits, lowest, space)
        _list_near(bound.numpy(), best, lowest, np.float32(FLOOR[torch.float32]), rows, starts)
        self._exactly(y, rows, starts, logits, lowest, space)
        return logits

    def _exactly(
        self,
        y: torch.Tensor,
        rows: np.ndarray,
        starts: np.ndarray,
        logits: torch.Tensor,
        lowest: np.ndarray,
        space: Space,
    ) -> None:
        """Write ln rho of listed pairs into logits (K, n), and each row's last one into lowest (n,)."""
        counts = np.diff(starts)
        away, found = (space.room(name, int(counts.max()), self.n_features) for name in ("away", "found"))
        y_, away_, found_ = y.numpy(), away.numpy(), found.numpy()
        means, const, logits_ = self.means.numpy(), self.const.numpy(), logits.numpy()
        for k in np.flatnonzero(counts):
            some, c = rows[starts[k] : starts[k + 1]], counts[k]
            _gather(y_, some, means[k], away_)
            torch.addmm(self.bias[k], away[:c], self.transposed[k], out=found[:c])
            _finish(found_[:c], some, const[k, 0], logits_[k], lowest)

    def add_moments(self, y: torch.Tensor, p: torch.Tensor, space: Space, total: Sums) -> None:
        """Add the moments of rows (n, D) for responsibilities p (K, n), in float64 as in the torch backend."""
        p_, y_, means, sx = p.numpy(), y.numpy(), self.about.numpy(), total.sx.numpy()
        total.rest += p.sum(1, keepdim=True)
        some = np.empty(len(y), dtype=np.int64)
        weighted = space.wide(len(y), self.n_features)
        weighted_ = weighted.numpy()
        for k in range(self.n_components):
            count = _weigh(y_, p_[k], means[k], some, weighted_, sx[k])
            if count:
                total.sxx[k].addmm_(weighted[:count].T, weighted[:count])


@compiled
def _weigh(y: Any, p: Any, mean: Any, some: Any, weighted: Any, sx: Any) -> Any:  # pragma: no cover - compiled
    """Write sqrt(p) (y - mean) of the rows that have p > 0, add their p (y - mean) to sx (D,); return how many."""
    count = 0
    for j in range(len(p)):
        some[count] = j
        count += p[j] > 0
    for i in range(count):
        root = math.sqrt(np.float64(p[some[i]]))
        for d in range(len(mean)):
            part = root * (np.float64(y[some[i], d]) - mean[d])
            weighted[i, d] = part
            sx[d] += root * part
    return count


@compiled
def _bound(along: Any, doubt: Any, const: Any, r: Any, bound: Any, best: Any) -> None:  # pragma: no cover - compiled
    """Write upper bounds of ln rho (K, n), and the component that has the largest (n,)."""
    n = along.shape[1]
    top = np.empty(n, dtype=np.float32)
    for k in range(len(const)):
        row = bound[k]
        for j in range(n):
            row[j] = 0
        for i in range(r):
            part, less = along[k * r + i], doubt[k * r + i]
            for j in range(n):
                away = max(abs(part[j]) - less, np.float32(0))
                row[j] += away * away
        for j in range(n):
            row[j] = const[k] - np.float32(0.5) * row[j]
        if k == 0:
            for j in range(n):
                top[j] = row[j]
                best[j] = 0
        else:
            for j in range(n):
                if row[j] > top[j]:
                    top[j] = row[j]
                    best[j] = k


@compiled
def _list_best(best: Any, rows: Any, starts: Any) -> None:  # pragma: no cover - compiled
    """List the rows of each component's own: those of component k from starts[k] to starts[k + 1]."""
    starts[:] = 0
    for j in range(len(best)):
        starts[best[j] + 1] += 1
    for k in range(len(starts) - 1):
        starts[k + 1] += starts[k]
    place = starts.copy()
    for j in range(len(best)):
        rows[place[best[j]]] = j
        place[best[j]] += 1


@compiled
def _list_near(
    bound: Any, best: Any, lowest: Any, floor: Any, rows: Any, starts: Any
) -> None:  # pragma: no cover - compiled
    """List, by component, the other rows whose bound is within the floor of what their own component reaches."""
    count = 0
    starts[0] = 0
    for k in range(len(bound)):
        row = bound[k]
        for j in range(len(best)):
            rows[count] = j
            count += (row[j] > lowest[j] + floor) & (best[j] != k)
        starts[k + 1] = count


@compiled
def _gather(y: Any, rows: Any, mean: Any, away: Any) -> None:  # pragma: no cover - compiled
    for i in range(len(rows)):
        for d in range(len(mean)):
            away[i, d] = y[rows[i], d] - mean[d]


@compiled
def _finish(found: Any, rows: Any, const: Any, logits: Any, lowest: Any) -> None:  # pragma: no cover - compiled
    for i in range(len(rows)):
        square = np.float32(0)
        for d in range(found.shape[1]):
            square += found[i, d] * found[i, d]
        value = const - np.float32(0.5) * square
        logits[rows[i]] = value
        lowest[rows[i]] = value
