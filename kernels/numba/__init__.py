"""The CPU backend: what numba compiles where it is faster, and the torch backend's plans elsewhere.

spherical, diag    statistics and labels    fastclust.kernels.numba.diag
full               statistics and labels    fastclust.kernels.numba.full

There is one arithmetic: `precision` changes nothing.
"""

from __future__ import annotations

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision
from fastclust.kernels.numba import diag, full
from fastclust.kernels.torch import PRECISIONS, moments

__all__ = ["PRECISIONS", "moments", "prepare", "unavailable", "why_not"]


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


def prepare(
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    block_rows: int | None = None,
) -> Plan:
    """Return the plan of an E-step; see the backend protocol."""
    if coefficients.covariance_type == "tied":
        return plain.prepare(coefficients, frame, dtype, block_rows=block_rows)
    given = coefficients, frame, dtype, block_rows
    if coefficients.covariance_type == "full":
        return full.Plan(full.tables(coefficients, dtype), *given)
    return diag.Plan(diag.tables(coefficients, dtype), *given)
