"""Copies of rows from the host to a GPU while it computes: two pinned buffers, and two on the device, take turns.

    reader's thread     fill pinned A      fill pinned B      fill pinned A ...
    copying queue                          A -> device        B -> device
    computing queue                                           rows of A          rows of B

A pinned buffer is filled once its last copy has ended; a buffer on the device is written once whatever was queued for
its last rows has ended. Queues wait for each other through events; the host waits in the reader's thread alone, and
where the reader is late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch

from fastclust.kernels.memory import free_bytes

Fill = Callable[[torch.Tensor], torch.Tensor]  # writes rows into a buffer of bytes, and returns them as (n, D) there


class Lane(Protocol):
    """What a device gives to copies: buffers, a queue of copies beside the one that computes, and events in them."""

    def pinned(self, n_bytes: int) -> torch.Tensor:
        """Return a buffer of bytes (n,) uint8 on the host, for copies that the host does not wait for."""

    def room(self, n_bytes: int) -> torch.Tensor:
        """Return a buffer of bytes (n,) uint8 on the device."""

    def free(self) -> int:
        """Return the bytes that can be allocated on the device."""

    def send(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> Any:
        """Queue a copy to the device behind an event, and return the event of its end."""

    def queued(self) -> Any:
        """Return the event that everything in the computing queue so far has ended."""

    def hold(self, event: Any) -> None:
        """Let what is queued for computing from here on begin after an event."""

    def keep(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        """Queue a copy, on the device, in the computing queue."""

    def wait(self, event: Any) -> None:
        """Wait for an event on the host."""


class CudaLane:
    """The lane of a CUDA device; the computing queue is the caller's current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def room(self, n_bytes: int) -> torch.Tensor:
        room = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
        room.record_stream(self.stream)  # freed, it is used again only after the copies that are still queued
        return room

    def free(self) -> int:
        return free_bytes(self.device) or 0

    def send(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> Any:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def queued(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event()

    def hold(self, event: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def keep(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        room.copy_(rows)

    def wait(self, event: Any) -> None:
        event.synchronize()


def lane_of(device: torch.device) -> Lane | None:
    """Return the lane of a CUDA device; None for others, whose copies the host waits for."""
    return CudaLane(device) if device.type == "cuda" else None


class Slot:
    """A pinned buffer, its buffer on the device, and the events after which each can be written again."""

    def __init__(self, lane: Lane, n_bytes: int) -> None:
        self.lane = lane
        self.pinned, self.room = lane.pinned(n_bytes), lane.room(n_bytes)
        self.used = self.sent = lane.queued()  # the room may be where something queued still computes

    def load(self, fill: Fill) -> torch.Tensor:
        """Fill the pinned buffer and queue its copy; return where the rows (n, D) will be on the device."""
        self.lane.wait(self.sent)
        rows = fill(self.pinned)
        room = self.room[: rows.nbytes].view(rows.dtype).view(rows.shape)
        self.sent = self.lane.send(rows, room, self.used)
        return room

    def lend(self) -> None:
        """Let what is queued from here on find the rows on the device."""
        self.lane.hold(self.sent)

    def take_back(self) -> None:
        """Let the rows be written over once what was queued for them has ended."""
        self.used = self.lane.queued()


def staged(fills: Iterator[Fill], slots: list[Slot]) -> Iterator[torch.Tensor]:
    """Iterate over the rows (n, D) that each fill writes, in order, on the device.

    Rows are valid until the next are asked for; what was queued before that still sees them.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fastclust-reader") as reader:
        ahead = deque((slot, reader.submit(slot.load, fill)) for slot, fill in zip(slots, fills, strict=False))
        while ahead:
            slot, loading = ahead.popleft()
            rows = loading.result()
            slot.lend()
            try:
                yield rows
            finally:
                slot.take_back()
            ahead.extend((slot, reader.submit(slot.load, fill)) for fill in islice(fills, 1))
