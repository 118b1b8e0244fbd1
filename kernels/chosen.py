"""A backend for an accelerator that is the first of several that has a kernel for the rows at hand and has proven it.

What the rows are is known when the first of them come, so that is when it is decided: for each operation, covariance
type, dtypes, precision and size. The torch backend is the plain one, has nothing to prove, and comes last; where no
other has a kernel, it passes over the rows. A proof that fails, or raises, is said in a warning, and holds for the
process; one that passes is remembered (`fastclust.kernels.remembered`), and a later pass looks up one entry.
"""

from __future__ import annotations

import logging
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, cast

import torch

from fastclust.kernels import remembered
from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision, Renewable, Statistics
from fastclust.kernels.proof import OPERATIONS, Operation, prove

if TYPE_CHECKING:
    from fastclust.kernels.table import Backend

log = logging.getLogger("fastclust")

PLAIN = "torch"
Case = tuple[Operation, CovarianceType, torch.dtype, torch.dtype, Precision, int, int, bool, bool, bool, bool]
_verdicts: dict[tuple[str, str, Case], str | None] = {}  # of this process: None, or why it failed


class Chosen:
    """The first of several backends, best first, that proves itself; see the backend protocol.

    candidates: names and modules that can run on the device. unable: why others cannot. only: whether the candidate was
    asked for by its name, so that a proof that fails raises RuntimeError. PRECISIONS are those of all candidates.
    """

    def __init__(
        self, device: torch.device, candidates: dict[str, Backend], unable: dict[str, str], *, only: bool = False
    ) -> None:
        self.device, self.candidates, self.unable, self.only = device, candidates, unable, only
        offered = [precision for module in candidates.values() for precision in module.PRECISIONS]
        self.PRECISIONS: tuple[Precision, ...] = tuple(dict.fromkeys(offered))
        self.passes = OPERATIONS[:3]  # those of which the log says what takes them, and `ran` what took them last
        self.ran: str | None = None
        self._known: dict[Case, tuple[str, Backend]] = {}
        self._said = False

    def unavailable(self, device: torch.device) -> str | None:
        """Return None: candidates are those that can run."""
        return None

    def why_not(self, covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype) -> str | None:
        """Say why the torch backend takes a covariance type, arithmetic in dtype or rows stored so; None if not."""
        reasons = self._without_kernel(covariance_type, dtype, stored)
        every = bool(reasons) and len(reasons) == len(self.candidates.keys() - {PLAIN})
        return "; ".join(dict.fromkeys(reasons.values())) if every else None

    def prepare(
        self,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        precision: Precision = "high",
        block_rows: int | None = None,
    ) -> Plan:
        """Return the plan of an E-step, which chooses when it has rows; see the backend protocol."""
        return ChosenPlan(self, coefficients, frame, dtype, precision, block_rows)

    def moments(
        self,
        rows: torch.Tensor,
        responsibilities: torch.Tensor,
        covariance_type: CovarianceType,
        about: torch.Tensor,
        frame: Frame,
        dtype: torch.dtype,
    ) -> Statistics:
        """Return the statistics of rows (N, D) for given responsibilities (N, K); see the backend protocol."""
        given = Coefficients(covariance_type, *_unit(covariance_type, about))
        _, module = self.choose("moments", rows, given, frame, dtype, "high", None, None)
        return module.moments(rows, responsibilities, covariance_type, about, frame, dtype)

    def choose(
        self,
        operation: Operation,
        rows: torch.Tensor,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        precision: Precision,
        weights: torch.Tensor | None,
        block_rows: int | None,
    ) -> tuple[str, Backend]:
        """Return the name and the module that take an operation on rows like these (N, D).

        Raises RuntimeError where the one that was asked for by its name fails its proof.
        """
        case = _case(operation, rows, coefficients, frame, dtype, precision, weights)
        if case not in self._known:
            given = (operation, rows, coefficients, frame, dtype, precision, weights, block_rows)
            self._known[case] = self._first(case, given)
        name, module = self._known[case]
        if operation in self.passes:
            self.ran = name
        return name, module

    def _first(self, case: Case, given: tuple[object, ...]) -> tuple[str, Backend]:
        reasons = self._without_kernel(case[1], case[2], case[3])
        for name, module in self.candidates.items():
            if name in reasons:
                continue
            reason = None if name == PLAIN else self._verdict(name, module, case, given)
            if reason is None:
                self._say(name, case, reasons)
                return name, module
            reasons[name] = reason
            if self.only:
                raise RuntimeError(
                    f"backend {name!r} was asked for, and {reason}: use another, and see `fastclust doctor --prove`"
                )
        self._say(PLAIN, case, reasons)
        return PLAIN, plain

    def _without_kernel(
        self, covariance_type: CovarianceType, dtype: torch.dtype, stored: torch.dtype
    ) -> dict[str, str]:
        """Return why candidates leave such rows to the torch backend."""
        found = {}
        for name, module in self.candidates.items():
            reason = getattr(module, "why_not", lambda *what: None)(covariance_type, dtype, stored)
            if reason is not None and name != PLAIN:
                found[name] = reason
        return found

    def _verdict(self, name: str, module: Backend, case: Case, given: tuple[object, ...]) -> str | None:
        """Return None where a backend proves itself or has before, or why not, with a warning the first time."""
        place = (str(self.device), name, case)
        if place not in _verdicts:
            what = described(name, case)
            if remembered.passed(self.device, what):
                _verdicts[place] = None
                return None
            _verdicts[place] = failure(module, given)
            if _verdicts[place] is None:
                remembered.remember(self.device, what)
            else:
                log.warning(
                    "backend %s on %s is passed over for %s of %s covariance: %s",
                    *(name, self.device, case[0], case[1], _verdicts[place]),
                )
        return _verdicts[place]

    def _say(self, name: str, case: Case, reasons: dict[str, str]) -> None:
        """Log once which backend passes over the rows, and why better ones do not."""
        if case[0] not in self.passes or self._said:
            return
        self._said = True
        why = "".join(f"; not {other}: {reason}" for other, reason in (self.unable | reasons).items())
        log.info("backend %s on %s%s", name, self.device, why)


class ChosenPlan:
    """An E-step of which a backend is chosen for each operation when its rows come; see the contract's Renewable."""

    def __init__(
        self,
        chosen: Chosen,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        precision: Precision,
        block_rows: int | None,
    ) -> None:
        self._chosen, self._given = chosen, (coefficients, frame, dtype, precision)
        self._block_rows = block_rows
        self._plans: dict[str, Plan] = {}
        self._adding: list[Plan] = []

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the statistics of rows (n, D); weights (n,) count a row w_n times."""
        plan = self._plan("statistics", rows, weights)
        plan.add(rows, weights)
        if not any(plan is other for other in self._adding):
            self._adding.append(plan)

    def result(self) -> Statistics:
        """Return the statistics of all rows added so far. Raises ValueError where there were none."""
        if not self._adding:
            raise ValueError("no rows were added")
        first, *others = (plan.result() for plan in self._adding)
        return reduce(add, (other.moved(first.about) for other in others), first)

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable component (n,) int32 and the log-density (n,) of each row."""
        return self._plan("assign", rows).assign(rows)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K)."""
        return self._plan("responsibilities", rows).responsibilities(rows)

    @property
    def renewable(self) -> bool:
        """Whether the plans that took the rows are."""
        return bool(self._plans) and all(getattr(plan, "renewable", False) for plan in self._plans.values())

    def renew(self, coefficients: Coefficients) -> None:
        """Take other coefficients of the same shapes, in place, and forget the rows; the host waits for nothing."""
        self._given = (coefficients, *self._given[1:])
        for plan in self._plans.values():
            cast(Renewable, plan).renew(coefficients)
        self._adding.clear()

    def clear(self) -> None:
        """Forget the rows on the host's side alone: the device's part of `renew` is done again by other means."""
        for plan in self._plans.values():
            cast(Renewable, plan).clear()
        self._adding.clear()

    def _plan(self, operation: Operation, rows: torch.Tensor, weights: torch.Tensor | None = None) -> Plan:
        name, module = self._chosen.choose(operation, rows, *self._given, weights, self._block_rows)
        if name not in self._plans:
            self._plans[name] = module.prepare(*self._given, self._block_rows)
        return self._plans[name]


def failure(module: Backend, given: tuple[object, ...]) -> str | None:
    """Prove an operation; return None where it passes, and else what failed. given: as `prove` has it.

    Raises torch.OutOfMemoryError, which says nothing of the kernels: fewer rows at once may do.
    """
    operation, rows, coefficients, frame, dtype, precision, weights, block_rows = given
    try:
        proof = prove(module, operation, rows, coefficients, frame, dtype, precision, weights, block_rows)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"its proof ended with {type(error).__name__}: {error}"
    return None if proof.passed else f"it failed its proof: {proof.failures()}"


def described(name: str, case: Case) -> remembered.Key:
    """Return a case as it is remembered."""
    operation, kind, dtype, stored, precision, k, d, moved, scaled, weighted, contiguous = case
    return {
        "backend": name,
        "operation": operation,
        "covariance": kind,
        "arithmetic": str(dtype).removeprefix("torch."),
        "stored": str(stored).removeprefix("torch."),
        "precision": precision,
        "components": k,
        "features": d,
        "moved": moved,
        "scaled": scaled,
        "weighted": weighted,
        "contiguous": contiguous,
    }


def _case(
    operation: Operation,
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    precision: Precision,
    weights: torch.Tensor | None,
) -> Case:
    """Return what a proof is for: sizes are rounded up to powers of two, K up to 64 to eights."""
    k, d = coefficients.means.shape
    return (
        *(operation, coefficients.covariance_type, dtype, rows.dtype, precision),
        *(-(-k // 8) * 8 if k <= 64 else 1 << (k - 1).bit_length(), 1 << (d - 1).bit_length()),
        *(frame.shift is not None, frame.scale is not None),
        *(weights is not None, rows.stride(1) == 1 or d == 1),
    )


def _unit(covariance_type: CovarianceType, about: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return offset, means and precision of components about points (K, D), for a proof of moments."""
    k, d = about.shape
    one = torch.eye(d, dtype=about.dtype, device=about.device)
    size = {"diag": (k, d), "spherical": (k,)}.get(covariance_type)
    precision = about.new_ones(size) if size else one if covariance_type == "tied" else one.expand(k, d, d)
    return about.new_zeros(k), about, precision
