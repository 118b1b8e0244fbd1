"""How much of a device's memory is free, and so how much a tile or a copy may take."""

from __future__ import annotations

import torch

SHARE = 8  # what is taken at once is no more than this part of what is free


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that torch can still allocate on a CUDA device, its own cache included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))


def share_of_free(device: torch.device, most: int) -> int:
    """Return `most` bytes, or 1 / SHARE of what is free on the device where that is less."""
    free = free_bytes(device)
    return most if free is None else max(1, min(most, free // SHARE))
