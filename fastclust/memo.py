"""What a model remembers of the rows that it was fitted to, batch by batch: statistics that add, and whose they are.

A batch is a dictionary of float64 NumPy arrays, in the coordinates of the passes:

    nk, sx, sxx, log_norm, entropy, about    the statistics of its rows, as in `fastclust.kernels.Statistics`
    total, mean, scatter, minimum, maximum   the summary of its rows as they are stored, as in `fastclust.summary`
    counts                                   rows that each component is the most probable one of
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch

from fastclust.arrays import host
from fastclust.blocks import Blocks
from fastclust.kernels import Statistics
from fastclust.parts import is_computed
from fastclust.summary import Summary

Batch = dict[str, np.ndarray]

STATISTICS = ("nk", "sx", "sxx", "log_norm", "entropy", "about")
SUMMARY = ("total", "mean", "scatter", "minimum", "maximum")
CPU = torch.device("cpu")
HASH_ROWS = 1 << 16
SPOT_ROWS = 1000


def remember(statistics: Statistics, summary: Summary, counts: torch.Tensor) -> Batch:
    """Return a batch; counts: (K,)."""
    values: dict[str, Any] = {name: getattr(statistics, name) for name in STATISTICS}
    values |= {name: getattr(summary, name) for name in SUMMARY} | {"counts": counts}
    return {name: host(value) for name, value in values.items() if value is not None}


def statistics(batches: Iterable[Batch], device: torch.device) -> Statistics:
    """Return the statistics of all the batches' rows."""
    return reduce(add, (_statistics(batch, device) for batch in batches))


def _statistics(batch: Batch, device: torch.device) -> Statistics:
    nk, sx, log_norm, entropy, about = (
        torch.from_numpy(np.asarray(batch[name])).to(device) for name in ("nk", "sx", "log_norm", "entropy", "about")
    )
    sxx = torch.from_numpy(batch["sxx"]).to(device) if "sxx" in batch else None
    return Statistics(nk, sx, sxx, log_norm, entropy, about)


def summary(batches: Iterable[Batch]) -> Summary:
    """Return the summary of all the batches' rows."""
    return reduce(
        add,
        (Summary(float(batch["total"]), *(torch.from_numpy(batch[name]) for name in SUMMARY[1:])) for batch in batches),
    )


def counts(batches: Iterable[Batch]) -> np.ndarray:
    """Return how many rows each component wins (K,): int64 where no row was weighted, else float64."""
    return reduce(add, (batch["counts"] for batch in batches))


def scaled(batch: Batch, factor: float) -> Batch:
    """Return a batch for coordinates that are `factor` times as large."""
    return batch if factor == 1 else _with(batch, statistics([batch], CPU).scaled(factor))


def taken(batch: Batch, index: torch.Tensor) -> Batch:
    """Return a batch of these components (k,), in this order."""
    return _with(batch, statistics([batch], CPU).take(index)) | {"counts": batch["counts"][index.numpy()]}


def _with(batch: Batch, statistics: Statistics) -> Batch:
    return batch | {name: host(getattr(statistics, name)) for name in STATISTICS if name in batch}


def fingerprint(blocks: Blocks) -> str:
    """Return what tells a batch from others: a hash of its rows as they are stored, and of their weights."""
    found = hashlib.sha1(repr((blocks.n_total, blocks.n_features)).encode(), usedforsecurity=False)  # 2 GB/s
    dtype: torch.dtype | None = None
    for block in Blocks(blocks.parts, CPU):  # whatever device they go to
        if block.dtype != dtype:  # said once, for how rows are cut into blocks is no part of them
            dtype = block.dtype
            found.update(str(dtype).encode())
        _hash(found, block)
    if blocks.weights is not None:
        found.update(str(blocks.weights.dtype).encode())
        _hash(found, blocks.weights)
    return "".join(blocks.group.objects(found.hexdigest()))


def spot_check(blocks: Blocks) -> str:
    """Return what tells rows from others without reading all of them: a hash of their number and of an even sample.

    Rows that are computed tell by themselves. It is the same however a group of processes shares the rows.
    """
    found = hashlib.sha1(repr((blocks.n_total, blocks.n_features, blocks.total)).encode(), usedforsecurity=False)
    own = [part.fingerprint for part in blocks.parts if is_computed(part)]
    said = [text for texts in blocks.group.objects(own) for text in texts]
    if said:
        found.update("".join(sorted(set(said))).encode())
    else:
        index = blocks.sample(SPOT_ROWS, np.random.RandomState(0))
        _hash(found, blocks.group.joined(blocks.take(index)).contiguous())
    return found.hexdigest()


def said(value: Any) -> str:
    """Return a parameter as a text that another value of it does not have."""
    if value is None or isinstance(value, (bool, int, float, str, tuple, list, np.random.RandomState)):
        return "a RandomState" if isinstance(value, np.random.RandomState) else repr(value)
    if isinstance(value, torch.device):
        return str(value)
    return hashlib.sha1(np.ascontiguousarray(host(value)).tobytes(), usedforsecurity=False).hexdigest()


def _hash(found: hashlib._Hash, part: torch.Tensor) -> None:
    for piece in torch.split(part, HASH_ROWS):  # a copy of no more than this
        found.update(host(piece.contiguous().view(torch.uint8)).data)
