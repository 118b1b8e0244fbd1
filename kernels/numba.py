"""The CPU backend: what numba compiles where it is faster, and the torch backend's functions elsewhere.

spherical, diag    statistics and labels    fastclust.kernels.numba_diag
full               statistics and labels    fastclust.kernels.numba_full

There is one arithmetic: `precision` changes nothing.
"""

from __future__ import annotations

import torch

from fastclust.kernels import numba_diag, numba_full
from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics
from fastclust.kernels.torch import PRECISIONS, moments, responsibilities

__all__ = ["PRECISIONS", "assign", "moments", "responsibilities", "statistics", "unavailable", "why_not"]


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot run on a device: it is for the CPU."""
    return None if device.type == "cpu" else "it runs on the CPU"


def why_not(covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> str | None:
    """Say why the torch backend passes over the rows of a covariance type, in dtype; None where this one does."""
    return (
        "tied covariance has no numba kernel: its products are few, and in float64"
        if covariance_type == "tied"
        else None
    )


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
    precision: Precision = "high",
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients; see the backend protocol."""
    if coefficients.covariance_type in ("spherical", "diag"):
        return numba_diag.statistics(rows, coefficients, frame, dtype, weights, block_rows)
    if coefficients.covariance_type == "full":
        return numba_full.statistics(rows, coefficients, frame, dtype, weights, block_rows)
    return plain.statistics(rows, coefficients, frame, dtype, weights, block_rows)


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
    precision: Precision = "high",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    if coefficients.covariance_type in ("spherical", "diag"):
        return numba_diag.assign(rows, coefficients, frame, dtype, block_rows)
    if coefficients.covariance_type == "full":
        return numba_full.assign(rows, coefficients, frame, dtype, block_rows)
    return plain.assign(rows, coefficients, frame, dtype, block_rows)
