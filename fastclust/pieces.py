"""How many rows a device can take at once: a whole block, until it says that it is out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from fastclust.kernels.memory import free_bytes

log = logging.getLogger("fastclust")

LEAST_ROWS = 1024
FIRST_ROWS = 1 << 20  # backends take no more at once by their own choice, so halving starts there

T = TypeVar("T")


class Pieces:
    """Cut blocks of rows into pieces, smaller ones after the device has run out of memory.

    size: rows of a piece; None for whole blocks. It stays as small as it has become.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def over(self, block: torch.Tensor, most: int | None, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """Iterate over pieces of a block (n, D) with what work(piece) returns for each.

        most: rows that a backend takes at once, None for its own choice. Where work raises torch.OutOfMemoryError, its
        piece is cut in half and taken again; what was done for other pieces stays. Logs a warning for each size that
        was too large. Raises torch.OutOfMemoryError where LEAST_ROWS rows are too many.
        """
        low, shrunk = 0, False
        while low < len(block):
            piece = slice(low, len(block) if self.size is None else min(low + self.size, len(block)))
            try:
                found = work(piece)
            except torch.OutOfMemoryError as error:
                self.size, shrunk = _half(piece.stop - low, most, block, error), True
                continue  # outside of this clause, where the error no longer holds on to what was allocated
            if shrunk:
                log.warning("%s ran out of memory: %d rows at a time from here on", block.device, self.size)
                shrunk = False
            yield piece, found
            low = piece.stop


def _half(rows: int, most: int | None, block: torch.Tensor, error: torch.OutOfMemoryError) -> int:
    """Return how many rows to try next; raise where there were too few already."""
    if rows <= LEAST_ROWS:
        free = free_bytes(block.device)
        raise torch.OutOfMemoryError(
            f"{rows} rows of {block.shape[1]} features at a time are too many for the memory of {block.device}"
            f"{'' if free is None else f', of which {free} bytes are free'}: use fewer components, another covariance "
            f"type, or a device with more free memory ({error})"
        ) from error
    return max(LEAST_ROWS, min(rows, most or FIRST_ROWS, FIRST_ROWS) // 2)
