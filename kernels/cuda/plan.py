"""The plan of an E-step of spherical or diag covariance: a table of coefficients, and sums that kernels add to.

A block of rows is one launch, or two where K is above 64: labels and peaks of the rows first. Where K and D are 64 at
most, and the device has products of tf32, the launch is of fused.cu, and else of statistics.cu. Each block of threads
has sums of its own, a slot, from one block of rows to the next, and `result` adds the slots up. Where a plan has been
made and rows were added once, the addresses of the table and the slots stay: `result` and `renew` are operations of
torch alone and look at no value, so that a CUDA graph can hold them; what is left to the host then is `clear`.
"""

from __future__ import annotations

import numpy as np
import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.contract import Plan as AnyPlan
from fastclust.kernels.cuda import launch
from fastclust.kernels.cuda.fused import FLUSH, Tables
from fastclust.kernels.handover import tell
from fastclust.kernels.memory import share_of_free

SLOTS_BYTES = 1 << 30  # of all slots, where K D is so large that they come to that


class Plan:
    """See `fastclust.kernels.contract.Plan`; rows are about the means in float32.

    block_rows is for what goes to the torch backend: here a row takes 4 bytes where it has a weight that is not
    float32, and 8 where K is above 64.
    """

    def __init__(
        self, coefficients: Coefficients, frame: Frame, dtype: torch.dtype, block_rows: int | None = None
    ) -> None:
        self._coefficients, self._frame, self._dtype, self._block_rows = coefficients, frame, dtype, block_rows
        (k, d), device = coefficients.means.shape, coefficients.means.device
        limits = launch.limits_of(device)
        self._shape = launch.shape_of(k, d, limits.block_bytes)
        self._at_once = limits.at_once(self._shape)
        self._rounds = -(-k // self._shape.components)
        self._fused = launch.fused_of(k, d, limits)
        self._tables = None if self._fused is None else Tables(self._fused, k, d, device)
        cut = self._fused or self._shape
        self._most = -(-limits.at_once(cut) // self._rounds)  # slots
        self._sizes = [k, k * d, k * d, 2 * self._rounds * cut.threads]  # of a slot: see statistics.cu
        self._slots: torch.Tensor | None = None
        self._seen = _read_in(frame, d, device)
        self._table = launch.empty(k + 3 * k * d, dtype=torch.float32, device=device)
        self._others: AnyPlan | None = None  # for rows that kernels cannot read
        self.renew(coefficients)

    @property
    def renewable(self) -> bool:
        """Whether `result` reads what stays where it is: the torch backend's sums of a pass do not."""
        return self._others is None

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same kind and shapes in place of the plan's, and forget the rows.

        Their tensors are held, not copied. Raises ValueError where kind or shapes differ.
        """
        own, kind = self._coefficients, coefficients.covariance_type
        (k, d), m = own.means.shape, coefficients.means
        if kind != own.covariance_type or m.shape != own.means.shape:
            raise ValueError(
                f"the plan is for {own.covariance_type} covariance, K = {k} and D = {d}, and the coefficients are for "
                f"{kind}, K = {len(m)} and D = {m.shape[1]}: prepare another plan"
            )
        self._coefficients = coefficients
        offset, mean, root, rest = _views(self._table, k, d)
        scale = (coefficients.precision if kind == "diag" else coefficients.precision[:, None]).sqrt()
        offset.copy_(coefficients.offset)
        mean.copy_(m)
        root.copy_(scale.expand_as(m))
        torch.mul(torch.sub(mean, m), scale, out=rest)
        if self._tables is not None:
            self._tables.renew(coefficients, self._table)
        self.clear()

    def clear(self) -> None:
        """Forget the rows that were added: on the host alone, so that a graph which renews the plan leaves it to do."""
        self._held, self._others = False, None

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D); weights (n,) count a row w_n times.

        Where it raises torch.OutOfMemoryError, none of these rows has been added.
        """
        reason = launch.unread(rows.dtype)
        if reason is not None:
            self._others = self._others or self._plain(reason)
            self._others.add(rows, weights)
            return
        if self._slots is None:
            most = share_of_free(rows.device, SLOTS_BYTES) // (8 * sum(self._sizes))
            blocks = max(min(self._most, most), 1)
            self._slots = launch.empty(blocks, sum(self._sizes), dtype=torch.float64, device=rows.device)
        w = None if weights is None else weights.to(torch.float32)
        weighted = w, np.int64(0 if w is None else w.stride(0))
        grid, kept = (len(self._slots), self._rounds), (self._slots, np.int32(self._held))
        if self._fused is not None and self._tables is not None:
            cut = self._fused.reading(rows, moved=self._seen is not None)
            k, tables = np.int32(self._coefficients.n_components), (self._tables.padded, self._tables.tight)
            launch.start("fused", cut, grid, rows, self._seen, k, *weighted, *tables, *kept, FLUSH)
        else:
            peaks = self._peaks(rows, None) if self._rounds > 1 else (None, None)
            launch.start("statistics", self._shape, grid, rows, *self._terms, *weighted, *peaks, *kept)
        self._held = True

    def result(self) -> Statistics:
        """Return the statistics of all rows added so far. Raises ValueError where there were none."""
        others = None if self._others is None else self._others.result()
        if self._slots is None or not self._held:
            if others is None:
                raise ValueError("no rows were added")
            return others
        kind, means = self._coefficients.covariance_type, _views(self._table, *self._coefficients.means.shape)[1]
        nk, sx, sxx, sums = torch.split(self._slots.sum(0), self._sizes)
        log_norm, entropy = sums.view(self._rounds, 2, -1).sum((0, 2))
        squares = sxx.view(means.shape)
        squares = squares if kind == "diag" else squares.sum(1)
        own = Statistics(nk, sx.view(means.shape), squares, log_norm, entropy, about=means.double())
        return own if others is None else own + others.moved(own.about)

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        reason = launch.unread(rows.dtype)
        if reason is not None:
            return self._plain(reason).assign(rows)
        labels = launch.empty(len(rows), dtype=torch.int32, device=rows.device)
        peaks, totals = self._peaks(rows, labels)
        return labels, totals.log_().add_(peaks)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K), which a user asks for once: by the torch backend."""
        return self._plain("responsibilities have no CUDA kernel").responsibilities(rows)

    @property
    def _terms(self) -> tuple[launch.Argument, ...]:
        return self._seen, self._table, np.int32(self._coefficients.n_components)

    def _peaks(self, rows: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest ln rho of each row and sum rho over that largest one, (n,) float32; write labels (n,)."""
        peaks, totals = (launch.empty(len(rows), dtype=torch.float32, device=rows.device) for _ in range(2))
        blocks = max(min(launch.tiles_of(len(rows)), self._at_once), 1)
        launch.start("assign", self._shape, (blocks, 1), rows, *self._terms, labels, peaks, totals)
        return peaks, totals

    def _plain(self, reason: str) -> AnyPlan:
        """Return the torch backend's plan of the same E-step, and tell why."""
        tell("cupy", reason)
        return plain.prepare(self._coefficients, self._frame, self._dtype, block_rows=self._block_rows)


def _read_in(frame: Frame, d: int, device: torch.device) -> torch.Tensor | None:
    """Return shift and scale (2, D) float32, or None where rows are taken as they are."""
    if frame.shift is None and frame.scale is None:
        return None
    both = launch.empty(2, d, dtype=torch.float32, device=device)
    for own, part, nothing in zip(both, (frame.shift, frame.scale), (0.0, 1.0), strict=True):
        _ = own.fill_(nothing) if part is None else own.copy_(part)
    return both


def _views(table: torch.Tensor, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return offset (K,), mean, root and rest (K, D) in a table; see parts.cuh."""
    offset, mean, root, rest = torch.split(table, [k, k * d, k * d, k * d])
    return offset, mean.view(k, d), root.view(k, d), rest.view(k, d)
