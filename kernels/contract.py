r"""What a kernel is given, and the additive statistics that it gives back.

For every covariance type the E-step is an offset and a quadratic form (Bishop 2006, eq. 10.46 and 10.64):

    ln rho_nk = a_k - 1/2 sum_d lambda_kd (y_nd - m_kd)^2        spherical, diag
    ln rho_nk = a_k - 1/2 || R_k (y_n - m_k) ||^2                 tied, full;  R_k^T R_k = nu_k W_k
    r_nk      = rho_nk / sum_j rho_nj

with y_n = (x_n - shift) * scale, the frame in which a row x_n is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

CovarianceType = Literal["full", "tied", "diag", "spherical"]
Precision = Literal["high", "fast"]  # of float32 products over rows: as good as float32, or to 1e-3 and faster


@dataclass(frozen=True)
class Frame:
    """Say how a stored row becomes the row that the mixture sees: y = (x - shift) * scale.

    `shift` is exactly representable in float32, so that the subtraction of two close float32 numbers is exact.

    shift: (D,) float64, or None for zero.
    scale: (D,) float64, positive, or None for one.
    """

    shift: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def read(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the rows (N, D), as seen in this frame, into out (N, D), in out's dtype; return out."""
        wide = torch.promote_types(rows.dtype, out.dtype)  # wider rows are moved before they are rounded
        seen = out.copy_(rows) if wide == out.dtype else rows.to(wide, copy=True)
        if self.shift is not None:
            seen.sub_(self.shift.to(wide))
        if self.scale is not None:
            seen.mul_(self.scale.to(wide))
        return out if seen is out else out.copy_(seen)

    def to(self, device: torch.device) -> Frame:
        """Return this frame with its tensors on a device."""
        return Frame(*(part if part is None else part.to(device) for part in (self.shift, self.scale)))


@dataclass(frozen=True)
class Coefficients:
    """Hold the E-step of one pass: ln rho as an offset and a quadratic form, in the frame's units.

    offset: (K,) float64, a_k: expected log weight, half the expected log determinant and all constants.
    means: (K, D) float64, m_k.
    precision: float64; lambda (K,) for spherical, lambda (K, D) for diag, R (D, D) for tied, R (K, D, D) for full,
        both lower triangular.
    """

    covariance_type: CovarianceType
    offset: torch.Tensor
    means: torch.Tensor
    precision: torch.Tensor

    @property
    def n_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        """D."""
        return self.means.shape[1]


@dataclass(frozen=True)
class Statistics:
    """Hold what one pass leaves of the rows; statistics of disjoint sets of rows add. All float64.

    nk: (K,), sum_n w_n r_nk.
    sx: (K, D), sum_n w_n r_nk (y_n - c_k).
    sxx: sum_n w_n r_nk times (y_n - c_k)^2: its sum over d (K,) for spherical; (K, D) for diag; the outer product
        (K, D, D) for full; None for tied, whose scatter does not depend on the responsibilities.
    log_norm: (), sum_n w_n ln sum_k rho_nk.
    entropy: (), - sum_nk w_n r_nk ln r_nk.

    about: (K, D), the reference points c_k, in the frame's units: the frame's origin, or the means m_k of the
        coefficients, where the backend subtracts before it multiplies, so that nothing cancels in float32. For full
        covariance it is always the means.
    """

    nk: torch.Tensor
    sx: torch.Tensor
    sxx: torch.Tensor | None
    log_norm: torch.Tensor
    entropy: torch.Tensor
    about: torch.Tensor

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            nk=self.nk + other.nk,
            sx=self.sx + other.sx,
            sxx=None if self.sxx is None or other.sxx is None else self.sxx + other.sxx,
            log_norm=self.log_norm + other.log_norm,
            entropy=self.entropy + other.entropy,
            about=self.about,
        )

    def take(self, index: torch.Tensor) -> Statistics:
        """Return the statistics of these components (k,), in this order; what is summed over components stays."""
        return replace(
            self,
            nk=self.nk[index],
            sx=self.sx[index],
            sxx=None if self.sxx is None else self.sxx[index],
            about=self.about[index],
        )

    def moved(self, about: torch.Tensor) -> Statistics:
        """Return the same statistics about other reference points (K, D)."""
        step = self.about - about  # (K, D)
        if not bool(step.any()):
            return replace(self, about=about)
        sxx = self.sxx
        if sxx is not None and sxx.ndim == 3:
            cross = self.sx[:, :, None] * step[:, None, :]
            sxx = sxx + cross + cross.mT + self.nk[:, None, None] * step[:, :, None] * step[:, None, :]
        elif sxx is not None:
            added = 2 * self.sx * step + self.nk[:, None] * step**2
            sxx = sxx + (added if sxx.ndim == 2 else added.sum(1))
        return replace(self, sx=self.sx + self.nk[:, None] * step, sxx=sxx, about=about)

    def scaled(self, factor: float) -> Statistics:
        """Return the statistics of the same rows in coordinates that are `factor` times as large."""
        sxx = None if self.sxx is None else self.sxx * factor**2
        return replace(self, sx=self.sx * factor, sxx=sxx, about=self.about * factor)


class Plan(Protocol):
    """One E-step, ready to read rows (n, D) of any float dtype, as they are stored, and the sums of those read so far.

    What follows from the coefficients alone, and room for sums, is made once, by a backend's `prepare`, and not for
    every block of rows.

    A plan may be `Renewable`.
    """

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D); weights (n,) count a row w_n times.

        Where it raises torch.OutOfMemoryError, none of these rows has been added.
        """

    def result(self) -> Statistics:
        """Return the statistics of all rows added so far. Raises ValueError where there were none."""

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return for each row its most probable component (n,) int32, the first of equals, and ln sum_k rho_nk (n,)."""

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K)."""


class Renewable(Plan, Protocol):
    """A plan that takes other coefficients in place, so that a CUDA graph can read its sums and write its tables.

    renewable: whether it can, with rows of the kinds added so far.
    """

    @property
    def renewable(self) -> bool: ...

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same shapes, on the device alone, at the same addresses; forget the rows."""

    def clear(self) -> None:
        """Forget the rows, on the host alone: what a replay of what `renew` does on the device leaves to be done."""


class Totals:
    """What a plan has whose blocks of rows are summed one by one: the sum of their statistics."""

    def __init__(self) -> None:
        self._total: Statistics | None = None

    def keep(self, found: Statistics) -> None:
        """Add the statistics of a block."""
        self._total = found if self._total is None else self._total + found

    def result(self) -> Statistics:
        """Return the statistics of all rows added so far. Raises ValueError where there were none."""
        if self._total is None:
            raise ValueError("no rows were added")
        return self._total
