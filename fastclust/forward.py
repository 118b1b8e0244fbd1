"""Forward passes: decoded images in, values of layers out, in the arithmetic that suits the device and the dtype kept.

Channels are last in memory, of images, weights and activations (measured on two cores, float32: VGG-19 to conv1_2 takes
0.6 of the time that it takes with channels first, ResNet-18 to layer3 0.8): rows of pixels are then how values lie.

    float32             on the CPU, and on CUDA where float32 is kept; there without tf32, which PyTorch allows
                        convolutions unless it is told otherwise, and whose 10 bits are as few as float16's
    float16 autocast    on CUDA where float16 is kept: convolutions and matrix products in float16, what sums over much
                        in float32. bfloat16 has an eighth of float16's precision. A batch with a value that overflows
                        is computed again in float32 (the choice, and its speed, have not been tried on a GPU yet)

On CUDA algorithms are deterministic and not chosen by timing them, so that results repeat. Pixels are normalised
as (v / 255 - mean) / std, each step rounded to float32, in a buffer that is used again: touching memory for the first
time costs more than computing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclust.networks import Network

DTYPES = {"float16": torch.float16, "float32": torch.float32}

Keep = Callable[[str, Tensor], Tensor]
"""Called with a layer's name and values, channels last, as they arise; returns what is kept of them."""


def arithmetic(device: torch.device, dtype: str) -> str:
    """Name the arithmetic of the network on a device where its values are kept in a dtype, for the provenance."""
    return f"{'float16 autocast' if _is_half(device, dtype) else 'float32'}, channels last"


class Forward:
    """A loaded network, ready for batches of decoded images.

    transform: of `fastclust.reader`, for mean and std. dtype: float16 or float32, in which values are kept.
    """

    def __init__(self, network: Network, transform: dict[str, Any], dtype: str, device: torch.device) -> None:
        self.device = device
        self._network, self._dtype, self._half = network, DTYPES[dtype], _is_half(device, dtype)
        self._mean, self._std = (torch.tensor(transform[name], device=device) for name in ("mean", "std"))
        self._pixels, self._inputs = (
            _Buffer(torch.uint8, torch.device("cpu"), pinned=device.type == "cuda"),
            _Buffer(torch.float32, device),
        )

    def __call__(self, images: Sequence[NDArray[np.uint8]], buffers: Buffers) -> dict[str, Tensor]:
        """Compute every layer's values of images (H, W, 3) of one size: (n, h, w, c), or (n, c) where it is dense.

        They are contiguous, in the dtype that is kept, and in float32 where one of them would overflow in that or is
        not finite. buffers: where they are kept.
        """
        inputs = self._normalised(images)

        def keep(name: str, values: Tensor) -> Tensor:
            room = buffers.room(name, tuple(values.shape), self._dtype)
            kept = room.copy_(values) if room.device == values.device else values.to(self._dtype)
            if self._dtype == torch.float16 and not _finite(kept):
                return values.to(torch.float32, memory_format=torch.contiguous_format, copy=True).to(room.device)
            return room if kept is room else room.copy_(kept)

        with torch.inference_mode(), _repeatable(self.device):
            if self._half:
                with torch.autocast(self.device.type, dtype=torch.float16):
                    found = self._network(inputs, keep)
                if all(values.dtype == torch.float16 for values in found.values()):
                    return found
            return self._network(inputs, keep)

    def _normalised(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The network's input of images (n, 3, H, W) float32, channels last in memory; good until the next call."""
        n, (height, width, channels) = len(images), images[0].shape
        pixels = self._pixels.view((n, height, width, channels))
        np.stack(images, out=pixels.numpy())
        values = self._inputs.view((n, height, width, channels))
        values.copy_(pixels.to(self.device, non_blocking=True))  # as bytes, not as the floats that they become
        rows = values.view(n * height, width * channels)
        rows.div_(255).sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the pinned pixels are free again
        return values.permute(0, 3, 1, 2)


class Buffers:
    """Memory for the values of the layers of one batch on a device, to be used again for another.

    pinned: whether it is the host's and page-locked, for a GPU to copy to.
    """

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._buffers: dict[str, _Buffer] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return room for a layer's values of a batch, of any content."""
        if name not in self._buffers:
            self._buffers[name] = _Buffer(dtype, self._device, self._pinned)
        return self._buffers[name].view(shape)


class _Buffer:
    """Memory that is as large as the largest thing that it had to hold."""

    def __init__(self, dtype: torch.dtype, device: torch.device, pinned: bool = False) -> None:
        self._flat = torch.empty(0, dtype=dtype, device=device)
        self._pinned = pinned

    def view(self, shape: tuple[int, ...]) -> Tensor:
        size = int(np.prod(shape))
        if size > len(self._flat):
            flat = self._flat
            with torch.inference_mode(False):  # what is in it may be written to outside
                self._flat = torch.empty(size, dtype=flat.dtype, device=flat.device, pin_memory=self._pinned)
        return self._flat[:size].view(shape)


def _is_half(device: torch.device, dtype: str) -> bool:
    return device.type == "cuda" and dtype == "float16"


def _finite(values: Tensor) -> bool:
    low, high = values.aminmax()  # NaN where there is one
    return bool(torch.isfinite(low) & torch.isfinite(high))


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """On CUDA compute float32 in float32, and the same every time."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
