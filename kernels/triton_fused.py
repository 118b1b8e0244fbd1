"""Kernels for mixtures that fit on the chip, K and D up to 128: a tile of rows is read, used up and forgotten.

Programs are persistent: program i takes tiles i, i + programs, ... of B rows. Responsibilities never leave the chip.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclust.kernels.triton_parts import add_moments, flush, log_rho, read_rows, read_tables, softmax


@triton.jit
def fused_statistics(
    rows,
    weights,
    shift,
    scale,
    tables,
    square,
    const,
    offset,
    high,
    low,
    precision,
    loose,
    order,
    n_tight,
    moments,
    vectors,
    sums,
    n_rows,
    n_features,
    stride_n,
    stride_d,
    stride_w,
    DIAG: tl.constexpr,
    FRAMED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    PART: tl.constexpr,
    B: tl.constexpr,
    FLUSH: tl.constexpr,
    CUT: tl.constexpr,
    FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Write each program's share of the statistics; grid: (programs, WIDTH / PART), the second over columns of sums.

    rows: (N, D) as stored; weights: (N,) float32, read where WEIGHTED. Coefficients: see `triton_parts.log_rho`.
    moments: (programs, 2 or 1, WIDTH, K) float64, sums of r y and, for diag, r y^2.
    vectors: (programs, WIDTH / PART, 2, K) float64, nk and, for spherical, this part's sum of r |y|^2.
    sums: (programs, 2) float64, log_norm and entropy.
    """
    if (tl.load(n_tight) > 0) != TIGHT:
        return
    program, part = tl.program_id(0), tl.program_id(1)
    programs, parts = tl.num_programs(0), tl.num_programs(1)
    moments += program.to(tl.int64) * ((2 if DIAG else 1) * K * WIDTH)
    vectors += (program * parts + part).to(tl.int64) * (2 * K)
    column = part * PART + tl.arange(0, PART)
    steps = tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - program, programs), 0)
    if C == WIDTH:
        lh, ll, sh, sl = read_tables(tables, tl.arange(0, C), tl.arange(0, K), DIAG, K, WIDTH)
    else:
        lh, ll, sh, sl = 0, 0, 0, 0
    norm = tl.zeros([B], tl.float64)
    entropy = tl.zeros([B], tl.float64)
    for group in range(tl.maximum(tl.cdiv(steps, FLUSH), 1)):
        sx = tl.zeros([PART, K], tl.float32)
        nk = tl.zeros([K], tl.float32)
        if DIAG:
            sxx = tl.zeros([PART, K], tl.float32)
        else:
            sxx = tl.zeros([K], tl.float32)
        for step in range(group * FLUSH, tl.minimum((group + 1) * FLUSH, steps)):
            tile = (program + step * programs).to(tl.int64)
            row = tile * B + tl.arange(0, B)
            here = row < n_rows
            logits, y = log_rho(
                rows, shift, scale, tables, square, const, offset, high, low, precision, order, n_tight, lh, ll, sh, sl,
                row, here, 0, n_features, stride_n, stride_d, DIAG, FRAMED, K, K, WIDTH, C, B, FAST, TIGHT,
            )  # fmt: skip
            peak, total, p, below = softmax(logits, CUT)
            log_sum = tl.log(total)
            if WEIGHTED:
                w = tl.load(weights + row * stride_w, mask=here, other=0.0)
            else:
                w = here.to(tl.float32)
            p *= (w / total)[:, None]
            norm += w.to(tl.float64) * (peak.to(tl.float64) + log_sum.to(tl.float64))
            entropy += (w * log_sum - tl.sum(p * below, 1)).to(tl.float64)
            if (PART < WIDTH) | (C < WIDTH):
                y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
            sx, sxx, nk = add_moments(
                y, p, sx, sxx, nk, high, low, loose, order, n_tight, 0, column, DIAG, K, WIDTH, FAST, TIGHT
            )
        flush(moments, vectors, sx, sxx, nk, group, 0, column, DIAG, K, K, WIDTH)
    if part == 0:
        tl.store(sums + program * 2, tl.sum(norm, 0))
        tl.store(sums + program * 2 + 1, tl.sum(entropy, 0))


@triton.jit
def fused_assign(
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
    labels,
    density,
    n_rows,
    n_features,
    n_components,
    stride_n,
    stride_d,
    DIAG: tl.constexpr,
    FRAMED: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    CUT: tl.constexpr,
    FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Write labels (N,) int32 and density (N,) float32; grid: (programs,).

    labels: the first of the most probable components. density: ln sum rho. rows: (N, D) as stored.
    Coefficients: see `triton_parts.log_rho`.
    """
    if (tl.load(n_tight) > 0) != TIGHT:
        return
    program, programs = tl.program_id(0), tl.num_programs(0)
    if C == WIDTH:
        lh, ll, sh, sl = read_tables(tables, tl.arange(0, C), tl.arange(0, K), DIAG, K, WIDTH)
    else:
        lh, ll, sh, sl = 0, 0, 0, 0
    for step in range(tl.maximum(tl.cdiv(tl.cdiv(n_rows, B) - program, programs), 0)):
        row = (program + step * programs).to(tl.int64) * B + tl.arange(0, B)
        here = row < n_rows
        logits, y = log_rho(
            rows, shift, scale, tables, square, const, offset, high, low, precision, order, n_tight, lh, ll, sh, sl,
            row, here, 0, n_features, stride_n, stride_d, DIAG, FRAMED, K, K, WIDTH, C, B, FAST, TIGHT,
        )  # fmt: skip
        peak, total, p, below = softmax(logits, CUT)
        at_peak = tl.where(logits == peak[:, None], tl.arange(0, K)[None, :], n_components)
        tl.store(labels + row, tl.min(at_peak, 1), mask=here)
        tl.store(density + row, peak + tl.log(total), mask=here)
