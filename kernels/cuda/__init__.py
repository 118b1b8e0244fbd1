"""CUDA C++ through CuPy, wherever CUDA is and Triton is not: spherical and diag read rows as they are stored.

The kernels are the .cu files here, compiled by NVRTC when they are first needed. What has no kernel goes to the torch
backend: full and tied covariance, arithmetic or rows in float64, moments of given responsibilities, and
responsibilities themselves, which a fit asks for once. `why_not` says so, and one line is logged.

Arithmetic is float32 on CUDA cores, y - m taken before it is squared for all components, and sums of more than 64 rows
are float64, in a fixed order: two runs agree bit for bit. There is one arithmetic: `precision` changes nothing. With K
up to 64 and D up to 64 a row is read once; more columns are read twice, and where there are more components ln rho is
computed twice: for the softmax, then for the moments of 64 components at a time.

Tests run the same sources on the CPU, a thread of the chip after another, against the oracle, and compile them:
the assembler reports no spilled registers, for sm_75 to sm_120. No GPU has run them.

relu1_2 of VGG-19 on a histology tile, 2008 rows of 64 features, K = 50 after 40 passes, a pass against the oracle, on
the CPU, and the torch backend in float32, which takes tight components in float64:

                                    diag     torch    spherical   torch
    largest error of a statistic    2e-7     2e-7     3e-7        1e-6     of the largest in it
    nk of a component, relative     2e-6     3e-6     1e-6        5e-6     where nk > 1
    variance, in units of 1/lambda  3e-5     4e-5     6e-5        2e-4

No label differs.
"""

from __future__ import annotations

import importlib.util

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision, Statistics
from fastclust.kernels.cuda import plan
from fastclust.kernels.cuda.launch import unread
from fastclust.kernels.handover import left, tell

PRECISIONS: tuple[Precision, ...] = ("high",)


def unavailable(device: torch.device) -> str | None:
    """Say why there is no CuPy on a device: it needs CUDA, CuPy and NVRTC."""
    if device.type != "cuda":
        return "needs a CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed: pip install 'fastclust[cuda]'"
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()
        cupy.cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:
        return f"cupy is installed and does not work: {error}"
    return None


def why_not(covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> str | None:
    """Say why the torch backend takes a covariance type, arithmetic in dtype or rows stored so; None if it does not."""
    if covariance_type not in ("diag", "spherical"):
        return f"{covariance_type} covariance has no CUDA kernel"
    if dtype != torch.float32:
        return f"arithmetic in {dtype} was asked for, and the CUDA kernels compute in float32"
    return unread(stored)


def prepare(
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    block_rows: int | None = None,
) -> Plan:
    """Return the plan of an E-step, the torch backend's where it has no kernel; see the backend protocol."""
    if left("cupy", why_not(coefficients.covariance_type, dtype, torch.float32)):
        return plain.prepare(coefficients, frame, dtype, block_rows=block_rows)
    return plan.Plan(coefficients, frame, dtype, block_rows)


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K), by the torch backend."""
    tell("cupy", "moments of given responsibilities have no CUDA kernel")
    return plain.moments(rows, responsibilities, covariance_type, about, frame, dtype)
