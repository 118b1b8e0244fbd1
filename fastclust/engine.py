"""Coordinate ascent: blocks of rows -> statistics -> posterior -> bound -> stop.

On a GPU a pass is queued without a look at any value. The host waits once a pass, for the bound: the stopping test
needs it, and it is not a number where a covariance was not positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fastclust import variational
from fastclust.kernels import Coefficients, Statistics
from fastclust.kernels.threads import one_thread_where_small
from fastclust.rows import Rows
from fastclust.variational import Posterior, Prior


@dataclass(frozen=True)
class Ascent:
    """Hold what a run of coordinate ascent ended with; bounds in nats, summed over rows."""

    posterior: Posterior
    statistics: Statistics | None  # that the posterior follows from; None after no pass
    lower_bounds: list[float]
    converged: bool

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
            from fastclust.kernels import numba_cholesky  # which loads numba

            return variational.update(*given, numba_cholesky.inverse_roots)
        return variational.update(*given)


def bound_of(posterior: Posterior, statistics: Statistics) -> float:
    """Return the lower bound of a posterior and of the statistics that it follows from, in nats, summed over rows."""
    return fetched(_bound(posterior, statistics))


def _bound(posterior: Posterior, statistics: Statistics) -> torch.Tensor:
    with one_thread_where_small(posterior.covariances):
        return variational.lower_bound(posterior, statistics.entropy)


def fetched(bound: torch.Tensor) -> float:
    """Return a bound () as a number: the host waits for the device."""
    return float(bound)


def ascend(
    rows: Rows,
    prior: Prior,
    start: Posterior,
    *,
    scatter: torch.Tensor | None,
    tol: float,
    max_passes: int,
    lower_bound: float = -torch.inf,
    sort_sticks: bool = False,
    fast_first: bool = False,
    on_pass: Callable[[int, float, float], None] | None = None,
) -> Ascent:
    """Alternate E-step and M-step from a posterior until the bound changes by less than tol, or max_passes.

    tol: nats, on the bound summed over rows. lower_bound: the bound of the start, if it is known. sort_sticks: put the
    components in order of size after each E-step, which never lowers the bound of a Dirichlet process (Kurihara,
    Welling and Teh 2007, section 3). fast_first: make passes in fast products until the bound rises by less than tol,
    and then in the rows' own precision, two or more, for only their bounds are compared; the last of max_passes is in
    the rows' own in any case. on_pass: called after each pass with its number from 1, the bound and its change.
    Raises IllDefinedCovarianceError where a covariance is not positive definite.
    """
    posterior, statistics, bounds = start, None, list[float]()
    own, rows = rows, replace(rows, precision="fast") if fast_first else rows
    for n_pass in range(1, max_passes + 1):
        if rows is not own and n_pass == max_passes:
            rows, lower_bound = own, -torch.inf
        statistics = rows.statistics(coefficients(posterior))
        if sort_sticks:
            statistics = statistics.take(by_size(statistics))
        posterior = _update(prior, statistics, scatter)
        bound = fetched(_bound(posterior, statistics))
        if not math.isfinite(bound):
            variational.check(posterior)
        bounds.append(bound)
        change, lower_bound = bound - lower_bound, bound
        if on_pass is not None:
            on_pass(n_pass, bound, change)
        if rows is not own and change < tol:  # or the bound falls, which it may by what fast products err
            rows, lower_bound = own, -torch.inf
        elif abs(change) < tol:
            return Ascent(posterior, statistics, bounds, True)
    return Ascent(posterior, statistics, bounds, False)
