"""How the Triton kernels are started, and how the sums that their programs leave become statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import triton

from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.torch import FLOOR
from fastclust.kernels.triton_fused import fused_assign, fused_statistics
from fastclust.kernels.triton_shapes import fused_shape, power, programs_of, shared_bytes_of, tiled_shape
from fastclust.kernels.triton_terms import Terms, plain_terms, terms
from fastclust.kernels.triton_tiled import tiled_log_rho, tiled_moments, tiled_softmax

CUT = FLOOR[torch.float32] + math.log(1.5)  # as the torch backend
FLUSH = 32  # tiles that float32 sums hold before they go to float64
SCRATCH_BYTES = 256 << 20
LogRho = Callable[[torch.Tensor], torch.Tensor]
Sums = Callable[[torch.Tensor, torch.Tensor | None], Statistics]
INTERPRETED = not isinstance(fused_statistics, triton.JITFunction)


def empty(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate what a kernel writes: tests put NaN there first."""
    return torch.empty(size, dtype=dtype, device=device)


def on_device_of(rows: torch.Tensor) -> AbstractContextManager[object]:
    """Return the context in which kernels start on the device of rows."""
    return torch.cuda.device(rows.device) if rows.is_cuda else nullcontext()


def frame_of(frame: Frame, rows: torch.Tensor) -> tuple[bool, torch.Tensor, torch.Tensor]:
    if frame.shift is None and frame.scale is None:
        nothing = torch.zeros(1, device=rows.device)
        return False, nothing, nothing
    zero = torch.zeros(rows.shape[1], device=rows.device)
    shift = zero if frame.shift is None else frame.shift.float().contiguous()
    return True, shift, zero + 1 if frame.scale is None else frame.scale.float().contiguous()


def weights_of(weights: torch.Tensor | None, rows: torch.Tensor) -> tuple[bool, torch.Tensor, int]:
    if weights is None:
        return False, torch.zeros(1, device=rows.device), 0
    weights = weights.to(torch.float32)
    return True, weights, weights.stride(0)


def level(fast: bool) -> int:
    """Return FAST, see `triton_parts.split`."""
    return 0 if not fast else 2 if INTERPRETED else 1


def fused_sums(
    rows: torch.Tensor, coefficients: Coefficients, frame: Frame, weights: torch.Tensor | None, fast: bool
) -> Statistics:
    """Return the statistics of rows (N, D) by the fused kernel, about the origin."""
    (n, d), k = rows.shape, coefficients.n_components
    shape = fused_shape(k, d, coefficients.covariance_type == "diag", shared_bytes_of(rows.device))
    given = terms(coefficients, shape.components, shape.width, fast)
    framed, shift, scale = frame_of(frame, rows)
    weighted, w, stride_w = weights_of(weights, rows)
    programs, parts = programs_of(rows.device, triton.cdiv(n, shape.rows), shape, given.diag), shape.width // shape.part
    moments, vectors = _slots(programs, parts, shape.components, shape.width, given.diag, rows.device)
    sums = empty(programs, 2, dtype=torch.float64, device=rows.device)
    *ahead, order, n_tight = given.for_log_rho()
    with on_device_of(rows):
        for tight in (False, True):
            fused_statistics[(programs, parts)](
                rows, w, shift, scale, *ahead, given.loose, order, n_tight, moments, vectors, sums,
                n, d, *rows.stride(), stride_w,
                DIAG=given.diag, FRAMED=framed, WEIGHTED=weighted, K=shape.components, WIDTH=shape.width,
                C=shape.columns, PART=shape.part, B=shape.rows, FLUSH=FLUSH, CUT=CUT, FAST=level(fast), TIGHT=tight,
                **shape.options(),
            )  # fmt: skip
    log_norm, entropy = sums.sum(0)
    return _gathered(moments, vectors, log_norm, entropy, given, k, d)


def fused_labels(
    rows: torch.Tensor, coefficients: Coefficients, frame: Frame, fast: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels (N,) int32 and ln sum rho (N,) float32 by the fused kernel."""
    (n, d), k = rows.shape, coefficients.n_components
    shape = fused_shape(k, d, coefficients.covariance_type == "diag", shared_bytes_of(rows.device))
    given = terms(coefficients, shape.components, shape.width, fast)
    framed, shift, scale = frame_of(frame, rows)
    labels = empty(n, dtype=torch.int32, device=rows.device)
    density = empty(n, dtype=torch.float32, device=rows.device)
    with on_device_of(rows):
        for tight in (False, True):
            fused_assign[(programs_of(rows.device, triton.cdiv(n, shape.rows), shape, given.diag),)](
                rows, shift, scale, *given.for_log_rho(), labels, density, n, d, k, *rows.stride(),
                DIAG=given.diag, FRAMED=framed, K=shape.components, WIDTH=shape.width, C=shape.columns, B=shape.rows,
                CUT=CUT, FAST=level(fast), TIGHT=tight, **shape.options(),
            )  # fmt: skip
    return labels, density


def scratch_rows(k: int) -> int:
    """Return how many rows of ln rho are kept at once where they are kept at all."""
    return max(SCRATCH_BYTES // (4 * k), 1)


def tiled_log_rho_of(coefficients: Coefficients, frame: Frame, fast: bool) -> LogRho:
    """Return the E-step by the tiled kernel: rows (N, D) to ln rho (N, K) float32."""
    given = _tiled_terms(coefficients, fast)
    return lambda rows: _tiled_logits(rows, coefficients.n_components, frame, given, fast)


def tiled_sums_of(coefficients: Coefficients, frame: Frame, fast: bool) -> Sums:
    """Return a pass by the tiled kernels: a block of rows (N, D) and weights (N,) to statistics about the origin."""
    given = _tiled_terms(coefficients, fast)

    def found(rows: torch.Tensor, weights: torch.Tensor | None) -> Statistics:
        scratch = _tiled_logits(rows, coefficients.n_components, frame, given, fast)
        return _moments(rows, scratch, frame, given, fast, *weighted_shares(scratch, weights))

    return found


def _tiled_terms(coefficients: Coefficients, fast: bool) -> Terms:
    """Return coefficients padded for the tiled kernels."""
    shape = tiled_shape(coefficients.n_components, coefficients.n_features)
    components = triton.cdiv(coefficients.n_components, shape.components) * shape.components
    return terms(coefficients, components, shape.width, fast)


def _tiled_logits(rows: torch.Tensor, k: int, frame: Frame, given: Terms, fast: bool) -> torch.Tensor:
    n, d = rows.shape
    shape = tiled_shape(k, d)
    framed, shift, scale = frame_of(frame, rows)
    scratch = empty(n, k, dtype=torch.float32, device=rows.device)
    blocks = len(given.const) // shape.components
    with on_device_of(rows):
        for tight in (False, True):
            tiled_log_rho[(triton.cdiv(n, shape.rows), blocks)](
                rows, shift, scale, *given.for_log_rho(), scratch, n, d, k, *rows.stride(),
                DIAG=given.diag, FRAMED=framed, KS=len(given.const), K=shape.components, WIDTH=shape.width,
                C=shape.columns, B=shape.rows, FAST=level(fast), TIGHT=tight, **shape.options(),
            )  # fmt: skip
    return scratch


def tiled_shares(scratch: torch.Tensor) -> torch.Tensor:
    """Turn ln rho (N, K) float32 into responsibilities, in place, and return it.

    There is no floor: what is shown to a user underflows to zero.
    """
    nothing = torch.zeros(1, device=scratch.device)
    _softmax(scratch, None, nothing, nothing, nothing, -torch.inf, shares=True)
    return scratch


def tiled_labels(scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels (N,) int32 and ln sum rho (N,) float32 from ln rho (N, K) float32."""
    labels = empty(len(scratch), dtype=torch.int32, device=scratch.device)
    density = empty(len(scratch), dtype=torch.float32, device=scratch.device)
    _softmax(scratch, None, labels, density, density, CUT, labelled=True)
    return labels, density


def weighted_shares(scratch: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn ln rho (N, K) float32 into responsibilities times weights, in place; return log_norm and entropy ()."""
    norm, entropy = (empty(len(scratch), dtype=torch.float64, device=scratch.device) for _ in range(2))
    _softmax(scratch, weights, norm, norm, entropy, CUT, shares=True, sums=True)
    return norm.sum(), entropy.sum()


def given_sums(rows: torch.Tensor, r: torch.Tensor, diag: bool, about: torch.Tensor, frame: Frame) -> Statistics:
    """Return the moments of rows (N, D) for given responsibilities (N, K), about the origin."""
    k, d = about.shape
    shape = tiled_shape(k, d)
    given = plain_terms(diag, about, triton.cdiv(k, shape.components) * shape.components, shape.width)
    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    return _moments(rows, r, frame, given, False, zero, zero)


def _softmax(
    scratch: torch.Tensor,
    weights: torch.Tensor | None,
    labels: torch.Tensor,
    density: torch.Tensor,
    entropy: torch.Tensor,
    cut: float,
    labelled: bool = False,
    shares: bool = False,
    sums: bool = False,
) -> None:
    n, k = scratch.shape
    weighted, w, stride_w = weights_of(weights, scratch)
    block, rows = min(power(k), 128), 32
    with on_device_of(scratch):
        tiled_softmax[(triton.cdiv(n, rows),)](
            scratch, w, labels, density, entropy, n, k, *scratch.stride(), stride_w,
            LABELS=labelled, SHARES=shares, SUMS=sums, WEIGHTED=weighted, K=block, B=rows, CUT=cut,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _moments(
    rows: torch.Tensor,
    r: torch.Tensor,
    frame: Frame,
    given: Terms,
    fast: bool,
    log_norm: torch.Tensor,
    entropy: torch.Tensor,
) -> Statistics:
    (n, d), k = rows.shape, r.shape[1]
    shape = tiled_shape(k, d)
    framed, shift, scale = frame_of(frame, rows)
    components = len(given.const)
    blocks, parts = components // shape.components, shape.width // shape.columns
    tiles = triton.cdiv(n, shape.rows)
    splits = min(tiles, triton.cdiv(programs_of(rows.device, tiles, shape, given.diag), blocks * parts))
    moments, vectors = _slots(splits, parts, components, shape.width, given.diag, rows.device)
    with on_device_of(rows):
        for tight in (False, True):
            tiled_moments[(splits, parts, blocks)](
                rows, r, shift, scale, given.high, given.low, given.loose, given.order, given.n_tight, moments, vectors,
                n, d, k, *rows.stride(), *r.stride(),
                DIAG=given.diag, FRAMED=framed, KS=components, K=shape.components, WIDTH=shape.width, C=shape.columns,
                B=shape.rows, FLUSH=FLUSH, FAST=level(fast), TIGHT=tight, **shape.options(),
            )  # fmt: skip
    return _gathered(moments, vectors, log_norm, entropy, given, k, d)


def _slots(
    programs: int, parts: int, components: int, width: int, diag: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where programs leave their sums: moments (programs, 1 or 2, D, K), vectors (programs, parts, 2, K)."""
    return (
        empty(programs, 2 if diag else 1, width, components, dtype=torch.float64, device=device),
        empty(programs, parts, 2, components, dtype=torch.float64, device=device),
    )


def _gathered(
    moments: torch.Tensor,
    vectors: torch.Tensor,
    log_norm: torch.Tensor,
    entropy: torch.Tensor,
    given: Terms,
    k: int,
    d: int,
) -> Statistics:
    """Return the sums of all programs, about the origin, added up in float64 in a fixed order."""
    nk = vectors[:, 0, 0, :k].sum(0)
    sx = moments[:, 0, :d, :k].sum(0).T
    sxx = moments[:, 1, :d, :k].sum(0).T if given.diag else vectors[:, :, 1, :k].sum((0, 1))
    found = Statistics(nk, sx, sxx, log_norm, entropy, given.about(k, d))
    c = found.about  # written out, not `moved`: that asks the device whether anything moves
    added = 2 * sx * c + nk[:, None] * c**2
    return Statistics(
        nk, sx + nk[:, None] * c, sxx + (added if given.diag else added.sum(1)), log_norm, entropy, torch.zeros_like(c)
    )
