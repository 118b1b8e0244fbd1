"""The rows of a fit, bound to the frame that they are seen in and to the backend that reads them.

Every pass sees a row as y = (x - shift) * scale, with the same shift and scale for the whole fit. Columns whose mean is
large against their deviation are moved to their mean, because sums of squares would cancel; other columns stay as they
are, because there an exact zero, and post-ReLU features are half zeros, is worth more than a smaller mean (measured on
relu1_2 of VGG-19: moving every column makes nk ten times less exact).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial, reduce
from operator import add
from typing import TypeVar

import torch

from fastclust.blocks import Blocks
from fastclust.kernels import Backend, Coefficients, Frame, Plan, Precision, Statistics
from fastclust.kernels.duplicates import Parts, merge
from fastclust.kernels.threads import one_thread_where_small
from fastclust.pieces import Pieces
from fastclust.summary import Summary

MOVE_BEYOND = 4.0  # deviations
MERGED_FROM = 16_384  # rows

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Bind the rows of a fit to the backend that reads them.

    offset, scale: (D,) float64, the affine map from stored to mixture values, z = (x - offset) * scale.
    centre: (D,) float64, where the coordinates y = z - centre of every pass, prior and posterior have their zero.
    dtype: of the arithmetic over rows. block_rows: rows that the backend treats at once; None for its own choice. Fewer
    where the device runs out of memory: see `fastclust.pieces`.
    precision: of products over rows, where the backend has more than one.
    """

    blocks: Blocks
    backend: Backend
    dtype: torch.dtype
    offset: torch.Tensor
    scale: torch.Tensor
    centre: torch.Tensor
    block_rows: int | None = None
    precision: Precision = "high"
    pieces: Pieces = field(default_factory=Pieces)
    frame: Frame = field(init=False)

    def __post_init__(self) -> None:
        shift = self.offset + self.centre / self.scale
        frame = Frame(shift if bool(shift.any()) else None, self.scale if bool((self.scale != 1).any()) else None)
        object.__setattr__(self, "frame", frame.to(self.blocks.device))

    @property
    def by_value(self) -> bool:
        """Whether equal components are looked for by value: on an accelerator that would stop its queue."""
        return self.blocks.device.type == "cpu"

    def statistics(self, coefficients: Coefficients, parts: Parts | None = None) -> Statistics:
        """Return the statistics of all rows, also of the group's other processes: one E-step.

        parts: of components that the coefficients have as one. Each process takes its own sums apart, so that others
        need not have the same components as one.
        """
        # Of few rows, looking for equal components takes longer than it saves.
        worth_it = coefficients.covariance_type in ("full", "tied") or self.blocks.n_total >= MERGED_FROM
        with one_thread_where_small(coefficients.precision):
            merged = merge(coefficients) if worth_it and self.by_value else None
        if merged is not None:
            coefficients, parts = merged
        plan = self.plan(coefficients)
        self.read_into(plan)
        found = plan.result()
        if parts is not None:
            with one_thread_where_small(coefficients.precision):
                found = parts.apart(found)
        return self.everywhere(found)

    def read_into(self, plan: Plan) -> list[int]:
        """Add all rows of this process to a plan; return how many there were in each piece."""
        sizes = []
        for block, weights in self.blocks.weighted():
            for piece, _ in self.pieces.over(block, self.block_rows, partial(_add, plan, block, weights)):
                sizes.append(piece.stop - piece.start)
        return sizes

    def assigned(self, coefficients: Coefficients) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Iterate over blocks (n, D) with their rows' most probable components (n,) int32 and log-densities (n,)."""
        plan = self.plan(coefficients)
        for block in self.blocks:
            for piece, (labels, density) in self.pieces.over(block, self.block_rows, partial(_of, plan.assign, block)):
                yield block[piece], labels, density

    def responsibilities(self, coefficients: Coefficients) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Iterate over blocks (n, D) with their rows' responsibilities (n, K)."""
        plan = self.plan(coefficients)
        for block in self.blocks:
            for piece, r in self.pieces.over(block, self.block_rows, partial(_of, plan.responsibilities, block)):
                yield block[piece], r

    def everywhere(self, found: Statistics) -> Statistics:
        """Return the sum of the statistics that each of the group's processes has of its rows."""
        group = self.blocks.group
        if group.size == 1:
            return found
        parts = {one.name: getattr(found, one.name) for one in fields(Statistics)}
        there = {name: part for name, part in parts.items() if part is not None}
        sizes = [part.numel() for part in there.values()]

        def unpacked(flat: torch.Tensor) -> Statistics:
            pieces = zip(there, torch.split(flat, sizes), strict=True)
            return replace(found, **{name: piece.view(there[name].shape) for name, piece in pieces})

        each = [unpacked(flat) for flat in group.gather(torch.cat([part.reshape(-1) for part in there.values()]))]
        return reduce(add, (one.moved(each[0].about) for one in each))

    def in_own_frame(self) -> Rows:
        """Return these rows for tensors that are in the passes' coordinates already."""
        zero = torch.zeros_like(self.offset)
        return replace(self, offset=zero, scale=zero + 1, centre=zero)

    def plan(self, coefficients: Coefficients) -> Plan:
        """Return the backend's plan of an E-step over rows in this frame."""
        return self.backend.prepare(coefficients, self.frame, self.dtype, self.precision, self.block_rows)

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """Return stored rows (n, D) in the passes' coordinates and dtype."""
        return self.frame.read(stored, torch.empty(stored.shape, dtype=self.dtype, device=stored.device))


def _add(plan: Plan, block: torch.Tensor, weights: torch.Tensor | None, piece: slice) -> None:
    plan.add(block[piece], None if weights is None else weights[piece])


def _of(what: Callable[[torch.Tensor], T], block: torch.Tensor, piece: slice) -> T:
    return what(block[piece])


def centre_of(summary: Summary, offset: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return where the passes' coordinates should have their zero (D,), in mixture values.

    The zero is zero itself, or, for columns whose mean is more than MOVE_BEYOND deviations away from it, a number next
    to the mean that float32 can hold as a stored value, so that moving a float32 row there is exact.
    """
    mean = (summary.mean - offset) * scale
    deviation = summary.variance.sqrt() * scale
    near_mean = summary.mean.float().double()
    move = (mean.abs() > MOVE_BEYOND * deviation) & torch.isfinite(near_mean)
    return torch.where(move, (near_mean - offset) * scale, torch.zeros_like(mean))


def scatter_about(summary: Summary, rows: Rows) -> torch.Tensor:
    """Return sum_n y_n y_n^T (D, D), or its diagonal (D,) where the summary has no more, in the passes' coordinates."""
    mean = (summary.mean - rows.offset) * rows.scale - rows.centre
    if summary.scatter.ndim == 1:
        return rows.scale**2 * summary.scatter + summary.total * mean**2
    return torch.outer(rows.scale, rows.scale) * summary.scatter + summary.total * torch.outer(mean, mean)


def unclaimed_scatter(summary: Summary, rows: Rows, first: Statistics) -> torch.Tensor:
    """Return what rows that no component claims add to the scatter of a tied start (D, D), as in scikit-learn.

    scikit-learn's tied covariance takes the second moment of all rows about the user's origin from the components'
    moments about it. Where responsibilities do not sum to N (one row a component), the rest of the rows' distance from
    the origin stays in. In every later pass this is zero.
    """
    mean = (summary.mean - rows.offset.cpu()) * rows.scale.cpu() - rows.centre.cpu()
    rest = (summary.total * mean).to(first.sx) - first.sx.sum(0) - (first.nk[:, None] * first.about).sum(0)  # (D,)
    origin = -rows.centre
    across = torch.outer(rest, origin)
    return (summary.total - first.nk.sum()) * torch.outer(origin, origin) - across - across.T
