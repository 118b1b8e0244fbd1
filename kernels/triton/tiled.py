"""spherical and diag of any size: ln rho of a block of rows into scratch, softmax there, then moments from it.

The scratch holds log2 rho, then responsibilities, of one block of rows, float32; rows are read once for every block of
components and once more for its moments. Full covariance takes its softmax from here, too.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastclust.kernels.contract import Coefficients, Frame
from fastclust.kernels.triton.common import exp2, read_rows
from fastclust.kernels.triton.launch import on_device_of, parts
from fastclust.kernels.triton.linear import Part, add_moments, flush, log_rho, read_tables
from fastclust.kernels.triton.shapes import USUAL, Shape, power, programs_of, tiled_shape

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["n_rows", "n_components"])
def tiled_log_rho(
    rows, frame, terms, scratch, n_rows, n_features, n_components, stride_n, stride_d, stride_s,
    DIAG: tl.constexpr, MOVED: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr, KS: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr, TIGHT: tl.constexpr,
):  # fmt: skip
    """Write log2 rho into scratch (N, n_components) float32, rows at stride_s; grid: (row tiles, KS / K).

    rows: (N, D) as stored. terms: `linear.Terms`.
    """
    if (tl.load(terms.n_tight) > 0) != TIGHT:
        return
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    first = tl.program_id(1) * K
    if C == WIDTH:
        tables = read_tables(terms, tl.arange(0, C), first + tl.arange(0, K), DIAG, KS, WIDTH)
    else:
        tables = (0, 0, 0, 0)
    logits, y = log_rho(
        rows, frame, terms, tables, row, here, first, n_features, stride_n, stride_d,
        DIAG, MOVED, SCALED, EXACT, KS, K, WIDTH, C, B, FAST, TIGHT,
    )  # fmt: skip
    component = first + tl.arange(0, K)
    at = scratch + row[:, None] * stride_s + component[None, :]
    tl.store(at, logits, mask=here[:, None] & (component < n_components)[None, :])


@triton.jit(
    do_not_specialize=["n_rows", "n_components"],
    do_not_specialize_on_alignment=["weights", "labels", "density", "entropy"],
)
def tiled_softmax(
    scratch, weights, labels, density, entropy, n_rows, n_components, stride_s, stride_k, stride_w, cut,
    LABELS: tl.constexpr, SHARES: tl.constexpr, SUMS: tl.constexpr, WEIGHTED: tl.constexpr, K: tl.constexpr,
    B: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Take the softmax of each row of scratch, log2 rho in float32, n and k at stride_s and stride_k; grid: (tiles,).

    cut: what is at or below 2^cut of a row's largest is zero; what is no number is not. Where LABELS: write labels (N,)
    int32, the first of the most probable, and density (N,) float32, ln sum rho. Where SHARES: responsibilities into
    scratch. Where SUMS: these times weights (N,), any float dtype, if WEIGHTED, and density, entropy (N,) float64, a
    row's terms of log_norm and entropy.
    """
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    own = scratch + row[:, None] * stride_s
    peak = tl.full([B], float("-inf"), tl.float32)
    label = tl.full([B], 0, tl.int32) + n_components
    for start in range(0, n_components, K):
        component = start + tl.arange(0, K)
        place = component.to(tl.int64) * stride_k
        inside = here[:, None] & (component < n_components)[None, :]
        logits = tl.load(own + place[None, :], mask=inside, other=float("-inf"))
        best = tl.max(logits, 1)
        if LABELS:
            at_best = tl.min(tl.where(logits == best[:, None], component[None, :], n_components), 1)
            label = tl.where(best > peak, at_best, label)
        peak = tl.maximum(peak, best)
    peak = tl.where(here, peak, 0.0)
    total = tl.zeros([B], tl.float32)
    for start in range(0, n_components, K):
        component = start + tl.arange(0, K)
        place = component.to(tl.int64) * stride_k
        inside = here[:, None] & (component < n_components)[None, :]
        below = tl.load(own + place[None, :], mask=inside, other=float("-inf")) - peak[:, None]
        total += tl.sum(tl.where(below <= cut, 0.0, exp2(below, FAST)), 1)
    total = tl.where(here, total, 1.0)
    log_sum = tl.log2(total)
    if LABELS:
        tl.store(labels + row, label, mask=here)
        tl.store(density + row, (peak + log_sum) * LN_2, mask=here)
    w = tl.full([B], 1.0, tl.float32)
    if WEIGHTED:
        w = tl.load(weights + row * stride_w, mask=here, other=0.0).to(tl.float32)
    product = tl.zeros([B], tl.float32)
    if SHARES:
        for start in range(0, n_components, K):
            component = start + tl.arange(0, K)
            place = component.to(tl.int64) * stride_k
            inside = here[:, None] & (component < n_components)[None, :]
            below = tl.load(own + place[None, :], mask=inside, other=float("-inf")) - peak[:, None]
            lost = below <= cut
            below = tl.where(lost, 0.0, below)
            p = tl.where(lost, 0.0, exp2(below, FAST)) / total[:, None]
            product += tl.sum(p * below, 1)
            tl.store(own + place[None, :], p * w[:, None], mask=inside)
    if SUMS:
        norm = peak.to(tl.float64) + log_sum.to(tl.float64)
        tl.store(density + row, w.to(tl.float64) * norm * LN_2, mask=here)
        tl.store(entropy + row, (w * (log_sum - product)).to(tl.float64) * LN_2, mask=here)


@triton.jit(do_not_specialize=["n_rows", "n_components", "held", "flush_after"])
def tiled_moments(
    rows, shares, frame, terms, moments, vectors, n_rows, n_features, n_components, stride_n, stride_d, stride_s,
    stride_k, held, flush_after,
    DIAG: tl.constexpr, MOVED: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr, KS: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr, TIGHT: tl.constexpr,
):  # fmt: skip
    """Add each split's share of the moments of given responsibilities to its slots; grid: (splits, WIDTH / C, KS / K).

    rows: (N, D) as stored; shares: (N, n_components), any float dtype. terms: `linear.Terms`.
    moments: (splits, 2 or 1, WIDTH, KS) float64. vectors: (splits, WIDTH / C, 2, KS) float64. held: whether there is
    anything in the slots. flush_after: tiles that float32 sums hold before they go to float64.
    """
    if (tl.load(terms.n_tight) > 0) != TIGHT:
        return
    split, part = tl.program_id(0), tl.program_id(1)
    splits, n_parts = tl.num_programs(0), tl.num_programs(1)
    first = tl.program_id(2) * K
    component = first + tl.arange(0, K)
    moments += split.to(tl.int64) * ((2 if DIAG else 1) * KS * WIDTH)
    vectors += (split * n_parts + part).to(tl.int64) * (2 * KS)
    column = part * C + tl.arange(0, C)
    steps = tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - split, splits), 0)
    for group in range(tl.maximum(tl.cdiv(steps, flush_after), 1 - held)):
        sx = tl.zeros([C, K], tl.float32)
        nk = tl.zeros([B, K], tl.float32)
        if DIAG:
            sxx = tl.zeros([C, K], tl.float32)
        else:
            sxx = tl.zeros([K], tl.float32)
        for step in range(group * flush_after, tl.minimum((group + 1) * flush_after, steps)):
            row = (split + step * splits).to(tl.int64) * B + tl.arange(0, B)
            here = row < n_rows
            y = read_rows(rows, frame, row, here, column, n_features, stride_n, stride_d, MOVED, SCALED)
            at = shares + row[:, None] * stride_s + component.to(tl.int64)[None, :] * stride_k
            inside = here[:, None] & (component < n_components)[None, :]
            p = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            sx, sxx, nk = add_moments(y, p, sx, sxx, nk, terms, first, column, DIAG, EXACT, K, WIDTH, FAST, TIGHT)
        flush(moments, vectors, sx, sxx, tl.sum(nk, 0), held + group, first, column, DIAG, KS, K, WIDTH)


def softmax_of(
    scratch: torch.Tensor,
    weights: torch.Tensor | None,
    labels: torch.Tensor,
    density: torch.Tensor,
    entropy: torch.Tensor,
    cut: float,
    *,
    labelled: bool = False,
    shares: bool = False,
    sums: bool = False,
) -> None:
    """Start `tiled_softmax` on scratch (n, K); cut in nats."""
    n, k = scratch.shape
    w = scratch[0] if weights is None else weights
    with on_device_of(scratch):
        tiled_softmax[(triton.cdiv(n, 32),)](
            scratch, w, labels, density, entropy, n, k, *scratch.stride(), w.stride(0), cut / LN_2.value,
            LABELS=labelled, SHARES=shares, SUMS=sums, WEIGHTED=weights is not None, K=min(power(k), 128), B=32,
            FAST=parts(False), num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


class Tiled(Part):
    """The part of a plan of any size."""

    def cut(self) -> Shape:
        """Return how the kernels are cut up."""
        return tiled_shape(self.k, self.d, self.tuning)

    def laid_out(self, room: torch.Tensor) -> torch.Tensor:
        """Return room for log2 rho (N, K), row by row."""
        return room[: room.numel() // self.k * self.k].view(-1, self.k)

    def make_room(self, n: int) -> None:
        """Allocate what the moments of n rows take."""
        if not self.slots:
            columns = self.shape.width // self.shape.columns
            blocks = self.components // self.shape.components
            self.make_slots(triton.cdiv(programs_of(self.device, self.shape, self.diag), blocks * columns), columns)

    def log_rho(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Write log2 rho of rows (n, D) into out (n, K) float32: two launches."""
        shape = self.shape
        with on_device_of(rows):
            for tight in (False, True):
                tiled_log_rho[(triton.cdiv(len(rows), shape.rows), self.components // shape.components)](
                    rows, self.frame, self.terms, out, len(rows), self.d, self.k, *rows.stride(), out.stride(0),
                    **self._constants(), FAST=parts(self.fast), TIGHT=tight,
                )  # fmt: skip

    def add_moments(self, rows: torch.Tensor, shares: torch.Tensor) -> None:
        """Add the moments of rows (n, D) for responsibilities (n, K): two launches."""
        shape = self.shape
        blocks, columns = self.components // shape.components, shape.width // shape.columns
        with on_device_of(rows):
            for tight in (False, True):
                tiled_moments[(len(self.slots[0]), columns, blocks)](
                    rows, shares, self.frame, self.terms, *self.slots[:2], len(rows), self.d, self.k, *rows.stride(),
                    *shares.stride(), int(self.held), self.tuning.flush, **self._constants(), FAST=parts(self.fast),
                    TIGHT=tight,
                )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        shape = self.shape
        size = {"KS": self.components, "K": shape.components, "WIDTH": shape.width}
        return self.reading | size | {"C": shape.columns, "B": shape.rows, "EXACT": self.exact} | shape.options()


class Given(Tiled):
    """The moments of rows for given responsibilities, about the frame's origin."""

    def __init__(self, about: torch.Tensor, frame: Frame, diag: bool) -> None:
        zero = torch.zeros_like(about)
        nothing = Coefficients("diag" if diag else "spherical", zero[:, 0], zero, zero if diag else zero[:, 0])
        super().__init__(nothing, frame, fast=False, exact=False, tuning=USUAL)

    def add(self, rows: torch.Tensor, shares: torch.Tensor) -> None:
        """Add the moments of rows (n, D) for responsibilities (n, K)."""
        self.make_room(len(rows))
        self.add_moments(rows, shares)
        self.held = True
