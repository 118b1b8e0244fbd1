"""How the CUDA kernels are cut up, compiled and started, and how the sums that their blocks leave become statistics."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.cupy import STORED
from fastclust.kernels.torch import FLOOR

SOURCES = Path(__file__).parent / "cuda"
CUT = FLOOR[torch.float32] + math.log(1.5)  # as the torch backend
ROWS = 64  # of a tile, as in cuda/parts.cuh
SUMS_BYTES = 1 << 30  # of the blocks' sums, where K D is so large that they come to that

Argument = torch.Tensor | np.generic | None


@dataclass(frozen=True)
class Shape:
    """Say how a kernel is cut up: columns of a tile of rows, and warps of a block, of 16 components each."""

    columns: int
    warps: int

    @property
    def components(self) -> int:
        """Components that a block treats at a time."""
        return 16 * self.warps

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes: `Shared` of cuda/parts.cuh."""
        return 4 * ((ROWS + 3 * self.components) * (self.columns + 1) + self.components * (ROWS + 8))

    def options(self, stored: torch.dtype) -> tuple[str, ...]:
        """Return what the compiler is told."""
        defined = {"STORED": STORED[stored], "COLUMNS": self.columns, "WARPS": self.warps, "CUT": f"{CUT:.8f}f"}
        return *(f"-D{name}={value}" for name, value in defined.items()), f"-I{SOURCES}"


def shape_of(k: int, d: int, most: int) -> Shape:
    """Return how the kernels are cut up for K components of D features: as little padding as may be.

    most: bytes of shared memory that a block may have; where it is too little for 64 columns of 64 components, there
    are fewer columns, then fewer components.
    Raises RuntimeError where it is too little for the smallest cut.
    """
    columns = [64, 32] if d > 32 else [32]
    warps = [w for w in (4, 2, 1) if w == 1 or 8 * w < k]
    for shape in (Shape(c, w) for w in warps for c in columns):
        if shape.shared_bytes <= most:
            return shape
    raise RuntimeError(
        f"K = {k} components of D = {d} features need {shape.shared_bytes} bytes of shared memory a block ({shape}), "
        f"and the device has {most}: use backend='torch'"
    )


@dataclass(frozen=True)
class Limits:
    """What a device has: multiprocessors, and shared memory, in bytes, of one of them and of a block."""

    multiprocessors: int
    shared_bytes: int
    block_bytes: int


def _limits(device: torch.device) -> Limits:
    about = torch.cuda.get_device_properties(device)
    return Limits(
        about.multi_processor_count, about.shared_memory_per_multiprocessor, about.shared_memory_per_block_optin
    )


def blocks_of(n: int, shape: Shape, limits: Limits) -> int:
    """Return how many blocks share the tiles of N rows: as many as run at once, none without a tile."""
    resident = limits.multiprocessors * max(limits.shared_bytes // (shape.shared_bytes + 1024), 1)
    return max(min(-(-n // ROWS), resident), 1)


def sums(rows: torch.Tensor, coefficients: Coefficients, frame: Frame, weights: torch.Tensor | None) -> Statistics:
    """Return the statistics of rows (N, D), about the means in float32; the host does not wait for them."""
    (n, d), k, device = rows.shape, coefficients.n_components, rows.device
    limits = _limits(device)
    shape = shape_of(k, d, limits.block_bytes)
    rounds = -(-k // shape.components)
    blocks = max(min(-(-blocks_of(n, shape, limits) // rounds), SUMS_BYTES // (16 * k * d)), 1)
    _, peaks, totals = labels(rows, coefficients, frame) if rounds > 1 else (None, None, None)
    w = None if weights is None else weights.to(torch.float32)
    nk, moments, scalars = (
        _empty(*size, dtype=torch.float64, device=device)
        for size in ((blocks, k), (blocks, 2, k, d), (2, blocks, rounds, 32 * shape.warps))
    )
    table = _table(coefficients)
    given = (w, np.int64(0 if w is None else w.stride(0)), *table, peaks, totals, nk, moments, scalars)
    _launch("statistics", shape, (blocks, rounds), rows, (*_rows(rows, frame), *given, *_sizes(n, d, k)))
    sx, sxx = moments.sum(0)
    log_norm, entropy = scalars.sum((1, 2, 3))
    squares = sxx if coefficients.covariance_type == "diag" else sxx.sum(1)
    return Statistics(nk.sum(0), sx, squares, log_norm, entropy, about=table[1].double())


def labels(
    rows: torch.Tensor, coefficients: Coefficients, frame: Frame
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return labels (N,) int32, and (N,) float32 the largest ln rho of a row and sum rho over that largest one."""
    (n, d), k, device = rows.shape, coefficients.n_components, rows.device
    limits = _limits(device)
    shape = shape_of(k, d, limits.block_bytes)
    found = _empty(n, dtype=torch.int32, device=device)
    peaks, totals = (_empty(n, dtype=torch.float32, device=device) for _ in range(2))
    given = (*_rows(rows, frame), *_table(coefficients), found, peaks, totals, *_sizes(n, d, k))
    _launch("assign", shape, (blocks_of(n, shape, limits), 1), rows, given)
    return found, peaks, totals


def _empty(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate what a kernel writes: tests put NaN there first."""
    return torch.empty(size, dtype=dtype, device=device)


def _rows(rows: torch.Tensor, frame: Frame) -> tuple[Argument, ...]:
    """Return rows, their strides, shift and scale as kernels take them."""
    strides = (np.int64(stride) for stride in rows.stride())
    return rows, *strides, *(part if part is None else part.float().contiguous() for part in (frame.shift, frame.scale))


def _sizes(n: int, d: int, k: int) -> tuple[Argument, ...]:
    return np.int64(n), np.int32(d), np.int32(k)


def _table(coefficients: Coefficients) -> tuple[torch.Tensor, ...]:
    """Return offset (K,), mean, root and rest (K, D), all float32; see cuda/parts.cuh. The host does not wait."""
    m, precision = coefficients.means, coefficients.precision
    root = (precision if coefficients.covariance_type == "diag" else precision[:, None]).sqrt().expand_as(m)
    mean = m.float()
    table = coefficients.offset, mean, root, (mean.double() - m) * root
    return tuple(part.to(torch.float32).contiguous() for part in table)


def _launch(
    name: str, shape: Shape, grid: tuple[int, int], rows: torch.Tensor, arguments: tuple[Argument, ...]
) -> None:
    """Start a kernel on torch's current stream of the device that rows are on; tensors go by address, None as null."""
    import cupy

    index = rows.device.index
    by_value = tuple(
        np.uint64(one.data_ptr()) if isinstance(one, torch.Tensor) else np.uint64(0) if one is None else one
        for one in arguments
    )
    with cupy.cuda.Device(index), cupy.cuda.Stream.from_external(torch.cuda.current_stream(rows.device)):
        kernel = _kernel(name, shape, rows.dtype, index)
        kernel(grid, (32 * shape.warps,), by_value, shared_mem=shape.shared_bytes)


@cache
def _kernel(name: str, shape: Shape, stored: torch.dtype, index: int) -> Any:
    """Compile a kernel for the current device, whose index is given."""
    import cupy

    source = (SOURCES / f"{name}.cu").read_text(encoding="utf-8")
    # CuPy keeps what it compiled, by source and options: it does not look at what a source includes.
    included = f"-DINCLUDED={zlib.crc32((SOURCES / 'parts.cuh').read_bytes())}u"
    module = cupy.RawModule(code=source, options=(*shape.options(stored), included), backend="nvrtc")
    kernel = module.get_function(name)
    kernel.max_dynamic_shared_size_bytes = shape.shared_bytes
    return kernel
