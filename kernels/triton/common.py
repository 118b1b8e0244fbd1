r"""What the Triton kernels share: reading rows, split products, the softmax of a tile, and sums that go to float64.

B rows of a tile, C columns of it, K components of a block, all powers of two.

Matrix products are of numbers split in two, on tensor cores: tf32 parts hold 22 bits of a float32's 24, bfloat16 parts
16. A part is a number with the digits cut off that the tensor core would not read, and what is left of it: two
instructions, and NaN stays NaN. What is cut off twice, and the product of the two small parts, is 4e-7 of a product at
most, always toward zero. Coefficients are split once, to nearest, and stay in shared memory. Rows that are stored with
no more digits than a part has need no second part: float16 in tf32, bfloat16 in both.

The split is written out, not left to `tl.dot`: for its sake coefficients would be split again for every tile, and the
interpreter would not round as a GPU does.

Not: products with a small part in bfloat16, at twice the rate. A third less work for the tensor cores is a fifth more
instructions, and errs ten times as much on relu1_2 of VGG-19: by 3e-5 of a statistic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastclust.kernels import expanded

# What parts are, FAST of `split`: on a GPU, and in the interpreter, which has to cut what a tensor core does not read,
# and whose products of bfloat16 are wrong.
TF32, BFLOAT16, BFLOAT16_ON_CPU, TF32_ON_CPU = 0, 1, 2, 3

LEAST = tl.constexpr(expanded.LEAST)  # of log2 rho


class Frame(NamedTuple):
    """Hold the frame that rows are seen in: (D,) float32 each; (1,) where it is not read."""

    shift: Any
    scale: Any


@triton.jit
def read_rows(
    rows, frame, row, here, column, n_features, stride_n, stride_d, MOVED: tl.constexpr, SCALED: tl.constexpr
):
    """Return rows (B,) int64 of the store at columns (C,), as seen in the frame: (B, C) float32.

    rows: (N, D) float32, float16, bfloat16 or float64, which is moved before it is rounded; strides in elements.
    here: (B,) bool; a row that is not here is a row of zeros in the store, which nothing may count. Columns that are
    not there are zero.
    """
    known = column < n_features
    at = rows + row[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_d
    y = tl.load(at, mask=here[:, None] & known[None, :], other=0.0)
    if MOVED:
        move = tl.load(frame.shift + column, mask=known, other=0.0)[None, :]
        if y.dtype == tl.float64:
            y -= move.to(tl.float64)
        else:
            y = y.to(tl.float32) - move
    y = y.to(tl.float32)
    if SCALED:
        y *= tl.load(frame.scale + column, mask=known, other=0.0)[None, :]
    return y


@triton.jit
def split(x, FAST: tl.constexpr):
    """Return float32 x as a sum of two parts that tensor cores take as they are."""
    if (FAST == 1) | (FAST == 2):
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        low = x - high
        if FAST == 3:
            low = (low.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return high, low


@triton.jit
def whole(x, FAST: tl.constexpr):
    """Return float32 x, which has no more digits than a part, as a part."""
    if (FAST == 1) | (FAST == 2):
        return x.to(tl.bfloat16)
    else:  # noqa: RET505 - a constant decides
        return x


@triton.jit
def dot(a, b, acc, FAST: tl.constexpr):
    """Return acc + a b of parts, float32."""
    if FAST == 2:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=acc, input_precision="tf32")


@triton.jit
def product(a_high, a_low, b_high, b_low, acc, FAST: tl.constexpr):
    """Return acc + a b, of split a and b, without low times low."""
    acc = dot(a_low, b_high, acc, FAST)
    acc = dot(a_high, b_low, acc, FAST)
    return dot(a_high, b_high, acc, FAST)


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """Return 2^x of float32 x, zero where that is below 2^-126: one instruction, where tl.exp2 takes four."""
    if FAST >= 2:
        return tl.where(x < -126.0, 0.0, tl.exp2(x))
    else:  # noqa: RET505 - a constant decides
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def softmax(logits, FAST: tl.constexpr):
    """Return the peak (B,), sum rho / 2^peak (B,), rho / 2^peak (B, K), and the difference of logits and peak (B, K).

    logits: (B, K), base-2 logarithms of rho. What is below 2^-126 of the row's largest is zero.
    """
    peak = tl.max(logits, 1)
    below = tl.maximum(logits - peak[:, None], LEAST)
    p = exp2(below, FAST)
    return peak, tl.sum(p, 1), p, below
