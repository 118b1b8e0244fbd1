"""Rows from wherever they are, as blocks of torch tensors on the device that computes.

A source is an array (N, D), a memory map, an h5py dataset, a torch tensor, rows that are computed when they are asked
for (`fastclust.parts`), or a list of these with the same D, read one after the other. Rows keep the dtype that they are
stored in; float16 rows are never copied to float32 whole. Memory does not grow with the rows that are in files or
computed: READ_BYTES of them at a time, and while those are worked on, the next are read.

Rows that are on the host or in a file go to a GPU through `fastclust.staging`, while it computes. They stay there for
the passes that follow where that takes no more than half of its free memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch

from fastclust import parts as of_rows
from fastclust.group import ALONE, Group
from fastclust.parts import dtype_of, fill, is_computed, is_file, is_mapped, tensor, two_dimensional, viewable
from fastclust.staging import Lane, Slot, lane_of, staged

log = logging.getLogger("fastclust")

READ_BYTES = 8 << 20  # of a file, at a time: few enough that processes can share a few images evenly
COPY_BYTES = 64 << 20  # from the host to an accelerator, at a time; two buffers of this on either side
KEPT_SHARE = 0.5  # of an accelerator's free memory, for rows that stay there


def share(parts: list[Any], rank: int, size: int) -> list[Any]:
    """Return the share of the rows of mapped, stored or computed parts that one of `size` processes has.

    Shares are what is read at a time on a CPU, whole, so that its sums have the same bits whoever makes them; parts are
    cut finer only where that is fewer than there are processes. Raises ValueError where there are too few to share.
    """
    if size == 1:
        return parts
    bounds = [Blocks(part, torch.device("cpu")).cuts(part) for part in parts]
    if sum(len(cuts) - 1 for cuts in bounds) < size:
        n_rows = sum(int(part.shape[0]) for part in parts)
        step = max(1, n_rows // size)
        bounds = [
            cuts if is_computed(part) else [*range(0, cuts[-1], step), cuts[-1]]
            for part, cuts in zip(parts, bounds, strict=True)
        ]
    windows = [(part, *window) for part, cuts in zip(parts, bounds, strict=True) for window in pairwise(cuts)]
    own = windows[len(windows) * rank // size : len(windows) * (rank + 1) // size]
    if len(windows) < size:
        raise ValueError(f"the rows are {len(windows)} blocks, too few for {size} processes: use fewer processes")
    found = []
    for _, run in groupby(own, lambda window: id(window[0])):
        each = list(run)
        part, low, high = each[0][0], each[0][1], each[-1][2]
        found.append(part.between(low, high) if is_computed(part) else part[low:high])
    return found


class Blocks:
    """Iterate over the rows of a source as (n, D) tensors on a device; iterating again starts again.

    source: see the module. device: where blocks are wanted. On the CPU a block is a view of the source wherever
    there is one, so a block may be as large as the source. On a GPU a block of rows that came from elsewhere is valid
    until the next one is asked for. weights: (N,) float64, not negative, how often each row counts; None for once.
    lane: how rows are copied to the device; None for the device's own way. group: processes that each have rows of
    their own; `n_total`, `total` and `n_present` count those of all.
    Raises ValueError for a source that is not two-dimensional, or parts that differ in width, and TypeError for one
    that holds no real numbers.
    """

    def __init__(
        self,
        source: Any,
        device: torch.device,
        weights: np.ndarray | None = None,
        lane: Lane | None = None,
        group: Group = ALONE,
    ) -> None:
        self.parts = [two_dimensional(part) for part in (source if isinstance(source, (list, tuple)) else [source])]
        widths = {int(part.shape[1]) for part in self.parts}
        if len(widths) != 1:
            raise ValueError(f"parts of the rows have different numbers of features: {sorted(widths)}")
        self.device = _numbered(device)
        self.lane = lane_of(self.device) if lane is None else lane
        self._sources = list(self.parts)  # with what stays on the device in its place
        self.n_features = widths.pop()
        self.starts = np.cumsum([0] + [int(part.shape[0]) for part in self.parts])
        self.n_rows = int(self.starts[-1])
        self.weights = None if weights is None else tensor(weights).to(device)
        self.group = group
        # The index of the rows that count (n,) where some do not.
        self.present = None if weights is None or (weights > 0).all() else np.flatnonzero(weights > 0)
        self._own = self.n_rows if self.present is None else len(self.present)
        total = float(self.n_rows) if weights is None else float(weights.sum())  # each as often as it counts
        counts = np.array(group.numbers(self.n_rows, self._own, total, weights is not None))
        if weights is None and counts[:, 3].any():  # another process has some
            self.weights = torch.ones(self.n_rows, dtype=torch.float64, device=device)
        self.n_total, self.n_present, self.total = (
            int(counts[:, 0].sum()),
            int(counts[:, 1].sum()),
            float(counts[:, 2].sum()),
        )
        self._before = int(counts[: group.rank, 1].sum())  # rows that count, of the processes before this one

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of the blocks."""
        return {dtype_of(part) for part in self.parts}

    def weighted(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Iterate over blocks (n, D) with their rows' weights (n,), or None."""
        low = 0
        for block in self:
            self.group.check()
            yield block, None if self.weights is None else self.weights[low : low + len(block)]
            low += len(block)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for away, run in groupby(range(len(self._sources)), self._is_away):
            if away and self.lane is not None:
                yield from self._through(self.lane, list(run))
                continue
            for index in run:
                yield from self._in_turn(index)

    def _in_turn(self, index: int) -> Iterator[torch.Tensor]:
        """Iterate over the rows of a part that needs no lane: each block is good until the next is asked for."""
        part = self._sources[index]
        bounds = self.cuts(part)
        if is_file(part):
            yield from _read_ahead(part, bounds, self.device)
            return
        kept = self._room(self.lane, [(len(part), dtype_of(part))]) if self.lane and is_computed(part) else []
        for place, (low, high) in enumerate(pairwise(bounds)):
            if len(bounds) > 2 and high < bounds[-1]:
                of_rows.ask_for(part, high, bounds[place + 2])
            block = tensor(part[low:high]).to(self.device)
            for room in kept:
                room[low:high].copy_(block)
            yield block
            if len(bounds) > 2:
                of_rows.let_go(part, low, high)
        for room in kept:
            self._sources[index] = room

    def _is_away(self, index: int) -> bool:
        """Say whether a part goes through the lane: it is on the host, or in a file, and the device is not."""
        device = getattr(self._sources[index], "device", None)
        return self.lane is not None and not (isinstance(device, torch.device) and _numbered(device) == self.device)

    def _through(self, lane: Lane, run: list[int]) -> Iterator[torch.Tensor]:
        """Iterate over the rows of these parts, one after the other, and keep them on the device where they fit."""
        parts = [self._sources[index] for index in run]
        dtypes = [dtype_of(part) for part in parts]  # that rows are copied in
        cuts = [self.cuts(part, away=True) for part in parts]
        chunks = [(i, low, high) for i, bounds in enumerate(cuts) for low, high in pairwise(bounds)]
        largest = max((high - low) * self.n_features * dtypes[i].itemsize for i, low, high in chunks)
        slots = [Slot(lane, largest) for _ in range(2)]
        kept = self._room(lane, [(int(part.shape[0]), dtype) for part, dtype in zip(parts, dtypes, strict=True)])
        fills = (partial(fill, parts[i], low, high) for i, low, high in chunks)
        for (i, low, high), block in zip(chunks, staged(fills, slots), strict=True):
            if kept:
                lane.keep(block, kept[i][low:high])
            yield block
        for index, whole in zip(run, kept, strict=False):
            self._sources[index] = whole

    def _room(self, lane: Lane, sizes: list[tuple[int, torch.dtype]]) -> list[torch.Tensor]:
        """Return where rows can stay on the device, for each number of rows and their dtype; nothing if it is short."""
        need = sum(n * self.n_features * dtype.itemsize for n, dtype in sizes)
        if need > KEPT_SHARE * lane.free():
            return []
        try:
            return [torch.empty(n, self.n_features, dtype=dtype, device=self.device) for n, dtype in sizes]
        except torch.OutOfMemoryError:  # in pieces that are too small
            log.info("%d bytes of rows do not stay on %s: its memory is short", need, self.device)
            return []

    def take(self, index: np.ndarray) -> torch.Tensor:
        """Return the rows of an increasing index (n,) as one (n, D) tensor on the device."""
        chosen = []
        for part, first, last in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            inside = index[(index >= first) & (index < last)] - first
            if isinstance(part, torch.Tensor):
                chosen.append(part[torch.from_numpy(inside).to(part.device)].to(self.device))
                continue
            bounds = self.cuts(part)
            for low, high in pairwise(bounds):
                some = inside[np.searchsorted(inside, low) : np.searchsorted(inside, high)]
                if not len(some):
                    continue
                if is_computed(part):
                    whole = part[low:high]
                    chosen.append(whole[torch.from_numpy(some - low).to(whole.device)].to(self.device))
                else:
                    chosen.append(tensor(np.asarray(part[some])).to(self.device))
                if len(bounds) > 2:
                    of_rows.let_go(part, low, high)
        dtype = dtype_of(self.parts[0])
        for part in self.parts:
            dtype = torch.promote_types(dtype, dtype_of(part))
        none = torch.empty(0, self.n_features, dtype=dtype, device=self.device)
        return torch.cat([none, *(piece.to(dtype) for piece in chosen)])

    def sample(self, size: int, random: np.random.RandomState) -> np.ndarray:
        """Return the index of `size` of the rows that count, drawn evenly without replacement, in order.

        Where there are no more, it is all of them. Of a group's rows it is those that this process has.
        """
        if size >= self.n_present:
            return np.arange(self.n_rows) if self.present is None else self.present
        # One row from each of `size` equal stretches: no permutation of N, and every image has its share.
        edges = np.linspace(0, self.n_present, size + 1).astype(np.int64)
        index = edges[:-1] + (random.random_sample(size) * np.diff(edges)).astype(np.int64)
        return self.own(index)[1]

    def own(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which (n,) of some of a group's rows that count this process has, and their index (n,) here."""
        here = np.flatnonzero((index >= self._before) & (index < self._before + self._own))
        rows = index[here] - self._before
        return here, rows if self.present is None else self.present[rows]

    def weights_of(self, index: np.ndarray) -> torch.Tensor | None:
        """Return the weights (n,) of the rows of an index (n,), or None."""
        return None if self.weights is None else self.weights[torch.from_numpy(index).to(self.device)]

    def cuts(self, part: Any, away: bool = False) -> list[int]:
        """Return the rows at which a part is cut into what is handed on at a time, from 0 to their number."""
        if is_computed(part):
            return [int(bound) for bound in part.bounds]
        n = int(part.shape[0])
        on_device = isinstance(part, torch.Tensor) and part.device == self.device
        in_memory = isinstance(part, (np.ndarray, torch.Tensor)) and not is_mapped(part) and self.device.type == "cpu"
        if n and not away and (on_device or (in_memory and viewable(part))):
            return [0, n]
        step = max(1, (COPY_BYTES if away else READ_BYTES) // (self.n_features * dtype_of(part).itemsize))
        return [*range(0, n, step), n]


def _read_ahead(part: Any, bounds: list[int], device: torch.device) -> Iterator[torch.Tensor]:
    """Iterate over rows of a file that cannot be mapped, of which the next are read meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="fastclust-reader") as reader:
        coming: Future[Any] | None = None
        for low, high in [*pairwise(bounds), (0, 0)]:
            ready, coming = coming, reader.submit(part.__getitem__, slice(low, high))
            if ready is not None:
                yield tensor(ready.result()).to(device)  # the reader is at the next already


def check_finite(rows: torch.Tensor, first: int) -> None:
    """Raise ValueError that names the first NaN or infinity in rows (n, D), of which the first is row `first`."""
    wrong = torch.nonzero(~torch.isfinite(rows))
    if not len(wrong):
        return
    row, column = (int(i) for i in wrong[0])
    value = rows[row, column].item()
    what = "NaN" if value != value else "infinity"
    raise ValueError(
        f"Input X contains {what}: {value} in row {first + row}, feature {column} (counted from 0); leave such rows out"
    )


def _numbered(device: torch.device) -> torch.device:
    """Return the device with its number: tensors on "cuda" say "cuda:0"."""
    unnumbered = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if unnumbered else device
