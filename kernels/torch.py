"""Plain torch on any device: tiles of rows that fit the cache, matrix products, and one sweep for the softmax.

Spherical, diag and tied are linear in a few columns of a row, so the E-step is one product and the statistics another:

    diag        columns [y, y^2]      ln rho = const + y . (lambda m) - 1/2 y^2 . lambda
    spherical   columns [y, |y|^2]    ln rho = const + y . (lambda m) - 1/2 |y|^2 lambda
    tied        columns [R y]         ln rho = const + R y . R m  - 1/2 |R y|^2, the last the same for every k

That form cancels in float32 for a component whose precision is large against its distance from the frame's origin:
the error of ln rho is about 1e-7 sum_d lambda_kd m_kd^2. Components for which that sum passes TIGHT are computed in
float64, both products; on post-ReLU features, whose tight channels are tight around zero, they are few or none. Full
covariance subtracts the mean before it multiplies and needs no such care.

The log responsibilities are clamped at FLOOR below the row's largest, for denormal numbers cost more than half of a
pass; a responsibility of e^-40 weighs less than 1e-8 of a row, summed over a billion rows.

On the CPU each thread works through tiles of its own with one-threaded operations: forking and joining inside every
operation on a tile of a megabyte costs about a fifth of the pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from threading import Barrier, Lock
from typing import TypeVar

import torch

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Statistics

TIGHT = 1e4  # nats; float32 errs by about a thousandth of a nat there
FLOOR = {torch.float32: -40.0, torch.float64: -600.0}  # nats; products with small features stay normal numbers
TILE_BYTES = {"cpu": 2 << 20}  # about the second-level cache; measured best of 0.5 to 4 MiB on two kinds of server
TILE_BYTES_DEVICE = 512 << 20  # on an accelerator: enough work for one launch
TILE_ROWS = (64, 1 << 20)

T = TypeVar("T")
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def unavailable(device: torch.device) -> str | None:
    """Return None: the plain backend runs wherever torch has float64 to add up in."""
    return "no float64 on this device" if device.type == "mps" else None


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients; see the backend protocol."""
    form = _form(coefficients, dtype)

    def work(start: int, stop: int, tile: int) -> Statistics:
        total = _Sums(form, rows.device)
        space = _Space(form, tile, dtype, rows.device)
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            y = frame.read(rows[low:high], space.y(high - low))
            logits = form.log_rho(y, space)  # (K, n)
            peak, log_sum, p = _softmax(logits, space)
            w = None if weights is None else weights[low:high].to(dtype)
            if w is not None:
                p.mul_(w)
            total.add(form.sums(y, p, space))
            rest = form.row_term(y, space)
            total.add_rows(peak if rest is None else peak + rest, log_sum, p, logits, w)
        return total.result()

    return reduce(add, _over_tiles(len(rows), form.tile_rows(rows.device, block_rows), rows.device, work))


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol."""
    with torch.no_grad():
        y = frame.read(rows, torch.empty(rows.shape, dtype=dtype, device=rows.device))
        r = responsibilities.to(dtype).T
        nk = r.sum(1, dtype=torch.float64)
        zero = torch.zeros((), dtype=torch.float64, device=rows.device)
        sx, sxx = (r @ y).double(), None
        centre = torch.zeros_like(sx)
        if covariance_type == "diag":
            sxx = (r @ y.square()).double()
        elif covariance_type == "spherical":
            sxx = (r @ y.square().sum(1)).double()
        elif covariance_type == "full":
            centre = about.to(dtype).double()
            sxx = torch.empty(*sx.shape, sx.shape[1], dtype=torch.float64, device=rows.device)
            for k in range(len(sx)):
                difference = y - about[k].to(dtype)
                weighted = difference * r[k, :, None]
                sx[k], sxx[k] = weighted.sum(0), weighted.T @ difference
        return Statistics(nk, sx, sxx, zero, zero, centre)


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    form = _form(coefficients, dtype)
    labels = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
    density = torch.empty(len(rows), dtype=dtype, device=rows.device)

    def work(start: int, stop: int, tile: int) -> None:
        space = _Space(form, tile, dtype, rows.device)
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            y = frame.read(rows[low:high], space.y(high - low))
            logits = form.log_rho(y, space)
            labels[low:high] = logits.argmax(0)
            peak, log_sum, _ = _softmax(logits, space)
            rest = form.row_term(y, space)
            density[low:high] = peak + log_sum if rest is None else peak + log_sum + rest

    _over_tiles(len(rows), form.tile_rows(rows.device, block_rows), rows.device, work)
    return labels, density


def responsibilities(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
) -> torch.Tensor:
    """Return the responsibilities (N, K)."""
    form = _form(coefficients, dtype)
    out = torch.empty(len(rows), coefficients.n_components, dtype=dtype, device=rows.device)

    def work(start: int, stop: int, tile: int) -> None:
        space = _Space(form, tile, dtype, rows.device)
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            y = frame.read(rows[low:high], space.y(high - low))
            logits = form.log_rho(y, space)
            out[low:high] = torch.softmax(logits, 0).T  # no floor: what is shown to a user underflows to zero

    _over_tiles(len(rows), form.tile_rows(rows.device, block_rows), rows.device, work)
    return out


class _Linear:
    """The E-step of spherical, diag and tied: ln rho is linear in the columns of a row."""

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.kind = coefficients.covariance_type
        self.dtype = dtype
        m, precision = coefficients.means, coefficients.precision
        n_components, self.n_features = m.shape
        self.n_components = n_components
        self.root: torch.Tensor | None = None
        if self.kind == "tied":
            self.root = precision.to(dtype).T.contiguous()
            linear = m @ precision.T  # (K, D)
            square = (linear**2).sum(1)  # (K,)
        else:
            scale = precision if self.kind == "diag" else precision[:, None]
            square = (scale * m**2).sum(1)
            linear = torch.cat([scale * m, -0.5 * scale], 1)  # (K, P)
        const = (coefficients.offset - 0.5 * square)[:, None]  # (K, 1)
        self.linear, self.const = linear.to(dtype), const.to(dtype)
        self.tight: torch.Tensor | None = None
        if dtype != torch.float64 and bool((square > TIGHT).any()):
            # Tied components share what is left out of ln rho, so there it is all of them or none.
            self.tight = torch.nonzero((square > TIGHT) | (self.kind == "tied"))[:, 0]
            self.tight_linear, self.tight_const = linear[self.tight], const[self.tight]
            self.root64 = precision.T.contiguous() if self.kind == "tied" else None
        self.about = torch.zeros_like(m)

    @property
    def n_columns(self) -> int:
        return self.linear.shape[1]

    def tile_rows(self, device: torch.device, block_rows: int | None) -> int:
        if block_rows is not None:
            return block_rows
        budget = TILE_BYTES.get(device.type, TILE_BYTES_DEVICE)
        row = self.linear.element_size() * (self.n_columns + self.n_features * (self.root is not None))
        row += self.linear.element_size() * 2 * self.n_components
        return _tile_rows(budget, row)

    def columns(self, y: torch.Tensor, space: _Space) -> torch.Tensor:
        """Return the columns (n, P) that ln rho is linear in; y is the first D of them, except for tied."""
        if self.root is not None:
            return torch.mm(y, self.root, out=space.whitened[: len(y)])
        columns = space.columns[: len(y)]
        if self.kind == "diag":
            torch.mul(y, y, out=columns[:, self.n_features :])
        else:
            torch.linalg.vecdot(y, y, out=columns[:, self.n_features])
        return columns

    def log_rho(self, y: torch.Tensor, space: _Space) -> torch.Tensor:
        columns = self.columns(y, space)
        logits = torch.addmm(self.const, self.linear, columns.T, out=space.logits(len(y)))
        if self.tight is not None:
            wide = y.double()
            if self.root64 is not None:
                whitened = wide @ self.root64
                linear = torch.addmm(self.tight_const, self.tight_linear, whitened.T)
                logits.copy_(linear.sub_(torch.linalg.vecdot(whitened, whitened), alpha=0.5))
                space.wide = wide
            else:
                square = wide * wide
                space.wide = torch.cat([wide, square if self.kind == "diag" else square.sum(1, keepdim=True)], 1)
                logits[self.tight] = torch.addmm(self.tight_const, self.tight_linear, space.wide.T).to(self.dtype)
        return logits

    def row_term(self, y: torch.Tensor, space: _Space) -> torch.Tensor | None:
        """Return the part of ln rho (n,) that is the same for every component and was left out."""
        if self.root is None or self.tight is not None:
            return None
        whitened = space.whitened[: len(y)]
        square: torch.Tensor = torch.linalg.vecdot(whitened, whitened)
        return square.mul_(-0.5)

    def sums(self, y: torch.Tensor, p: torch.Tensor, space: _Space) -> Moments:
        columns = y if self.root is not None else space.columns[: len(y)]
        nk, both = p.sum(1).double(), (p @ columns).double()  # (K,), (K, P)
        if self.tight is not None:  # all three, for they are subtracted from one another
            wide = p[self.tight].double()
            nk[self.tight], both[self.tight] = wide.sum(1), wide @ space.wide
        if self.kind == "tied":
            return nk, both, None
        sx, sxx = both[:, : self.n_features], both[:, self.n_features :]
        return nk, sx, sxx if self.kind == "diag" else sxx[:, 0]


class _Full:
    """The E-step of full covariance: R_k (y - m_k), a component at a time, columns along the rows.

    Rows whose responsibility is the floor's are left out of a component's scatter: on real features most are, and the
    scatter is half of the arithmetic.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.kind = coefficients.covariance_type
        self.n_components, self.n_features = coefficients.means.shape
        self.n_columns = self.n_features
        self.root = None
        self.dtype = dtype
        self.means = coefficients.means.to(dtype)  # (K, D)
        self.roots = coefficients.precision.to(dtype).contiguous()  # (K, D, D)
        self.const = coefficients.offset.to(dtype)[:, None]  # (K, 1)
        # The reference point is the rounded mean, for that is what the rows are moved by.
        self.about = self.means.double()

    def tile_rows(self, device: torch.device, block_rows: int | None) -> int:
        if block_rows is not None:
            return block_rows
        budget = TILE_BYTES.get(device.type, TILE_BYTES_DEVICE)
        return _tile_rows(budget, self.roots.element_size() * (4 * self.n_features + 2 * self.n_components))

    def columns(self, y: torch.Tensor, space: _Space) -> torch.Tensor:
        return y

    def log_rho(self, y: torch.Tensor, space: _Space) -> torch.Tensor:
        logits = space.logits(len(y))
        across = y.T.contiguous()  # (D, n)
        moved, root = torch.empty_like(across), torch.empty_like(across)
        for k in range(self.n_components):
            torch.sub(across, self.means[k, :, None], out=moved)
            torch.mm(self.roots[k], moved, out=root)
            torch.sum(root.square_(), 0, out=logits[k])
        return torch.add(self.const, logits, alpha=-0.5, out=logits)

    def row_term(self, y: torch.Tensor, space: _Space) -> None:
        return None

    def sums(self, y: torch.Tensor, p: torch.Tensor, space: _Space) -> Moments:
        sx = torch.zeros(self.n_components, self.n_features, dtype=torch.float64, device=y.device)
        sxx = torch.zeros(*sx.shape, self.n_features, dtype=torch.float64, device=y.device)
        least = 2 * math.exp(FLOOR[self.dtype])
        component, row = torch.nonzero(p > least, as_tuple=True)
        counts = torch.bincount(component, minlength=self.n_components).tolist()
        weight = p[component, row][:, None]
        for k, index, r in zip(
            range(self.n_components), torch.split(row, counts), torch.split(weight, counts), strict=True
        ):
            if len(index):
                difference = y[index].sub_(self.means[k])
                weighted = difference * r
                sx[k], sxx[k] = weighted.sum(0), weighted.T @ difference
        return p.sum(1).double(), sx, sxx


def _tile_rows(budget: int, row_bytes: int) -> int:
    """Return the power of two of rows that fit a budget of bytes."""
    return max(TILE_ROWS[0], min(TILE_ROWS[1], 1 << max(budget // row_bytes, 1).bit_length() - 1))


def _form(coefficients: Coefficients, dtype: torch.dtype) -> _Linear | _Full:
    return (_Full if coefficients.covariance_type == "full" else _Linear)(coefficients, dtype)


class _Space:
    """The buffers of one worker, allocated once: rows, their columns, logits and responsibilities of a tile."""

    def __init__(self, form: _Linear | _Full, tile: int, dtype: torch.dtype, device: torch.device) -> None:
        self.columns = torch.empty(tile, max(form.n_columns, form.n_features), dtype=dtype, device=device)
        self.whitened = torch.empty(tile if form.root is not None else 0, form.n_features, dtype=dtype, device=device)
        self._pair = torch.empty(2, form.n_components * tile, dtype=dtype, device=device)
        self._k, self._d = form.n_components, form.n_features
        self.wide = torch.empty(0)  # the columns in float64, where a component is tight

    def y(self, n: int) -> torch.Tensor:
        return self.columns[:n, : self._d]

    def logits(self, n: int) -> torch.Tensor:
        return self._pair[0, : self._k * n].view(self._k, n)

    def p(self, n: int) -> torch.Tensor:
        return self._pair[1, : self._k * n].view(self._k, n)


class _Sums:
    """The running sums of one worker, in float64."""

    def __init__(self, form: _Linear | _Full, device: torch.device) -> None:
        self.about = form.about
        self.nk = torch.zeros(form.n_components, dtype=torch.float64, device=device)
        self.sx = torch.zeros(form.n_components, form.n_features, dtype=torch.float64, device=device)
        shape = {"diag": self.sx.shape, "spherical": self.nk.shape, "full": (*self.sx.shape, form.n_features)}
        self.sxx = None if form.kind == "tied" else torch.zeros(shape[form.kind], dtype=torch.float64, device=device)
        self.log_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.entropy = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, sums: Moments) -> None:
        nk, sx, sxx = sums
        self.nk += nk
        self.sx += sx
        if self.sxx is not None and sxx is not None:
            self.sxx += sxx

    def add_rows(
        self, peak: torch.Tensor, log_sum: torch.Tensor, p: torch.Tensor, logits: torch.Tensor, w: torch.Tensor | None
    ) -> None:
        """Add ln sum rho = peak + log_sum, and the entropy of a row, log_sum - sum_k r (ln rho - peak)."""
        if w is not None:
            peak, log_sum = peak * w, log_sum * w
        spread = log_sum.sum(dtype=torch.float64)
        self.log_norm += peak.sum(dtype=torch.float64) + spread
        self.entropy += spread - torch.dot(p.reshape(-1), logits.reshape(-1))

    def result(self) -> Statistics:
        return Statistics(self.nk, self.sx, self.sxx, self.log_norm, self.entropy, self.about)


def _softmax(logits: torch.Tensor, space: _Space) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn logits (K, n) into their distance below the row's peak, in place; return peak, ln sum (n,) and r (K, n)."""
    peak = logits.amax(0)
    logits.sub_(peak).clamp_(min=FLOOR[logits.dtype])
    p = torch.exp(logits, out=space.p(logits.shape[1]))
    total = p.sum(0)
    p.mul_(total.reciprocal())
    return peak, total.log_(), p


def _over_tiles(n_rows: int, tile: int, device: torch.device, work: Callable[[int, int, int], T]) -> list[T]:
    """Call work(start, stop, tile) over all rows: in equal parts, one a thread, on the CPU; else once.

    The parts depend on the number of threads alone, so results are repeatable.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    share = -(-n_rows // threads)
    if threads == 1 or share < TILE_ROWS[0]:
        with torch.no_grad():
            return [work(0, n_rows, min(tile, max(n_rows, 1)))]
    parts = [(low, min(low + share, n_rows), min(tile, share)) for low in range(0, n_rows, share)]
    return list(_pool(threads).map(lambda part: _one_threaded(work, part), parts))


def _one_threaded(work: Callable[[int, int, int], T], part: tuple[int, int, int]) -> T:
    with torch.no_grad():
        return work(*part)


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the pool of that many workers, made at first use; each runs its torch operations on one thread.

    torch.set_num_threads acts on the thread that calls it and on threads yet to come, so the caller's own number is
    set again once every worker has started.
    """
    with _pools_lock:
        if threads not in _pools:
            all_started = Barrier(threads)
            pool = ThreadPoolExecutor(threads, thread_name_prefix="fastclust")

            def start(_: int) -> None:
                torch.set_num_threads(1)
                all_started.wait()

            list(pool.map(start, range(threads)))
            torch.set_num_threads(threads)
            _pools[threads] = pool
        return _pools[threads]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the table and not the threads
