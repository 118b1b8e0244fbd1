"""Coordinate ascent: blocks of rows -> statistics -> posterior -> bound -> stop.

On a GPU a pass is queued without a look at any value. The host waits once a pass, for the bound: the stopping test
needs it, and it is not a number where a covariance was not positive definite. What the sums of the pass err by comes
with it, and how many components are alike (`fastclust.alike`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from fastclust import graph, variational
from fastclust.alike import UNKNOWN, Alike, alike
from fastclust.graph import Passes, Step
from fastclust.kernels import Coefficients, Statistics
from fastclust.kernels.threads import one_thread_where_small
from fastclust.rows import Rows
from fastclust.sums import ColumnSums
from fastclust.variational import Posterior, Prior


@dataclass(frozen=True)
class Ascent:
    """Hold where a run of coordinate ascent is; bounds in nats, summed over rows.

    statistics: that the posterior follows from; None before the first pass. change: of the bound by the last pass.
    reference: the bound that the next pass has to surpass. fast: whether the next pass is in fast products. alike: how
    many of the posterior's components are, and how many the next pass reads as one where the host cannot look.
    """

    posterior: Posterior
    statistics: Statistics | None = None
    lower_bounds: tuple[float, ...] = ()
    change: float = math.inf
    reference: float = -math.inf
    fast: bool = False
    converged: bool = False
    alike: Alike = UNKNOWN

    @property
    def n_passes(self) -> int:
        """Passes over the rows."""
        return len(self.lower_bounds)


def coefficients(posterior: Posterior) -> Coefficients:
    """Return the E-step of a posterior, for the kernels."""
    with one_thread_where_small(posterior.covariances):
        return Coefficients(posterior.covariance_type, *variational.log_rho_terms(posterior))


def by_size(statistics: Statistics) -> torch.Tensor:
    """Return the components (K,), those with most rows first."""
    return statistics.nk.argsort(descending=True, stable=True)


def posterior_of(prior: Prior, statistics: Statistics, scatter: torch.Tensor | None) -> Posterior:
    """Return the posterior given statistics; scatter: (D, D) of all rows, for tied covariance.

    Raises IllDefinedCovarianceError where a covariance is not positive definite.
    """
    return variational.check(_update(prior, statistics, scatter))


def _update(prior: Prior, statistics: Statistics, scatter: torch.Tensor | None) -> Posterior:
    sxx = statistics.sxx if statistics.sxx is not None else scatter
    if sxx is None:
        raise ValueError("tied covariance needs the scatter of all rows")
    with one_thread_where_small(sxx):
        given = prior, statistics.nk, statistics.sx, sxx, statistics.about
        if sxx.device.type == "cpu" and prior.covariance_type == "full":
            from fastclust.kernels.numba import cholesky as numba_cholesky  # which loads numba

            return variational.update(*given, numba_cholesky.inverse_roots)
        return variational.update(*given)


def bound_of(posterior: Posterior, statistics: Statistics) -> float:
    """Return the lower bound of a posterior and of the statistics that it follows from, in nats, summed over rows."""
    return fetched(_bound(posterior, statistics)[None])[0]


def _bound(posterior: Posterior, statistics: Statistics) -> torch.Tensor:
    with one_thread_where_small(posterior.covariances):
        return variational.lower_bound(posterior, statistics.entropy)


def fetched(told: torch.Tensor) -> list[float]:
    """Return a bound, and what else is told (n,), as numbers: the host waits for the device."""
    numbers: list[float] = told.tolist()
    return numbers


def ascend(
    rows: Rows,
    prior: Prior,
    start: Ascent,
    *,
    scatter: torch.Tensor | None,
    tol: float,
    max_passes: int,
    sort_sticks: bool = False,
    sums: ColumnSums | None = None,
    on_pass: Callable[[Ascent], None] | None = None,
) -> Ascent:
    """Alternate E-step and M-step from where an ascent is until the bound changes by less than tol, or max_passes.

    start: an `Ascent` of a posterior alone, or what an earlier one ended with, which then goes on as if it had not.
    Where it is fast, passes are made in fast products until the bound rises by less than tol, and then in the rows' own
    precision, two or more, for only their bounds are compared; the last of max_passes is in the rows' own in any case.
    tol: nats, on the bound summed over rows. sort_sticks: put the components in order of size after each E-step, which
    never lowers the bound of a Dirichlet process (Kurihara, Welling and Teh 2007, section 3). sums: what each pass has
    to sum to; None not to look. on_pass: called after each pass with where the ascent is.
    Raises IllDefinedCovarianceError where a covariance is not positive definite, WrongSumsError where a pass does not
    add up.
    """
    now = start
    passes: Passes | None = None
    fast: bool | None = None  # that the passes are
    while now.n_passes < max_passes and not now.converged:
        if now.fast and now.n_passes == max_passes - 1:
            now = replace(now, fast=False, reference=-math.inf)
        if passes is None or fast != now.fast:
            fast = now.fast
            here = replace(rows, precision="fast") if fast else rows
            check = None if sums is None else sums.of(here)
            ask = not rows.by_value
            follow = partial(_follow, prior=prior, scatter=scatter, sums=check, sort_sticks=sort_sticks, ask=ask)
            record = graph.recorder(rows.blocks.device, prior.covariance_type)
            passes = Passes(here, follow, coefficients, record)
        now = _pass(passes, now, check, tol)
        if on_pass is not None:
            on_pass(now)
    return now


def _follow(
    statistics: Statistics,
    prior: Prior,
    scatter: torch.Tensor | None,
    sums: ColumnSums | None,
    sort_sticks: bool,
    ask: bool,
) -> Step:
    """Return what statistics lead to: the posterior, its bound, what the sums err by. ask: and how many are alike."""
    told = [] if sums is None else [sums.worst(statistics)]
    if sort_sticks:
        statistics = statistics.take(by_size(statistics))
    posterior = _update(prior, statistics, scatter)
    if ask:
        told.append(alike(posterior).sum().double())
    return Step(statistics, posterior, torch.stack([_bound(posterior, statistics), *told]))


def _pass(passes: Passes, now: Ascent, sums: ColumnSums | None, tol: float) -> Ascent:
    """Return where one more pass leads to."""
    rows = passes.rows
    step = passes.after(now.posterior, 1 if rows.by_value else now.alike.merged)
    told = step.told if passes.differs is None else torch.cat([step.told, passes.differs[None]])
    bound, *more = fetched(told)
    if sums is not None:
        sums.judge(more.pop(0), step.statistics, now.n_passes + 1)
    if passes.differs is not None:
        passes.trust(more.pop())
    if not math.isfinite(bound):
        variational.check(step.posterior)
    bound = rows.blocks.group.agreed(bound)
    change, settled = bound - now.reference, now.fast and bound - now.reference < tol  # it may fall by what they err
    return Ascent(
        step.posterior,
        step.statistics,
        (*now.lower_bounds, bound),
        change,
        -math.inf if settled else bound,
        now.fast and not settled,
        not now.fast and abs(change) < tol,
        now.alike.next(int(more[0]), len(step.statistics.nk), passes.recorded, rows.blocks.n_rows) if more else UNKNOWN,
    )
