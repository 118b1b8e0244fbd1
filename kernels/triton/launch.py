"""What every launch of a Triton kernel needs: outputs, the frame, weights, and which parts products are split in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton

from fastclust.kernels.contract import Frame
from fastclust.kernels.triton import common

INTERPRETED = not isinstance(common.split, triton.JITFunction)
SCRATCH_BYTES = 256 << 20


def empty(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate what a kernel writes: tests put NaN there first."""
    return torch.empty(size, dtype=dtype, device=device)


def on_device_of(rows: torch.Tensor) -> AbstractContextManager[object]:
    """Return the context in which kernels start on the device of rows."""
    return torch.cuda.device(rows.device) if rows.is_cuda else nullcontext()


def frame_of(frame: Frame, device: torch.device) -> common.Frame:
    """Return a frame as kernels read it."""
    parts = (frame.shift, frame.scale)
    return common.Frame(*(torch.zeros(1, device=device) if p is None else p.float().contiguous() for p in parts))


def parts(fast: bool) -> int:
    """Return FAST, what kind of parts a number is split in; see `common`."""
    if fast:
        return common.BFLOAT16_ON_CPU if INTERPRETED else common.BFLOAT16
    return common.TF32_ON_CPU if INTERPRETED else common.TF32


def exact(stored: torch.dtype, fast: bool) -> bool:
    """Return whether a row as it is stored has no more digits than one part: 8 of bfloat16, 11 of tf32."""
    return stored == torch.bfloat16 or (stored == torch.float16 and not fast)


def split_in_two(values: torch.Tensor, fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 values as a sum of two parts, to nearest: bfloat16 where fast, else float32 of ten bits."""
    if fast:
        high = values.bfloat16()
        return high, (values - high.double()).bfloat16()
    high = _rounded(values.float())
    return high, _rounded((values - high.double()).float())


def _rounded(values: torch.Tensor) -> torch.Tensor:
    bits = values.contiguous().view(torch.int32)
    return torch.where(values.isfinite(), (bits + 0x1000) & -0x2000, bits).view(torch.float32)


def padded(values: torch.Tensor, *size: int, fill: float = 0.0) -> torch.Tensor:
    """Return values in the first places of a tensor of a size, and fill in the others."""
    out = torch.full(size, fill, dtype=values.dtype, device=values.device)
    out[tuple(slice(n) for n in values.shape)] = values
    return out


def scratch_rows(k: int) -> int:
    """Return how many rows of ln rho are kept at once where they are kept at all."""
    return max(SCRATCH_BYTES // (4 * k), 1)
