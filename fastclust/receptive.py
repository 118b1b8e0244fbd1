"""Receptive fields: which input pixels each unit of a layer's map depends on, from the traced graph of the network.

Along one axis, a convolution or pooling of kernel k, stride s, padding p and dilation d over units of size r, jump j
and start a (Araujo, Norris and Sim 2019) gives units of

    size   r + (k - 1) d j        jump   s j        start   a - p j

so that unit i sees `size` pixels from start + i jump on. That is the field before it is clipped: padding has no pixels,
and a floor in a map's size may leave the last pixels to nobody. So the first and last pixel of every unit are kept
beside it, each step taking them from the units that are there. Sums, products and concatenations see the union, as the
smallest interval around it; what mixes places (a flattened map, a mean, attention) sees all that any of its units does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fastclust.networks import Network

ACTIVATIONS = {"relu", "relu_", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh"}
NEUTRAL = {
    "identity",
    "dropout",
    "stochasticdepth",
    "stochastic_depth",
    "batchnorm2d",
    "batch_norm",
    "contiguous",
    "clone",
}
ARITHMETIC = {"add", "add_", "iadd", "sub", "mul", "mul_", "imul", "truediv"}
POINTWISE = ACTIVATIONS | NEUTRAL | ARITHMETIC
"""Modules, functions and methods, by name, whose output at a place depends on their inputs at that place alone."""


@dataclass(frozen=True)
class Axis:
    """The fields of a map's units along height or width, in pixels of the input; pixel i's centre is at i.

    size, jump, start: unit i sees `size` pixels from start + i jump on, where the image goes on beyond its edges.
    low, high: (n,) int64, the first and the last pixel that each unit does see.
    """

    size: float
    jump: float
    start: float
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def centres(self) -> NDArray[np.float64]:
        """Return the centre of each unit's field before it is clipped: (n,) pixels."""
        index = np.arange(len(self.low), dtype=np.float64)
        return self.start + self.jump * index + (self.size - 1) / 2


@dataclass(frozen=True)
class Field:
    """The receptive fields of a layer's units, for inputs of one size; a dense layer is a map of one unit."""

    rows: Axis
    columns: Axis

    @property
    def size(self) -> tuple[float, float]:
        """(height, width) in pixels, before clipping."""
        return self.rows.size, self.columns.size

    @property
    def jump(self) -> tuple[float, float]:
        """Pixels between the fields of neighbours, along (height, width); 0 where all units see the same."""
        return self.rows.jump, self.columns.jump

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return what a unit sees of the image: (top, left, bottom, right), the last two not included.

        Where that is padding alone, the box is empty.
        """
        bottom, right = int(self.rows.high[row]) + 1, int(self.columns.high[column]) + 1
        return min(int(self.rows.low[row]), bottom), min(int(self.columns.low[column]), right), bottom, right


def receptive_fields(network: Network, height: int, width: int) -> dict[str, Field]:
    """Return the receptive field of each of a network's layers, for inputs of height x width pixels.

    Exact, as the smallest box, for convolutions, poolings, sums, products, concatenations and whatever works place by
    place or moves axes; attention, also that of windows, counts as seeing what all units before it see.
    Raises ValueError as `Network.shapes`.
    """
    shapes = network.shapes(height, width)
    trace = _Trace(network.outline)
    with torch.inference_mode():
        trace.run(torch.empty(1, 3, height, width, device="meta"), lambda layer, values: values)
    fields = {}
    for name, source in network.sources().items():
        found = trace.supports[source]
        if found is None:
            raise ValueError(f"layer {name} of {network.model} does not depend on the image: it has no receptive field")
        h, w = shapes[name][:2] if len(shapes[name]) == 3 else (1, 1)
        if found.dims is None:
            found = _mixed([found], (h, w))
        fields[name] = Field(found.rows, found.columns)
    return fields


@dataclass(frozen=True)
class _Support:
    """What a value's units see; dims: the dimensions that are height and width, None where places are mixed."""

    rows: Axis
    columns: Axis
    dims: tuple[int, int] | None


class _Trace(fx.Interpreter):
    """Run a graph on the meta device, and follow what the units of each value see."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.supports: dict[fx.Node, _Support | None] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        one = value[0] if isinstance(value, (tuple, list)) and value else value
        self.supports[n] = None
        if isinstance(one, Tensor):
            self.shapes[n] = tuple(one.shape)
            self.supports[n] = self._support(n)
        return value

    def _support(self, n: fx.Node) -> _Support | None:
        if n.op == "placeholder":
            rows, columns = (_pixels(side) for side in self.shapes[n][2:])
            return _Support(rows, columns, (2, 3))
        sources = [source for source in n.all_input_nodes if self.supports[source] is not None]
        found = [support for source in sources if (support := self.supports[source]) is not None]
        if not found:
            return None
        first, dims = found[0], found[0].dims
        if dims is None:
            return _mixed(found)
        before, after = self.shapes[sources[0]], self.shapes[n]
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        name = (type(module).__name__ if module is not None else getattr(n.target, "__name__", str(n.target))).lower()
        window = _window_of(n, module, name)
        if window is not None:
            return _windowed(first, window, after)
        if name.startswith(("adaptive_", "adaptiveavg", "adaptivemax")):
            rows, columns = (_adaptive(axis, after[d]) for axis, d in zip(_axes(first), dims, strict=True))
            return _Support(rows, columns, dims)
        moved = _moved_dims(n, module, name, dims, before, after)
        if moved is None:
            return _mixed(found)
        return _union([_Support(one.rows, one.columns, moved if one is first else one.dims) for one in found])


def _pixels(n: int) -> Axis:
    index = np.arange(n, dtype=np.int64)
    return Axis(1, 1, 0, index, index)


def _axes(support: _Support) -> tuple[Axis, Axis]:
    return support.rows, support.columns


def _mixed(supports: Sequence[_Support], shape: tuple[int, int] = (1, 1)) -> _Support:
    """Every unit of a map of this shape sees all that any unit of the supports does."""
    whole = []
    for axes, n in zip(zip(*map(_axes, supports), strict=True), shape, strict=True):
        low, high = min(int(axis.low.min()) for axis in axes), max(int(axis.high.max()) for axis in axes)
        whole.append(Axis(high - low + 1, 0, low, np.full(n, low), np.full(n, high)))
    return _Support(whole[0], whole[1], None)


def _union(supports: Sequence[_Support]) -> _Support:
    """What units see through any of several values, one of which may be broadcast."""
    if len({support.dims for support in supports}) > 1:
        return _mixed(supports)
    joined = []
    for axes in zip(*map(_axes, supports), strict=True):
        longest = max(axes, key=lambda axis: len(axis.low))
        if any(axis.jump != longest.jump and len(axis.low) > 1 for axis in axes):
            return _mixed(supports)
        low = np.min(np.broadcast_arrays(*(axis.low for axis in axes)), axis=0)
        high = np.max(np.broadcast_arrays(*(axis.high for axis in axes)), axis=0)
        alike = [axis for axis in axes if len(axis.low) == len(longest.low)]
        start = min(axis.start for axis in alike)
        size = max(axis.start + axis.size for axis in alike) - start
        if len(alike) < len(axes):  # one of them sees the same at every place
            size, jump, start = float(high.max() - low.min() + 1), 0.0, float(low.min())
            joined.append(Axis(size, jump, start, low, high))
        else:
            joined.append(Axis(size, longest.jump, start, low, high))
    return _Support(joined[0], joined[1], supports[0].dims)


Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


def _window_of(n: fx.Node, module: nn.Module | None, name: str) -> Window | None:
    """Return the kernel, stride, padding and dilation of a convolution or pooling."""
    if module is None and name in ("max_pool2d", "avg_pool2d"):
        order = ("kernel_size", "stride", "padding", "dilation" if name == "max_pool2d" else "ceil_mode")
        given = dict(zip(order, n.args[1:], strict=False)) | n.kwargs
        kernel = given["kernel_size"]
        values = (kernel, given.get("stride") or kernel, given.get("padding", 0), given.get("dilation", 1))
    elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(module.padding, str):
        stride = module.stride or module.kernel_size
        values = (module.kernel_size, stride, module.padding, getattr(module, "dilation", 1))
    else:
        return None
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in values]  # type: ignore[arg-type]
    return pairs[0], pairs[1], pairs[2], pairs[3]


def _windowed(support: _Support, window: Window, after: tuple[int, ...]) -> _Support:
    kernel, stride, padding, dilation = window
    dims = support.dims or (2, 3)
    axes = []
    for axis, d, k, s, p, step in zip(_axes(support), dims, kernel, stride, padding, dilation, strict=True):
        low, high = _seen(axis, np.arange(after[d])[:, None] * s - p + np.arange(k) * step)
        size, jump = axis.size + (k - 1) * step * axis.jump, s * axis.jump
        axes.append(Axis(size, jump, axis.start - p * axis.jump, low, high))
    return _Support(axes[0], axes[1], dims)


def _adaptive(axis: Axis, units: int) -> Axis:
    """Adaptive pooling: unit i of m sees units floor(i n / m) to ceil((i + 1) n / m) - 1 of n."""
    n, index = len(axis.low), np.arange(units)
    first, last = index * n // units, -(-(index + 1) * n // units) - 1
    longest = int((last - first).max())
    low, high = _seen(axis, np.minimum(first[:, None] + np.arange(longest + 1), last[:, None]))
    return Axis(axis.size + longest * axis.jump, axis.jump * n / units, axis.start, low, high)


def _seen(axis: Axis, taps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last pixel, (m,) each, that is seen through any of the units in taps (m, k).

    Units that are not there are padding. Not the first tap's first pixel: with a dilation it may be padding, and then
    the fields of neighbours are out of order.
    """
    n = len(axis.low)
    there, units = (taps >= 0) & (taps < n), np.clip(taps, 0, n - 1)
    low = np.where(there, axis.low[units], np.iinfo(np.int64).max).min(axis=1)
    return low, np.where(there, axis.high[units], -1).max(axis=1)


def _moved_dims(
    n: fx.Node, module: nn.Module | None, name: str, dims: tuple[int, int], before: tuple[int, ...], after: Any
) -> tuple[int, int] | None:
    """Return where height and width are after a step that keeps places apart; None where it mixes them, or may."""
    rest = n.args[1:]
    if isinstance(module, nn.Linear | nn.LayerNorm) or name in ("linear", "layer_norm"):
        shape = module.normalized_shape if isinstance(module, nn.LayerNorm) else rest[0] if rest else ()
        over = 1 if name == "linear" else len(shape)  # type: ignore[arg-type]
        return dims if max(dims) < len(before) - over else None
    if name in ("cat", "concat", "chunk", "split"):
        dim = n.kwargs.get("dim", rest[-1] if rest and (name in ("cat", "concat") or len(rest) > 1) else 0)
        return None if dim in dims or not isinstance(dim, int) or dim < 0 else dims
    if name in POINTWISE:
        return dims if len(after) == len(before) else None
    if name == "permute":
        order: Any = rest[0] if isinstance(rest[0], Sequence) else rest
        return order.index(dims[0]), order.index(dims[1])
    if name in ("transpose", "swapaxes"):
        a, b = (int(dim) % len(before) for dim in rest)  # type: ignore[arg-type]
        swap = {a: b, b: a}
        return swap.get(dims[0], dims[0]), swap.get(dims[1], dims[1])
    if name == "unsqueeze":
        at = int(rest[0] if rest else n.kwargs["dim"]) % len(after)  # type: ignore[arg-type]
        return dims[0] + (dims[0] >= at), dims[1] + (dims[1] >= at)
    if name in ("view", "reshape"):  # of the channels alone, as a shuffle of theirs does
        tail = len(before) - dims[0]
        same = dims[1] == len(before) - 1 and dims[0] == len(before) - 2 and before[-tail:] == after[-tail:]
        return (len(after) - 2, len(after) - 1) if same else None
    if name == "getitem":
        index = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
        if isinstance(n.args[0], fx.Node) and len(after) == len(before) and isinstance(rest[0], int):
            return dims  # of a tuple
        dropped = [at for at, one in enumerate(index) if isinstance(one, int)]
        plain = all(isinstance(one, int) or one == slice(None) for one in index)
        return (dims[0] - len(dropped), dims[1] - len(dropped)) if plain and max(dropped, default=0) < dims[0] else None
    return None
