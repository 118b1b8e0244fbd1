r"""Kernels for full and tied covariance: ln rho of a block of rows into scratch, and moments of the rows that count.

    full    ln rho_nk = a_k - 1/2 |R_k (y_n - m_k)|^2                       split products, see `triton_parts`
    tied    ln rho_nk = c_k + (y_n - c) . g_k - 1/2 |R (y_n - c)|^2         float64
            g_k = R^T R (m_k - c),  c_k = a_k - 1/2 |R (m_k - c)|^2

R is lower triangular, in blocks of C columns: those above the diagonal are neither read nor multiplied, and of a
scatter those on and below it are computed. The softmax is `triton_tiled.tiled_softmax`. Then, for each component, the
rows whose responsibility is not zero are listed, and only these are read: of relu1_2 of VGG-19, a 25th. Moments are
float64 throughout, on tensor cores: in float32 the rounding, 1e-7 of the large variances, drowns the small eigenvalues
that features after a ReLU have.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclust.kernels.triton_parts import product, read_difference, read_rows, split


@triton.jit
def full_log_rho(
    rows,
    shift,
    scale,
    roots_high,
    roots_low,
    high,
    low,
    offset,
    scratch,
    n_rows,
    n_features,
    n_components,
    n_each,
    stride_n,
    stride_d,
    stride_s,
    stride_k,
    FRAMED: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write ln rho of n_each components into scratch, float32; grid: (row tiles, groups of components).

    rows: (N, D) as stored. roots_high, roots_low: (K, WIDTH, WIDTH), of which R is the sum, as products want
    them. high, low: (K, WIDTH) float32, of which m is the sum. offset: (K,) float32, a_k. scratch: n, k at stride_s,
    stride_k.
    """
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    first = tl.program_id(1) * n_each
    within = tl.arange(0, C)
    if C == WIDTH:
        y = read_rows(rows, shift, scale, row, here, within, n_features, stride_n, stride_d, FRAMED)
    for k in range(first, tl.minimum(first + n_each, n_components)):
        component = tl.cast(k, tl.int64)
        root = component * (WIDTH * WIDTH)
        distance = tl.zeros([B], tl.float32)
        for down in range(0, WIDTH, C):
            moved = tl.zeros([B, C], tl.float32)
            for along in range(0, down + C, C):
                if C < WIDTH:
                    column = along + within
                    y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
                difference = read_difference(y, high, low, component, along + within, WIDTH)
                y_high, y_low = split(difference, FAST)
                at = root + (down + within)[None, :] * WIDTH + (along + within)[:, None]  # R_k^T
                moved = product(y_high, y_low, tl.load(roots_high + at), tl.load(roots_low + at), moved, FAST)
            distance += tl.sum(moved * moved, 1)
        logits = tl.load(offset + k) - 0.5 * distance
        tl.store(scratch + row * stride_s + component * stride_k, logits, mask=here)


@triton.jit
def tied_log_rho(
    rows,
    shift,
    scale,
    root,
    middle,
    slope,
    const,
    scratch,
    n_rows,
    n_features,
    n_components,
    stride_n,
    stride_d,
    stride_s,
    stride_k,
    FRAMED: tl.constexpr,
    KS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
):
    """Write ln rho into scratch, float32; grid: (row tiles,).

    rows: (N, D) as stored. Float64: root (WIDTH, WIDTH), R; middle (WIDTH,), c; slope (WIDTH, KS), g; const (KS,), c_k.
    scratch: n, k at stride_s, stride_k.
    """
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    within = tl.arange(0, C)
    distance = tl.zeros([B], tl.float64)
    for down in range(0, WIDTH, C):
        moved = tl.zeros([B, C], tl.float64)
        for along in range(0, down + C, C):
            column = along + within
            y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
            difference = y.to(tl.float64) - tl.load(middle + column)[None, :]
            part = tl.load(root + (down + within)[None, :] * WIDTH + column[:, None])  # R^T
            moved = tl.dot(difference, part, acc=moved, input_precision="ieee", out_dtype=tl.float64)
        distance += tl.sum(moved * moved, 1)
    for first in range(0, KS, K):
        component = first + tl.arange(0, K)
        logits = tl.zeros([B, K], tl.float64)
        for along in range(0, WIDTH, C):
            column = along + within
            y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
            difference = y.to(tl.float64) - tl.load(middle + column)[None, :]
            part = tl.load(slope + column[:, None] * KS + component[None, :])
            logits = tl.dot(difference, part, acc=logits, input_precision="ieee", out_dtype=tl.float64)
        logits += tl.load(const + component)[None, :] - 0.5 * distance[:, None]
        at = scratch + row[:, None] * stride_s + component.to(tl.int64)[None, :] * stride_k
        tl.store(at, logits.to(tl.float32), mask=here[:, None] & (component < n_components)[None, :])


@triton.jit
def list_rows(shares, listed, counts, n_rows, stride_s, stride_k, CHUNK: tl.constexpr):
    """List the rows of each chunk that have a share in a component; grid: (chunks, K).

    shares: n, k at stride_s, stride_k, any float dtype. listed: (K, chunks, CHUNK) int16, rows counted from the chunk's
    first, in order; counts: (K, chunks) int32, how many. A share that is not a number counts.
    """
    chunk, chunks, k = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    within = tl.arange(0, CHUNK)
    row = chunk.to(tl.int64) * CHUNK + within
    share = tl.load(shares + row * stride_s + k * stride_k, mask=row < n_rows, other=0.0)
    kept = (share != 0).to(tl.int32)
    place = tl.cumsum(kept, 0) - kept
    slot = k * chunks + chunk
    tl.store(listed + slot * CHUNK + place, within.to(tl.int16), mask=kept != 0)
    tl.store(counts + slot, tl.sum(kept, 0))


@triton.jit
def listed_moments(
    rows,
    shares,
    shift,
    scale,
    about,
    listed,
    counts,
    downs,
    alongs,
    vectors,
    outer,
    n_features,
    n_components,
    chunks,
    stride_n,
    stride_d,
    stride_s,
    stride_k,
    OUTER: tl.constexpr,
    FRAMED: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    B: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write each split's share of the moments of listed rows; grid: (K blocks, splits), blocks of C columns squared.

    rows: (N, D) as stored; shares: n, k at stride_s, stride_k. about: (K, WIDTH) float64, c_k. listed, counts: see
    `list_rows`. downs, alongs: (blocks,) int32, the first row and column of a block, on the diagonal or below it.
    vectors: (splits, K, WIDTH + 1) float64, sums of r (y - c) and, last, of r.
    outer: (splits, K, WIDTH, WIDTH) float64, where OUTER, of r (y - c) (y - c)^T, the blocks that there are.

    One product: of several in a loop, Triton 3.9 gives each warp all columns, and registers run out.
    """
    k = (tl.program_id(0) % n_components).to(tl.int64)
    block = tl.program_id(0) // n_components
    part, parts = tl.program_id(1), tl.num_programs(1)
    first_down, first_along = tl.load(downs + block), tl.load(alongs + block)
    down = tl.multiple_of(first_down, C) + tl.arange(0, C)
    along = tl.multiple_of(first_along, C) + tl.arange(0, C)
    about += k * WIDTH
    centre_down, centre_along = tl.load(about + down)[None, :], tl.load(about + along)[None, :]
    nk = tl.zeros([B], tl.float64)
    sx = tl.zeros([C], tl.float64)
    sxx = tl.zeros([C, C], tl.float64)
    for chunk in range(part, chunks, parts):
        slot = k * chunks + chunk
        base = tl.cast(chunk, tl.int64) * CHUNK
        count = tl.load(counts + slot)
        for start in range(0, count, B):
            place = start + tl.arange(0, B)
            here = place < count
            row = tl.load(listed + slot * CHUNK + place, mask=here, other=0).to(tl.int64) + base
            share = tl.load(shares + row * stride_s + k * stride_k, mask=here, other=0.0).to(tl.float64)
            y = read_rows(rows, shift, scale, row, here, down, n_features, stride_n, stride_d, FRAMED)
            weighted = (y.to(tl.float64) - centre_down) * share[:, None]
            nk += share
            sx += tl.sum(weighted, 0)
            if OUTER:
                y = read_rows(rows, shift, scale, row, here, along, n_features, stride_n, stride_d, FRAMED)
                sxx = tl.dot(
                    tl.trans(weighted),
                    y.to(tl.float64) - centre_along,
                    acc=sxx,
                    input_precision="ieee",
                    out_dtype=tl.float64,
                )
    slot = part * n_components + k
    if first_down == first_along:
        vectors += slot * (WIDTH + 1)
        tl.store(vectors + down, sx)
        if first_down == 0:
            tl.store(vectors + WIDTH, tl.sum(nk, 0))
    if OUTER:
        tl.store(outer + slot * (WIDTH * WIDTH) + down[:, None] * WIDTH + along[None, :], sxx)
