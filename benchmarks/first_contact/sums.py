r"""Whether sums over all rows are right, which no sample shows: float32 accumulators may round toward zero.

    sum_k sx_k = sum_n y_n        sum_k diag(sxx_k) = sum_n y_n^2        about the origin, whatever the responsibilities

`lost_x` and `lost_xx` are the largest differences over features, relative to sum_n |y_n| and sum_n y_n^2. Against the
plain backend in float64 over the same rows: `errors`, on the scales of `benchmarks.verify`, and `bias`, the mean over
entries, weighted by their size, of found / expected - 1, about the points that the sums were made about: below zero
where sums shrink. For full covariance those are the means, and the bias tells what the other two cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.first_contact.job import Write
from benchmarks.first_contact.speed import opened, try_variants
from benchmarks.verify import errors, variances
from fastclust import engine, kernels
from fastclust.kernels import Frame, Statistics

CHUNK = 500_000  # rows in float64 at once


def sums(write: Write, precisions: list[str], flush: list[int], **asked: Any) -> None:
    """Write how far the sums over all rows are off, for the formula's choice and for each number of tiles a flush."""
    there = opened(write, **asked)
    if there is None:
        return
    module, problem = there
    plain = kernels.usable("torch", problem.rows.device)
    name = f"{asked['kind']} {asked['stored']}"
    coefficients = engine.coefficients(problem.posterior)
    columns = _columns(problem.rows, problem.frame)
    expected = about_origin(kernels.statistics(plain, problem.rows, coefficients, problem.frame, torch.float64))
    second = problem.posterior.m**2 + variances(problem.posterior)
    write({"case": f"{name} torch in float64", **_conserved(expected, *columns)})

    def measure(precision: str, a_pass: Callable[[torch.Tensor], Statistics]) -> dict[str, Any]:
        as_summed = a_pass(problem.rows)
        known, found = expected.moved(as_summed.about), about_origin(as_summed)
        bias = {each: _bias(getattr(as_summed, each), getattr(known, each)) for each in ("nk", "sx", "sxx")}
        return {"errors": errors(found, expected, second), "bias": bias, **_conserved(found, *columns)}

    try_variants(write, module, problem, name, precisions, [{"flush": tiles} for tiles in flush], measure)


def about_origin(statistics: Statistics) -> Statistics:
    """Return statistics about the frame's origin, where they are."""
    return statistics.moved(torch.zeros_like(statistics.about))


def _columns(rows: torch.Tensor, frame: Frame) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return sum_n y_n, sum_n |y_n| and sum_n y_n^2 (D,) float64 of rows (N, D) as the frame sees them."""
    parts = [(y.sum(0), y.abs().sum(0), (y * y).sum(0)) for y in _wide(rows, frame)]
    total, size, square = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
    return total, size, square


def _wide(rows: torch.Tensor, frame: Frame) -> Iterator[torch.Tensor]:
    for part in torch.split(rows, CHUNK):
        yield frame.read(part, torch.empty(part.shape, dtype=torch.float64, device=part.device))


def _conserved(
    found: Statistics, total: torch.Tensor, size: torch.Tensor, square: torch.Tensor
) -> dict[str, float | None]:
    tiny = torch.finfo(torch.float64).tiny  # a dead channel sums to zero on both sides
    lost: dict[str, float | None] = {"lost_x": float(((found.sx.sum(0) - total).abs() / (size + tiny)).max())}
    lost["lost_xx"] = None
    if found.sxx is not None and found.sxx.ndim > 1:
        squares = found.sxx if found.sxx.ndim == 2 else found.sxx.diagonal(dim1=1, dim2=2)
        lost["lost_xx"] = float(((squares.sum(0) - square).abs() / (square + tiny)).max())
    return lost


def _bias(found: torch.Tensor | None, expected: torch.Tensor | None) -> float | None:
    if found is None or expected is None:
        return None
    return float(((found - expected) * expected.sign()).sum() / expected.abs().sum())
