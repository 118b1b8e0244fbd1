"""The oracle: the definition of every statistic, in float64, written for reading; it stores N x K x D.

It computes in float64 whatever dtype and precision are asked for, and takes (y - m)^2 as it stands, so that nothing
cancels.
"""

from __future__ import annotations

import torch

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics, Totals

PRECISIONS: tuple[Precision, ...] = ("high",)


def unavailable(device: torch.device) -> str | None:
    """Return None: the reference runs wherever float64 does."""
    return "no float64 on this device" if device.type == "mps" else None


def log_rho(rows: torch.Tensor, coefficients: Coefficients, frame: Frame) -> torch.Tensor:
    """Return ln rho_nk (N, K) in float64."""
    y = frame.read(rows, torch.empty(rows.shape, dtype=torch.float64, device=rows.device))
    difference = y[:, None] - coefficients.means  # (N, K, D)
    precision = coefficients.precision
    if coefficients.covariance_type == "diag":
        square = (precision * difference**2).sum(2)
    elif coefficients.covariance_type == "spherical":
        square = precision * (difference**2).sum(2)
    elif coefficients.covariance_type == "tied":
        square = (torch.einsum("de,nke->nkd", precision, difference) ** 2).sum(2)
    else:
        square = (torch.einsum("kde,nke->nkd", precision, difference) ** 2).sum(2)
    return coefficients.offset - 0.5 * square


class Plan(Totals):
    """The oracle as a plan: every call is the definition's."""

    def __init__(self, coefficients: Coefficients, frame: Frame, dtype: torch.dtype) -> None:
        super().__init__()
        self._given = coefficients, frame, dtype

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D)."""
        self.keep(statistics(rows, *self._given, weights))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,)."""
        return assign(rows, *self._given)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K)."""
        return responsibilities(rows, *self._given)


def prepare(
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    block_rows: int | None = None,
) -> Plan:
    """Return the plan of an E-step."""
    return Plan(coefficients, frame, dtype)


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
) -> Statistics:
    """Return the statistics of rows (N, D)."""
    ln_rho = log_rho(rows, coefficients, frame)
    ln_norm = torch.logsumexp(ln_rho, 1)
    ln_r = ln_rho - ln_norm[:, None]
    w = torch.ones(len(rows), dtype=torch.float64, device=rows.device) if weights is None else weights.double()
    sums = moments(rows, ln_r.exp() * w[:, None], coefficients.covariance_type, coefficients.means, frame, dtype)
    entropy = -(w[:, None] * ln_r.exp() * ln_r).nan_to_num().sum()  # 0 ln 0 = 0
    return Statistics(sums.nk, sums.sx, sums.sxx, (w * ln_norm).sum(), entropy, sums.about)


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K)."""
    r = responsibilities.double()
    y = frame.read(rows, torch.empty(rows.shape, dtype=torch.float64, device=rows.device))
    about = about if covariance_type == "full" else torch.zeros_like(about)
    difference = y[:, None] - about  # (N, K, D)
    sxx: torch.Tensor | None = None
    if covariance_type == "diag":
        sxx = torch.einsum("nk,nkd->kd", r, difference**2)
    elif covariance_type == "spherical":
        sxx = torch.einsum("nk,nkd->k", r, difference**2)
    elif covariance_type == "full":
        sxx = torch.einsum("nk,nkd,nke->kde", r, difference, difference)
    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    return Statistics(r.sum(0), torch.einsum("nk,nkd->kd", r, difference), sxx, zero, zero, about)


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,)."""
    ln_rho = log_rho(rows, coefficients, frame)
    return ln_rho.argmax(1).int(), torch.logsumexp(ln_rho, 1).to(dtype)


def responsibilities(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the responsibilities (N, K)."""
    return torch.softmax(log_rho(rows, coefficients, frame), 1).to(dtype)
