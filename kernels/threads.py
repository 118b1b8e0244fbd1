"""The threads of the CPU backends: each works through rows of its own with one-threaded operations.

Forking and joining inside every operation on a tile of a megabyte costs about a sixth of a pass, and far more where
other processes want the same cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

LEAST_ROWS = 64  # of a thread
SMALL = 1 << 20  # numbers

T = TypeVar("T")


def over_parts(n_rows: int, device: torch.device, work: Callable[[int, int], T]) -> list[T]:
    """Call work(start, stop) over all rows: in equal parts, one a thread, on the CPU; else once.

    The parts depend on the number of threads alone, so results are repeatable. On CUDA, float32 products are float32.
    """
    if device.type != "cpu":
        with torch.no_grad(), _no_tf32():
            return [work(0, n_rows)]
    threads = torch.get_num_threads()
    share = max(-(-n_rows // threads), 1)
    parts = [(low, min(low + share, n_rows)) for low in range(0, n_rows, share)]
    try:
        if threads == 1 or share < LEAST_ROWS:
            return [_one_threaded(work, (0, n_rows))]
        return list(_pool(threads).map(lambda part: _one_threaded(work, part), parts))
    finally:
        torch.set_num_threads(threads)


def over_items(n_items: int, work: Callable[[int], T]) -> list[T]:
    """Call work(item) for each item on the CPU's threads, each with one-threaded operations, as they get to it."""
    threads = torch.get_num_threads()
    try:
        if threads == 1 or n_items == 1:
            return [_one_threaded(lambda item, _: work(item), (item, item)) for item in range(n_items)]
        return list(_pool(threads).map(lambda item: _one_threaded(lambda i, _: work(i), (item, item)), range(n_items)))
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Have CUDA's float32 products in float32, whatever the process asked for: in tf32 alone ln rho errs by nats."""
    asked = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = asked


@contextmanager
def one_thread_where_small(like: torch.Tensor) -> Iterator[None]:
    """Run operations on tensors of this size on one thread: a second goes on spinning into the pass."""
    threads = torch.get_num_threads()
    if like.numel() >= SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _one_threaded(work: Callable[[int, int], T], part: tuple[int, int]) -> T:
    # OpenMP's number of threads is the calling thread's own, but the matrix library's is the process's: each pass sets
    # it, and the caller sets its own number again after the pass.
    torch.set_num_threads(1)
    with torch.no_grad():
        return work(*part)


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the pool of that many workers, made at first use."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="fastclust")
    return _pools[threads]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the table and not the threads
