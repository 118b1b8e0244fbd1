"""Triton on CUDA: spherical and diag read rows as stored, once, and keep everything else on the chip.

What has no kernel here goes to the torch backend: full and tied covariance, and arithmetic or rows in float64;
`why_not` says so, and one line is logged. Sums of programs are added in float64 in a fixed order, so that two runs
agree bit for bit.

K and D up to 128 take one kernel (`triton_fused`), larger ones three (`triton_tiled`). relu1_2 of VGG-19 on a histology
tile, 2007 rows of 64 features, K = 50, a pass against the oracle, in the interpreter, which rounds as split products do
but adds in another order than a GPU:

                                    diag, high   diag, fast   spherical, high   spherical, fast
    largest error of a statistic    3e-6         1e-4         4e-7              5e-5    of the largest in it
    nk of a component, relative     6e-6         3e-4         7e-6              3e-4    where nk > 1
    variance, in units of 1/lambda  8e-4         1e-2         4e-6              2e-3

and the torch backend in float32: 2e-6, 1e-5, 5e-4 for diag, 3e-7, 5e-6, 1e-5 for spherical. No label differs.

All of it has run in Triton's interpreter (TRITON_INTERPRET=1, for tests) and compiles for sm_90 with its products on
tensor cores, wgmma, in Triton 3.9; no GPU has run it. The assembler reports 580 bytes of spilled registers for diag at
K = 50, D = 64, most of them outside the loop over tiles, and none for `assign`. Triton is imported when it is first
needed: a second that a run on the CPU need not spend.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache, reduce
from operator import add

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Statistics
from fastclust.kernels.triton_shapes import fits

STORED = (torch.float32, torch.float16, torch.bfloat16)

log = logging.getLogger("fastclust")


def unavailable(device: torch.device) -> str | None:
    """Say why there is no Triton on a device: it needs CUDA, or its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != ("cpu" if interpreted else "cuda"):
        return "TRITON_INTERPRET is set, for tests on the CPU" if interpreted else "needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from fastclust.kernels import triton_launch

    if interpreted != triton_launch.INTERPRETED:
        return "TRITON_INTERPRET was changed after triton was imported"
    return None


def why_not(covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> str | None:
    """Say why the torch backend takes a covariance type, arithmetic in dtype or rows stored so; None if it does not."""
    if covariance_type not in ("diag", "spherical"):
        return f"{covariance_type} covariance has no Triton kernel"
    if dtype != torch.float32:
        return f"arithmetic in {dtype} was asked for, and the Triton kernels compute in float32"
    return None if stored in STORED else f"rows are {stored}, and the Triton kernels read {STORED}"


@cache
def _tell(reason: str) -> None:
    log.info("backend triton leaves this to the torch backend: %s", reason)


def _left(covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> bool:
    reason = why_not(covariance_type, dtype, stored)
    if reason is not None:
        _tell(reason)
    return reason is not None


def _fast(precision: str) -> bool:
    if precision not in ("high", "fast"):
        raise ValueError(f"precision must be 'high' or 'fast', and was {precision!r}")
    return precision == "fast"


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
    precision: str = "high",
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients; see the backend protocol.

    precision: of matrix products, "high", three terms of tf32, or "fast", three of bfloat16.
    """
    if _left(coefficients.covariance_type, dtype, rows.dtype):
        return plain.statistics(rows, coefficients, frame, dtype, weights, block_rows)
    from fastclust.kernels import triton_launch as launch

    fast = _fast(precision)
    if fits(*coefficients.means.shape):
        return launch.fused_sums(rows, coefficients, frame, weights, fast)
    size = block_rows or launch.scratch_rows(coefficients.n_components)
    return reduce(
        add,
        (
            launch.tiled_sums(
                rows[low : low + size],
                coefficients,
                frame,
                None if weights is None else weights[low : low + size],
                fast,
            )
            for low in range(0, len(rows), size)
        ),
    )


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol."""
    if _left(covariance_type, dtype, rows.dtype):
        return plain.moments(rows, responsibilities, covariance_type, about, frame, dtype)
    from fastclust.kernels import triton_launch as launch

    return launch.given_sums(rows, responsibilities, covariance_type == "diag", about, frame)


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
    precision: str = "high",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    if _left(coefficients.covariance_type, dtype, rows.dtype):
        return plain.assign(rows, coefficients, frame, dtype, block_rows)
    from fastclust.kernels import triton_launch as launch

    fast = _fast(precision)
    if fits(*coefficients.means.shape):
        return launch.fused_labels(rows, coefficients, frame, fast)
    terms = launch.tiled_terms(coefficients, fast)
    size = block_rows or launch.scratch_rows(coefficients.n_components)
    parts = [
        launch.tiled_labels(launch.tiled_logits(rows[low : low + size], coefficients, frame, terms, fast))
        for low in range(0, len(rows), size)
    ]
    return torch.cat([labels for labels, _ in parts]), torch.cat([density for _, density in parts])


def responsibilities(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
    precision: str = "high",
) -> torch.Tensor:
    """Return the responsibilities (N, K)."""
    if _left(coefficients.covariance_type, dtype, rows.dtype):
        return plain.responsibilities(rows, coefficients, frame, dtype, block_rows)
    from fastclust.kernels import triton_launch as launch

    fast = _fast(precision)
    terms = launch.tiled_terms(coefficients, fast)
    shares = launch.tiled_logits(rows, coefficients, frame, terms, fast)
    launch.tiled_shares(shares, -torch.inf)  # no floor: what is shown to a user underflows to zero
    return shares
