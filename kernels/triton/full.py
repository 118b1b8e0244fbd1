r"""Full covariance in Triton: ln rho of a block of rows into scratch, and moments of the rows that count.

    log2 rho_nk = a_k - 1/2 |R_k (y_n - m_k)|^2,  a and R^T R times log2 e          split products, see `common`

R is lower triangular, in blocks of C columns: those above the diagonal are neither read nor multiplied, and of a
scatter those on and below it are computed. The frame's scale is in R and m. The softmax is `tiled.tiled_softmax`. Then,
for each component, the rows whose responsibility is not zero are listed, and only these are read: of relu1_2 of VGG-19,
a 25th. Moments are float64 throughout, on tensor cores: in float32 the rounding, 1e-7 of the large variances, drowns
the small eigenvalues that features after a ReLU have.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.expanded import LOG2_E
from fastclust.kernels.triton.common import product, read_rows, split
from fastclust.kernels.triton.launch import empty, frame_of, on_device_of, padded, parts, split_in_two
from fastclust.kernels.triton.linear import read_difference
from fastclust.kernels.triton.shapes import Tuning, full_shape, programs_on

CHUNK = 2048  # rows that are listed together
WAVES = 32  # programs of moments for each multiprocessor: some components have many more rows than others
SLOT_BYTES = 1 << 30  # of the programs' sums, where K D D is so large that they come to that


@triton.jit
def add_block(y, moved, high, low, roots, component, root, down, along, WIDTH: tl.constexpr, C: tl.constexpr,
              FAST: tl.constexpr):  # fmt: skip
    """Return moved (B, C) with the product of y - m_k, columns along, and rows down of R_k added; y: (B, C)."""
    within = tl.arange(0, C)
    y_high, y_low = split(read_difference(y, high, low, component, along + within, WIDTH), FAST)
    at = root + (down + within)[None, :] * WIDTH + (along + within)[:, None]  # R_k^T
    return product(y_high, y_low, tl.load(roots[0] + at), tl.load(roots[1] + at), moved, FAST)


@triton.jit(do_not_specialize=["n_rows", "n_components", "n_each", "stride_k"])
def full_log_rho(
    rows, frame, roots, high, low, offset, scratch, n_rows, n_features, n_components, n_each, stride_n, stride_d,
    stride_k,
    MOVED: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Write log2 rho of n_each components into scratch, float32; grid: (row tiles, groups of components).

    rows: (N, D) as stored. roots: two of (K, WIDTH, WIDTH), of which R is the sum, as products want them. high, low:
    (K, WIDTH) float32, of which m is the sum. offset: (K,) float32, a_k. scratch: (K, N), components at stride_k.
    """
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    here = row < n_rows
    first = tl.program_id(1) * n_each
    within = tl.arange(0, C)
    y_first = read_rows(rows, frame, row, here, within, n_features, stride_n, stride_d, MOVED, False)
    if WIDTH == 2 * C:
        y_last = read_rows(rows, frame, row, here, C + within, n_features, stride_n, stride_d, MOVED, False)
    for k in range(first, tl.minimum(first + n_each, n_components)):
        component = tl.cast(k, tl.int64)
        root = component * (WIDTH * WIDTH)
        moved = tl.zeros([B, C], tl.float32)
        moved = add_block(y_first, moved, high, low, roots, component, root, 0, 0, WIDTH, C, FAST)
        distance = tl.sum(moved * moved, 1)
        if WIDTH == 2 * C:
            moved = tl.zeros([B, C], tl.float32)
            moved = add_block(y_first, moved, high, low, roots, component, root, C, 0, WIDTH, C, FAST)
            moved = add_block(y_last, moved, high, low, roots, component, root, C, C, WIDTH, C, FAST)
            distance += tl.sum(moved * moved, 1)
        elif WIDTH > C:
            for down in range(C, WIDTH, C):
                moved = tl.zeros([B, C], tl.float32)
                for along in range(0, down + C, C):
                    y = read_rows(
                        rows, frame, row, here, along + within, n_features, stride_n, stride_d, MOVED, False
                    )  # fmt: skip
                    moved = add_block(y, moved, high, low, roots, component, root, down, along, WIDTH, C, FAST)
                distance += tl.sum(moved * moved, 1)
        logits = tl.load(offset + k) - 0.5 * distance
        tl.store(scratch + row + component * stride_k, logits, mask=here)


@triton.jit(do_not_specialize=["n_rows", "stride_s", "stride_k"], do_not_specialize_on_alignment=["shares"])
def list_rows(shares, listed, counts, n_rows, stride_s, stride_k, CHUNK: tl.constexpr):
    """List the rows of each chunk that have a share in a component; grid: (chunks, K).

    shares: n, k at stride_s, stride_k, any float dtype. listed: (K, chunks, CHUNK) int32, rows counted from the chunk's
    first, in order; counts: (K, chunks) int32, how many. A share that is not a number counts.
    """
    chunk, chunks, k = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    within = tl.arange(0, CHUNK)
    row = chunk.to(tl.int64) * CHUNK + within
    share = tl.load(shares + row * stride_s + k * stride_k, mask=row < n_rows, other=0.0)
    kept = (share != 0).to(tl.int32)
    place = tl.cumsum(kept, 0) - kept
    slot = k * chunks + chunk
    tl.store(listed + slot * CHUNK + place, within, mask=kept != 0)
    tl.store(counts + slot, tl.sum(kept, 0))


@triton.jit(
    do_not_specialize=["n_components", "chunks", "stride_s", "stride_k", "held"],
    do_not_specialize_on_alignment=["shares"],
)
def listed_moments(
    rows, shares, frame, about, listed, counts, downs, alongs, vectors, outer, n_features, n_components, chunks,
    stride_n, stride_d, stride_s, stride_k, held,
    MOVED: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Add each split's share of the moments of listed rows to its slots; grid: (K blocks, splits).

    rows: (N, D) as stored; shares: n, k at stride_s, stride_k. about: (K, WIDTH) float64, c_k. listed, counts: see
    `list_rows`. downs, alongs: (blocks,) int32, the first row and column of a block, on the diagonal or below it.
    vectors: (splits, K, WIDTH + 1) float64, sums of r (y - c) and, last, of r.
    outer: (splits, K, WIDTH, WIDTH) float64, of r (y - c) (y - c)^T, the blocks that there are.
    held: whether there is anything in the slots.

    One product: of several in a loop, Triton gives each warp all columns, and registers run out. Rows go through a sum
    over one element, and their places are int32: Triton 3.6 takes the width of what a float64 operand was loaded from,
    however far behind it, for how the tensor core wants it.
    """
    k = (tl.program_id(0) % n_components).to(tl.int64)
    block = tl.program_id(0) // n_components
    part, n_parts = tl.program_id(1), tl.num_programs(1)
    first_down, first_along = tl.load(downs + block), tl.load(alongs + block)
    down = tl.multiple_of(first_down, C) + tl.arange(0, C)
    along = tl.multiple_of(first_along, C) + tl.arange(0, C)
    about += k * WIDTH
    centre_down, centre_along = tl.load(about + down)[None, :], tl.load(about + along)[None, :]
    nk = tl.zeros([B], tl.float64)
    sx = tl.zeros([C], tl.float64)
    sxx = tl.zeros([C, C], tl.float64)
    for chunk in range(part, chunks, n_parts):
        slot = k * chunks + chunk
        base = tl.cast(chunk, tl.int64) * CHUNK
        count = tl.load(counts + slot)
        for start in range(0, count, B):
            place = start + tl.arange(0, B)
            here = place < count
            row = tl.load(listed + slot * CHUNK + place, mask=here, other=0).to(tl.int64) + base
            share = tl.load(shares + row * stride_s + k * stride_k, mask=here, other=0.0).to(tl.float64)
            y = read_rows(rows, frame, row, here, down, n_features, stride_n, stride_d, MOVED, False)
            y = tl.sum(y[:, :, None], 2)
            weighted = (y.to(tl.float64) - centre_down) * share[:, None]
            nk += share
            sx += tl.sum(weighted, 0)
            y = read_rows(rows, frame, row, here, along, n_features, stride_n, stride_d, MOVED, False)
            y = tl.sum(y[:, :, None], 2).to(tl.float64) - centre_along
            sxx = tl.dot(tl.trans(weighted), y, acc=sxx, input_precision="ieee", out_dtype=tl.float64)
    slot = part * n_components + k
    filled = tl.zeros([C], tl.int32) + held > 0
    if first_down == first_along:
        vectors += slot * (WIDTH + 1)
        old = tl.load(vectors + down, mask=filled, other=0.0)
        tl.debug_barrier()
        tl.store(vectors + down, old + sx)
        if first_down == 0:
            old_nk = tl.load(vectors + WIDTH, mask=held > 0, other=0.0)
            tl.debug_barrier()
            tl.store(vectors + WIDTH, old_nk + tl.sum(nk, 0))
    at = outer + slot * (WIDTH * WIDTH) + down[:, None] * WIDTH + along[None, :]
    old_outer = tl.load(at, mask=filled[:, None], other=0.0)
    tl.debug_barrier()
    tl.store(at, old_outer + sxx)


class Full:
    """The part of a plan of full covariance: its tables, slots, and their sums."""

    def __init__(self, coefficients: Coefficients, frame: Frame, fast: bool, tuning: Tuning) -> None:
        self.k, self.d = coefficients.means.shape
        self.device = coefficients.means.device
        self.fast, self.scale = fast, frame.scale
        self.shape = full_shape(self.d, tuning)
        self.frame, self.moved = frame_of(frame, self.device), frame.shift is not None
        self.tables = self._tables(coefficients)
        self.moments = Scatter(coefficients.means, frame)

    @property
    def held(self) -> bool:
        """Whether there is anything in the slots."""
        return self.moments.held

    @held.setter
    def held(self, held: bool) -> None:
        self.moments.held = held

    def _tables(self, coefficients: Coefficients) -> tuple[torch.Tensor, ...]:
        """Return both parts of R, both of m, and a, padded; in the units of unscaled rows, and for powers of two."""
        width, means, root = self.shape.width, coefficients.means, coefficients.precision * math.sqrt(LOG2_E)
        if self.scale is not None:
            means, root = means / self.scale, root * self.scale
        high = means.float()
        low = (means - high.double()).float()
        roots = split_in_two(padded(root, self.k, width, width), self.fast)
        sides = padded(high, self.k, width), padded(low, self.k, width)
        return *roots, *sides, (LOG2_E * coefficients.offset).float()

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same shapes, in place, and forget the rows; the host waits for nothing."""
        for old, new in zip(self.tables, self._tables(coefficients), strict=True):
            old.copy_(new)
        self.moments.renew(coefficients.means)

    def clear(self) -> None:
        """Forget the rows; what is on the device stays until the next are added."""
        self.moments.held = False

    def laid_out(self, room: torch.Tensor) -> torch.Tensor:
        """Return room for log2 rho (N, K): what belongs to a component lies together, for its rows are listed."""
        return room[: room.numel() // self.k * self.k].view(self.k, -1).T

    def make_room(self, n: int) -> None:
        """Allocate what the moments of n rows take."""
        self.moments.make_room(n)

    def log_rho(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Write log2 rho of rows (n, D) into out (n, K) float32: a launch."""
        n, shape = len(rows), self.shape
        tiles = triton.cdiv(n, shape.rows)
        each = triton.cdiv(self.k, min(self.k, triton.cdiv(4 * programs_on(self.device), tiles)))
        roots, (high, low, offset) = self.tables[:2], self.tables[2:]
        with on_device_of(rows):
            full_log_rho[(tiles, triton.cdiv(self.k, each))](
                rows, self.frame, roots, high, low, offset, out, n, self.d, self.k, each, *rows.stride(),
                out.stride(1), MOVED=self.moved, WIDTH=shape.width, C=shape.columns, B=shape.rows,
                FAST=parts(self.fast), **shape.options(),
            )  # fmt: skip

    def add_moments(self, rows: torch.Tensor, shares: torch.Tensor) -> None:
        """Add the moments of rows (n, D) for responsibilities (n, K)."""
        self.moments.add(rows, shares)

    def result(self, log_norm: torch.Tensor, entropy: torch.Tensor) -> Statistics:
        """Return the statistics about the means, given two of them."""
        return self.moments.result(log_norm, entropy)


class Scatter:
    """The moments of rows for given responsibilities, about c (K, D), in float64: slots, lists of rows, and sums."""

    def __init__(self, about: torch.Tensor, frame: Frame) -> None:
        self.k, self.d = about.shape
        self.device, self.scale = about.device, frame.scale
        self.frame, self.moved = frame_of(frame, self.device), frame.shift is not None
        self.side, self.warps = (32, 4) if self.d <= 128 else (64, 8)
        blocks = triton.cdiv(self.d, self.side)
        self.width = blocks * self.side
        self.about = about.clone()
        self.centre = padded(self._unscaled(self.about), self.k, self.width)
        self.downs, self.alongs = torch.tril_indices(blocks, blocks, device=self.device).int() * self.side
        self.listed = self.counts = torch.empty(0, device=self.device)
        self.slots: tuple[torch.Tensor, ...] = ()
        self.held = False

    def _unscaled(self, about: torch.Tensor) -> torch.Tensor:
        return about if self.scale is None else about / self.scale

    def renew(self, about: torch.Tensor) -> None:
        """Take other reference points (K, D), in place, and forget the rows."""
        self.about.copy_(about)
        self.centre[:, : self.d].copy_(self._unscaled(about))
        self.held = False

    def make_room(self, n: int) -> None:
        """Allocate slots, and lists for n rows."""
        chunks = triton.cdiv(n, CHUNK)
        if self.counts.numel() < self.k * chunks:
            self.listed = empty(self.k * chunks * CHUNK, dtype=torch.int32, device=self.device)
            self.counts = empty(self.k * chunks, dtype=torch.int32, device=self.device)
        if not self.slots:
            splits = triton.cdiv(programs_on(self.device, WAVES), self.k * len(self.downs))
            splits = max(min(splits, SLOT_BYTES // (8 * self.k * self.width**2)), 1)
            self.slots = (
                empty(splits, self.k, self.width + 1, dtype=torch.float64, device=self.device),
                empty(splits, self.k, self.width, self.width, dtype=torch.float64, device=self.device),
            )

    def add(self, rows: torch.Tensor, shares: torch.Tensor) -> None:
        """Add the moments of rows (n, D) for responsibilities (n, K): two launches."""
        n = len(rows)
        self.make_room(n)
        vectors, outer = self.slots
        chunks = triton.cdiv(n, CHUNK)
        with on_device_of(rows):
            list_rows[(chunks, self.k)](
                shares, self.listed, self.counts, n, *shares.stride(), CHUNK=CHUNK, num_warps=4, enable_fp_fusion=True
            )
            listed_moments[(self.k * len(self.downs), len(vectors))](
                rows, shares, self.frame, self.centre, self.listed, self.counts, self.downs, self.alongs, vectors,
                outer, self.d, self.k, chunks, *rows.stride(), *shares.stride(), int(self.held),
                MOVED=self.moved, WIDTH=self.width, C=self.side, B=32, CHUNK=CHUNK,
                num_warps=self.warps, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
        self.held = True

    def result(self, log_norm: torch.Tensor, entropy: torch.Tensor) -> Statistics:
        """Return the sums of all programs, added up in a fixed order."""
        vectors, outer = self.slots
        vector = vectors.sum(0)
        lower = outer.sum(0)[:, : self.d, : self.d].tril()
        sx, sxx = vector[:, : self.d], lower + lower.tril(-1).mT
        if self.scale is not None:
            sx, sxx = sx * self.scale, sxx * self.scale * self.scale[:, None]
        return Statistics(vector[:, self.width], sx, sxx, log_norm, entropy, self.about.clone())
