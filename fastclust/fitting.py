"""What fits to all rows at once and batch by batch share: the map of the rows, starts, and what a fit leaves."""

from __future__ import annotations

import numpy as np
import torch

from fastclust import engine, initialise, memo, variational
from fastclust.arrays import Given, host
from fastclust.blocks import Blocks
from fastclust.fitted import FittedMixture, overflow
from fastclust.rows import Rows, centre_of, scatter_about, unclaimed_scatter
from fastclust.summary import Summary
from fastclust.sums import ColumnSums, checked, column_sums


class FittingMixture(FittedMixture):
    """The steps of a fit; the parameters are those of the estimator that inherits them. Nothing here is public."""

    bound_per_row = True  # whether lower_bound_ and tol are in nats per row, or summed over rows

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
        first = self._starts(given, rows.blocks.group.size == 1)[self.init_params](
            rows, self.n_components, self.covariance_type, random
        )
        scatter = self._scatter(summary, rows)
        if scatter is not None:
            scatter = scatter + unclaimed_scatter(summary, rows, first)
        return engine.posterior_of(prior, first, scatter)

    def _scatter(self, summary: Summary, rows: Rows) -> torch.Tensor | None:
        """Return the scatter of all rows (D, D) for tied covariance, in the passes' coordinates."""
        return scatter_about(summary, rows).to(rows.blocks.device) if self.covariance_type == "tied" else None

    def _column_sums(self, summary: Summary, rows: Rows, name: str) -> ColumnSums | None:
        """Return what each pass over rows has to sum to; None where that is not looked at."""
        if not checked(rows.blocks.device):
            return None
        return column_sums(summary, rows, self.covariance_type, name)

    def _set_map(self, summary: Summary) -> None:
        """Set the affine map from stored to mixture values."""
        self.feature_offset_, self.feature_scale_ = 0.0, 1.0
        if self.feature_range is None:
            return
        ends = [float(end) for end in self.feature_range]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError(f"feature_range must rise from one number to another, and was {self.feature_range}")
        low, high = ends
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
        if not far * far * len(centre) < torch.finfo(rows.dtype).max:
            raise overflow(f"values reach {far:.3g}, and their squares overflow", rows.dtype)

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
        self.n_iter_, self.converged_ = len(lower_bounds), bool(converged)  # which NumPy's numbers compared are not

    def _counted(self, rows: Rows, labelled: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return how many rows each component wins (K,): int64, or float64 where rows count otherwise than once.

        Those of the group's other processes are among them. labelled: whether to return this one's labels (N,), too.
        """
        blocks, low = rows.blocks, 0
        counts = torch.zeros(len(self.means_), dtype=torch.int64, device=blocks.device)
        labels = torch.empty(blocks.n_rows if labelled else 0, dtype=torch.int64, device=blocks.device)
        for found, _ in self._assigned(rows):
            weights = None if blocks.weights is None else blocks.weights[low : low + len(found)]
            counts = counts + torch.bincount(found, weights, minlength=len(counts))
            labels[low : low + len(found)] = found if labelled else found[:0]
            low += len(found)
        return blocks.group.sum(counts), labels if labelled else None

    def _keep(self, batches: dict[str, memo.Batch], counts: torch.Tensor | None = None) -> None:
        """Set what is kept of the batches, and how many rows each component wins."""
        self.batch_statistics_ = batches
        self.counts_ = memo.counts(batches.values()) if counts is None else host(counts)
        self.n_active_ = int((self.counts_ > 0).sum())

    def _present(self, given: Given) -> None:
        """Turn fitted arrays into what the estimator's users expect; here they are NumPy's already."""

    def _starts(self, given: Given, alone: bool) -> dict[str, initialise.Start]:
        """Return what the names of init_params stand for, for rows as they were given, all of them or a process's."""
        return initialise.STARTS
