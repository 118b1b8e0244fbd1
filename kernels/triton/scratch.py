"""Passes that keep log2 rho of a block of rows in scratch: by the tiled kernels of diag, and by those of full."""

from __future__ import annotations

import math

import torch

from fastclust.kernels.contract import Statistics
from fastclust.kernels.torch import FLOOR
from fastclust.kernels.triton.full import Full
from fastclust.kernels.triton.launch import empty, scratch_rows
from fastclust.kernels.triton.tiled import Tiled, softmax_of

CUT = FLOOR[torch.float32] + math.log(1.5)  # nats; as the torch backend


class Blockwise:
    """The part of a plan whose rows are taken some at a time.

    block_rows: how many; None for as many as there is scratch for.
    """

    def __init__(self, kernels: Tiled | Full, block_rows: int | None) -> None:
        self.kernels = kernels
        self.size = block_rows or scratch_rows(kernels.k)
        self.room = torch.empty(0, device=kernels.device)
        self.sums = self.ones = torch.empty(0, device=kernels.device)
        self.renew, self.clear = kernels.renew, kernels.clear

    @property
    def held(self) -> bool:
        """Whether rows were added."""
        return self.kernels.held

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None) -> None:
        """Add the statistics of rows (n, D), weights (n,)."""
        kernels = self.kernels
        most = min(len(rows), self.size)
        self._scratch(most)
        kernels.make_room(most)
        each = empty(2, most, dtype=torch.float64, device=rows.device)  # log_norm, entropy
        if len(self.ones) < most:
            self.ones = torch.ones(most, dtype=torch.float64, device=rows.device)
        if not len(self.sums):
            self.sums = empty(2, dtype=torch.float64, device=rows.device)
        for low in range(0, len(rows), self.size):
            block = rows[low : low + self.size]
            some, n = None if weights is None else weights[low : low + self.size], len(block)
            shares = self._scratch(n)
            kernels.log_rho(block, shares)
            softmax_of(shares, some, each[0], each[0], each[1], CUT, shares=True, sums=True)
            held = kernels.held
            kernels.add_moments(block, shares)
            self.sums.addmv_(each[:, :n], self.ones[:n], beta=int(held))
            kernels.held = True

    def total(self) -> Statistics:
        """Return the statistics of the rows added so far."""
        return self.kernels.result(*self.sums)

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels (n,) int32 and ln sum rho (n,) float32."""
        labels = empty(len(rows), dtype=torch.int32, device=rows.device)
        density = empty(len(rows), dtype=torch.float32, device=rows.device)
        for low in range(0, len(rows), self.size):
            some = slice(low, min(low + self.size, len(rows)))
            shares = self._scratch(some.stop - low)
            self.kernels.log_rho(rows[some], shares)
            softmax_of(shares, None, labels[some], density[some], density, CUT, labelled=True)
        return labels, density

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K); there is no floor: what is shown to a user underflows to zero."""
        out = empty(len(rows), self.kernels.k, dtype=torch.float32, device=rows.device)
        for low in range(0, len(rows), self.size):
            some = slice(low, min(low + self.size, len(rows)))
            shares = self._scratch(some.stop - low)
            self.kernels.log_rho(rows[some], shares)
            softmax_of(shares, None, shares, shares, shares, -math.inf, shares=True)
            out[some] = shares
        return out

    def _scratch(self, n: int) -> torch.Tensor:
        """Return room for log2 rho (n, K), as the kernels want it laid out."""
        n_rows = max(n, 16)
        if self.room.numel() < n_rows * self.kernels.k:
            rows = min(-(-n_rows // 16) * 16, max(self.size, 16))
            self.room = empty(rows * self.kernels.k, dtype=torch.float32, device=self.kernels.device)
        return self.kernels.laid_out(self.room)[:n]
