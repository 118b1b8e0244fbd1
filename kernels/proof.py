"""Hold one operation of a backend against float64 on the device that it runs on, before it is believed there.

It is run on a sample of the rows at hand, which have the shape, the dtype and the coefficients that matter, and on
constructed problems of the same shape, on which it can err by little (`fastclust.kernels.constructed`). The truth is
the torch backend's, in float64; what may lie between follows from the problem (`fastclust.kernels.bounds`).

Each problem's coefficients are written over those of the problem before, in the same tensors, and a plan that can be
renewed had other coefficients and rows first, so that tables of an earlier pass are found; statistics are of two blocks
of rows; and on an accelerator they, and labels, are of many copies of the rows, enough for programs to take more than a
tile and to empty their sums more than once. The host waits for the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.bounds import (
    FAR,
    Found,
    checked,
    expected,
    of_columns,
    of_labels,
    of_responsibilities,
    of_statistics,
    of_totals,
)
from fastclust.kernels.constructed import PROBLEMS, Problem, laid_out, make, rows_for
from fastclust.kernels.contract import Coefficients, Frame, Plan, Precision, Statistics

if TYPE_CHECKING:
    from fastclust.kernels.table import Backend

Operation = Literal["statistics", "assign", "responsibilities", "moments"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
SAMPLE, LEAST = 2048, 263  # rows at hand, and of a problem, where K D^2 or K D of them is no more than WORK
WORK = 1 << 33
LARGEST = 1e15  # of a row's numbers: float32 has their squares
COPIED_ROWS, COPIED_BYTES = 1 << 18, 128 << 20  # of many copies: 132 programs empty sums of 512 rows four times
WIDE = torch.float64


@dataclass(frozen=True)
class Proof:
    """Hold by how much an operation errs, and by how much it may: the worst of each quantity, in its own unit."""

    errors: Found

    @property
    def worst(self) -> float:
        """The largest error, in units of its tolerance."""
        return max((_ratio(*pair) for pair in self.errors.values()), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return self.worst <= 1

    def failures(self) -> str:
        """Say which quantities err by more than they may, and by how much."""
        wrong = {name: pair for name, pair in self.errors.items() if not _ratio(*pair) <= 1}
        return "; ".join(
            f"{name} errs by {error:.1e} where {most:.1e} is allowed" for name, (error, most) in wrong.items()
        )


def prove(
    backend: Backend,
    operation: Operation,
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision = "high",
    weights: torch.Tensor | None = None,
    block_rows: int | None = None,
) -> Proof:
    """Return how far an operation of a backend is from float64.

    rows: (N, D) as stored, on the coefficients' device. dtype, precision, block_rows: as `prepare` has them. weights:
    (N,) or None. For moments the coefficients say what the responsibilities are, and means are the reference points.
    Raises what the backend raises.
    """
    errors: Found = {}
    here = Coefficients(
        coefficients.covariance_type,
        *(torch.empty_like(part, memory_format=torch.contiguous_format) for part in _parts(coefficients)),
    )
    for problem in _problems(rows, coefficients, frame, weights, precision):
        for mine, theirs in zip(_parts(here), _parts(problem.coefficients), strict=True):
            mine.copy_(theirs)
        found = _errors(backend, operation, replace(problem, coefficients=here), dtype, precision, block_rows)
        _keep_worst(errors, found)
    return Proof(errors)


def _parts(coefficients: Coefficients) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return coefficients.offset, coefficients.means, coefficients.precision


def _ratio(error: float, most: float) -> float:
    return error / most if most > 0 else math.inf if error > 0 else 0.0


def _problems(
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    weights: torch.Tensor | None,
    precision: Precision,
) -> Iterator[Problem]:
    """Iterate over the constructed problems, then a sample of the rows at hand, without what float32 cannot square."""
    roots = coefficients.covariance_type in ("tied", "full")
    affordable = WORK // (coefficients.precision if roots else coefficients.means).numel()
    n_rows = min(rows_for(coefficients.n_components), max(affordable, LEAST))
    for name in PROBLEMS:
        yield make(name, rows, coefficients, frame, weights is not None, precision, n_rows)
    size = max(min(SAMPLE, affordable), 64)
    some = slice(None, None, max(-(-len(rows) // size), 1))
    sample = rows[some]
    seen = frame.read(sample, torch.empty(sample.shape, dtype=WIDE, device=sample.device))
    good = torch.nonzero((seen.abs() < LARGEST).all(1))[:, 0]
    if len(good):
        w = None if weights is None else weights[some][good]
        yield Problem(laid_out(sample[good], rows), coefficients, frame, w, at_hand=True)


def _errors(
    backend: Backend,
    operation: Operation,
    problem: Problem,
    dtype: torch.dtype,
    precision: Precision,
    block_rows: int | None,
) -> Found:
    rows, coefficients, frame, weights = problem.rows, problem.coefficients, problem.frame, problem.weights
    kind = coefficients.covariance_type
    truth = plain.prepare(coefficients, frame, WIDE)
    y = frame.read(rows, torch.empty(rows.shape, dtype=WIDE, device=rows.device))
    r, (_, density) = truth.responsibilities(rows), truth.assign(rows)
    if operation == "moments":
        found = backend.moments(rows, r, kind, coefficients.means, frame, dtype)
        wanted = plain.moments(rows, r, kind, coefficients.means, frame, WIDE)
        direct = torch.full((r.shape[1],), kind == "full", device=rows.device)
        return of_statistics(found, wanted, y, r, None, coefficients, direct, "high")
    known = expected(y, r, density, coefficients, precision)

    def prepare(given: Coefficients) -> Plan:
        return backend.prepare(given, frame, dtype, precision, block_rows)

    errors: Found
    if operation == "assign":
        errors = of_labels(*prepare(coefficients).assign(rows), known)
        if (copies := _copies(rows)) > 1:
            _keep_worst(errors, of_labels(*prepare(coefficients).assign(_repeated(rows, copies)), known, copies))
        return errors
    if operation == "responsibilities":
        return of_responsibilities(prepare(coefficients).responsibilities(rows), known)
    w = torch.ones(len(rows), dtype=WIDE, device=rows.device) if weights is None else weights.double()
    truth.add(rows, weights)
    direct = _direct(coefficients)
    wanted = truth.result().moved(torch.where(direct[:, None], coefficients.means, 0.0))
    errors = {}
    for found in _passes(prepare, coefficients, rows, weights):
        part = of_statistics(found, wanted, y, w[:, None] * r, w[:, None] * known.d, coefficients, direct, precision)
        if problem.at_hand and checked(rows.device):
            part |= of_columns(found, y, w, frame, precision)
        _keep_worst(errors, part | of_totals(found, wanted, known, w))
    return errors


def _passes(
    prepare: Callable[[Coefficients], Any], coefficients: Coefficients, rows: torch.Tensor, weights: torch.Tensor | None
) -> Iterator[Statistics]:
    """Iterate over statistics of rows (n, D): in two blocks, and of many copies, divided by how many there were."""
    middle = len(rows) // 2 // 16 * 16  # as compilers see it, the second block begins like the first
    first, *others = (slice(0, middle), slice(middle, None)) if middle else (slice(None),)
    plan = prepare(coefficients)
    for some in (first, *others):
        plan.add(rows[some], None if weights is None else weights[some])
    yield plan.result()
    many = prepare(_rolled(coefficients))
    copies = _copies(rows)
    if hasattr(many, "renew"):
        many.add(rows[first], None if weights is None else weights[first])
        many.renew(coefficients)
    elif copies > 1:
        many = prepare(coefficients)
    else:
        return
    many.add(_repeated(rows, copies), None if weights is None else weights.repeat(copies))
    found = many.result()
    sxx = None if found.sxx is None else found.sxx / copies
    nk, sx, log_norm, entropy = (part / copies for part in (found.nk, found.sx, found.log_norm, found.entropy))
    yield Statistics(nk, sx, sxx, log_norm, entropy, found.about)


def _copies(rows: torch.Tensor) -> int:
    """Return how many times a problem's rows are read at once, beside once."""
    if rows.device.type == "cpu":
        return 1
    return max(min(COPIED_ROWS // len(rows), COPIED_BYTES // (rows.numel() * rows.element_size())), 1)


def _repeated(rows: torch.Tensor, copies: int) -> torch.Tensor:
    """Return copies of rows (n, D), one after the other, laid out as those are."""
    return laid_out(rows.repeat(copies, 1), rows)


def _rolled(coefficients: Coefficients) -> Coefficients:
    """Return the same components in another order."""
    tied = coefficients.covariance_type == "tied"
    return replace(
        coefficients,
        offset=coefficients.offset.roll(1),
        means=coefficients.means.roll(1, 0),
        precision=coefficients.precision if tied else coefficients.precision.roll(1, 0),
    )


def _direct(coefficients: Coefficients) -> torch.Tensor:
    """Say of which components (K,) every backend takes the moments about the mean."""
    m, precision = coefficients.means, coefficients.precision
    if coefficients.covariance_type in ("tied", "full"):
        return torch.full((len(m),), coefficients.covariance_type == "full", device=m.device)
    return ((precision if precision.ndim == 2 else precision[:, None]) * m**2).sum(1) > FAR


def _keep_worst(errors: Found, more: Found) -> None:
    for name, pair in more.items():
        if name not in errors or _ratio(*pair) > _ratio(*errors[name]):
            errors[name] = pair
