r"""What the Triton kernels share: reading rows, ln rho, and the moments of a tile of rows.

    ln rho_nk = const_k + y_n . (lambda m)_k - 1/2 y_n^2 . lambda_k          two matrix products
    ln rho_nk = a_k - 1/2 sum_d lambda_kd (y_nd - m_kd)^2                    components marked tight, one at a time

The first line cancels in float32 where sum_d lambda_kd m_kd^2 is large; the second does not: m is the sum of two
float32 numbers, so y - m is as exact as y. Moments of tight components are taken about m_k for the same reason. Each
kernel is compiled with TIGHT and without, and both are started: the one that is not wanted returns at once, and the
host never waits to learn which. A loop over no tight component would cost registers.

Matrix products are of numbers split in two, three products each: tf32 parts hold 22 bits of a float32's 24, bfloat16
parts 16. The split is written out, not left to `tl.dot`, because the coefficients are split beforehand and stay in
shared memory, and because the interpreter then rounds as a GPU does.

B rows of a tile, C columns of it, K components of a block, all powers of two; columns and components that are not there
have coefficients of zero and a constant of -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED: tl.constexpr):
    """Return rows (B,) int64 of the store at columns (C,), as seen in the frame: (B, C) float32, zero where not here.

    rows: (N, D) float32, float16 or bfloat16, strides in elements. shift, scale: (D,) float32. here: (B,) bool.
    """
    known = column < n_features
    at = rows + row[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_d
    y = tl.load(at, mask=here[:, None] & known[None, :], other=0.0).to(tl.float32)
    if FRAMED:
        move = tl.load(shift + column, mask=known, other=0.0)
        y = (y - move[None, :]) * tl.load(scale + column, mask=known, other=0.0)[None, :]
    return y


@triton.jit
def read_difference(y, high, low, k, column, WIDTH: tl.constexpr):
    """Return y - m_k (B, C) for rows y (B, C); high, low: (K, WIDTH) float32, of which m is the sum."""
    at = k.to(tl.int64) * WIDTH + column
    return (y - tl.load(high + at)[None, :]) - tl.load(low + at)[None, :]


@triton.jit
def rounded(x):
    """Return float32 x rounded to tf32: ten bits of mantissa, to nearest."""
    bits = x.to(tl.int32, bitcast=True) + 0x1000
    return (bits & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def split(x, FAST: tl.constexpr):
    """Return float32 x as a sum of two parts that tensor cores take as they are.

    FAST: 0 for tf32, 1 for bfloat16, 2 for bfloat16 in the interpreter, whose products of bfloat16 are wrong.
    """
    if FAST:
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = rounded(x)
        low = rounded(x - high)
    return high, low


@triton.jit
def product(a_high, a_low, b_high, b_low, acc, FAST: tl.constexpr):
    """Return acc + a b, of split a and b, without low times low."""
    if FAST == 2:
        a_high, a_low = a_high.to(tl.float32), a_low.to(tl.float32)
        b_high, b_low = b_high.to(tl.float32), b_low.to(tl.float32)
    acc = tl.dot(a_low, b_high, acc=acc, input_precision="tf32")
    acc = tl.dot(a_high, b_low, acc=acc, input_precision="tf32")
    return tl.dot(a_high, b_high, acc=acc, input_precision="tf32")


@triton.jit
def read_tables(tables, column, component, DIAG: tl.constexpr, KS: tl.constexpr, WIDTH: tl.constexpr):
    """Return both parts of lambda m and of -lambda / 2, (C, K); for spherical the first pair twice.

    tables: (4 or 2, WIDTH, KS), split as products want them.
    """
    at = tables + column[:, None] * KS + component[None, :]
    first_high, first_low = tl.load(at), tl.load(at + WIDTH * KS)
    if DIAG:
        second_high, second_low = tl.load(at + 2 * WIDTH * KS), tl.load(at + 3 * WIDTH * KS)
    else:
        second_high, second_low = first_high, first_low
    return first_high, first_low, second_high, second_low


@triton.jit
def add_products(
    y, first_high, first_low, second_high, second_low, square, component, logits, DIAG: tl.constexpr, FAST: tl.constexpr
):
    """Return logits (B, K) with the products of rows y (B, C) and tables (C, K) added; square: (KS,) of spherical."""
    y_high, y_low = split(y, FAST)
    logits = product(y_high, y_low, first_high, first_low, logits, FAST)
    if DIAG:
        y_high, y_low = split(y * y, FAST)
        logits = product(y_high, y_low, second_high, second_low, logits, FAST)
    else:
        logits += tl.sum(y * y, 1)[:, None] * tl.load(square + component)[None, :]
    return logits


@triton.jit
def log_rho(
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
    first_high,
    first_low,
    second_high,
    second_low,
    row,
    here,
    first,
    n_features,
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
    """Return ln rho (B, K) float32 of components first to first + K, and the last columns read, (B, C).

    tables: (4 or 2, WIDTH, KS), see `read_tables`; where C = WIDTH the caller has read them, into first_high to
    second_low. square: (KS,) float32, -lambda / 2 of spherical.
    const, offset: (KS,) float32, what is added to the products and to a tight component's distance.
    high, low, precision: (KS, WIDTH) float32. order: (KS,) int32, tight components first; n_tight: (1,) int32.
    """
    component = first + tl.arange(0, K)
    logits = tl.zeros([B, K], tl.float32) + tl.load(const + component)[None, :]
    if C == WIDTH:
        y = read_rows(rows, shift, scale, row, here, tl.arange(0, C), n_features, stride_n, stride_d, FRAMED)
        logits = add_products(y, first_high, first_low, second_high, second_low, square, component, logits, DIAG, FAST)
    else:
        y = tl.zeros([B, C], tl.float32)
        for start in range(0, WIDTH, C):
            column = start + tl.arange(0, C)
            y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
            a, b, c, d = read_tables(tables, column, component, DIAG, KS, WIDTH)
            logits = add_products(y, a, b, c, d, square, component, logits, DIAG, FAST)
    for place in range(tl.load(n_tight) if TIGHT else 0):
        k = tl.load(order + place)
        if (k >= first) & (k < first + K):
            distance = tl.zeros([B], tl.float32)
            for start in range(0, WIDTH, C):
                column = start + tl.arange(0, C)
                if WIDTH > C:
                    y = read_rows(rows, shift, scale, row, here, column, n_features, stride_n, stride_d, FRAMED)
                difference = read_difference(y, high, low, k, column, WIDTH)
                weight = tl.load(precision + k.to(tl.int64) * WIDTH + column)
                distance += tl.sum(difference * difference * weight[None, :], 1)
            exact = tl.load(offset + k) - 0.5 * distance
            logits = tl.where((component == k)[None, :], exact[:, None], logits)
    return logits, y


@triton.jit
def add_moments(
    y,
    p,
    sx,
    sxx,
    nk,
    high,
    low,
    loose,
    order,
    n_tight,
    first,
    column,
    DIAG: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Return sx (C, K), sxx and nk (K,) with the moments of rows y (B, C) for responsibilities p (B, K) added.

    sxx: (C, K) for diag, (K,) for spherical. loose: (KS,) float32, zero for tight components, whose moments are about
    m_k; those of all others are about the origin.
    """
    component = first + tl.arange(0, K)
    nk += tl.sum(p, 0)
    shared = p
    if TIGHT:
        shared *= tl.load(loose + component)[None, :]
    p_high, p_low = split(shared, FAST)
    across = tl.trans(y)
    y_high, y_low = split(across, FAST)
    sx = product(y_high, y_low, p_high, p_low, sx, FAST)
    if DIAG:
        y_high, y_low = split(across * across, FAST)
        sxx = product(y_high, y_low, p_high, p_low, sxx, FAST)
    else:
        sxx += tl.sum(shared * tl.sum(y * y, 1)[:, None], 0)
    for place in range(tl.load(n_tight) if TIGHT else 0):
        k = tl.load(order + place)
        if (k >= first) & (k < first + K):
            mine = component == k
            r = tl.sum(tl.where(mine[None, :], p, 0.0), 1)
            if tl.max(r, 0) > 0:
                difference = read_difference(y, high, low, k, column, WIDTH)
                weighted = r[:, None] * difference
                sx += tl.where(mine[None, :], tl.sum(weighted, 0)[:, None], 0.0)
                squares = tl.sum(weighted * difference, 0)
                if DIAG:
                    sxx += tl.where(mine[None, :], squares[:, None], 0.0)
                else:
                    sxx += tl.where(mine, tl.sum(squares, 0), 0.0)
    return sx, sxx, nk


@triton.jit
def softmax(logits, CUT: tl.constexpr):
    """Return the peak (B,), sum rho / e^peak (B,), rho / e^peak (B, K), and ln rho - peak (B, K), zero where rho is.

    What is at or below e^CUT of the row's largest is zero and no part of the sum.
    """
    peak = tl.max(logits, 1)
    below = logits - peak[:, None]
    kept = below > CUT
    below = tl.where(kept, below, 0.0)
    p = tl.where(kept, tl.exp(below), 0.0)
    return peak, tl.sum(p, 1), p, below


@triton.jit
def flush(moments, vectors, sx, sxx, nk, held, first, column, DIAG: tl.constexpr, KS: tl.constexpr, K: tl.constexpr,
          WIDTH: tl.constexpr):  # fmt: skip
    """Add sums to a program's slots, float64: moments (1 or 2, WIDTH, KS), vectors (2, KS): nk and spherical's sxx.

    held: whether there is anything in the slots. The barriers keep a thread from reading what another will write, or
    has written, where several threads hold the same element.
    """
    component = first + tl.arange(0, K)
    at = column.to(tl.int64)[:, None] * KS + component[None, :]
    whole = KS * WIDTH
    filled = tl.zeros([K], tl.int32) + held > 0
    old_nk = tl.load(vectors + component, mask=filled, other=0.0)
    old_sx = tl.load(moments + at, mask=filled[None, :], other=0.0)
    if DIAG:
        old_sxx = tl.load(moments + whole + at, mask=filled[None, :], other=0.0)
    else:
        old_sxx = tl.load(vectors + KS + component, mask=filled, other=0.0)
    tl.debug_barrier()
    tl.store(vectors + component, old_nk + nk.to(tl.float64))
    tl.store(moments + at, old_sx + sx.to(tl.float64))
    if DIAG:
        tl.store(moments + whole + at, old_sxx + sxx.to(tl.float64))
    else:
        tl.store(vectors + KS + component, old_sxx + sxx.to(tl.float64))
    tl.debug_barrier()
