"""CUDA C++ through CuPy, wherever CUDA is and Triton is not: spherical and diag read rows as they are stored.

The kernels are the .cu files here, compiled by NVRTC when they are first needed. What has no kernel goes to the torch
backend: full and tied covariance, arithmetic or rows in float64, moments of given responsibilities, and
responsibilities themselves, which a fit asks for once. `why_not` says so, and one line is logged.

There are two ways. With K and D up to 64, on devices with products of tf32 (compute capability 8.0 and later), a pass
is `fused.cu`: ln rho from tensor cores, moments of the few responsibilities that are not zero from CUDA cores. Else it
is `statistics.cu`: y - m taken before it is squared, for all components; more than 64 columns are read twice, and where
there are more components ln rho is computed twice: for the softmax, then for the moments of 64 components at a time.
Labels are always from the second, `assign.cu`. There is one precision. Sums of more than a few tiles of rows are
float64, in a fixed order: two runs agree bit for bit.

Tests run the same sources on the CPU, a thread of the chip after another, against the oracle, and compile them:
the assembler finds registers for everything, but for a few numbers once a tile in fused.cu, for sm_75 to sm_120.

relu1_2 of VGG-19 on a histology tile, 2008 rows of 64 features, K = 50 after 40 passes, a pass against the oracle, on
the CPU, sums of tensor cores rounded toward zero, and the torch backend in float32, which takes tight components in
float64:

                                    diag: fused  direct  torch    spherical: fused  direct  torch
    largest error of a statistic          5e-6   1e-7    6e-7                2e-6   3e-7    9e-7     of the largest
    nk of a component, relative           6e-6   2e-7    1e-6                4e-6   5e-7    2e-6     where nk > 1

For H100 nvcc's fused kernel of 64 x 50 has, for 64 rows a multiprocessor, 2700 issue slots where 2.4 responsibilities a
row are not zero, 300 more with two tight components, and 2150 cycles of tensor cores, if those run at the 62 % of their
rate that is reported of mma.sync there; the direct one has 6144 of float32 arithmetic alone. No GPU has run either.
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
