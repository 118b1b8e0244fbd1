r"""spherical and diag in Triton: ln rho as products, the moments of a tile of rows, and the coefficients for both.

    log2 rho_nk = const_k + y_n . (lambda m)_k - 1/2 y_n^2 . lambda_k          two matrix products
    log2 rho_nk = a_k - 1/2 sum_d lambda_kd (y_nd - m_kd)^2                    components marked tight, one at a time

all times log2 e, so that a power of two is all that the softmax takes. The first line cancels in float32 where
sum_d lambda_kd m_kd^2 is large; the second does not: m is the sum of two float32 numbers, so y - m is as exact as y.
Moments of tight components are taken about m_k for the same reason. Each kernel is compiled with TIGHT and without, and
both are started: the one that is not wanted returns at once, and the host never waits to learn which. A loop over no
tight component would cost registers.

Columns and components that are not there have coefficients of zero and a constant of LEAST.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.expanded import LOG2_E, expand
from fastclust.kernels.triton.common import LEAST, dot, product, read_rows, split, whole
from fastclust.kernels.triton.launch import empty, frame_of, padded, split_in_two
from fastclust.kernels.triton.shapes import Shape, Tuning


class Terms(NamedTuple):
    """Hold coefficients as kernels read them, padded to (KS, WIDTH); all but `tables` float32 or as said.

    tables: (4 or 2, WIDTH, KS), both parts of lambda m and, for diag, of -lambda / 2, as products want them.
    square: (KS,), -lambda / 2 of spherical; (1,) for diag. const, offset: (KS,), what is added to the products and to a
    tight component's distance. high, low: (KS, WIDTH), of which m is the sum; precision: (KS, WIDTH), lambda.
    loose: (KS,), zero for tight components, else one. order: (KS,) int32, tight components first; n_tight: (1,) int32.
    """

    tables: Any
    square: Any
    const: Any
    offset: Any
    high: Any
    low: Any
    precision: Any
    loose: Any
    order: Any
    n_tight: Any


@triton.jit
def read_difference(y, high, low, k, column, WIDTH: tl.constexpr):
    """Return y - m_k (B, C) for rows y (B, C); high, low: (K, WIDTH) float32, of which m is the sum."""
    at = k.to(tl.int64) * WIDTH + column
    return (y - tl.load(high + at)[None, :]) - tl.load(low + at)[None, :]


@triton.jit
def read_tables(terms, column, component, DIAG: tl.constexpr, KS: tl.constexpr, WIDTH: tl.constexpr):
    """Return both parts of lambda m and of -lambda / 2, (C, K); for spherical the first pair twice."""
    at = terms.tables + column[:, None] * KS + component[None, :]
    first_high, first_low = tl.load(at), tl.load(at + WIDTH * KS)
    if DIAG:
        second_high, second_low = tl.load(at + 2 * WIDTH * KS), tl.load(at + 3 * WIDTH * KS)
    else:
        second_high, second_low = first_high, first_low
    return first_high, first_low, second_high, second_low


@triton.jit
def add_products(y, tables, terms, component, logits, DIAG: tl.constexpr, EXACT: tl.constexpr, FAST: tl.constexpr):
    """Return logits (B, K) with the products of rows y (B, C) and tables (C, K) added.

    EXACT: whether y has no more digits than a part; its square has no more than two parts do.
    """
    first_high, first_low, second_high, second_low = tables
    if EXACT:
        logits = dot(whole(y, FAST), first_low, logits, FAST)
        logits = dot(whole(y, FAST), first_high, logits, FAST)
    else:
        y_high, y_low = split(y, FAST)
        logits = product(y_high, y_low, first_high, first_low, logits, FAST)
    if DIAG:
        y_high, y_low = split(y * y, FAST)
        logits = product(y_high, y_low, second_high, second_low, logits, FAST)
    else:
        logits += tl.sum(y * y, 1)[:, None] * tl.load(terms.square + component)[None, :]
    return logits


@triton.jit
def log_rho(
    rows, frame, terms, tables, row, here, first, n_features, stride_n, stride_d,
    DIAG: tl.constexpr, MOVED: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr, KS: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr, TIGHT: tl.constexpr,
):  # fmt: skip
    """Return log2 rho (B, K) float32 of components first to first + K, and the last columns read, (B, C).

    tables: where C = WIDTH, what `read_tables` gave.
    """
    component = first + tl.arange(0, K)
    logits = tl.zeros([B, K], tl.float32) + tl.load(terms.const + component)[None, :]
    if C == WIDTH:
        y = read_rows(rows, frame, row, here, tl.arange(0, C), n_features, stride_n, stride_d, MOVED, SCALED)
        logits = add_products(y, tables, terms, component, logits, DIAG, EXACT, FAST)
    else:
        y = tl.zeros([B, C], tl.float32)
        for start in range(0, WIDTH, C):
            column = start + tl.arange(0, C)
            y = read_rows(rows, frame, row, here, column, n_features, stride_n, stride_d, MOVED, SCALED)
            some = read_tables(terms, column, component, DIAG, KS, WIDTH)
            logits = add_products(y, some, terms, component, logits, DIAG, EXACT, FAST)
    for place in range(tl.load(terms.n_tight) if TIGHT else 0):
        k = tl.load(terms.order + place)
        if (k >= first) & (k < first + K):
            distance = tl.zeros([B], tl.float32)
            for start in range(0, WIDTH, C):
                column = start + tl.arange(0, C)
                if WIDTH > C:
                    y = read_rows(rows, frame, row, here, column, n_features, stride_n, stride_d, MOVED, SCALED)
                difference = read_difference(y, terms.high, terms.low, k, column, WIDTH)
                weight = tl.load(terms.precision + k.to(tl.int64) * WIDTH + column)
                distance += tl.sum(difference * difference * weight[None, :], 1)
            exact = tl.load(terms.offset + k) - 0.5 * distance
            logits = tl.where((component == k)[None, :], exact[:, None], logits)
    return logits, y


@triton.jit
def add_moments(
    y, p, sx, sxx, nk, terms, first, column,
    DIAG: tl.constexpr, EXACT: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr,
    TIGHT: tl.constexpr,
):  # fmt: skip
    """Return sx (C, K), sxx and nk (B, K) with the moments of rows y (B, C) for responsibilities p (B, K) added.

    sxx: (C, K) for diag, (K,) for spherical. Moments of tight components are about m_k, of all others about the origin.
    Tensor cores are said to round what they add up toward zero, which would shrink the sums of 8 tiles by 4e-6: so they
    add up one tile, for 5e-7, and tiles are added to nearest.
    """
    component = first + tl.arange(0, K)
    nk += p
    shared = p
    if TIGHT:
        shared *= tl.load(terms.loose + component)[None, :]
    p_high, p_low = split(shared, FAST)
    across = tl.trans(y)
    if EXACT:
        some = dot(whole(across, FAST), p_low, tl.zeros_like(sx), FAST)
        sx += dot(whole(across, FAST), p_high, some, FAST)
    else:
        y_high, y_low = split(across, FAST)
        sx += product(y_high, y_low, p_high, p_low, tl.zeros_like(sx), FAST)
    if DIAG:
        y_high, y_low = split(across * across, FAST)
        sxx += product(y_high, y_low, p_high, p_low, tl.zeros_like(sxx), FAST)
    else:
        sxx += tl.sum(shared * tl.sum(y * y, 1)[:, None], 0)
    for place in range(tl.load(terms.n_tight) if TIGHT else 0):
        k = tl.load(terms.order + place)
        if (k >= first) & (k < first + K):
            mine = component == k
            r = tl.sum(tl.where(mine[None, :], p, 0.0), 1)
            if tl.max(r, 0) > 0:
                difference = read_difference(y, terms.high, terms.low, k, column, WIDTH)
                weighted = r[:, None] * difference
                sx += tl.where(mine[None, :], tl.sum(weighted, 0)[:, None], 0.0)
                squares = tl.sum(weighted * difference, 0)
                if DIAG:
                    sxx += tl.where(mine[None, :], squares[:, None], 0.0)
                else:
                    sxx += tl.where(mine, tl.sum(squares, 0), 0.0)
    return sx, sxx, nk


@triton.jit
def flush(moments, vectors, sx, sxx, nk, held, first, column, DIAG: tl.constexpr, KS: tl.constexpr, K: tl.constexpr,
          WIDTH: tl.constexpr):  # fmt: skip
    """Add sums to a program's slots, float64: moments (1 or 2, WIDTH, KS), vectors (2, KS): nk and spherical's sxx.

    held: whether there is anything in them. The barriers keep a thread from reading what another will write, or has
    written, where several threads hold the same element.
    """
    component = first + tl.arange(0, K)
    at = column.to(tl.int64)[:, None] * KS + component[None, :]
    whole_part = KS * WIDTH
    filled = tl.zeros([K], tl.int32) + held > 0
    old_nk = tl.load(vectors + component, mask=filled, other=0.0)
    old_sx = tl.load(moments + at, mask=filled[None, :], other=0.0)
    if DIAG:
        old_sxx = tl.load(moments + whole_part + at, mask=filled[None, :], other=0.0)
    else:
        old_sxx = tl.load(vectors + KS + component, mask=filled, other=0.0)
    tl.debug_barrier()
    tl.store(vectors + component, old_nk + nk.to(tl.float64))
    tl.store(moments + at, old_sx + sx.to(tl.float64))
    if DIAG:
        tl.store(moments + whole_part + at, old_sxx + sxx.to(tl.float64))
    else:
        tl.store(vectors + KS + component, old_sxx + sxx.to(tl.float64))
    tl.debug_barrier()


def terms(coefficients: Coefficients, components: int, width: int, fast: bool = False) -> Terms:
    """Return coefficients as kernels read them, padded to components and width; the host does not wait for them."""
    m, diag = coefficients.means, coefficients.covariance_type == "diag"
    precision = coefficients.precision if diag else coefficients.precision[:, None]
    const, first, second, tight = expand(coefficients)
    tables = [*split_in_two(padded(first, components, width).T, fast)]
    if diag:
        tables += split_in_two(padded(second, components, width).T, fast)
    padded_tight = padded(tight.double(), components) > 0
    high = m.float()
    return Terms(
        torch.stack(tables),
        torch.zeros(1, device=m.device) if diag else padded(second[:, 0], components).float(),
        padded(const, components, fill=LEAST.value).float(),
        padded(LOG2_E * coefficients.offset, components, fill=LEAST.value).float(),
        padded(high, components, width),
        padded((m - high.double()).float(), components, width),
        padded(LOG2_E * precision.expand_as(m), components, width).float(),
        (~padded_tight).float(),
        (~padded_tight).int().argsort(stable=True).int(),
        tight.sum(dtype=torch.int32)[None],
    )


class Part:
    """What a plan of spherical or diag covariance has of rows that are read in one way: terms, slots, and their sums.

    The frame's scale is in the terms of diag covariance, so that rows with few digits keep them; spherical has no room
    for it. EXACT, see `add_products`, is for rows that are neither moved nor scaled.
    """

    def __init__(self, coefficients: Coefficients, frame: Frame, fast: bool, exact: bool, tuning: Tuning) -> None:
        self.k, self.d = coefficients.means.shape
        self.device = coefficients.means.device
        self.diag, self.fast, self.tuning = coefficients.covariance_type == "diag", fast, tuning
        self.scale = frame.scale if self.diag else None
        self.frame = frame_of(frame, self.device)
        moved, scaled = frame.shift is not None, frame.scale is not None and not self.diag
        self.reading = {"DIAG": self.diag, "MOVED": moved, "SCALED": scaled}
        self.exact = exact and not moved and not scaled
        self.nothing = torch.zeros(1, device=self.device)
        self.shape = self.cut()
        self.components = -(-self.k // self.shape.components) * self.shape.components
        self.terms = self._terms(coefficients)
        self.slots: tuple[torch.Tensor, ...] = ()
        self.held = False

    def cut(self) -> Shape:
        """Return how kernels are cut up."""
        raise NotImplementedError

    def _terms(self, coefficients: Coefficients) -> Terms:
        if self.scale is not None:
            precision = coefficients.precision * self.scale**2
            coefficients = replace(coefficients, means=coefficients.means / self.scale, precision=precision)
        return terms(coefficients, self.components, self.shape.width, self.fast)

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same shapes, in place, and forget the rows; the host waits for nothing."""
        for old, new in zip(self.terms, self._terms(coefficients), strict=True):
            old.copy_(new)
        self.clear()

    def clear(self) -> None:
        """Forget the rows; what is on the device stays until the next are added."""
        self.held = False

    def make_slots(self, programs: int, parts: int) -> None:
        """Make where programs leave their sums: moments (programs, 1 or 2, D, K), vectors (programs, parts, 2, K)."""
        size = 2 if self.diag else 1, self.shape.width, self.components
        self.slots = tuple(
            empty(programs, *more, dtype=torch.float64, device=self.device)
            for more in (size, (parts, 2, self.components))
        )

    def result(self, log_norm: torch.Tensor, entropy: torch.Tensor) -> Statistics:
        """Return the sums of all programs, about the frame's origin, added up in float64 in a fixed order."""
        moments, vectors = self.slots
        nk = vectors[:, 0, 0, : self.k].sum(0)
        both = moments[:, :, : self.d, : self.k].sum(0).mT  # (1 or 2, K, D)
        sx, sxx = both[0], both[1] if self.diag else vectors[:, :, 1, : self.k].sum((0, 1))
        there = self.terms.high.double() + self.terms.low.double()
        c = (there * (1 - self.terms.loose.double())[:, None])[: self.k, : self.d]  # m_k of tight components
        added = 2 * sx * c + nk[:, None] * c**2
        sx, sxx = sx + nk[:, None] * c, sxx + (added if self.diag else added.sum(1))
        if self.scale is not None:
            sx, sxx = sx * self.scale, sxx * self.scale**2
        return Statistics(nk, sx, sxx, log_norm, entropy, torch.zeros_like(c))
