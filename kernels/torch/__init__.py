"""Plain torch on any device: tiles of rows that fit the cache, matrix products, and one sweep for the softmax.

Responsibilities below e^FLOOR of the row's largest are zero: denormal numbers would cost more than half of a pass, in
exp() and again in the products, and e^-40 weighs less than 1e-8 of a row, summed over a billion rows.

On the CPU each thread works through tiles of its own: see `fastclust.kernels.threads`. On an accelerator nothing here
looks at a value, so the host never waits: see `fastclust.kernels.torch.device`. There is one
arithmetic: `precision` changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import TypeVar

import torch

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics, Totals
from fastclust.kernels.threads import over_parts
from fastclust.kernels.torch.device import form_on, scatter
from fastclust.kernels.torch.forms import Form, Space, Sums, tile_rows

FLOOR = {torch.float32: -40.0, torch.float64: -600.0}  # nats; products with small features stay normal numbers

PRECISIONS: tuple[Precision, ...] = ("high",)
T = TypeVar("T")


def unavailable(device: torch.device) -> str | None:
    """Return None: the plain backend runs wherever torch has float64 to add up in."""
    return "no float64 on this device" if device.type == "mps" else None


class Plan(Totals):
    """An E-step that is written as a form; see `fastclust.kernels.contract.Plan`."""

    def __init__(
        self, form: Form, frame: Frame, dtype: torch.dtype, device: torch.device, block_rows: int | None = None
    ) -> None:
        super().__init__()
        self.form, self.frame, self.dtype, self.block_rows = form, frame, dtype, block_rows
        self._component = torch.arange(form.n_components, dtype=dtype, device=device)[:, None]

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D); weights (n,) count a row w_n times."""
        self.keep(statistics_of(self.form, rows, self.frame, weights, self.block_rows))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        labels = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
        density = torch.empty(len(rows), dtype=self.dtype, device=rows.device)

        def found(some: slice, logits: torch.Tensor, space: Space) -> None:
            peak, log_sum, _ = _softmax(logits, space)
            # The first at the peak, which is at zero now: argmax along the long stride takes three times as long.
            labels[some] = torch.where(logits == 0, self._component, len(self._component)).amin(0)
            density[some] = peak + log_sum

        self._over(rows, found)
        return labels, density

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K)."""
        out = torch.empty(len(rows), self.form.n_components, dtype=self.dtype, device=rows.device)

        def found(some: slice, logits: torch.Tensor, space: Space) -> None:
            out[some] = torch.softmax(logits, 0).T  # no floor: what is shown to a user underflows to zero

        self._over(rows, found)
        return out

    def _over(self, rows: torch.Tensor, found: Callable[[slice, torch.Tensor, Space], None]) -> None:
        """Call found(rows of a tile, their ln rho (K, n), space) for all tiles."""

        def work(start: int, stop: int, tile: int) -> None:
            space = Space(self.form, tile, self.form.dtype, rows.device)
            for low in range(start, stop, tile):
                some = slice(low, min(low + tile, stop))
                found(some, self.form.log_rho(_read(rows[some], self.frame, space), space), space)

        size = self.block_rows or tile_rows(self.form.row_bytes(), rows.device)
        _over_tiles(len(rows), size, rows.device, work)


def prepare(
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    block_rows: int | None = None,
) -> Plan:
    """Return the plan of an E-step; see the backend protocol."""
    device = coefficients.means.device
    return Plan(form_on(device, coefficients, dtype), frame, dtype, device, block_rows)


def statistics_of(
    form: Form, rows: torch.Tensor, frame: Frame, weights: torch.Tensor | None = None, block_rows: int | None = None
) -> Statistics:
    """Return the statistics of rows (N, D) for an E-step that is written as a form."""

    def work(start: int, stop: int, tile: int) -> Statistics:
        total = Sums(form, rows.device)
        space = Space(form, tile, form.dtype, rows.device)
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            y = _read(rows[low:high], frame, space)
            logits = form.log_rho(y, space)  # (K, n)
            peak, log_sum, p = _softmax(logits, space)
            w = None if weights is None else weights[low:high].to(form.dtype)
            if w is not None:
                p.mul_(w)
            form.add_moments(y, p, space, total)
            total.add_rows(peak, log_sum, p, logits, w)
        return total.result()

    return reduce(
        add, _over_tiles(len(rows), block_rows or tile_rows(form.row_bytes(), rows.device), rows.device, work)
    )


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol.

    In float64 whatever the dtype: a tight cluster among the first responsibilities has a variance that float32 sums of
    squares lose, and far from the origin the rounding of the responsibilities is all that a tied scatter has left.
    """
    wide = torch.float64
    parts = over_parts(
        len(rows),
        rows.device,
        lambda start, stop: _moments(
            frame.read(rows[start:stop], torch.empty(stop - start, rows.shape[1], dtype=wide, device=rows.device)),
            responsibilities[start:stop].to(wide).T,
            covariance_type,
            about,
        ),
    )
    return reduce(add, parts)


def _moments(y: torch.Tensor, r: torch.Tensor, covariance_type: CovarianceType, about: torch.Tensor) -> Statistics:
    """Return the moments of rows (n, D), as seen in the frame, for responsibilities (K, n), in float64."""
    nk = r.sum(1)
    zero = torch.zeros((), dtype=torch.float64, device=y.device)
    sx, sxx = r @ y, None
    centre = torch.zeros_like(sx)
    if covariance_type == "diag":
        sxx = r @ y.square()
    elif covariance_type == "spherical":
        sxx = r @ y.square().sum(1)
    elif covariance_type == "full":
        centre = about
        if y.device.type != "cpu":
            return Statistics(nk, *scatter(y, r, about), zero, zero, centre)
        sxx = torch.empty(*sx.shape, sx.shape[1], dtype=torch.float64, device=y.device)
        for k in range(len(sx)):
            some = torch.nonzero(r[k])[:, 0]
            difference = y[some] - about[k]
            weighted = difference * r[k, some, None]
            sx[k], sxx[k] = weighted.sum(0), weighted.T @ difference
    return Statistics(nk, sx, sxx, zero, zero, centre)


def _read(rows: torch.Tensor, frame: Frame, space: Space) -> torch.Tensor:
    """Return rows as seen in the frame: the rows themselves where there is nothing to do."""
    if frame.shift is None and frame.scale is None and rows.dtype == space.dtype:
        return rows
    return frame.read(rows, space.y(len(rows)))


def _softmax(logits: torch.Tensor, space: Space) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the row's peak from logits (K, n), in place; return peak (n,), ln sum rho - peak (n,) and r (K, n)."""
    peak = logits.amax(0)
    floor = FLOOR[logits.dtype]
    p = torch.exp(logits.sub_(peak).clamp_(min=floor), out=space.p(logits.shape[1]))
    torch.threshold_(p, 1.5 * math.exp(floor), 0.0)
    total = p.sum(0)
    p.mul_(total.reciprocal())
    return peak, total.log_(), p


def _over_tiles(n_rows: int, tile: int, device: torch.device, work: Callable[[int, int, int], T]) -> list[T]:
    """Call work(start, stop, tile) over all rows, in parts, one a thread; no tile is larger than its part."""
    return over_parts(n_rows, device, lambda start, stop: work(start, stop, min(tile, max(stop - start, 1))))
