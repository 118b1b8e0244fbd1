"""What rows can come from: something two-dimensional that is sliced by rows, looked at without a copy where it can be.

A part is a NumPy array or memory map, a torch tensor, an h5py dataset, or rows that are computed when they are asked
for. The last have, besides `shape` and `dtype` (NumPy's):

    bounds            increasing (n + 1,) int64, from 0 to the number of rows: where they are best cut
    part[low:high]    the rows as a tensor (high - low, D) on `device`
    between(low, high)    the same rows, still to be computed, as a part of their own; low and high are bounds
    fingerprint       a text that tells these rows from others

Pages of a mapped file count as this process's memory once they have been read. So what has been read is let go again,
which leaves it in the system's cache of the file, and what comes next is asked for ahead (measured: a pass over float16
rows in that cache takes no longer than over the same rows in an array).
"""

from __future__ import annotations

import mmap
import warnings
from inspect import getattr_static
from typing import Any

import numpy as np
import torch

TORCH = {np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def two_dimensional(part: Any) -> Any:
    """Return something to take rows from as a part: itself, or a NumPy array.

    Raises ValueError where it is not two-dimensional, or complex, and TypeError where it holds no real numbers.
    """
    if isinstance(part, torch.Tensor):
        part = part.detach()
    if not isinstance(part, (np.ndarray, torch.Tensor)) and not is_file(part) and not is_computed(part):
        part = np.asarray(part)
    if len(part.shape) != 2:
        raise ValueError(
            f"expected a 2D array of rows and features, got shape {tuple(part.shape)} instead; "
            "reshape your data with .reshape(-1, 1) if it has one feature, or .reshape(1, -1) if it is one row"
        )
    real = not part.is_complex() if isinstance(part, torch.Tensor) else part.dtype.kind in "fiub"
    if not real:
        if getattr(part.dtype, "kind", "c") == "c":
            raise ValueError(f"complex data not supported: expected real numbers, got {part.dtype}")
        raise TypeError(f"expected an array of real numbers, got dtype {part.dtype}")
    return part


def is_file(part: Any) -> bool:
    """Say whether a part is an h5py dataset, or what is like one: it can be sliced, and nothing else."""
    return not isinstance(part, (np.ndarray, torch.Tensor)) and _has(part, "id") and hasattr(part, "shape")


def is_computed(part: Any) -> bool:
    """Say whether a part computes its rows when they are asked for."""
    return _has(part, "bounds") and hasattr(part, "shape")


def is_mapped(part: Any) -> bool:
    """Say whether a part is a file that is mapped into memory."""
    return isinstance(part, np.ndarray) and _map_of(part) is not None


def dtype_of(part: Any) -> torch.dtype:
    """Return the dtype of a part's rows as tensors: its own where torch has it and it is a float, else float64."""
    if isinstance(part, torch.Tensor):
        return part.dtype if part.is_floating_point() else torch.float64
    return TORCH.get(part.dtype.newbyteorder("="), torch.float64)


def viewable(part: Any) -> bool:
    """Say whether torch can look at the part's memory as it is."""
    if isinstance(part, torch.Tensor):
        return part.is_floating_point()
    strides = getattr(part, "strides", ())  # a file has none
    whole = all(stride >= 0 and stride % part.dtype.itemsize == 0 for stride in strides)
    return part.dtype in (np.float16, np.float32, np.float64) and whole


def tensor(rows: Any) -> torch.Tensor:
    """Return rows as a tensor of a float dtype, looking at the same memory where that can be."""
    if isinstance(rows, torch.Tensor):
        return rows if rows.is_floating_point() else rows.double()
    array = np.asarray(rows)
    if not viewable(array):
        narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 8
        array = array.astype(array.dtype.newbyteorder("=") if narrow else np.float64)
    with warnings.catch_warnings():  # of arrays that must not be written to; nothing here writes to rows
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def fill(part: Any, low: int, high: int, buffer: torch.Tensor) -> torch.Tensor:
    """Write rows of a part, low to high, into a buffer of bytes, and return them as (n, D) there."""
    dtype = dtype_of(part)
    size = (high - low) * int(part.shape[1])
    room = buffer[: size * dtype.itemsize].view(dtype).view(high - low, -1)
    if hasattr(part, "read_direct") and viewable(part):
        part.read_direct(room.numpy(), np.s_[low:high])  # from the file to the buffer, without an array between
    else:
        room.copy_(tensor(part[low:high]))
        let_go(part, low, high)
    return room


def let_go(part: Any, low: int, high: int) -> None:
    """Let the pages of rows of a mapped file leave this process's memory; others keep what they have."""
    _advise(part, low, high, "MADV_DONTNEED")


def ask_for(part: Any, low: int, high: int) -> None:
    """Have the system read rows of a mapped file ahead; it does not wait for them."""
    _advise(part, low, high, "MADV_WILLNEED")


def _has(part: Any, name: str) -> bool:
    """Say whether a part or its type has an attribute; the column of a frame that has this name is none."""
    return getattr_static(part, name, None) is not None


def _advise(part: Any, low: int, high: int, advice: str) -> None:
    mapped = _map_of(part) if isinstance(part, np.ndarray) else None
    if mapped is None or low >= high or not part.flags.c_contiguous or not hasattr(mmap, advice):
        return
    start = part[low:high].ctypes.data - np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    end = min(start + (high - low) * part.strides[0], len(mapped))
    start -= start % mmap.PAGESIZE
    mapped.madvise(getattr(mmap, advice), start, end - start)


def _map_of(array: Any) -> mmap.mmap | None:
    """Return the map of a file that an array looks at, where pages that are let go come back from the file."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            shared = array.mode in ("r", "r+", "w+")  # what was written to a private copy would be lost
            return array._mmap if shared else None  # type: ignore[attr-defined]
        array = array.base
    return None
