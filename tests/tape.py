"""What stands for a CUDA graph on the CPU: torch's operations written down, not run, and started again at a replay.

As with a graph, what a replay does is the device's part alone: no line of Python runs again, numbers that the host knew
are as they were, and results go where they went at first. What a graph cannot hold, a look at a value, is an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastclust.graph import Found, tensors

LOOKS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")


def tensors_of(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """The operations that a function starts. They are undone at once, and what they found is NaN till a replay."""

    def __init__(self, function: Callable[[], Found]) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self._own: set[int] = set()  # memory that the operations allocated
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.replays = 0
        with self:
            self.found = function()
        for tensor in tensors(self.found):
            if place(tensor) in self._own:
                tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)
        for tensor, value in self._before.values():
            tensor.copy_(value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name in LOOKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for at, about in enumerate(func._schema.arguments):
            if about.is_write:
                for tensor in tensors_of(args[at] if at < len(args) else kwargs.get(about.name)):
                    self._before.setdefault(id(tensor), (tensor, tensor.clone()))
        out = func(*args, **kwargs)
        self._own |= {place(tensor) for tensor in tensors_of(out)} - {place(one) for one in tensors_of(args, kwargs)}
        self._operations.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self._operations:
            for old, new in zip(tensors_of(out), tensors_of(func(*args, **kwargs)), strict=True):
                if place(old) != place(new):
                    old.copy_(new)
