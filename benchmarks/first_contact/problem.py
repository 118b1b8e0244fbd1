"""A small problem whose answer is known, and how far statistics are from the oracle's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.data import relu
from fastclust.kernels import Coefficients, CovarianceType, Statistics


def small(n: int, d: int, k: int, kind: CovarianceType) -> tuple[torch.Tensor, Coefficients]:
    """Return rows (n, d) float64 and coefficients under which most rows have several components."""
    random = np.random.default_rng(0)
    rows = relu(n, d).astype(np.float64)
    means = rows[random.integers(n, size=k)] + 0.2 * random.normal(size=(k, d))
    wide = 3.0 * d**0.5
    if kind == "diag":
        precision = random.lognormal(sigma=0.5, size=(k, d)) / wide
    elif kind == "spherical":
        precision = random.lognormal(sigma=0.5, size=k) / wide
    else:
        precision = np.tril(random.normal(size=(k, d, d)) * 0.3 / d**0.5 + np.eye(d)) / wide**0.5
        precision = precision if kind == "full" else precision[0]
    offset = torch.from_numpy(random.normal(size=k))
    return torch.from_numpy(rows), Coefficients(kind, offset, torch.from_numpy(means), torch.from_numpy(precision))


def on(device: torch.device, coefficients: Coefficients) -> Coefficients:
    """Return coefficients on a device."""
    parts = {name: getattr(coefficients, name).to(device) for name in ("offset", "means", "precision")}
    return replace(coefficients, **parts)


def about_origin(statistics: Statistics) -> Statistics:
    """Return statistics on the CPU, about the frame's origin."""
    here = replace(statistics, **{name: part.cpu() for name, part in vars(statistics).items() if part is not None})
    return here.moved(torch.zeros_like(here.about))


def errors(found: Statistics, expected: Statistics) -> dict[str, float]:
    """Return the largest difference of each statistic about the origin, over the largest number that is expected.

    The entropy's is per row. What is no number is infinitely wrong.
    """
    mine, theirs = about_origin(found), about_origin(expected)
    worst = {}
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        one, other = getattr(mine, name), getattr(theirs, name)
        if other is None:
            continue
        scale = float(theirs.nk.sum()) if name == "entropy" else float(other.abs().max()) or 1.0
        worst[name] = apart(one, other) / scale
    return worst


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, infinite where there is none to speak of."""
    if one.shape != other.shape:
        return float("inf")
    found = float((one.double() - other.double()).abs().max())
    return found if found == found else float("inf")
