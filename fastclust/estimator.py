"""The estimator's surface in scikit-learn's manner: parameters, validation, fitted attributes; no equations."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from fastclust import engine, initialise, kernels, model_file, variational
from fastclust.blocks import Blocks, Summary, summarise
from fastclust.rows import Rows, centre_of, scatter_about, unclaimed_scatter

log = logging.getLogger("fastclust")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
STARTS = {
    "k-means++": initialise.kmeans,
    "random": initialise.random,
    "random_from_data": initialise.random_from_data,
}


class DPGMM(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """Fit a Gaussian mixture with a Dirichlet-process (or finite Dirichlet) prior by variational inference.

    The Dirichlet process is truncated at `n_components` sticks (Blei and Jordan 2006), the Gaussians have
    Gauss-Wishart priors (Bishop 2006, section 10.2), and both follow scikit-learn's BayesianGaussianMixture, whose fit
    from the same start this one repeats number by number. What differs: defaults, `tol`, and the bound are per row, so
    that they mean the same for a thousand rows and for a hundred million; `init_params="k-means++"` runs k-means.

    Parameters
    ----------
    n_components : int, default=50
        Truncation of the process: the most components that there can be.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="diag"
    weight_concentration_prior_type : {"dirichlet_process", "dirichlet_distribution"}, default="dirichlet_process"
    weight_concentration_prior : float or None, default=0.2
        Concentration alpha; None for 1 / n_components.
    mean_precision_prior : float or None, default=None
        Rows that the prior mean counts as; None for 1.
    mean_prior : array-like (n_features,) or None, default=None
        None for the mean of the rows.
    degrees_of_freedom_prior : float or None, default=None
        None for n_features; more than n_features - 1.
    covariance_prior : float or array-like or None, default=None
        (n_features, n_features) for full and tied, (n_features,) for diag, a number for spherical; None for the
        covariance of the rows.
    reg_covar : float, default=1e-6
        Added to the diagonal of each component's covariance.
    tol : float, default=1e-4
        Stop when a pass changes the lower bound by less, in nats per row.
    max_iter : int, default=200
        Most passes over the rows.
    n_init : int, default=1
        Starts; the best bound is kept.
    init_params : {"k-means++", "random", "random_from_data"}, default="k-means++"
        "k-means++": k-means from k-means++ seeds, on a sample where there are more than 200,000 rows.
    feature_range : (float, float) or None, default=None
        Map the rows by one affine map, the same for all features, so that the smallest and the largest value of all
        become these two (Malmgren-Hansen, Nielsen and Engholm 2017 use 0 to 10). Priors, means_, covariances_ and
        densities are in mapped units; every method takes unmapped rows.
    warm_start : bool, default=False
        Go on from the last fit.
    random_state : int, RandomState or None, default=None
    device : str or torch.device, default="auto"
        Where to compute; "auto" for the rows' own device if they are on an accelerator, else CUDA if there is one.
    backend : str, default="auto"
        The kernels; "auto" for the fastest that can run. `fastclust doctor` lists them.
    dtype : {"float32", "float64"}, default="float32"
        Arithmetic over rows. Sums, priors and posteriors are float64 always.
    block_rows : int or None, default=None
        Rows that a kernel treats at once; None for its own choice.
    verbose : int, default=0
        Print the bound every 10 passes (1) or every pass (2).

    Attributes
    ----------
    weights_ : (n_components,); means_ : (n_components, n_features)
    covariances_, precisions_, precisions_cholesky_ : by covariance_type, as in scikit-learn
    weight_concentration_ : pair of (n_components,) for the process, else (n_components,)
    mean_precision_, degrees_of_freedom_ : (n_components,)
    weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, covariance_prior_
    lower_bound_ : float, scikit-learn's lower bound divided by the number of rows; lower_bounds_ : list, one a pass
    n_iter_ : int; converged_ : bool; n_features_in_ : int
    counts_ : (n_components,) int64, rows of the fit that each component is the most probable one of
    n_active_ : int, components that win at least one row
    feature_offset_, feature_scale_ : float, mapped = (row - feature_offset_) * feature_scale_
    backend_, device_ : str, what computed
    All arrays but counts_ are NumPy float64.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "weight_concentration_prior_type": [StrOptions({"dirichlet_process", "dirichlet_distribution"})],
        "weight_concentration_prior": [Interval(Real, 0.0, None, closed="neither"), None],
        "mean_precision_prior": [Interval(Real, 0.0, None, closed="neither"), None],
        "mean_prior": ["array-like", None],
        "degrees_of_freedom_prior": [Interval(Real, 0.0, None, closed="neither"), None],
        "covariance_prior": ["array-like", Interval(Real, 0.0, None, closed="neither"), None],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(STARTS))],
        "feature_range": [tuple, list, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "backend": [StrOptions({"auto", *kernels.BACKENDS})],
        "dtype": [StrOptions(set(DTYPES))],
        "block_rows": [Interval(Integral, 1, None, closed="left"), None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int = 50,
        *,
        covariance_type: kernels.CovarianceType = "diag",
        weight_concentration_prior_type: variational.WeightPrior = "dirichlet_process",
        weight_concentration_prior: float | None = 0.2,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        reg_covar: float = 1e-6,
        tol: float = 1e-4,
        max_iter: int = 200,
        n_init: int = 1,
        init_params: str = "k-means++",
        feature_range: tuple[float, float] | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
        backend: str = "auto",
        dtype: str = "float32",
        block_rows: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.reg_covar = reg_covar
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.feature_range = feature_range
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.backend = backend
        self.dtype = dtype
        self.block_rows = block_rows
        self.verbose = verbose

    def fit(self, X: Any, y: object = None, *, on_pass: Callable[[int, float, float], None] | None = None) -> DPGMM:
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
        return _like(X, torch.cat(parts))

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
                f"Found array with 0 {lacking}(s) (shape={shape}) while a minimum of 1 is required by DPGMM."
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
        prior = self._prior(rows, summary)
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

    def _prior(self, rows: Rows, summary: Summary) -> variational.Prior:
        """Check the priors, set their attributes, and return them in the passes' coordinates."""
        n_features, full = rows.blocks.n_features, self.covariance_type in ("full", "tied")
        scale, offset, centre = (part.cpu() for part in (rows.scale, rows.offset, rows.centre))
        alpha = self.weight_concentration_prior
        self.weight_concentration_prior_ = 1.0 / self.n_components if alpha is None else alpha
        self.mean_precision_prior_ = 1.0 if self.mean_precision_prior is None else self.mean_precision_prior
        nu = self.degrees_of_freedom_prior
        self.degrees_of_freedom_prior_ = n_features if nu is None else nu
        if self.degrees_of_freedom_prior_ <= n_features - 1:
            raise ValueError(
                f"degrees_of_freedom_prior must be greater than n_features - 1 = {n_features - 1}, and was {nu}"
            )
        if self.mean_prior is None:
            self.mean_prior_ = ((summary.mean - offset) * scale).numpy()
        else:
            self.mean_prior_ = _array("mean_prior", self.mean_prior, (n_features,))
        if self.covariance_prior is None:
            spread = torch.outer(scale, scale) if full else scale**2
            covariance = (spread * summary.scatter / (summary.n_rows - 1)).numpy()
            self.covariance_prior_ = covariance.mean() if self.covariance_type == "spherical" else covariance
        else:
            shape = {"diag": (n_features,), "spherical": ()}.get(self.covariance_type, (n_features, n_features))
            self.covariance_prior_ = _array("covariance_prior", self.covariance_prior, shape)
            _check_positive(self.covariance_prior_)
        device = rows.blocks.device
        return variational.Prior(
            covariance_type=self.covariance_type,
            weight_prior=self.weight_concentration_prior_type,
            alpha=float(self.weight_concentration_prior_),
            beta=float(self.mean_precision_prior_),
            m=(torch.from_numpy(self.mean_prior_) - centre).to(device),
            nu=float(self.degrees_of_freedom_prior_),
            W_inv=torch.as_tensor(self.covariance_prior_, dtype=torch.float64).to(device),
            reg_covar=float(self.reg_covar),
            origin=-rows.centre,
        )

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
        coefficients = engine.coefficients(posterior)
        for block in rows.blocks:
            yield rows.backend.assign(block, coefficients, rows.frame, rows.dtype, rows.block_rows)

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


def load(path: str | os.PathLike[str]) -> DPGMM:
    """Return the mixture that `DPGMM.save` wrote.

    Raises FileNotFoundError, and ValueError for a file that is not a model of ours, is newer, or is cut short.
    """
    parameters, fitted = model_file.read(path)
    known = set(DPGMM().get_params())
    if not set(parameters) <= known:
        raise ValueError(f"{path} has parameters that this fastclust does not know: {sorted(set(parameters) - known)}")
    model = DPGMM(**parameters)
    for name, value in fitted.items():
        setattr(model, name, value)
    return model


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


def _array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"The parameter '{name}' has NaN or infinite values")
    return array


def _check_positive(covariance: np.ndarray) -> None:
    if covariance.ndim == 2:
        if not (np.allclose(covariance, covariance.T) and np.all(np.linalg.eigvalsh(covariance) > 0.0)):
            raise ValueError("'covariance_prior' should be symmetric, positive-definite")
    elif not np.all(covariance > 0.0):
        raise ValueError("'covariance_prior' should be positive")
