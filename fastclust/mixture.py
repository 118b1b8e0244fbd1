"""What every mixture does: fitting through the engine, and reading rows under the fitted posterior."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastclust import engine, initialise, kernels, model_file, variational
from fastclust.blocks import Blocks, Summary, check_finite, summarise
from fastclust.priors import set_priors
from fastclust.rows import Rows, centre_of, scatter_about, unclaimed_scatter

log = logging.getLogger("fastclust")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
STARTS = {
    "k-means++": initialise.kmeans,
    "random": initialise.random,
    "random_from_data": initialise.random_from_data,
}


class Mixture(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """The methods of a mixture; the parameters, and what they mean, are the estimator's that inherits them."""

    def fit(self, X: Any, y: object = None, *, on_pass: Callable[[int, float, float], None] | None = None) -> Self:
        """Fit the mixture.

        X: (n_samples, n_features) NumPy array, memory map, h5py dataset or torch tensor of any float or integer dtype,
        or a list of such, one after the other. y: ignored. on_pass: called after each pass with its number from 1, the
        lower bound and its change, in nats per row.
        Raises ValueError for rows that cannot be fitted (too few, NaN or infinite, not 2D) or a bad parameter, and
        RuntimeError where the device or the backend asked for cannot run. Warns ConvergenceWarning.
        """
        self._fit(X, on_pass)
        return self

    def fit_predict(self, X: Any, y: object = None) -> Any:
        """Fit the mixture and return the label of each row: what fit(X).predict(X) returns, in one pass less."""
        return _like(X, self._fit(X, None))

    def predict(self, X: Any) -> Any:
        """Return the most probable component of each row: (n_samples,) int64, an array or a tensor as X is."""
        rows = self._rows_of(X)
        posterior = self._posterior(rows)
        return _like(X, torch.cat([labels for labels, _ in self._assigned(rows, posterior)]).long())

    def score_samples(self, X: Any) -> Any:
        """Return the log-density of each row, in nats, (n_samples,), under the expected log parameters."""
        rows = self._rows_of(X)
        posterior = self._posterior(rows)
        return _like(X, torch.cat([density for _, density in self._assigned(rows, posterior)]))

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean log-density of the rows, in nats per row. y: ignored."""
        rows = self._rows_of(X)
        posterior = self._posterior(rows)
        total = sum(float(density.sum(dtype=torch.float64)) for _, density in self._assigned(rows, posterior))
        return total / rows.blocks.n_rows

    def predict_proba(self, X: Any) -> Any:
        """Return the responsibilities (n_samples, n_components)."""
        rows = self._rows_of(X)
        coefficients = engine.coefficients(self._posterior(rows))
        parts = [
            rows.backend.responsibilities(block, coefficients, rows.frame, rows.dtype, rows.block_rows)
            for block in rows.blocks
        ]
        proba = torch.cat(parts)
        if not bool(torch.isfinite(proba).all()):
            check_finite(torch.cat(list(rows.blocks)), 0)
        return _like(X, proba)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows from the mixture at its posterior means, in unmapped units.

        Returns rows (n_samples, n_features) float64, component by component, and their components (n_samples,).
        Raises ValueError for n_samples < 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        random = check_random_state(self.random_state)
        counts = random.multinomial(n_samples, self.weights_)
        rows = []
        for k, count in enumerate(counts):
            if self.covariance_type in ("full", "tied"):
                covariance = self.covariances_[k] if self.covariance_type == "full" else self.covariances_
                rows.append(random.multivariate_normal(self.means_[k], covariance, int(count)))
            else:
                noise = random.standard_normal(size=(count, self.n_features_in_))
                rows.append(self.means_[k] + noise * np.sqrt(self.covariances_[k]))
        stored = np.vstack(rows) / self.feature_scale_ + self.feature_offset_
        return stored, np.repeat(np.arange(len(counts)), counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted mixture to an HDF5 file, whole or not at all. A RandomState is not kept; a seed is."""
        check_is_fitted(self)
        parameters = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        model_file.write(path, parameters, {name: value for name, value in vars(self).items() if name.endswith("_")})

    # The rest is not public.

    def _fit(self, X: Any, on_pass: Callable[[int, float, float], None] | None) -> torch.Tensor:
        """Fit, set every attribute, and return the label of each row (n_samples,) int64."""
        self._validate_params()
        blocks, backend, name = self._open(X)
        warm = self.warm_start and hasattr(self, "converged_")
        if blocks.n_features < 1 or blocks.n_rows < 1:
            shape = (blocks.n_rows, blocks.n_features)
            lacking = "sample" if blocks.n_rows < 1 else "feature"
            raise ValueError(
                f"Found array with 0 {lacking}(s) (shape={shape}) while a minimum of 1 is required by "
                f"{type(self).__name__}."
            )
        if blocks.n_rows < max(self.n_components, 2):
            raise ValueError(
                f"Expected n_samples >= n_components (and at least 2) but got n_components = {self.n_components}, "
                f"n_samples = {blocks.n_rows}: use fewer components or more rows"
            )
        if warm:
            self._check_width(blocks)
        summary = summarise(blocks, outer=self.covariance_type in ("full", "tied"))
        if not warm:
            self._set_map(summary)
        rows = self._bind(blocks, backend, summary)
        prior = set_priors(self, rows, summary)
        scatter = scatter_about(summary, rows).to(blocks.device) if self.covariance_type == "tied" else None

        best: engine.Ascent | None = None
        random = check_random_state(self.random_state)
        for start in range(1 if warm else self.n_init):
            if warm:
                posterior = self._posterior(rows)
                last = self.lower_bound_ * blocks.n_rows
            else:
                first = STARTS[self.init_params](rows, self.n_components, self.covariance_type, random)
                at_start = None if scatter is None else scatter + unclaimed_scatter(summary, rows, first)
                posterior, last = engine.posterior_of(prior, first, at_start), -np.inf
            found = engine.ascend(
                rows,
                prior,
                posterior,
                scatter=scatter,
                tol=self.tol * blocks.n_rows,
                max_passes=self.max_iter,
                lower_bound=last,
                on_pass=self._reporter(start, blocks.n_rows, on_pass),
            )
            if best is None or found.lower_bounds[-1:] > best.lower_bounds[-1:]:
                best = found
        if best is None:
            raise RuntimeError("no start was made")
        if not best.converged and self.max_iter > 0:
            warnings.warn(
                f"the fit did not converge in max_iter = {self.max_iter} passes (last change above tol = {self.tol} "
                "nats per row): increase max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._set_posterior(best, rows, prior)
        self.backend_, self.device_ = name, str(blocks.device)
        labels = torch.cat([part for part, _ in self._assigned(rows, best.posterior)])
        self.counts_ = _numpy(torch.bincount(labels, minlength=self.n_components))
        self.n_active_ = int((self.counts_ > 0).sum())
        return labels.long()

    def _open(self, X: Any) -> tuple[Blocks, kernels.Backend, str]:
        """Return the rows of X as blocks on the device, and the backend with its name."""
        parts = X if isinstance(X, (list, tuple)) and len(X) and getattr(X[0], "ndim", 0) == 2 else [X]
        device = self._device(parts[0])
        blocks = Blocks(list(parts), device)
        name, backend, passed_over = kernels.select(self.backend, device)
        reasons = "".join(f"; not {other}: {reason}" for other, reason in passed_over.items())
        log.info("backend %s on %s%s", name, device, reasons)
        return blocks, backend, name

    def _device(self, part: Any) -> torch.device:
        if str(self.device) != "auto":
            device = torch.device(self.device)
            if device.type == "cuda" and not torch.cuda.is_available():
                raise RuntimeError("device 'cuda' was asked for, and torch finds no CUDA device: use device='cpu'")
            return device
        if isinstance(part, torch.Tensor) and part.device.type != "cpu":
            return part.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _check_width(self, blocks: Blocks) -> None:
        if blocks.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {blocks.n_features} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )

    def _set_map(self, summary: Summary) -> None:
        """Set the affine map from stored to mixture values, and n_features_in_."""
        self.n_features_in_ = len(summary.mean)
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

    def _bind(self, blocks: Blocks, backend: kernels.Backend, summary: Summary | None) -> Rows:
        """Return the rows in the frame of the fit; with a summary, choose that frame's centre first."""
        offset = torch.full((blocks.n_features,), self.feature_offset_, dtype=torch.float64)
        scale = torch.full((blocks.n_features,), self.feature_scale_, dtype=torch.float64)
        dtype = DTYPES[self.dtype]
        if summary is not None:
            centre = centre_of(summary, offset, scale)
            self.centre_ = centre.numpy()
            far = max(
                float(((end - offset) * scale - centre).abs().max()) for end in (summary.minimum, summary.maximum)
            )
            if not far**2 * blocks.n_features < torch.finfo(dtype).max:
                raise ValueError(
                    f"values reach {far:.3g}, and their squares overflow {self.dtype}: use feature_range=(0, 10)"
                    + (" or dtype='float64'" if self.dtype == "float32" else "")
                )
        device = blocks.device
        centre = torch.from_numpy(self.centre_).to(device)
        return Rows(blocks, backend, dtype, offset.to(device), scale.to(device), centre, self.block_rows)

    def _rows_of(self, X: Any) -> Rows:
        check_is_fitted(self)
        blocks, backend, _ = self._open(X)
        self._check_width(blocks)
        if blocks.n_rows < 1:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={(0, blocks.n_features)}) while a minimum of 1 is required."
            )
        return self._bind(blocks, backend, None)

    def _set_posterior(self, ascent: engine.Ascent, rows: Rows, prior: variational.Prior) -> None:
        posterior, n_rows = ascent.posterior, rows.blocks.n_rows
        gamma1 = _numpy(posterior.gamma1)
        self.weight_concentration_ = gamma1 if posterior.gamma2 is None else (gamma1, _numpy(posterior.gamma2))
        self.mean_precision_ = _numpy(posterior.beta)
        self.means_ = _numpy(posterior.m + rows.centre)
        self.degrees_of_freedom_ = _numpy(posterior.nu)[()]  # of tied covariance, a number
        self.covariances_ = _numpy(posterior.covariances)
        self.precisions_cholesky_ = _numpy(posterior.precisions_cholesky)
        root = posterior.precisions_cholesky
        self.precisions_ = _numpy(root @ root.mT if self.covariance_type in ("full", "tied") else root**2)
        self.weights_ = _numpy(variational.weights(posterior))
        self.lower_bounds_ = [bound / n_rows for bound in ascent.lower_bounds]
        self.lower_bound_ = self.lower_bounds_[-1] if self.lower_bounds_ else -np.inf
        self.n_iter_, self.converged_ = ascent.n_passes, ascent.converged

    def _posterior(self, rows: Rows) -> variational.Posterior:
        """Return the posterior that the fitted attributes say, in the passes' coordinates."""
        device = rows.blocks.device
        pair = self.weight_concentration_
        gammas = pair if isinstance(pair, tuple) else (pair, None)
        gamma1, gamma2 = (None if part is None else torch.from_numpy(part).to(device) for part in gammas)
        return variational.Posterior(
            covariance_type=self.covariance_type,
            gamma1=gamma1 if gamma1 is not None else torch.empty(0),
            gamma2=gamma2,
            beta=torch.from_numpy(self.mean_precision_).to(device),
            m=torch.from_numpy(self.means_).to(device) - rows.centre,
            nu=torch.as_tensor(self.degrees_of_freedom_).to(device),
            covariances=torch.from_numpy(self.covariances_).to(device),
            precisions_cholesky=torch.from_numpy(self.precisions_cholesky_).to(device),
        )

    def _assigned(self, rows: Rows, posterior: variational.Posterior) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        coefficients, seen = engine.coefficients(posterior), 0
        for block in rows.blocks:
            labels, density = rows.backend.assign(block, coefficients, rows.frame, rows.dtype, rows.block_rows)
            finite = torch.isfinite(density)
            if not bool(finite.all()):
                check_finite(block, seen)
                raise ValueError(f"the log-density of row {seen + int((~finite).nonzero()[0])} overflows {self.dtype}")
            seen += len(block)
            yield labels, density

    def _reporter(
        self, start: int, n_rows: int, on_pass: Callable[[int, float, float], None] | None
    ) -> Callable[[int, float, float], None]:
        def report(n_pass: int, bound: float, change: float) -> None:
            if on_pass is not None:
                on_pass(n_pass, bound / n_rows, change / n_rows)
            if self.verbose and (self.verbose > 1 or n_pass % 10 == 0):
                size = f"{bound / n_rows:.6f} ({change / n_rows:+.2e}) nats per row"
                sys.stdout.write(f"start {start}, pass {n_pass}: lower bound {size}\n")

        return report


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def _like(X: Any, result: torch.Tensor) -> Any:
    """Return a result as X came: a tensor on X's device for a tensor, else a NumPy array."""
    first = X[0] if isinstance(X, (list, tuple)) and len(X) else X
    return result.to(first.device) if isinstance(first, torch.Tensor) else _numpy(result)


def _plain(value: Any) -> Any:
    """Return a parameter as it is written to a file."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, np.generic):
        return value.item()
    return np.asarray(value)
