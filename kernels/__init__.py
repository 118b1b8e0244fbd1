"""Sufficient statistics of a Gaussian mixture, by backend.

A backend is a module with one function for each thing that has to see rows, and `unavailable(device)`, which says
why it cannot run on a device, or None where it can:

    statistics(rows, coefficients, frame, dtype)            E-step and sums in one pass: `Statistics`
    moments(rows, responsibilities, ...)                    the same sums, for responsibilities that are given
    assign(rows, coefficients, frame, dtype)                the most probable component and the log-density of a row
    responsibilities(rows, coefficients, frame, dtype)      (N, K)

One that leaves passes over some rows to the torch backend has `why_not(covariance_type, dtype, stored)` too.
PRECISIONS are the arithmetics that it has for products over rows.

Backends know no priors: `fastclust.kernels.contract` says what they get and what they give back.
"""

if __name__ != "fastclust.kernels":
    raise ImportError(f"these kernels are fastclust.kernels and cannot be imported as {__name__!r}")

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics
from fastclust.kernels.table import AUTOMATIC, BACKENDS, Backend, available, left, select

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "Backend",
    "Coefficients",
    "CovarianceType",
    "Frame",
    "Precision",
    "Statistics",
    "available",
    "left",
    "select",
]
