"""Kernels for mixtures of any size: ln rho of a block of rows into scratch, softmax there, then moments from it.

The scratch holds ln rho, then responsibilities, of one block of rows, float32; rows are read once for every block of
components and once more for its moments.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclust.kernels.triton_parts import add_moments, flush, log_rho, read_rows, read_tables


@triton.jit
def tiled_log_rho(
    rows,
    shift,
    scale,
    tables,
    square,
    const,
    offset,
    high,
    low,
    precision,
    order,
    n_tight,
    scratch,
    n_rows,
    n_features,
    n_components,
    stride_n,
    stride_d,
    DIAG: tl.constexpr,
    FRAMED: tl.constexpr,
    KS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Write ln rho into scratch (N, n_components) float32; grid: (row tiles, KS / K).

    rows: (N, D) as stored. Coefficients: see `triton_parts.log_rho`.
    """
    if (tl.load(n_tight) > 0) != TIGHT:
        return
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    first = tl.program_id(1) * K
    if C == WIDTH:
        lh, ll, sh, sl = read_tables(tables, tl.arange(0, C), first + tl.arange(0, K), DIAG, KS, WIDTH)
    else:
        lh, ll, sh, sl = 0, 0, 0, 0
    logits, y = log_rho(
        rows, shift, scale, tables, square, const, offset, high, low, precision, order, n_tight, lh, ll, sh, sl,
        row, here, first, n_features, stride_n, stride_d, DIAG, FRAMED, KS, K, WIDTH, C, B, FAST, TIGHT,
    )  # fmt: skip
    component = first + tl.arange(0, K)
    at = scratch + row[:, None] * n_components + component[None, :]
    tl.store(at, logits, mask=here[:, None] & (component < n_components)[None, :])


@triton.jit
def tiled_softmax(
    scratch,
    weights,
    labels,
    density,
    entropy,
    n_rows,
    n_components,
    stride_s,
    stride_k,
    stride_w,
    LABELS: tl.constexpr,
    SHARES: tl.constexpr,
    SUMS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    K: tl.constexpr,
    B: tl.constexpr,
    CUT: tl.constexpr,
):
    """Take the softmax of each row of scratch, float32, n and k at stride_s and stride_k; grid: (row tiles,).

    Where LABELS: write labels (N,) int32, the first of the most probable, and density (N,) float32, ln sum rho.
    Where SHARES: responsibilities into scratch. Where SUMS: these times weights (N,) float32, if WEIGHTED, and
    density, entropy (N,) float64, a row's terms of log_norm and entropy.
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
        total += tl.sum(tl.where(below > CUT, tl.exp(below), 0.0), 1)
    total = tl.where(here, total, 1.0)
    log_sum = tl.log(total)
    if LABELS:
        tl.store(labels + row, label, mask=here)
        tl.store(density + row, peak + log_sum, mask=here)
    w = tl.full([B], 1.0, tl.float32)
    if WEIGHTED:
        w = tl.load(weights + row * stride_w, mask=here, other=0.0)
    product = tl.zeros([B], tl.float32)
    if SHARES:
        for start in range(0, n_components, K):
            component = start + tl.arange(0, K)
            place = component.to(tl.int64) * stride_k
            inside = here[:, None] & (component < n_components)[None, :]
            below = tl.load(own + place[None, :], mask=inside, other=float("-inf")) - peak[:, None]
            kept = below > CUT
            below = tl.where(kept, below, 0.0)
            p = tl.where(kept, tl.exp(below), 0.0) / total[:, None]
            product += tl.sum(p * below, 1)
            tl.store(own + place[None, :], p * w[:, None], mask=inside)
    if SUMS:
        norm = peak.to(tl.float64) + log_sum.to(tl.float64)
        tl.store(density + row, w.to(tl.float64) * norm, mask=here)
        tl.store(entropy + row, (w * (log_sum - product)).to(tl.float64), mask=here)


@triton.jit
def tiled_moments(
    rows,
    shares,
    shift,
    scale,
    high,
    low,
    loose,
    order,
    n_tight,
    moments,
    vectors,
    n_rows,
    n_features,
    n_components,
    stride_n,
    stride_d,
    stride_s,
    stride_k,
    DIAG: tl.constexpr,
    FRAMED: tl.constexpr,
    KS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    FLUSH: tl.constexpr,
    FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Write each split's share of the moments of given responsibilities; grid: (splits, WIDTH / C, KS / K).

    rows: (N, D) as stored; shares: (N, n_components), any float dtype. Coefficients: see `triton_parts.add_moments`.
    moments: (splits, 2 or 1, WIDTH, KS) float64. vectors: (splits, WIDTH / C, 2, KS) float64.
    """
    if (tl.load(n_tight) > 0) != TIGHT:
        return
    split, part = tl.program_id(0), tl.program_id(1)
    splits, parts = tl.num_programs(0), tl.num_programs(1)
    first = tl.program_id(2) * K
    component = first + tl.arange(0, K)
    moments += split.to(tl.int64) * ((2 if DIAG else 1) * KS * WIDTH)
    vectors += (split * parts + part).to(tl.int64) * (2 * KS)
    column = part * C + tl.arange(0, C)
    steps = tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - split, splits), 0)
    for group in range(tl.maximum(tl.cdiv(steps, FLUSH), 1)):
        sx = tl.zeros([C, K], tl.float32)
        nk = tl.zeros([K], tl.float32)
        if DIAG:
            sxx = tl.zeros([C, K], tl.float32)
        else:
            sxx = tl.zeros([K], tl.float32)
        for step in range(group * FLUSH, tl.minimum((group + 1) * FLUSH, steps)):
            row = (split + step * splits).to(tl.int64) * B + tl.arange(0, B)
            here = row < n_rows
            y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
            at = shares + row[:, None] * stride_s + component.to(tl.int64)[None, :] * stride_k
            inside = here[:, None] & (component < n_components)[None, :]
            p = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            sx, sxx, nk = add_moments(
                y, p, sx, sxx, nk, high, low, loose, order, n_tight, first, column, DIAG, K, WIDTH, FAST, TIGHT
            )
        flush(moments, vectors, sx, sxx, nk, group, first, column, DIAG, KS, K, WIDTH)
