"""Sufficient statistics of a Gaussian mixture, by backend.

A backend is a package with a file an operation, and `unavailable(device)`, which says why it cannot run on a device,
or None where it can:

    plan = prepare(coefficients, frame, dtype, precision)   one E-step, whatever follows from its coefficients alone
    plan.add(rows, weights)                                 E-step and sums, block by block
    plan.result()                                           the sums of all blocks: `Statistics`
    plan.assign(rows)                                       the most probable component and the log-density of a row
    plan.responsibilities(rows)                             (n, K)
    moments(rows, responsibilities, ...)                    the same sums, for responsibilities that are given

One that leaves passes over some rows to the torch backend has `why_not(covariance_type, dtype, stored)` too.
PRECISIONS are the arithmetics that it has for products over rows.

On a GPU a backend is believed after a proof (`fastclust.kernels.proof`), and "auto" is the first that has one.

Backends know no priors: `fastclust.kernels.contract` says what they get and what they give back.
"""

if __name__ != "fastclust.kernels":
    raise ImportError(f"these kernels are fastclust.kernels and cannot be imported as {__name__!r}")

from fastclust.kernels.chosen import Chosen
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision, Statistics
from fastclust.kernels.table import (
    AUTOMATIC,
    BACKENDS,
    Backend,
    available,
    left,
    module,
    precisions,
    ran,
    select,
    statistics,
    usable,
)

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "Backend",
    "Chosen",
    "Coefficients",
    "CovarianceType",
    "Frame",
    "Plan",
    "Precision",
    "Statistics",
    "available",
    "left",
    "module",
    "precisions",
    "ran",
    "select",
    "statistics",
    "usable",
]
