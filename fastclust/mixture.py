"""What every mixture does: fitting through the engine, to all rows at once or batch by batch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self, cast

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from fastclust import engine, kernels, memo
from fastclust.arrays import Given, host
from fastclust.blocks import Blocks
from fastclust.checkpoint import Checkpoint, State
from fastclust.fitted import ELSEWHERE
from fastclust.fitting import FittingMixture
from fastclust.group import Group, together
from fastclust.priors import set_priors
from fastclust.rows import Rows
from fastclust.summary import Summary, summarise

OnPass = Callable[[int, float, float], None]
WHOLE = "fit"  # the name of the batch that `fit` leaves
FREE = ("max_iter", "n_init", *ELSEWHERE)  # to change on the way


class Mixture(FittingMixture):
    """The methods of a mixture; the parameters, and what they mean, are the estimator's that inherits them."""

    last_new_batch_: int

    def fit(
        self,
        X: Any,
        y: object = None,
        sample_weight: Any = None,
        *,
        on_pass: OnPass | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Self:
        """Fit the mixture.

        X: (n_samples, n_features) of any float or integer dtype: NumPy array, memory map, torch tensor, CuPy array or
        another with `__dlpack__`, h5py dataset, pandas or polars frame, rows that are computed when they are asked for
        (`fastclust.parts`), or a list of arrays, one after the other. Of files a few blocks are in memory at a time.
        y: ignored. sample_weight: (n_samples,), or one number for all rows, how often each row counts, not negative: 2
        is the row twice, 0 none.
        on_pass: called after each pass with its number from 1, the lower bound and its change, in nats per row.
        checkpoint: where to write how far the fit is, and where to go on from.
        In an initialised process group of torch.distributed, all processes call it, each with rows of its own, and all
        get the model of all rows: what one process finds in all rows, to the rounding of sums. Where one of them dies
        or fails, the others raise RuntimeError with its name within half a minute.
        Raises ValueError for rows that cannot be fitted (too few, NaN or infinite, not 2D) or a bad parameter, and
        RuntimeError where the device or the backend asked for cannot run. Warns ConvergenceWarning. Whatever ends it
        early, Ctrl-C too, leaves the mixture as it was.
        """
        with self._aside() as model:
            model._fit(X, sample_weight, on_pass, checkpoint)
        return self

    def fit_predict(self, X: Any, y: object = None, sample_weight: Any = None) -> Any:
        """Fit the mixture and return the label of each row: what fit(X).predict(X) returns, in one pass less."""
        with self._aside() as model:
            given, labels = model._fit(X, sample_weight, None, None, labelled=True)
        return given.like(cast(torch.Tensor, labels))

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
        with self._aside() as model:
            with together() as group:
                given = model._fit_batch(X, sample_weight, batch, group)
            model._present(given)
        return self

    # The rest is not public.

    @contextmanager
    def _aside(self) -> Iterator[Self]:
        """Give a mixture that is this one, to be fitted, and take over its fitted attributes where that ends well.

        So they change all together, in one assignment, or not at all, whatever ends a fit: Ctrl-C may at any place.
        """
        model = object.__new__(type(self))
        model.__dict__ = dict(vars(self))
        yield model
        fitted = {name: value for name, value in vars(model).items() if name.endswith("_")}
        self.__dict__ = {name: value for name, value in vars(self).items() if not name.endswith("_")} | fitted

    def _fit(
        self,
        X: Any,
        sample_weight: Any,
        on_pass: OnPass | None,
        checkpoint: Checkpoint | None,
        *,
        labelled: bool = False,
    ) -> tuple[Given, torch.Tensor | None]:
        """Fit, set every attribute, and return X as given with the label of each row (n_samples,) int64 if wanted."""
        self._validate_params()
        warm = self.warm_start and hasattr(self, "converged_")
        with together() as group:
            given, blocks, backend, name = self._open(
                X, fitting=True, reset=not warm, least=2, sample_weight=sample_weight, group=group
            )
            self._check_enough(blocks)
            found = None if checkpoint is None else checkpoint.open(self._identity(blocks, warm), group, blocks.device)
            summary = summarise(blocks, outer=self._outer) if found is None else found.summary
            if not warm:
                self._set_map(summary)
            self._set_centre(summary)
            rows = self._bind(blocks, backend)
            self._check_range(summary, rows)
            with nullcontext() if checkpoint is None else checkpoint.kept():
                best = self._best(given, rows, summary, warm, name, found, on_pass, checkpoint)
            if not best.converged and self.max_iter > 0:
                self._warn_not_converged()
            unit = self._unit(summary)
            self._set_posterior(best.posterior, rows, [bound / unit for bound in best.lower_bounds], best.converged)
            self.lower_bound_per_row_ = self.lower_bound_ * unit / summary.total
            self.last_new_batch_, self.device_ = self.n_iter_, str(blocks.device)
            self.backend_ = kernels.ran(backend, name)
            counts, labels = self._counted(rows, labelled)
        self._keep({} if best.statistics is None else {WHOLE: memo.remember(best.statistics, summary, counts)}, counts)
        self._present(given)
        return given, labels

    def _best(
        self,
        given: Given,
        rows: Rows,
        summary: Summary,
        warm: bool,
        name: str,
        found: State | None,
        on_pass: OnPass | None,
        checkpoint: Checkpoint | None,
    ) -> engine.Ascent:
        """Return where the best of the starts led to; found: where to go on from."""
        prior, scatter = set_priors(self, rows, summary), self._scatter(summary, rows)
        adding_up = self._column_sums(summary, rows, name)
        fast = self.precision == "mixed" and name != "torch" and "fast" in rows.backend.PRECISIONS
        random, fast = rows.blocks.group.first((check_random_state(self.random_state), fast))
        best = None if found is None else found.best
        for start in range(0 if found is None else found.start, 1 if warm else self.n_init):
            self._say_start(start)
            report = self._reporter(start, summary.total, on_pass)
            if found is not None:
                random.set_state(found.random)
                now, found = found.now, None
            elif warm:
                now = engine.Ascent(self._posterior(rows), reference=self.lower_bound_ * self._unit(summary), fast=fast)
            else:
                now = engine.Ascent(self._start(given, rows, prior, summary, random), fast=fast)
            drawn = random.get_state()

            def after_pass(
                now: engine.Ascent,
                start: int = start,
                best: engine.Ascent | None = best,
                report: OnPass = report,
                drawn: Any = drawn,
            ) -> None:
                if checkpoint is not None:
                    checkpoint.keep(State(start, now, best, drawn, summary))
                report(now.n_passes, now.lower_bounds[-1], now.change)

            now = engine.ascend(
                rows,
                prior,
                now,
                scatter=scatter,
                tol=self._enough(summary),
                max_passes=self.max_iter,
                sort_sticks=self.sort_sticks,
                sums=adding_up,
                on_pass=after_pass,
            )
            self._say_end(start, now)
            if best is None or not now.lower_bounds or now.lower_bounds[-1] > best.lower_bounds[-1]:
                best = now
        if best is None:
            raise RuntimeError("no start was made")
        return best

    def _identity(self, blocks: Blocks, warm: bool) -> dict[str, Any]:
        """Return what a checkpoint is of: how the fit is made, and of which rows."""
        parameters = {key: value for key, value in self.get_params(deep=False).items() if key not in FREE}
        return {
            "estimator": type(self).__name__,
            "parameters": {key: memo.said(value) for key, value in parameters.items()},
            "start": memo.said(self.means_) if warm else "new",
            "rows": memo.spot_check(blocks),
        }

    def _warn_not_converged(self) -> None:
        warnings.warn(
            f"Best performing initialization did not converge in max_iter = {self.max_iter} passes (last change "
            f"above tol = {self.tol}{' nats per row' if self.bound_per_row else ''}): increase max_iter or tol, "
            "try other init_params, or look for degenerate data",
            ConvergenceWarning,
            stacklevel=4,
        )

    def _fit_batch(self, X: Any, sample_weight: Any, batch: str | int | None, group: Group) -> Given:
        """Fit to a batch, see `partial_fit`; set every attribute, and return X as given."""
        first = not hasattr(self, "converged_")
        given, blocks, backend, name = self._open(
            X, fitting=True, reset=first, least=2 if first else 1, sample_weight=sample_weight, group=group
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
            random = group.first(check_random_state(self.random_state))
            posterior = self._start(given, rows, prior, summary, random)
        elif batches:  # again, for priors may have changed
            posterior = engine.posterior_of(
                prior,
                memo.statistics(batches.values(), blocks.device),
                self._scatter(memo.summary(batches.values()), rows),
            )
        else:
            posterior = self._posterior(rows)
        found = rows.statistics(engine.coefficients(posterior))
        adding_up = self._column_sums(here, rows, name)
        if adding_up is not None:
            adding_up.check(found, 1 if first else self.n_iter_ + 1)
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
        self.backend_, self.device_ = kernels.ran(backend, name), str(blocks.device)
        batches[key]["counts"] = host(self._counted(rows)[0])
        self._keep(batches)
        return given

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
