"""Rows from wherever they are, as blocks of torch tensors on the device that computes.

A source is an array (N, D), a memory map, an h5py dataset, a torch tensor, or a list of these with the same D, read one
after the other. Rows keep the dtype that they are stored in; float16 rows are never copied to float32 whole.

Rows that are on the host or in a file go to a GPU through `fastclust.staging`, while it computes. They stay there for
the passes that follow where that takes no more than half of its free memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from fastclust.staging import Lane, Slot, lane_of, staged

log = logging.getLogger("fastclust")

READ_BYTES = 64 << 20  # of a file that cannot be mapped, at a time
COPY_BYTES = 64 << 20  # from the host to an accelerator, at a time; two buffers of this on either side
KEPT_SHARE = 0.5  # of an accelerator's free memory, for rows that stay there


class Blocks:
    """Iterate over the rows of a source as (n, D) tensors on a device; iterating again starts again.

    source: see the module. device: where blocks are wanted. On the CPU a block is a view of the source wherever
    there is one, so a block may be as large as the source. On a GPU a block of rows that came from elsewhere is valid
    until the next one is asked for. weights: (N,) float64, not negative, how often each row counts; None for once.
    lane: how rows are copied to the device; None for the device's own way.
    Raises ValueError for a source that is not two-dimensional, or parts that differ in width, and TypeError for one
    that holds no real numbers.
    """

    def __init__(
        self, source: Any, device: torch.device, weights: np.ndarray | None = None, lane: Lane | None = None
    ) -> None:
        self.parts = [_two_dimensional(part) for part in (source if isinstance(source, (list, tuple)) else [source])]
        widths = {int(part.shape[1]) for part in self.parts}
        if len(widths) != 1:
            raise ValueError(f"parts of the rows have different numbers of features: {sorted(widths)}")
        self.device = _numbered(device)
        self.lane = lane_of(self.device) if lane is None else lane
        self._sources = list(self.parts)  # with what stays on the device in its place
        self.n_features = widths.pop()
        self.starts = np.cumsum([0] + [int(part.shape[0]) for part in self.parts])
        self.n_rows = int(self.starts[-1])
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)
        # How many rows there are, each as often as it counts.
        self.total = float(self.n_rows) if weights is None else float(weights.sum())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of the blocks."""
        return {_tensor(part[:0]).dtype for part in self.parts}

    @property
    def present(self) -> np.ndarray | None:
        """The index of the rows that count (n,) where some do not, else None."""
        if self.weights is None or bool((self.weights > 0).all()):
            return None
        return np.flatnonzero(self.weights.cpu().numpy() > 0)

    @property
    def n_present(self) -> int:
        """How many rows count."""
        present = self.present
        return self.n_rows if present is None else len(present)

    def weighted(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Iterate over blocks (n, D) with their rows' weights (n,), or None."""
        low = 0
        for block in self:
            yield block, None if self.weights is None else self.weights[low : low + len(block)]
            low += len(block)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for away, run in groupby(range(len(self._sources)), self._is_away):
            if away and self.lane is not None:
                yield from self._through(self.lane, list(run))
                continue
            for part in (self._sources[index] for index in run):
                step = self._step(part)
                for low in range(0, int(part.shape[0]), step):
                    yield _tensor(part[low : low + step]).to(self.device)

    def _is_away(self, index: int) -> bool:
        """Say whether a part goes through the lane: it is on the host, or in a file, and the device is not."""
        part = self._sources[index]
        return self.lane is not None and not (isinstance(part, torch.Tensor) and part.device == self.device)

    def _through(self, lane: Lane, run: list[int]) -> Iterator[torch.Tensor]:
        """Iterate over the rows of these parts, one after the other, and keep them on the device where they fit."""
        parts = [self._sources[index] for index in run]
        like = [_tensor(part[:0]) for part in parts]  # (0, D) in the dtype that rows are copied in
        steps = [max(1, COPY_BYTES // (self.n_features * some.dtype.itemsize)) for some in like]
        chunks = [
            (i, low, min(low + steps[i], len(part)))
            for i, part in enumerate(parts)
            for low in range(0, len(part), steps[i])
        ]
        largest = max((high - low) * self.n_features * like[i].dtype.itemsize for i, low, high in chunks)
        slots = [Slot(lane, largest) for _ in range(2)]
        kept = self._room(lane, [(len(part), some.dtype) for part, some in zip(parts, like, strict=True)])
        fills = (partial(_fill, parts[i], low, high) for i, low, high in chunks)
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
        for part, low, high in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            inside = index[(index >= low) & (index < high)] - low
            if isinstance(part, torch.Tensor):
                chosen.append(part[torch.from_numpy(inside).to(part.device)].to(self.device))
            elif len(inside):
                chosen.append(_tensor(np.asarray(part[inside])).to(self.device))
        dtype = chosen[0].dtype
        for piece in chosen:
            dtype = torch.promote_types(dtype, piece.dtype)
        return torch.cat([piece.to(dtype) for piece in chosen])

    def sample(self, size: int, random: np.random.RandomState) -> np.ndarray:
        """Return the index of `size` of the rows that count, drawn evenly without replacement, in order.

        Where there are no more, it is all of them.
        """
        present, n = self.present, self.n_present
        if size >= n:
            return np.arange(n) if present is None else present
        # One row from each of `size` equal stretches: no permutation of N, and every image has its share.
        edges = np.linspace(0, n, size + 1).astype(np.int64)
        index = edges[:-1] + (random.random_sample(size) * np.diff(edges)).astype(np.int64)
        return index if present is None else present[index]

    def weights_of(self, index: np.ndarray) -> torch.Tensor | None:
        """Return the weights (n,) of the rows of an index (n,), or None."""
        return None if self.weights is None else self.weights[torch.from_numpy(index).to(self.device)]

    def _step(self, part: Any) -> int:
        """Return how many rows of a part are handed on at a time."""
        on_device = isinstance(part, torch.Tensor) and part.device == self.device
        mapped = isinstance(part, (np.ndarray, torch.Tensor)) and self.device.type == "cpu"
        if on_device or (mapped and _viewable(part)):
            return max(1, int(part.shape[0]))
        row = int(part.shape[1]) * int(part.dtype.itemsize)
        return max(1, (READ_BYTES if self.device.type == "cpu" else COPY_BYTES) // row)


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


def _two_dimensional(part: Any) -> Any:
    """Return a part of a source as something sliced by rows: itself, or a NumPy array."""
    if isinstance(part, torch.Tensor):
        part = part.detach()
    if not isinstance(part, (np.ndarray, torch.Tensor)) and not (hasattr(part, "id") and hasattr(part, "shape")):
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


def _fill(part: Any, low: int, high: int, buffer: torch.Tensor) -> torch.Tensor:
    """Write rows of a part, low to high, into a buffer of bytes, and return them as (n, D) there."""
    in_file = hasattr(part, "read_direct") and _viewable(part)
    rows = _tensor(part[:0] if in_file else part[low:high])
    size = (high - low) * int(part.shape[1])
    room = buffer[: size * rows.dtype.itemsize].view(rows.dtype).view(high - low, -1)
    if in_file:
        part.read_direct(room.numpy(), np.s_[low:high])  # from the file to the buffer, without an array between
    else:
        room.copy_(rows)
    return room


def _viewable(part: Any) -> bool:
    """Say whether torch can look at the part's memory as it is."""
    if isinstance(part, torch.Tensor):
        return part.is_floating_point()
    forward = all(stride >= 0 for stride in getattr(part, "strides", ()))  # a file has none
    return part.dtype in (np.float16, np.float32, np.float64) and forward


def _tensor(part: Any) -> torch.Tensor:
    """Return rows as a tensor of a float dtype, looking at the same memory where that can be."""
    if isinstance(part, torch.Tensor):
        return part if part.is_floating_point() else part.double()
    array = np.asarray(part)
    if not _viewable(array):
        narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 8
        array = array.astype(array.dtype.newbyteorder("=") if narrow else np.float64)
    with warnings.catch_warnings():  # of arrays that must not be written to; nothing here writes to rows
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)
