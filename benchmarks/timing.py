"""Clocks, medians, and the rates of a device that no pass can beat: copying, reading, and multiplying matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes on the CPU."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_on(device: torch.device, work: Callable[[], object], repeats: int, warm_up: int = 0) -> list[float]:
    """Return the seconds of each of `repeats` calls on a device, after `warm_up` that are not counted.

    CUDA's are read from events around the call, so that they are the device's and hold any wait for the host.
    """
    for _ in range(warm_up):
        work()
    if device.type != "cuda":
        return [seconds(work) for _ in range(repeats)]
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        work()
        after.record()
        torch.cuda.synchronize(device)
        found.append(before.elapsed_time(after) / 1e3)
    return found


def short(value: float) -> float:
    """Return a measured number to four digits."""
    return float(f"{value:.4g}")


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest of some numbers, to four digits."""
    return {"median": short(statistics.median(values)), "min": short(min(values)), "max": short(max(values))}


def matrix_product_rate(device: torch.device = CPU, dtype: str = "float32", size: int = 2048) -> float:
    """Return the GFLOP/s of torch's product of two square matrices of random numbers, the best of ten.

    dtype: a dtype of torch's, or "tf32" for float32 matrices that the device may round to 10 bits.
    """
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    if dtype != "tf32":
        a, b = (matrix.to(getattr(torch, dtype)) for matrix in (a, b))
    with _tf32(dtype == "tf32"):
        best = min(seconds_on(device, lambda: a @ b, 10, warm_up=1))
    return short(2 * size**3 / best / 1e9)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid CUDA's float32 products to round to tf32, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_bandwidth(device: torch.device = CPU, size: int = 256 << 20) -> float:
    """Return the GB/s, read and written, of torch's copy of `size` bytes that no cache holds, the best of ten."""
    a, b = torch.rand(size // 4, device=device), torch.zeros(size // 4, device=device)
    return short(2 * size / min(seconds_on(device, lambda: b.copy_(a), 10, warm_up=1)) / 1e9)


def read_bandwidth(device: torch.device = CPU, size: int = 256 << 20) -> float:
    """Return the GB/s of torch's sum of `size` bytes of float32 that no cache holds, the best of ten."""
    a = torch.rand(size // 4, device=device)
    return short(size / min(seconds_on(device, a.sum, 10, warm_up=1)) / 1e9)
