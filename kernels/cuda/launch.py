"""How the CUDA kernels are cut up, compiled and started."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclust.kernels.torch import FLOOR

SOURCES = Path(__file__).parent
STORED = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}  # names in parts.cuh
CUT = FLOOR[torch.float32] + math.log(1.5)  # as the torch backend
ROWS = 64  # of a tile, as in direct.cuh
SPAN = 16  # columns, see products.cuh

Argument = torch.Tensor | np.generic | None


def unread(stored: torch.dtype) -> str | None:
    """Say why kernels cannot read rows that are stored so; None where they can."""
    return None if stored in STORED else f"rows are {stored}, and the CUDA kernels read {', '.join(map(str, STORED))}"


@dataclass(frozen=True)
class Shape:
    """Say how a kernel of any size is cut up: columns of a tile of rows, and warps of a block, 16 components each."""

    columns: int
    warps: int
    at_most = 32  # blocks that a multiprocessor runs at once

    @property
    def components(self) -> int:
        """Components that a block treats at a time."""
        return 16 * self.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes: `Shared` of direct.cuh."""
        return 4 * ((ROWS + 3 * self.components) * (self.columns + 1) + self.components * (ROWS + 8))

    def options(self, stored: torch.dtype) -> tuple[str, ...]:
        """Return what the compiler is told."""
        return _defined(stored, COLUMNS=self.columns, WARPS=self.warps)


@dataclass(frozen=True)
class Fused:
    """Say how the kernel on tensor cores is cut up: K and D, padded, and how it reads rows; see fused.cu."""

    columns: int
    components: int
    exact: bool = False
    pack: int = 1
    warps = 4
    threads = 32 * warps
    at_most = 2

    @property
    def spans(self) -> int:
        """Constants of a component."""
        return self.columns // SPAN

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes: `Shared` of products.cuh."""
        rows = 32 * self.warps
        of_component = 4 * (self.columns // 2 + 4) + rows + 4 + self.spans
        return 4 * (rows * (self.columns + 4) + self.components * of_component)

    def options(self, stored: torch.dtype) -> tuple[str, ...]:
        """Return what the compiler is told."""
        size = {"COLUMNS": self.columns, "COMPONENTS": self.components, "SPAN": SPAN, "WARPS": self.warps}
        return _defined(stored, **size, EXACT=int(self.exact), PACK=self.pack)

    def reading(self, rows: torch.Tensor, moved: bool) -> Fused:
        """Return the cut for rows (n, D) as they are stored; moved: whether they are seen in a frame.

        16 bits have no more digits than tf32, of which float16 has as many.
        """
        one, step = rows.element_size(), rows.stride(0)
        packed = rows.stride(1) == 1 and not any(n % 4 for n in (rows.shape[1], step, rows.data_ptr() // one))
        return replace(self, exact=one == 2 and not moved, pack=4 if packed else 1)


def _defined(stored: torch.dtype, **more: int) -> tuple[str, ...]:
    defined = {"STORED": STORED[stored], "CUT": f"{CUT:.8f}f", **more}
    return *(f"-D{name}={value}" for name, value in defined.items()), f"-I{SOURCES}"


def fused_of(k: int, d: int, limits: Limits) -> Fused | None:
    """Return how K components of D features are cut up for tensor cores; None where they do not fit, or are not there.

    Blocks of 99 KiB, as of compute capability 8.6, 8.9 and 12.0, have room for 56 components of more than 32 features.
    """
    if max(k, d) > 64 or not limits.tf32:
        return None
    cut = Fused(max(16, 1 << (d - 1).bit_length()), -(-k // 8) * 8)
    return cut if cut.shared_bytes <= limits.block_bytes else None


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
    """What a device has: multiprocessors, shared memory, in bytes, of one of them and of a block, products of tf32."""

    multiprocessors: int
    shared_bytes: int
    block_bytes: int
    tf32: bool

    def at_once(self, shape: Shape | Fused) -> int:
        """Return how many blocks of a kernel run at once."""
        fit = self.shared_bytes // (shape.shared_bytes + 1024)
        return self.multiprocessors * min(max(fit, 1), shape.at_most)


def limits_of(device: torch.device) -> Limits:
    """Return what a device has."""
    about = torch.cuda.get_device_properties(device)
    return Limits(
        about.multi_processor_count,
        about.shared_memory_per_multiprocessor,
        about.shared_memory_per_block_optin,
        about.major >= 8,
    )


def tiles_of(n: int) -> int:
    """Return how many tiles N rows are."""
    return -(-n // ROWS)


def empty(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate what a kernel reads or writes: tests put NaN there first."""
    return torch.empty(size, dtype=dtype, device=device)


def start(name: str, shape: Shape | Fused, grid: tuple[int, int], rows: torch.Tensor, *more: Argument) -> None:
    """Start a kernel on torch's current stream of the device that rows (n, D) are on.

    Its arguments are rows, n, their strides and D, and more; tensors go by address, None as null.
    """
    import cupy

    index = rows.device.index
    own = rows, np.int64(len(rows)), *(np.int64(stride) for stride in rows.stride()), np.int32(rows.shape[1])
    by_value = tuple(
        np.uint64(one.data_ptr()) if isinstance(one, torch.Tensor) else np.uint64(0) if one is None else one
        for one in (*own, *more)
    )
    with cupy.cuda.Device(index), cupy.cuda.Stream.from_external(torch.cuda.current_stream(rows.device)):
        kernel = _kernel(name, shape, rows.dtype, index)
        kernel(grid, (shape.threads,), by_value, shared_mem=shape.shared_bytes)


@cache
def _kernel(name: str, shape: Shape | Fused, stored: torch.dtype, index: int) -> Any:
    """Compile a kernel for the current device, whose index is given."""
    import cupy

    source = (SOURCES / f"{name}.cu").read_text(encoding="utf-8")
    # CuPy keeps what it compiled, by source and options: it does not look at what a source includes.
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cuh")))
    included = f"-DINCLUDED={zlib.crc32(headers)}u"
    module = cupy.RawModule(code=source, options=(*shape.options(stored), included), backend="nvrtc")
    kernel = module.get_function(name)
    kernel.max_dynamic_shared_size_bytes = shape.shared_bytes
    return kernel
