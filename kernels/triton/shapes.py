"""How the Triton kernels are cut up: blocks and programs, from a formula of shared memory and registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

HELD = 64 * 64  # coefficients that stay on the chip: with both parts of each, 64 KiB
SHARED_BYTES = 227 << 10  # of a program, on sm_90
FUSED = 128  # components or features of the fused path, at most
INTERPRETED_PROGRAMS = 3


@dataclass(frozen=True)
class Tuning:
    """Say what a measurement wants otherwise than the formulae do; None for what they choose.

    flush: tiles whose sums are float32 before they go to float64.
    rows: of a tile. columns: that are read at once. warps: of a program.
    """

    flush: int = 8
    rows: int | None = None
    columns: int | None = None
    warps: int | None = None


USUAL = Tuning()


@dataclass(frozen=True)
class Shape:
    """Say how a kernel is cut up: rows, columns and components of a block, all powers of two.

    components, width: K and D, padded. columns: read at once for ln rho. part: columns of a program's sums.
    """

    components: int
    width: int
    rows: int
    columns: int
    part: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """Return the compiler's options; what it may fuse is only ever more exact here."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def shared_bytes(self, diag: bool) -> int:
        """Return the shared memory of a program: both parts of a table, float32, and those of responsibilities.

        Tables that are read again for every tile make room for responsibilities; 4 KiB are for changes of layout.
        """
        tables = (4 if diag else 2) * 4 * self.columns * self.components
        shares = 2 * 4 * self.rows * self.components
        both = tables + shares if self.columns == self.width else max(tables, shares)
        return both + 4096


def power(n: int) -> int:
    """Return the least power of two that is not below n: blocks of products have 16 rows and columns or more."""
    return max(1 << (n - 1).bit_length(), 16)


def fits(k: int, d: int) -> bool:
    """Return whether the fused kernels take K components of D features."""
    return max(k, d) <= FUSED


def fused_shape(k: int, d: int, diag: bool, most: int, tuning: Tuning = USUAL) -> Shape:
    """Return how the fused kernels are cut up for K components of D features.

    most: bytes of shared memory that a program may have. Coefficients stay there for the whole pass where K D is small
    enough, and are read again for every tile, some columns at a time, where it is not.
    Raises RuntimeError where the device has too little for the smallest cut.
    """
    components, width = power(k), power(d)
    held = components * width <= HELD
    columns = min(width, tuning.columns or (width if held else HELD // components))
    part, warps = (width, 4) if held else (min(width, 64), 8 if components > 64 else 4)
    rows, warps = tuning.rows or 64, tuning.warps or warps
    while True:
        shape = Shape(components, width, rows, columns, part, warps, 1)
        if shape.shared_bytes(diag) <= most:
            return shape
        if columns == 16:
            raise RuntimeError(
                f"K = {k} components of D = {d} features need {shape.shared_bytes(diag)} bytes of shared memory a "
                f"program ({shape}), and the device has {most}: use backend='torch'"
            )
        columns, part = columns // 2, min(part, 64)


def tiled_shape(k: int, d: int, tuning: Tuning = USUAL) -> Shape:
    """Return how the tiled kernels are cut up: blocks of 64 x 64 x 64, or less where there is less."""
    columns, block = min(power(d), tuning.columns or 64), min(power(k), 64)
    return Shape(block, -(-d // columns) * columns, tuning.rows or 64, columns, columns, tuning.warps or 4, 1)


def full_shape(d: int, tuning: Tuning = USUAL) -> Shape:
    """Return how ln rho of full covariance is cut up: R_k in blocks of 32 columns, so that 3 of 4 are multiplied."""
    columns = min(power(d), tuning.columns or 32)
    return Shape(1, -(-d // columns) * columns, tuning.rows or 128, columns, columns, tuning.warps or 4, 2)


def shared_bytes_of(device: torch.device) -> int:
    """Return the shared memory that a program may have."""
    if device.type != "cuda":
        return SHARED_BYTES
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def programs_on(device: torch.device, waves: int = 1) -> int:
    """Return how many programs keep every multiprocessor busy with some."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return waves * torch.cuda.get_device_properties(device).multi_processor_count


def programs_of(device: torch.device, shape: Shape, diag: bool) -> int:
    """Return how many persistent programs there are: what fits the multiprocessors at once."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    about = torch.cuda.get_device_properties(device)
    by_memory = about.shared_memory_per_multiprocessor // (shape.shared_bytes(diag) + 1024)
    by_registers = about.regs_per_multiprocessor // (255 * 32 * shape.warps)
    return about.multi_processor_count * max(min(by_memory, by_registers), 1)
