"""Backends that are healthy but for one thing: what a proof has to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from fastclust.kernels import Coefficients, Statistics


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Return values with the eleven bits that tf32 has: a split product's low term is lost."""
    bits = values.float().contiguous().view(torch.int32) + 0x1000
    return (bits & -0x2000).view(torch.float32).to(values.dtype)


def lost_precision(given: Coefficients) -> Coefficients:
    return replace(given, precision=rounded(given.precision))


def lost_column(given: Coefficients) -> Coefficients:
    """The last column of a tile is masked in the table."""
    precision = given.precision.clone()
    if given.covariance_type == "spherical":
        return replace(given, means=torch.cat([given.means[:, :-1], 0 * given.means[:, -1:]], 1))
    precision[..., -1] = 0
    return replace(given, precision=precision)


def lost_component(given: Coefficients) -> Coefficients:
    offset = given.offset.clone()
    offset[-1] = -torch.inf
    return replace(given, offset=offset)


def swapped_offsets(given: Coefficients) -> Coefficients:
    return replace(given, offset=given.offset[swap(len(given.offset))])


class Stale:
    """A table of the pass before: cached by its shape."""

    def __init__(self) -> None:
        self.kept: Coefficients | None = None

    def __call__(self, given: Coefficients) -> Coefficients:
        before, self.kept = (
            self.kept,
            replace(given, offset=given.offset.clone(), means=given.means.clone(), precision=given.precision.clone()),
        )
        return given if before is None or before.means.shape != given.means.shape else before


def swap(k: int) -> torch.Tensor:
    """Return an order of components with the first and the last exchanged."""
    order = torch.arange(k)
    order[0], order[-1] = k - 1, 0
    return order


def without_last(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return rows[:-1], None if weights is None else weights[:-1]


def with_last_twice(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.cat([rows, rows[-1:]]), None if weights is None else torch.cat([weights, weights[-1:]])


def without_last_column(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows = rows.clone()
    rows[:, -1] = 0
    return rows, weights


def of_eleven_bits(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return rounded(rows), weights


def counted_once(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of weight zero count."""
    return rows, None if weights is None else torch.where(weights == 0, 1.0, weights)


def swapped_sums(found: Statistics) -> Statistics:
    return found.take(swap(len(found.nk)))


def half_entropy(found: Statistics) -> Statistics:
    return replace(found, entropy=found.entropy / 2)


PREPARED = {
    "low term of the table dropped": lost_precision,
    "last column masked": lost_column,
    "last component masked": lost_component,
    "offsets swapped": swapped_offsets,
    "stale table": Stale,
}
READ = {
    "last row lost": without_last,
    "last row twice": with_last_twice,
    "last column not read": without_last_column,
    "low term of rows dropped": of_eleven_bits,
    "rows of weight zero counted": counted_once,
}
SUMMED = {"components swapped": swapped_sums, "entropy halved": half_entropy}


class Plan:
    """A plan that reads, or sums up, what it should not."""

    def __init__(self, plan: Any, read: Callable[..., Any], summed: Callable[[Statistics], Statistics]) -> None:
        self.plan, self.read, self.summed = plan, read, summed

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        self.plan.add(*self.read(rows, weights))

    def result(self) -> Statistics:
        return self.summed(self.plan.result())

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels, density = self.plan.assign(self.read(rows, None)[0])
        return refilled(labels, len(rows)), refilled(density, len(rows))

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        return refilled(self.plan.responsibilities(self.read(rows, None)[0]), len(rows))


def refilled(found: torch.Tensor, n: int) -> torch.Tensor:
    """Return results of n rows: of a row that was lost, whatever was in the memory."""
    return torch.cat([found, torch.zeros_like(found[:1])])[:n]


def broken(healthy: Any, fault: str | None) -> Any:
    """Return a backend that is another's but for a fault by its name; None for no fault."""
    change = PREPARED.get(fault, lambda given: given)
    change = change() if change is Stale else change
    read = READ.get(fault, lambda rows, weights: (rows, weights))
    summed = SUMMED.get(fault, lambda found: found)

    def prepare(coefficients: Coefficients, *rest: Any, **more: Any) -> Plan:
        return Plan(healthy.prepare(change(coefficients), *rest, **more), read, summed)

    def moments(rows: torch.Tensor, responsibilities: torch.Tensor, *rest: Any) -> Statistics:
        here, _ = read(rows, None)
        r = torch.cat([responsibilities, responsibilities[-1:]])[: len(here)]
        return summed(healthy.moments(here, r, *rest))

    return SimpleNamespace(
        PRECISIONS=healthy.PRECISIONS, prepare=prepare, moments=moments, unavailable=lambda device: None
    )
