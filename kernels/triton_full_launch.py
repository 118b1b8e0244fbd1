"""How the Triton kernels for full and tied covariance are started, and what they are given."""

from __future__ import annotations

import torch
import triton

from fastclust.kernels import triton_launch as launch
from fastclust.kernels.contract import Coefficients, Frame, Statistics
from fastclust.kernels.triton_full import full_log_rho, list_rows, listed_moments, tied_log_rho
from fastclust.kernels.triton_shapes import power, programs_on
from fastclust.kernels.triton_terms import padded, split_in_two

CHUNK = 2048  # rows that are listed together: numbers below that fit int16
WAVES = 32  # programs of moments for each multiprocessor: some components have many more rows than others


def log_rho_of(coefficients: Coefficients, frame: Frame, fast: bool) -> launch.LogRho:
    """Return the E-step of full or tied coefficients: rows (N, D) to ln rho (N, K) float32, component by component."""
    return (_full if coefficients.covariance_type == "full" else _tied)(coefficients, frame, fast)


def _full(coefficients: Coefficients, frame: Frame, fast: bool) -> launch.LogRho:
    k, d = coefficients.means.shape
    columns = min(power(d), 64)
    width = triton.cdiv(d, columns) * columns
    roots = split_in_two(padded(coefficients.precision, k, width, width), fast)
    high = coefficients.means.float()
    low = (coefficients.means - high.double()).float()
    high, low, offset = padded(high, k, width), padded(low, k, width), coefficients.offset.float()

    def found(rows: torch.Tensor) -> torch.Tensor:
        n, tile = len(rows), 128
        framed, shift, scale = launch.frame_of(frame, rows)
        scratch = _scratch(rows, k)
        tiles = triton.cdiv(n, tile)
        each = triton.cdiv(k, min(k, triton.cdiv(4 * programs_on(rows.device), tiles)))
        with launch.on_device_of(rows):
            full_log_rho[(tiles, triton.cdiv(k, each))](
                rows, shift, scale, *roots, high, low, offset, scratch, n, d, k, each, *rows.stride(),
                *scratch.stride(), FRAMED=framed, WIDTH=width, C=columns, B=tile, FAST=launch.level(fast),
                num_warps=8 if columns == 64 else 4, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
        return scratch

    return found


def _tied(coefficients: Coefficients, frame: Frame, fast: bool) -> launch.LogRho:
    k, d = coefficients.means.shape
    columns, block = min(power(d), 32), min(power(k), 64)
    width, components = triton.cdiv(d, columns) * columns, triton.cdiv(k, block) * block
    middle, root = coefficients.means.mean(0), coefficients.precision
    moved = (coefficients.means - middle) @ root.T  # (K, D)
    slope = padded((moved @ root).T, width, components)
    const = padded(coefficients.offset - 0.5 * moved.square().sum(1), components)
    middle, root = padded(middle, width), padded(root, width, width)

    def found(rows: torch.Tensor) -> torch.Tensor:
        n, tile = len(rows), 64
        framed, shift, scale = launch.frame_of(frame, rows)
        scratch = _scratch(rows, k)
        with launch.on_device_of(rows):
            tied_log_rho[(triton.cdiv(n, tile),)](
                rows, shift, scale, root, middle, slope, const, scratch, n, d, k, *rows.stride(), *scratch.stride(),
                FRAMED=framed, KS=components, K=block, WIDTH=width, C=columns, B=tile,
                num_warps=4, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
        return scratch

    return found


def sums_of(coefficients: Coefficients, frame: Frame, fast: bool) -> launch.Sums:
    """Return a pass: a block of rows (N, D) and weights (N,) to statistics, of full covariance about the means."""
    log_rho, full = log_rho_of(coefficients, frame, fast), coefficients.covariance_type == "full"

    def found(rows: torch.Tensor, weights: torch.Tensor | None) -> Statistics:
        shares = log_rho(rows)
        return _moments(rows, shares, full, coefficients.means, frame, *launch.weighted_shares(shares, weights))

    return found


def given_sums(rows: torch.Tensor, r: torch.Tensor, full: bool, about: torch.Tensor, frame: Frame) -> Statistics:
    """Return the moments of rows (N, D) for given responsibilities (N, K); of full covariance about (K, D)."""
    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    return _moments(rows, r, full, about, frame, zero, zero)


def _scratch(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Return room for ln rho (N, K): what belongs to a component lies together, for its rows are listed."""
    return launch.empty(k, len(rows), dtype=torch.float32, device=rows.device).T


def _moments(
    rows: torch.Tensor,
    shares: torch.Tensor,
    full: bool,
    about: torch.Tensor,
    frame: Frame,
    log_norm: torch.Tensor,
    entropy: torch.Tensor,
) -> Statistics:
    (n, d), k, device = rows.shape, shares.shape[1], rows.device
    side, warps = (32, 4) if d <= 128 else (64, 8)
    blocks, chunks = triton.cdiv(d, side), triton.cdiv(n, CHUNK)
    width = blocks * side
    about = about if full else torch.zeros_like(about)
    centre = padded(about, k, width)
    on = torch.arange(blocks, device=device).expand(2, blocks)
    downs, alongs = (torch.tril_indices(blocks, blocks, device=device) if full else on).int() * side
    splits = min(chunks, triton.cdiv(WAVES * programs_on(device), k * len(downs)))
    listed = launch.empty(k, chunks, CHUNK, dtype=torch.int16, device=device)
    counts = launch.empty(k, chunks, dtype=torch.int32, device=device)
    vectors = launch.empty(splits, k, width + 1, dtype=torch.float64, device=device)
    outer = launch.empty(splits, k, *((width, width) if full else (1, 1)), dtype=torch.float64, device=device)
    framed, shift, scale = launch.frame_of(frame, rows)
    with launch.on_device_of(rows):
        list_rows[(chunks, k)](
            shares, listed, counts, n, *shares.stride(), CHUNK=CHUNK, num_warps=4, enable_fp_fusion=True
        )
        listed_moments[(k * len(downs), splits)](
            rows, shares, shift, scale, centre, listed, counts, downs, alongs, vectors, outer, d, k, chunks,
            *rows.stride(), *shares.stride(),
            OUTER=full, FRAMED=framed, WIDTH=width, C=side, B=32, CHUNK=CHUNK,
            num_warps=warps, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    vector = vectors.sum(0)
    sxx = None
    if full:
        lower = outer.sum(0)[:, :d, :d].tril()
        sxx = lower + lower.tril(-1).mT
    return Statistics(vector[:, width], vector[:, :d], sxx, log_norm, entropy, about)
