"""What every mixture does: fitting through the engine, to all rows at once or batch by batch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from fastclust import engine, initialise, memo, variational
from fastclust.arrays import Given, host
from fastclust.blocks import Blocks
from fastclust.fitted import FittedMixture
from fastclust.priors import set_priors
from fastclust.rows import Rows, centre_of, scatter_about, unclaimed_scatter
from fastclust.summary import Summary, summarise

OnPass = Callable[[int, float, float], None]
WHOLE = "fit"  # the name of the batch that `fit` leaves


class Mixture(FittedMixture):
    """The methods of a mixture; the parameters, and what they mean, are the estimator's that inherits them."""

    last_new_batch_: int
    bound_per_row = True  # whether lower_bound_ and tol are in nats per row, or summed over rows

    def fit(self, X: Any, y: object = None, sample_weight: Any = None, *, on_pass: OnPass | None = None) -> Self:
        """Fit the mixture.

        X: (n_samples, n_features) of any float or integer dtype: NumPy array, memory map, torch tensor, CuPy array or
        another with `__dlpack__`, h5py dataset, pandas or polars frame, or a list of arrays, one after the other.
        y: ignored. sample_weight: (n_samples,), how often each row counts, not negative: 2 is the row twice, 0 none.
        on_pass: called after each pass with its number from 1, the lower bound and its change, in nats per row.
        Raises ValueError for rows that cannot be fitted (too few, NaN or infinite, not 2D) or a bad parameter, and
        RuntimeError where the device or the backend asked for cannot run. Warns ConvergenceWarning.
        """
        self._fit(X, sample_weight, on_pass)
        return self

    def fit_predict(self, X: Any, y: object = None, sample_weight: Any = None) -> Any:
        """Fit the mixture and return the label of each row: what fit(X).predict(X) returns, in one pass less."""
        given, labels = self._fit(X, sample_weight, None)
        return given.like(labels.long())

    def partial_fit(
        self, X: Any, y: object = None, sample_weight: Any = None, *, batch: str | int | None = None
    ) -> Self:
        """Fit the mixture to one more batch of rows, or once more to one that it has seen.

        Memoised variational inference (Hughes and Sudderth 2013; Neal and Hinton 1998 for the idea): the model keeps
        the statistics of every batch. The new batch gets its responsibilities under the posterior as it stands, its
        statistics take the place of those that the same batch had before, if any, and the posterior follows from the
        sum over batches. So each call maximises the bound of all rows seen over the responsibilities of one batch, and
        then over the posterior: going over the same batches again never lowers that bound, and converges to a fixed
        point of `fit`. Where priors come from the rows, and `feature_range`'s map, they follow all rows seen so far.

        X, y, sample_weight: as in `fit`; the first batch has at least n_components rows, and gives the start.
        batch: the name of the batch. None for a fingerprint of rows and weights, so that a batch is known by its
        content; batches that are equal but are not the same one need names.
        Memory: K x D numbers a batch, for full covariance K x D x D. After `fit`, its rows are one batch, named "fit".
        lower_bounds_ gets one bound a call, n_iter_ counts calls, and converged_ says whether the last round over all
        batches changed the bound by less than `tol`. Raises as `fit`.
        """
        self._validate_params()
        first = not hasattr(self, "converged_")
        given, blocks, backend, name = self._open(
            X, fitting=True, reset=first, least=2 if first else 1, sample_weight=sample_weight
        )
        if first:
            self._check_enough(blocks)
        here = summarise(blocks, outer=self._outer)
        batches = {} if first else dict(self.batch_statistics_)
        key = memo.fingerprint(blocks) if batch is None else str(batch)
        known = key in batches
        others = [one for other, one in batches.items() if other != key]
        summary = memo.summary(others) + here if others else here
        if batches:
            factor = self._set_wider_map(summary)
            batches = {other: memo.scaled(one, factor) for other, one in batches.items()}
        else:
            if first:
                self._set_map(summary)
            self._set_centre(summary)
        rows = self._bind(blocks, backend)
        self._check_range(summary, rows)
        prior = set_priors(self, rows, summary)

        if first:
            posterior = self._start(given, rows, prior, summary, check_random_state(self.random_state))
        elif batches:  # again, for priors may have changed
            posterior = engine.posterior_of(
                prior,
                memo.statistics(batches.values(), blocks.device),
                self._scatter(memo.summary(batches.values()), rows),
            )
        else:
            posterior = self._posterior(rows)
        found = rows.statistics(engine.coefficients(posterior))
        reference = next((torch.from_numpy(one["about"]) for one in batches.values()), found.about)
        empty = torch.zeros(len(found.nk), dtype=torch.int64)
        batches[key] = memo.remember(found.moved(reference.to(blocks.device)), here, empty)
        total = memo.statistics(batches.values(), blocks.device)
        if self.sort_sticks:
            order = engine.by_size(total)
            total = total.take(order)
            batches = {other: memo.taken(one, order.cpu()) for other, one in batches.items()}
        posterior = engine.posterior_of(prior, total, self._scatter(summary, rows))

        unit = self._unit(summary)
        bound = engine.bound_of(posterior, total) / unit
        bounds = [bound] if first else [*self.lower_bounds_, bound]
        last_new = self.last_new_batch_ if known else len(bounds)
        round_ago = len(bounds) - 1 - len(batches)
        settled = round_ago >= max(last_new - 1, 0) and abs(bound - bounds[round_ago]) * unit < self._enough(summary)
        self._set_posterior(posterior, rows, bounds, settled)
        self.lower_bound_per_row_ = bound * unit / summary.total
        self.last_new_batch_ = last_new
        self.backend_, self.device_ = name, str(blocks.device)
        batches[key]["counts"] = host(self._counted(rows, torch.cat([labels for labels, _ in self._assigned(rows)])))
        self._keep(batches)
        self._present(given)
        return self

    # The rest is not public.

    def _fit(self, X: Any, sample_weight: Any, on_pass: OnPass | None) -> tuple[Given, torch.Tensor]:
        """Fit, set every attribute, and return X as given with the label of each row (n_samples,) int32."""
        self._validate_params()
        warm = self.warm_start and hasattr(self, "converged_")
        given, blocks, backend, name = self._open(X, fitting=True, reset=not warm, least=2, sample_weight=sample_weight)
        self._check_enough(blocks)
        summary = summarise(blocks, outer=self._outer)
        if not warm:
            self._set_map(summary)
        self._set_centre(summary)
        rows = self._bind(blocks, backend)
        self._check_range(summary, rows)
        prior = set_priors(self, rows, summary)
        unit = self._unit(summary)

        best: engine.Ascent | None = None
        random = check_random_state(self.random_state)
        for start in range(1 if warm else self.n_init):
            self._say_start(start)
            posterior = self._posterior(rows) if warm else self._start(given, rows, prior, summary, random)
            found = engine.ascend(
                rows,
                prior,
                posterior,
                scatter=self._scatter(summary, rows),
                tol=self._enough(summary),
                max_passes=self.max_iter,
                lower_bound=self.lower_bound_ * unit if warm else -np.inf,
                sort_sticks=self.sort_sticks,
                fast_first=self.precision == "mixed" and name != "torch" and "fast" in backend.PRECISIONS,
                on_pass=self._reporter(start, summary.total, on_pass),
            )
            self._say_end(start, found)
            if best is None or not found.lower_bounds or found.lower_bounds[-1] > best.lower_bounds[-1]:
                best = found
        if best is None:
            raise RuntimeError("no start was made")
        if not best.converged and self.max_iter > 0:
            warnings.warn(
                f"Best performing initialization did not converge in max_iter = {self.max_iter} passes (last change "
                f"above tol = {self.tol}{' nats per row' if self.bound_per_row else ''}): increase max_iter or tol, "
                "try other init_params, or look for degenerate data",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._set_posterior(best.posterior, rows, [bound / unit for bound in best.lower_bounds], best.converged)
        self.lower_bound_per_row_ = self.lower_bound_ * unit / summary.total
        self.last_new_batch_, self.backend_, self.device_ = self.n_iter_, name, str(blocks.device)
        labels = torch.cat([part for part, _ in self._assigned(rows)])
        counts = self._counted(rows, labels)
        self._keep({} if best.statistics is None else {WHOLE: memo.remember(best.statistics, summary, counts)}, counts)
        self._present(given)
        return given, labels

    @property
    def _outer(self) -> bool:
        return self.covariance_type in ("full", "tied")

    def _unit(self, summary: Summary) -> float:
        """Return what the bound is divided by."""
        return summary.total if self.bound_per_row else 1.0

    def _enough(self, summary: Summary) -> float:
        """Return the change of the bound, summed over rows, at which a fit stops."""
        return float(self.tol) * self._unit(summary)

    def _check_enough(self, blocks: Blocks) -> None:
        if blocks.n_present < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {blocks.n_present}: use fewer components or more rows"
            )

    def _start(
        self,
        given: Given,
        rows: Rows,
        prior: variational.Prior,
        summary: Summary,
        random: np.random.RandomState,
    ) -> variational.Posterior:
        """Return the posterior of the first responsibilities."""
        first = self._starts(given)[self.init_params](rows, self.n_components, self.covariance_type, random)
        scatter = self._scatter(summary, rows)
        if scatter is not None:
            scatter = scatter + unclaimed_scatter(summary, rows, first)
        return engine.posterior_of(prior, first, scatter)

    def _scatter(self, summary: Summary, rows: Rows) -> torch.Tensor | None:
        """Return the scatter of all rows (D, D) for tied covariance, in the passes' coordinates."""
        return scatter_about(summary, rows).to(rows.blocks.device) if self.covariance_type == "tied" else None

    def _set_map(self, summary: Summary) -> None:
        """Set the affine map from stored to mixture values."""
        self.feature_offset_, self.feature_scale_ = 0.0, 1.0
        if self.feature_range is None:
            return
        low, high = (float(bound) for bound in self.feature_range)
        if not low < high:
            raise ValueError(f"feature_range must rise, and was {self.feature_range}")
        smallest, largest = float(summary.minimum.min()), float(summary.maximum.max())
        if largest > smallest:
            self.feature_scale_ = (high - low) / (largest - smallest)
        self.feature_offset_ = smallest - low / self.feature_scale_

    def _set_centre(self, summary: Summary) -> None:
        """Set where, in mixture values, the passes' coordinates have their zero."""
        offset, scale = (torch.full_like(summary.mean, value) for value in (self.feature_offset_, self.feature_scale_))
        self.centre_ = centre_of(summary, offset, scale).numpy()

    def _set_wider_map(self, summary: Summary) -> float:
        """Set the map for more rows and leave the centre where it is among them; return how much larger values are."""
        before, centre = self.feature_scale_, self.feature_offset_ + self.centre_ / self.feature_scale_
        self._set_map(summary)
        self.centre_ = (centre - self.feature_offset_) * self.feature_scale_
        return float(self.feature_scale_ / before)

    def _check_range(self, summary: Summary, rows: Rows) -> None:
        """Raise ValueError where squares of the rows, or their sum over columns, are beyond the arithmetic's range."""
        offset, scale, centre = (part.cpu() for part in (rows.offset, rows.scale, rows.centre))
        ends = (summary.minimum, summary.maximum)
        far = max(float(((end - offset) * scale - centre).abs().max()) for end in ends)
        if far * far * len(centre) < torch.finfo(rows.dtype).max:
            return
        name = str(rows.dtype).removeprefix("torch.")
        ways = ["scale the rows"] + ["dtype='float64'"] * (rows.dtype == torch.float32)
        raise ValueError(f"values reach {far:.3g}, and their squares overflow {name}: {' or '.join(ways)}")

    def _set_posterior(
        self, posterior: variational.Posterior, rows: Rows, lower_bounds: list[float], converged: bool
    ) -> None:
        """Set the fitted attributes that a posterior says, as NumPy arrays, and those of the ascent."""
        self._set_gammas(posterior.gamma1, posterior.gamma2, host)
        self.mean_precision_ = host(posterior.beta)
        self.means_ = host(posterior.m + rows.centre)
        self.degrees_of_freedom_ = host(posterior.nu)[()]  # of tied covariance, a number
        self.covariances_ = host(posterior.covariances)
        root = posterior.precisions_cholesky
        self.precisions_cholesky_ = host(root)
        self.precisions_ = host(root @ root.mT if self._outer else root**2)
        self.lower_bounds_ = lower_bounds
        self.lower_bound_ = lower_bounds[-1] if lower_bounds else -np.inf
        self.n_iter_, self.converged_ = len(lower_bounds), converged

    def _counted(self, rows: Rows, labels: torch.Tensor) -> torch.Tensor:
        """Return how many rows each component wins (K,): int64, or float64 where rows count otherwise than once."""
        return torch.bincount(labels, rows.blocks.weights, minlength=len(self.means_))

    def _keep(self, batches: dict[str, memo.Batch], counts: torch.Tensor | None = None) -> None:
        """Set what is kept of the batches, and how many rows each component wins."""
        self.batch_statistics_ = batches
        self.counts_ = memo.counts(batches.values()) if counts is None else host(counts)
        self.n_active_ = int((self.counts_ > 0).sum())

    def _present(self, given: Given) -> None:
        """Turn fitted arrays into what the estimator's users expect; here they are NumPy's already."""

    def _starts(self, given: Given) -> dict[str, initialise.Start]:
        """Return what the names of init_params stand for, for rows as they were given."""
        return initialise.STARTS

    def _say_start(self, start: int) -> None:
        """Print, where that was asked for, that a start begins."""

    def _say_end(self, start: int, ascent: engine.Ascent) -> None:
        """Print, where that was asked for, how a start ended."""

    def _reporter(self, start: int, total: float, on_pass: OnPass | None) -> OnPass:
        """Return what is called after each pass with its number from 1, the bound and its change, summed over rows."""

        def report(n_pass: int, bound: float, change: float) -> None:
            if on_pass is not None:
                on_pass(n_pass, bound / total, change / total)
            self._say_pass(start, n_pass, bound / total, change / total)

        return report

    def _say_pass(self, start: int, n_pass: int, bound: float, change: float) -> None:
        """Print, where that was asked for, the bound after a pass and its change, in nats per row."""
        if self.verbose and (self.verbose > 1 or n_pass % 10 == 0):
            size = f"{bound:.6f} ({change:+.2e}) nats per row"
            sys.stdout.write(f"start {start}, pass {n_pass}: lower bound {size}\n")
