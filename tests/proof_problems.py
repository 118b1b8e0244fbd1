"""Problems at random for proofs of kernels: rows as fits have them, and the coefficients that such rows lead to."""

from __future__ import annotations

import numpy as np
import torch
from conftest import blobs, relu_features

from fastclust.kernels import Coefficients, Frame, reference

KINDS = ("full", "tied", "diag", "spherical")
Given = tuple[torch.Tensor, Coefficients, Frame, torch.Tensor | None]
WIDE = torch.float64


def at_random(seed: int, kind: str) -> Given:
    """Return rows, coefficients, frame and weights: blobs, features after a ReLU, on scales from 1e-3 to 1e3, or far
    from the origin; float32, float16 or bfloat16; components of mixed groups, or on a row, dead channels at 1e6."""
    random = np.random.default_rng(seed)
    n, d, k = int(random.integers(1, 300)), int(random.integers(1, 24)), int(random.integers(1, 12))
    values = relu_features(n, max(d, 4), seed)[:, :d] if seed % 3 == 0 else blobs(n, d, 4, seed)
    if seed % 3 == 1:
        values = values * 10 ** random.uniform(-3, 3)
    elif random.random() < 0.5:
        values = values + 10 ** random.uniform(0, 4)
    rows = torch.from_numpy(values).to((torch.float32, torch.float16, torch.bfloat16)[int(random.integers(3))])
    rows = rows if bool(rows.isfinite().all()) else torch.from_numpy(values).float()
    frame = Frame()
    if random.random() < 0.5:
        shift = rows.double().mean(0).float().double() if random.random() < 0.8 else None
        frame = Frame(shift, 1 / (rows.double().std(0) + 0.1) if random.random() < 0.5 and n > 1 else None)
    y = frame.read(rows, torch.empty(rows.shape, dtype=WIDE))
    r = torch.from_numpy(random.dirichlet([0.1] * k, size=n))
    sums = reference.moments(rows, r, "full", torch.zeros(k, d, dtype=WIDE), frame, WIDE)
    nk = sums.nk + 1e-10
    means = sums.sx / nk[:, None]
    covariance = sums.sxx / nk[:, None, None] - means[:, :, None] * means[:, None]
    if random.random() < 0.3:
        means = y[torch.from_numpy(random.integers(n, size=k))].clone()
    variance = covariance.diagonal(dim1=1, dim2=2).clamp(min=0) + 1e-6
    if kind == "diag":
        precision, half = 1 / variance, -0.5 * variance.log().sum(1)
    elif kind == "spherical":
        precision, half = 1 / variance.mean(1), -0.5 * d * variance.mean(1).log()
    else:
        covariance = covariance if kind == "full" else covariance.mean(0, keepdim=True)
        short = (1e-6 - torch.linalg.eigvalsh(covariance)[:, 0]).clamp(min=0) + 1e-6
        root = torch.linalg.inv(torch.linalg.cholesky(covariance + short[:, None, None] * torch.eye(d)))
        half = root.diagonal(dim1=1, dim2=2).log().sum(1).expand(k).contiguous()
        precision = root if kind == "full" else root[0]
    offset = half + torch.from_numpy(np.log(random.dirichlet([1.0] * k) + 1e-8))
    weights = torch.from_numpy(random.integers(0, 3, size=n).astype(float)) if random.random() < 0.4 else None
    return rows, Coefficients(kind, offset, means, precision), frame, weights
