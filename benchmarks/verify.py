r"""Hold the statistics of one pass against the float64 oracle, each relative to a scale that means something.

A number relative to itself says nothing where it is next to zero (a dead channel, an empty component), and relative to
the largest of its array it passes where only the largest is right. So the scale is that of the component and the
channel. With c_k the reference point of the statistics, m_k and sigma_kd^2 the mean and variance of the components that
made the E-step, and w_k = max(nk, 1), so that what belongs to less than one row is judged as one row's:

    nk          w_k
    sx          w_k sqrt(s_kd),   s_kd = (m_kd - c_kd)^2 + sigma_kd^2, a row's second moment
    sxx         w_k sqrt(s_kd s_ke); for diag d = e; for spherical its sum over d
    log_norm    one nat a row: the quantity itself depends on the unit of the features
    entropy     itself, but at least 0.01 nats a row, where the tolerance is a hundredth of the default `tol`

No scale is zero, since every variance has the prior and reg_covar in it. The worst entry counts, and one that is not a
number is infinitely wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import torch

from fastclust import engine
from fastclust.blocks import Blocks
from fastclust.kernels import Coefficients, Frame, Statistics, reference
from fastclust.rows import Rows
from fastclust.variational import Posterior

TOLERANCE = 1e-4
ORACLE_BYTES = 64 << 20  # of one N x K x D array of the oracle; it holds a few
ORACLE_ROWS = 200_000  # more are verified on an even subset of about this many
LEAST_ENTROPY = 0.01  # nats a row


def check(rows: Rows, posterior: Posterior, X: np.ndarray) -> dict[str, float | int | dict[str, float]]:
    """Return how far one pass of the rows' backend is from the oracle, and what the oracle says of the state.

    rows: as the fit has them. X: (N, D), what they are rows of. Beyond ORACLE_ROWS rows, both sides see every
    second, third ... row; `verified_rows` says how many.
    """
    some = X[:: -(-len(X) // ORACLE_ROWS)]
    rows = replace(rows, blocks=Blocks(np.ascontiguousarray(some), rows.blocks.device))
    found = rows.statistics(engine.coefficients(posterior))
    return judge(found, rows.blocks, rows.frame, posterior)


def judge(
    found: Statistics, blocks: Iterable[torch.Tensor], frame: Frame, posterior: Posterior
) -> dict[str, float | int | dict[str, float]]:
    """Return how far statistics of some rows are from the oracle's.

    blocks: (n, D), the rows, on the device of the frame and the posterior. found: on any device.
    """
    expected = on_host(oracle(blocks, frame, engine.coefficients(posterior)))
    second = (posterior.m.cpu() - expected.about) ** 2 + variances(posterior).cpu()  # (K, D)
    found = on_host(found)
    verified = round(float(expected.nk.sum()))
    return {
        "verified_rows": verified,
        "errors": errors(found, expected.moved(found.about), second),
        "entropy_per_row": float(expected.entropy) / verified,
        "components_above_one_row": int((expected.nk >= 1).sum()),
    }


def on_host(statistics: Statistics) -> Statistics:
    """Return statistics on the CPU."""
    return replace(statistics, **{name: part.cpu() for name, part in vars(statistics).items() if part is not None})


def oracle(blocks: Iterable[torch.Tensor], frame: Frame, coefficients: Coefficients) -> Statistics:
    """Return the statistics of all rows in float64, from blocks (n, D) cut so small that N x K x D is too."""
    step = max(1, ORACLE_BYTES // (8 * coefficients.n_components * coefficients.n_features))
    parts = (
        reference.statistics(part, coefficients, frame, torch.float64)
        for block in blocks
        for part in torch.split(block, step)
    )
    return reduce(add, parts)


def variances(posterior: Posterior) -> torch.Tensor:
    """Return the variance of each component in each channel (K, D)."""
    covariances = posterior.covariances
    if posterior.covariance_type == "full":
        covariances = covariances.diagonal(dim1=1, dim2=2)
    elif posterior.covariance_type == "tied":
        covariances = covariances.diagonal()
    elif posterior.covariance_type == "spherical":
        covariances = covariances[:, None]
    return covariances.expand_as(posterior.m)


def errors(found: Statistics, expected: Statistics, second: torch.Tensor) -> dict[str, float]:
    """Return the worst error of each statistic on the scale that the module states.

    second: (K, D), a row's second moment about the oracle's reference points.
    """
    rows = float(expected.nk.sum())
    w = expected.nk.clamp(min=1.0)
    worst = {
        "nk": _worst(found.nk, expected.nk, w),
        "sx": _worst(found.sx, expected.sx, w[:, None] * second.sqrt()),
        "log_norm": _worst(found.log_norm, expected.log_norm, torch.tensor(rows)),
        "entropy": _worst(found.entropy, expected.entropy, expected.entropy.clamp(min=LEAST_ENTROPY * rows)),
    }
    if expected.sxx is not None:
        scale = w[:, None] * second
        if expected.sxx.ndim == 1:
            scale = scale.sum(1)
        elif expected.sxx.ndim == 3:
            scale = w[:, None, None] * second.sqrt()[:, :, None] * second.sqrt()[:, None, :]
        found_sxx = torch.full_like(expected.sxx, math.nan) if found.sxx is None else found.sxx
        worst["sxx"] = _worst(found_sxx, expected.sxx, scale)
    return worst


def _worst(found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    worst = float(((found - expected).abs() / scale).max())
    return math.inf if math.isnan(worst) else worst


def beyond_tolerance(errors: dict[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """Return the statistics whose error is not within a tolerance, each with its error."""
    return [f"{name}: {error:.1e}" for name, error in errors.items() if not error <= tolerance]
