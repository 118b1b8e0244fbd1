"""Triton on CUDA: rows are read as they are stored, and responsibilities never kept.

spherical, diag    K and D up to 128 take one kernel (`diag`), larger ones three (`tiled`).
full               ln rho of a block of rows in scratch, then the moments of the rows that each component has a part in
                   (`full`); the scratch is 8 bytes a row and component, of at most SCRATCH_BYTES / 4 K rows.

Arithmetic in float64 goes to the torch backend, and so does tied covariance, whose products are few and in float64
anywhere; `why_not` says so, and one line is logged. Sums of programs are added in float64 in a fixed order, so that two
runs agree bit for bit. relu1_2 of VGG-19 on a histology tile, 2008 rows of 64 features, K = 50 after 40 passes, a pass
against the oracle, in the interpreter, which cuts what a tensor core does not read but adds up in another order:

                                    diag          spherical     full
                                    high   fast   high   fast   high   fast
    largest error of a statistic    1e-6   1e-4   2e-6   1e-4   7e-7   3e-5   of the largest in it
    nk of a component, relative     3e-6   2e-4   3e-6   1e-4   4e-6   1e-4   where nk > 1
    variance, in units of 1/lambda  8e-5   5e-3   5e-6   5e-4   2e-4   7e-3   full: R_k S_k R_k^T / n_k

and the torch backend in float32: 7e-7, 1e-6, 2e-5 for diag, 1e-6, 2e-6, 4e-6 for spherical, 3e-7, 3e-6, 8e-5 for full.
No label differs. Sums over all components fall short of those over all rows by 2e-7, what the split cuts off. A scatter
of full covariance in split products would err by 2e-3, high, and by 4e-2, fast, in the last line's units, for the same
responsibilities: it is summed in float64 in both.

Not: to skip a component of full covariance for a tile of rows where a distance in the first features alone is out of
reach. On those features 99.8 % of the pairs of row and component are within reach after 16 columns and 97 % after 32,
where 2 % are in the end, and no tile of 128 rows, grouped by their last winner or not, is without one.

Not: to split y once, outside the loop over components of full covariance, and to take R_k m_k off its product. There
ln rho errs by 1.2e-3 for 4.8e-4, and nk by 3e-6 for 1e-6, and what it saves does not bound a pass: for 1 M rows of an
H100 issue slots are 1.2 ms, and tensor cores 1.9 ms.

All of it has run in Triton's interpreter (TRITON_INTERPRET=1, for tests), and `scripts/test-card-versions` compiles
every launch of the tests for sm_80, sm_89 and sm_90; no GPU has run it. Triton is imported when it is first needed: a
second that a run on the CPU need not spend.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision, Statistics
from fastclust.kernels.handover import left
from fastclust.kernels.triton.shapes import USUAL, Tuning, fits

if TYPE_CHECKING:
    from fastclust.kernels.triton.diag import Fused
    from fastclust.kernels.triton.scratch import Blockwise

PRECISIONS: tuple[Precision, ...] = ("high", "fast")
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def unavailable(device: torch.device) -> str | None:
    """Say why there is no Triton on a device: it needs CUDA, or its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != ("cpu" if interpreted else "cuda"):
        return "TRITON_INTERPRET is set, for tests on the CPU" if interpreted else "needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from fastclust.kernels.triton import launch

    if interpreted != launch.INTERPRETED:
        return "TRITON_INTERPRET was changed after triton was imported"
    return None


def why_not(covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> str | None:
    """Say why the torch backend takes a covariance type, arithmetic in dtype or rows stored so; None if it does not."""
    if covariance_type == "tied":
        return "tied covariance has no Triton kernel: its products are few, and in float64"
    if dtype != torch.float32:
        return f"arithmetic in {dtype} was asked for, and the Triton kernels compute in float32"
    return None if stored in STORED else f"rows are {stored}, and the Triton kernels read {STORED}"


def prepare(
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    block_rows: int | None = None,
    tuning: Tuning = USUAL,
) -> Plan:
    """Return the plan of an E-step; see the backend protocol.

    precision: of matrix products in float32, "high", three terms of tf32, or "fast", three of bfloat16.
    tuning: what a measurement wants otherwise.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'high' or 'fast', and was {precision!r}")
    if left("triton", why_not(coefficients.covariance_type, dtype, torch.float32)):
        return plain.prepare(coefficients, frame, dtype, block_rows=block_rows)
    return Kernels(coefficients, frame, precision == "fast", block_rows, tuning)


class Kernels:
    """A plan whose rows are read by Triton kernels, in one way or in two: see `launch.exact`."""

    def __init__(
        self, coefficients: Coefficients, frame: Frame, fast: bool, block_rows: int | None, tuning: Tuning
    ) -> None:
        self._coefficients, self._frame, self._fast = coefficients, frame, fast
        self._block_rows, self._tuning = block_rows, tuning
        self._parts: dict[bool, Fused | Blockwise] = {}  # by whether rows have few digits

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D); weights (n,) count a row w_n times."""
        self._part(rows).add(rows, weights)

    def result(self) -> Statistics:
        """Return the statistics of all rows added so far. Raises ValueError where there were none."""
        found = [part.total() for part in self._parts.values() if part.held]
        if not found:
            raise ValueError("no rows were added")
        return found[0] if len(found) == 1 else found[0] + found[1]

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        return self._part(rows).assign(rows)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K)."""
        from fastclust.kernels.triton.diag import Fused
        from fastclust.kernels.triton.scratch import Blockwise
        from fastclust.kernels.triton.tiled import Tiled

        part = self._part(rows)
        if isinstance(part, Fused):
            given = self._coefficients, self._frame, self._fast, part.exact, self._tuning
            part = Blockwise(Tiled(*given), self._block_rows)
        return part.responsibilities(rows)

    renewable = True

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same shapes, in place, and forget the rows; the host waits for nothing."""
        self._coefficients = coefficients
        for part in self._parts.values():
            part.renew(coefficients)

    def clear(self) -> None:
        """Forget the rows on the host's side alone: the device's part of `renew` is done again by other means."""
        for part in self._parts.values():
            part.clear()

    def _part(self, rows: torch.Tensor) -> Fused | Blockwise:
        """Return what reads rows that are stored so."""
        from fastclust.kernels.triton.diag import Fused
        from fastclust.kernels.triton.full import Full
        from fastclust.kernels.triton.launch import exact
        from fastclust.kernels.triton.scratch import Blockwise
        from fastclust.kernels.triton.tiled import Tiled

        if rows.dtype not in STORED:
            raise TypeError(f"the Triton kernels read rows of {STORED}, and these are {rows.dtype}")
        few, c = exact(rows.dtype, self._fast), self._coefficients
        full = c.covariance_type == "full"
        few = few and not full
        if few not in self._parts:
            if full:
                part: Fused | Blockwise = Blockwise(Full(c, self._frame, self._fast, self._tuning), self._block_rows)
            elif fits(*c.means.shape):
                part = Fused(c, self._frame, self._fast, few, self._tuning)
            else:
                part = Blockwise(Tiled(c, self._frame, self._fast, few, self._tuning), self._block_rows)
            self._parts[few] = part
        return self._parts[few]


def moments(
    rows: torch.Tensor,
    responsibilities: torch.Tensor,
    covariance_type: CovarianceType,
    about: torch.Tensor,
    frame: Frame,
    dtype: torch.dtype,
) -> Statistics:
    """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol."""
    if left("triton", why_not(covariance_type, dtype, rows.dtype)):
        return plain.moments(rows, responsibilities, covariance_type, about, frame, dtype)
    from fastclust.kernels.triton.full import Scatter
    from fastclust.kernels.triton.tiled import Given

    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    scatter = Scatter(about, frame) if covariance_type == "full" else Given(about, frame, covariance_type == "diag")
    scatter.add(rows, responsibilities)
    return scatter.result(zero, zero)
