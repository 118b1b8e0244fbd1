"""Triton on CUDA: rows are read as they are stored, and responsibilities never kept.

spherical, diag    K and D up to 128 take one kernel (`triton_fused`), larger ones three (`triton_tiled`).
full               ln rho of a block of rows in scratch, then the moments of the rows that each component has a part in
                   (`triton_full`); the scratch is 6 bytes a row and component, of at most SCRATCH_BYTES / 4 K rows.
tied               the same, whitened and linear, in float64 on tensor cores: what float32 does to the means, 1e-7, is a
                   hundredth of the small eigenvalues that features after a ReLU have, and a tied scatter is the
                   difference of two. So `precision` changes nothing there.

Arithmetic or rows in float64 go to the torch backend; `why_not` says so, and one line is logged. Sums of programs are
added in float64 in a fixed order, so that two runs agree bit for bit. relu1_2 of VGG-19 on a histology tile, 2007 rows
of 64 features, K = 50, a pass against the oracle, in the interpreter, which rounds as split products do but adds in
another order than a GPU:

                                    diag          spherical     full          tied
                                    high   fast   high   fast   high   fast
    largest error of a statistic    3e-6   1e-4   4e-7   5e-5   1e-6   2e-4   2e-8   of the largest in it
    nk of a component, relative     6e-6   3e-4   7e-6   3e-4   6e-7   7e-5   7e-8   where nk > 1
    variance, in units of 1/lambda  8e-4   1e-2   4e-6   2e-3   1e-5   1e-3          full: R_k S_k R_k^T / n_k

and the torch backend in float32: 2e-6, 1e-5, 5e-4 for diag, 3e-7, 5e-6, 1e-5 for spherical, 2e-6, 3e-7, 3e-6 for full,
2e-8, 6e-8 for tied. No label differs. A scatter of full covariance in split products would err by 2e-3, high, and by
4e-2, fast, in the last line's units, for the same responsibilities: it is summed in float64 in both.

All of it has run in Triton's interpreter (TRITON_INTERPRET=1, for tests) and compiles for sm_90 with its products on
tensor cores, wgmma, and mma where they are float64, in Triton 3.9; no GPU has run it. The assembler reports 580 bytes
of spilled registers for diag at K = 50, D = 64, most of them outside the loop over tiles, and none for `assign`, full
and tied. Triton is imported when it is first needed: a second that a run on the CPU need not spend.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import reduce
from operator import add

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics
from fastclust.kernels.handover import left
from fastclust.kernels.triton_shapes import fits

PRECISIONS: tuple[Precision, ...] = ("high", "fast")
STORED = (torch.float32, torch.float16, torch.bfloat16)


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
    """Say why the torch backend takes arithmetic in dtype or rows stored so, whatever the covariance; None if not."""
    if dtype != torch.float32:
        return f"arithmetic in {dtype} was asked for, and the Triton kernels compute in float32"
    return None if stored in STORED else f"rows are {stored}, and the Triton kernels read {STORED}"


def _fast(precision: Precision) -> bool:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'high' or 'fast', and was {precision!r}")
    return precision == "fast"


def _fused(coefficients: Coefficients) -> bool:
    return coefficients.covariance_type in ("diag", "spherical") and fits(*coefficients.means.shape)


def statistics(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
    precision: Precision = "high",
) -> Statistics:
    """Return the statistics of rows (N, D) under the coefficients; see the backend protocol.

    precision: of matrix products in float32, "high", three terms of tf32, or "fast", three of bfloat16.
    """
    if left("triton", why_not(coefficients.covariance_type, dtype, rows.dtype)):
        return plain.statistics(rows, coefficients, frame, dtype, weights, block_rows)
    from fastclust.kernels import triton_full_launch as full_launch
    from fastclust.kernels import triton_launch as launch

    fast, kind = _fast(precision), coefficients.covariance_type
    if _fused(coefficients):
        return launch.fused_sums(rows, coefficients, frame, weights, fast)
    if kind in ("diag", "spherical"):
        sums = launch.tiled_sums_of(coefficients, frame, fast)
    else:
        sums = full_launch.sums_of(coefficients, frame, fast)
    size = block_rows or launch.scratch_rows(coefficients.n_components)
    some = None if weights is None else torch.split(weights, size)
    blocks = torch.split(rows, size)
    return reduce(add, (sums(block, None if some is None else some[i]) for i, block in enumerate(blocks)))


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol."""
    if left("triton", why_not(covariance_type, dtype, rows.dtype)):
        return plain.moments(rows, responsibilities, covariance_type, about, frame, dtype)
    from fastclust.kernels import triton_full_launch as full_launch
    from fastclust.kernels import triton_launch as launch

    if covariance_type in ("diag", "spherical"):
        return launch.given_sums(rows, responsibilities, covariance_type == "diag", about, frame)
    return full_launch.given_sums(rows, responsibilities, covariance_type == "full", about, frame)


def assign(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
    precision: Precision = "high",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable component (N,) int32 and the log-density (N,) of each row."""
    if left("triton", why_not(coefficients.covariance_type, dtype, rows.dtype)):
        return plain.assign(rows, coefficients, frame, dtype, block_rows)
    from fastclust.kernels import triton_launch as launch

    fast = _fast(precision)
    if _fused(coefficients):
        return launch.fused_labels(rows, coefficients, frame, fast)
    log_rho = _log_rho(coefficients, frame, fast)
    size = block_rows or launch.scratch_rows(coefficients.n_components)
    parts = [launch.tiled_labels(log_rho(block)) for block in torch.split(rows, size)]
    return torch.cat([labels for labels, _ in parts]), torch.cat([density for _, density in parts])


def responsibilities(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    block_rows: int | None = None,
    precision: Precision = "high",
) -> torch.Tensor:
    """Return the responsibilities (N, K)."""
    if left("triton", why_not(coefficients.covariance_type, dtype, rows.dtype)):
        return plain.responsibilities(rows, coefficients, frame, dtype, block_rows)
    from fastclust.kernels import triton_launch as launch

    return launch.tiled_shares(_log_rho(coefficients, frame, _fast(precision))(rows)).contiguous()


def _log_rho(coefficients: Coefficients, frame: Frame, fast: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the E-step that stores ln rho: rows (N, D) to (N, K) float32."""
    from fastclust.kernels import triton_full_launch as full_launch
    from fastclust.kernels import triton_launch as launch

    linear = coefficients.covariance_type in ("diag", "spherical")
    return (launch.tiled_log_rho_of if linear else full_launch.log_rho_of)(coefficients, frame, fast)
