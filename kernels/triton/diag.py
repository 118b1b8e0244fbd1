"""spherical and diag that fit on the chip, K and D up to 128: a tile of rows is read, used up and forgotten.

Programs are persistent: program i takes tiles i, i + programs, ... of B rows. Responsibilities never leave the chip.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastclust.kernels.contract import Statistics
from fastclust.kernels.triton.common import read_rows, softmax
from fastclust.kernels.triton.launch import empty, on_device_of, parts
from fastclust.kernels.triton.linear import Part, add_moments, flush, log_rho, read_tables
from fastclust.kernels.triton.shapes import Shape, fused_shape, programs_of, shared_bytes_of

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["n_rows", "held", "flush_after"], do_not_specialize_on_alignment=["weights"])
def fused_statistics(
    rows, weights, frame, terms, moments, vectors, sums, n_rows, n_features, stride_n, stride_d, stride_w, held,
    flush_after,
    DIAG: tl.constexpr, MOVED: tl.constexpr, SCALED: tl.constexpr, WEIGHTED: tl.constexpr, EXACT: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):  # fmt: skip
    """Add each program's share of the statistics to its slots; grid: (programs, WIDTH / PART), by columns of sums.

    rows: (N, D) as stored; weights: (N,), any float dtype, read where WEIGHTED. terms: `linear.Terms`.
    moments: (programs, 2 or 1, WIDTH, K) float64, sums of r y and, for diag, r y^2.
    vectors: (programs, WIDTH / PART, 2, K) float64, nk and, for spherical, this part's sum of r |y|^2.
    sums: (programs, 2) float64, log_norm and entropy, in nats. held: whether there is anything in the slots.
    flush_after: tiles that float32 sums hold before they go to float64.
    """
    if (tl.load(terms.n_tight) > 0) != TIGHT:
        return
    program, part = tl.program_id(0), tl.program_id(1)
    programs, parts = tl.num_programs(0), tl.num_programs(1)
    moments += program.to(tl.int64) * ((2 if DIAG else 1) * K * WIDTH)
    vectors += (program * parts + part).to(tl.int64) * (2 * K)
    column = part * PART + tl.arange(0, PART)
    steps = tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - program, programs), 0)
    if C == WIDTH:
        tables = read_tables(terms, tl.arange(0, C), tl.arange(0, K), DIAG, K, WIDTH)
    else:
        tables = (0, 0, 0, 0)
    norm = tl.zeros([B], tl.float64)
    entropy = tl.zeros([B], tl.float64)
    # A program without a tile writes zeros where there is nothing yet.
    for group in range(tl.maximum(tl.cdiv(steps, flush_after), 1 - held)):
        sx = tl.zeros([PART, K], tl.float32)
        nk = tl.zeros([B, K], tl.float32)
        if DIAG:
            sxx = tl.zeros([PART, K], tl.float32)
        else:
            sxx = tl.zeros([K], tl.float32)
        for step in range(group * flush_after, tl.minimum((group + 1) * flush_after, steps)):
            tile = (program + step * programs).to(tl.int64)
            row = tile * B + tl.arange(0, B)
            here = row < n_rows
            logits, y = log_rho(
                rows, frame, terms, tables, row, here, 0, n_features, stride_n, stride_d,
                DIAG, MOVED, SCALED, EXACT, K, K, WIDTH, C, B, FAST, TIGHT,
            )  # fmt: skip
            peak, total, p, below = softmax(logits, FAST)
            log_sum = tl.log2(total)
            if WEIGHTED:
                w = tl.load(weights + row * stride_w, mask=here, other=0.0).to(tl.float32)
            else:
                w = here.to(tl.float32)
            p *= (w / total)[:, None]
            norm += w.to(tl.float64) * (peak.to(tl.float64) + log_sum.to(tl.float64))
            entropy += (w * log_sum - tl.sum(p * below, 1)).to(tl.float64)
            if (PART < WIDTH) | (C < WIDTH):
                y = read_rows(rows, frame, row, here, column, n_features, stride_n, stride_d, MOVED, SCALED)
            sx, sxx, nk = add_moments(y, p, sx, sxx, nk, terms, 0, column, DIAG, EXACT, K, WIDTH, FAST, TIGHT)
        flush(moments, vectors, sx, sxx, tl.sum(nk, 0), held + group, 0, column, DIAG, K, K, WIDTH)
    if part == 0:
        at = sums + program * 2
        old_norm = tl.load(at, mask=held > 0, other=0.0)
        old_entropy = tl.load(at + 1, mask=held > 0, other=0.0)
        tl.store(at, old_norm + tl.sum(norm, 0) * LN_2)
        tl.store(at + 1, old_entropy + tl.sum(entropy, 0) * LN_2)


@triton.jit(do_not_specialize=["n_rows", "n_components"])
def fused_assign(
    rows, frame, terms, labels, density, n_rows, n_features, n_components, stride_n, stride_d,
    DIAG: tl.constexpr, MOVED: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr, TIGHT: tl.constexpr,
):  # fmt: skip
    """Write labels (N,) int32 and density (N,) float32; grid: (programs,).

    labels: the first of the most probable components. density: ln sum rho. rows: (N, D) as stored.
    """
    if (tl.load(terms.n_tight) > 0) != TIGHT:
        return
    program, programs = tl.program_id(0), tl.num_programs(0)
    if C == WIDTH:
        tables = read_tables(terms, tl.arange(0, C), tl.arange(0, K), DIAG, K, WIDTH)
    else:
        tables = (0, 0, 0, 0)
    for step in range(tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - program, programs), 0)):
        row = (program + step * programs).to(tl.int64) * B + tl.arange(0, B)
        here = row < n_rows
        logits, y = log_rho(
            rows, frame, terms, tables, row, here, 0, n_features, stride_n, stride_d,
            DIAG, MOVED, SCALED, EXACT, K, K, WIDTH, C, B, FAST, TIGHT,
        )  # fmt: skip
        peak, total, p, below = softmax(logits, FAST)
        at_peak = tl.where(logits == peak[:, None], tl.arange(0, K)[None, :], n_components)
        tl.store(labels + row, tl.min(at_peak, 1), mask=here)
        tl.store(density + row, (peak + tl.log2(total)) * LN_2, mask=here)


class Fused(Part):
    """The part of a plan whose coefficients fit on the chip."""

    def cut(self) -> Shape:
        """Return how the kernels are cut up."""
        return fused_shape(self.k, self.d, self.diag, shared_bytes_of(self.device), self.tuning)

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None) -> None:
        """Add the statistics of rows (n, D), weights (n,): two launches."""
        shape = self.shape
        programs, columns = programs_of(self.device, shape, self.diag), shape.width // shape.part
        if not self.slots:
            self.sums = empty(programs, 2, dtype=torch.float64, device=self.device)
            self.make_slots(programs, columns)
        w = self.nothing if weights is None else weights
        with on_device_of(rows):
            for tight in (False, True):
                fused_statistics[(programs, columns)](
                    rows, w, self.frame, self.terms, *self.slots, self.sums, len(rows), self.d, *rows.stride(),
                    w.stride(0), int(self.held), self.tuning.flush, **self._constants(), WEIGHTED=weights is not None,
                    PART=shape.part, TIGHT=tight,
                )  # fmt: skip
        self.held = True

    def total(self) -> Statistics:
        """Return the statistics of the rows added so far."""
        return self.result(*self.sums.sum(0))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels (n,) int32 and ln sum rho (n,) float32."""
        labels = empty(len(rows), dtype=torch.int32, device=self.device)
        density = empty(len(rows), dtype=torch.float32, device=self.device)
        with on_device_of(rows):
            for tight in (False, True):
                fused_assign[(programs_of(self.device, self.shape, self.diag),)](
                    rows, self.frame, self.terms, labels, density, len(rows), self.d, self.k, *rows.stride(),
                    **self._constants(), TIGHT=tight,
                )  # fmt: skip
        return labels, density

    def _constants(self) -> dict[str, Any]:
        shape = self.shape
        size = {"K": shape.components, "WIDTH": shape.width, "C": shape.columns, "B": shape.rows}
        return self.reading | size | shape.options() | {"EXACT": self.exact, "FAST": parts(self.fast)}
