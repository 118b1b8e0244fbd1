"""The passes of an ascent: eager ones, and where a CUDA graph can be had, ones that start their K-sized part as it.

Between two readings of the rows stand some two hundred operations on K-sized tensors, from the plan's sums to the
coefficients that the next pass's plan takes. Started one by one they keep a GPU waiting for the host; a graph of them
is one launch. It is recorded in the third pass, when torch has compiled what it compiles at first use and rows have
settled on the device, and is held against the same operations started one by one, to the last bit. Where another number
of components is read as one (`fastclust.alike`), plan and graph are made again: one pass starts what is new one by one,
so that it is loaded, and the next records.

What a replay leaves is overwritten by the next, so all that `Passes` hands out is a copy.

A plan that is `kernels.contract.Renewable` is kept for the whole ascent, and the graph reads its sums and writes its
tables. Of others there is a new one a pass, whose statistics are copied to where the graph reads them.

spherical and diag alone are recorded: full and tied go through cuSOLVER and batched triangular solves, of which neither
NVIDIA nor torch says that they can be (pytorch/pytorch#96632 is one that could not).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeGuard, TypeVar

import torch

from fastclust.alike import alike
from fastclust.kernels import Coefficients, CovarianceType, Plan, Statistics
from fastclust.kernels.contract import Renewable
from fastclust.kernels.duplicates import Parts, merge_alike
from fastclust.rows import Rows
from fastclust.variational import Posterior

log = logging.getLogger("fastclust")

WARM = 2  # eager passes before the one that records
AGAIN = 1  # before one that records again
RECORDED: tuple[CovarianceType, ...] = ("spherical", "diag")

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Hold what a pass leads to. told: (n,) float64, what the host waits for: the bound first."""

    statistics: Statistics
    posterior: Posterior
    told: torch.Tensor


@dataclass(frozen=True)
class Found:
    """Hold all that the K-sized part of a pass leaves."""

    step: Step
    coefficients: Coefficients  # that rows are read with
    parts: Parts | None  # of components that these have as one


class Recorded(Protocol):
    """Operations on a device that can be started again, all at once, on the same memory."""

    found: Found

    def replay(self) -> None:
        """Start them; what they find is in `found`."""


Record = Callable[[Callable[[], Found]], Recorded]


class Graph:
    """A CUDA graph of the operations that a function starts; they do not run before `replay`.

    Raises RuntimeError where one of them cannot be recorded.
    """

    def __init__(self, device: torch.device, function: Callable[[], Found]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            before, own = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            try:
                # Other threads, which may be reading rows, allocate as they like.
                with torch.cuda.graph(self._graph, None, own, "thread_local"):
                    self.found = function()
            finally:
                torch.cuda.set_stream(before)  # torch stays on its own where the recording was refused

    def replay(self) -> None:
        """Start the operations on the current stream."""
        self._graph.replay()


def recorder(device: torch.device, kind: CovarianceType) -> Record | None:
    """Return what records K-sized work on a device; None where it is started one by one."""
    return partial(Graph, device) if device.type == "cuda" and kind in RECORDED else None


class Passes:
    """Make passes over rows, each from the posterior that the last one led to.

    follow: from statistics to what a pass leads to. coefficients: of a posterior. record: see `recorder`.
    recorded: whether K-sized work is one graph, as far as can be known beforehand.
    differs: after the pass that recorded, how many numbers the graph found otherwise () float64, still on the device;
    the caller fetches it with what the pass told, and hands it to `trust`. None after all other passes.
    """

    def __init__(
        self,
        rows: Rows,
        follow: Callable[[Statistics], Step],
        coefficients: Callable[[Posterior], Coefficients],
        record: Record | None,
    ) -> None:
        self.rows = rows
        self.differs: torch.Tensor | None = None
        self._follow, self._coefficients = follow, coefficients
        self._record = record if rows.blocks.group.size == 1 else None
        self.recorded = self._record is not None
        self._eager = WARM  # passes that come before the one that records
        self._merged = 1  # components that are read as one
        self._plan: Plan | None = None  # of the next pass
        self._parts: Parts | None = None  # of what it reads as one
        self._graph: Recorded | None = None
        self._inputs: Statistics | None = None  # that the graph reads where the plan is not a part of it
        self._cut: list[int] = []  # the rows of each piece when the graph was recorded

    def after(self, posterior: Posterior, merged: int = 1) -> Step:
        """Return what one more pass leads to. merged: how many components it reads as one, of those that are alike."""
        self.differs = None
        if merged != self._merged:
            self._merged, self._eager = merged, max(self._eager, AGAIN)
            self._plan = self._parts = self._graph = self._inputs = None
        if self._record is None:
            return self._follow(self.rows.statistics(*self._read_with(posterior)))
        if self._plan is None:
            coefficients, self._parts = self._read_with(posterior)
            self._plan = self.rows.plan(coefficients)
        plan = self._plan
        cut = self.rows.read_into(plan)
        if self.rows.pieces.size is not None:
            step = self._alone(plan, "the device ran out of memory")
        elif self._graph is not None and cut != self._cut:
            step = self._alone(plan, f"the rows came in {len(cut)} pieces, not in {len(self._cut)} as before")
        elif self._graph is not None and _renews(plan) != (self._inputs is None):
            step = self._alone(plan, "the plan keeps sums elsewhere than before")
        elif self._graph is not None:
            step = self._replayed(plan, self._graph)
        elif self._eager:
            found = self._whole(plan)
            step, self._plan, self._parts = found.step, self._next(plan, found.coefficients), found.parts
            self._eager -= 1
        else:
            self._cut = cut
            step = self._recorded(plan, self._record)
        return step

    def trust(self, differs: float) -> None:
        """Take the graph for the passes that follow, or drop it where it found some numbers otherwise."""
        if differs:
            self._drop(f"it found {differs:.0f} numbers otherwise than its operations one by one")

    def _read_with(self, posterior: Posterior) -> tuple[Coefficients, Parts | None]:
        """Return the coefficients that a pass from a posterior reads rows with, and parts of what they have as one."""
        coefficients = self._coefficients(posterior)
        return (coefficients, None) if self._merged == 1 else merge_alike(coefficients, alike(posterior), self._merged)

    def _apart(self, statistics: Statistics) -> Statistics:
        return statistics if self._parts is None else self._parts.apart(statistics)

    def _found(self, statistics: Statistics) -> Found:
        step = self._follow(self._apart(statistics))
        return Found(step, *self._read_with(step.posterior))

    def _whole(self, plan: Plan) -> Found:
        return self._found(copied(plan.result()))  # a copy, for points that are the plan's own change with it

    def _next(self, plan: Plan, coefficients: Coefficients) -> Plan:
        """Return the plan of the pass after the one that a plan was for."""
        if not _renews(plan):
            return self.rows.plan(coefficients)
        plan.renew(coefficients)
        return plan

    def _recorded(self, plan: Plan, record: Record) -> Step:
        """Make a pass as before, and record the graph of it, with which it is compared."""
        found = self._whole(plan)
        renewable = plan if _renews(plan) else None
        inputs = copied(plan.result()) if renewable is None else None
        parts = self._parts  # which stay where they are, as the plan does

        def function() -> Found:
            there = self._whole(plan) if inputs is None else self._found(inputs)
            if renewable is not None:
                renewable.renew(there.coefficients)
            for old, new in zip(tensors(parts), tensors(there.parts), strict=True):
                old.copy_(new)
            return there

        try:
            graph = record(function)
            graph.replay()
        except RuntimeError as error:  # of CUDA; memory is one
            self._drop(f"{error}".partition("\n")[0])
            return found.step
        pairs = list(zip(tensors(found), tensors(graph.found), strict=True))
        unlike = [(one.view(torch.int64) != other.view(torch.int64)).sum() for one, other in pairs]
        self.differs = torch.stack(unlike).sum().double()
        self._graph, self._inputs = graph, inputs
        self._plan = renewable or self.rows.plan(found.coefficients)
        return found.step

    def _replayed(self, plan: Plan, graph: Recorded) -> Step:
        if self._inputs is not None:
            torch._foreach_copy_(list(tensors(self._inputs)), list(tensors(plan.result())))
        graph.replay()
        found = copied(replace(graph.found, parts=None))
        if _renews(plan):
            plan.clear()
        else:
            self._plan = self.rows.plan(found.coefficients)
        return found.step

    def _alone(self, plan: Plan, reason: str) -> Step:
        """Make a pass, of which the rows have been read, and all that follow, without a graph."""
        statistics = self._apart(plan.result())
        self._drop(reason)
        return self._follow(statistics)

    def _drop(self, reason: str) -> None:
        log.warning("%s: passes go on without a CUDA graph, for %s", self.rows.blocks.device, reason)
        self._record = self._graph = self._plan = self._parts = self._inputs = None


def _renews(plan: Plan) -> TypeGuard[Renewable]:
    """Say whether a plan that rows were added to can take other coefficients; see `kernels.contract.Renewable`."""
    return bool(getattr(plan, "renewable", False))


def tensors(whole: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in a dataclass, and in those that it holds."""
    if isinstance(whole, torch.Tensor):
        yield whole
    elif is_dataclass(whole):
        for one in fields(whole):
            yield from tensors(getattr(whole, one.name))


def copied(whole: T) -> T:
    """Return a dataclass of tensors, and of others like it, whose tensors are copies with the same strides."""
    old = list(tensors(whole))
    new = [torch.empty_like(tensor) for tensor in old]
    torch._foreach_copy_(new, old)
    rebuilt: T = _with(whole, iter(new))
    return rebuilt


def _with(whole: Any, new: Iterator[torch.Tensor]) -> Any:
    """Return a dataclass with other tensors, in the order of `tensors`."""
    if isinstance(whole, torch.Tensor):
        return next(new)
    if not is_dataclass(whole):
        return whole
    kind: Any = type(whole)
    return kind(**{one.name: _with(getattr(whole, one.name), new) for one in fields(whole)})
