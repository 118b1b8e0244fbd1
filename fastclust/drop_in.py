"""scikit-learn's BayesianGaussianMixture, computed by this engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from fastclust import engine, initialise, kernels, variational
from fastclust.arrays import Given, host
from fastclust.fitted import DTYPES
from fastclust.mixture import Mixture

ARRAYS = ("mean_precision_", "means_", "covariances_", "precisions_cholesky_", "precisions_", "mean_prior_")


class BayesianGaussianMixture(Mixture):
    """Fit a Gaussian mixture by variational inference, as scikit-learn's class of this name does.

    Parameters, defaults, attributes and results are those of scikit-learn 1.9's
    `sklearn.mixture.BayesianGaussianMixture`: see its documentation. `tol` and `lower_bound_` are summed over rows. On
    NumPy input (and lists, and frames) the same `random_state` gives the same fit for each of `init_params`, to 1e-7
    where the arithmetic is float64.

    Parameters that scikit-learn's class does not have, all by keyword
    ------------------------------------------------------------------
    device : str or torch.device, default="auto"
        Where to compute; "auto" for the rows' own device if they are on an accelerator, else CUDA if there is one.
        Rows from the host or a file are copied there while it computes, and stay for the length of a fit where they
        take no more than half of its free memory.
    backend : str, default="auto"
        The kernels; "auto" for the fastest that can run. `fastclust doctor` lists them.
    dtype : {"float32", "float64"} or None, default=None
        Arithmetic over rows. None for the rows' own: float64 for float64 and for integers, float32 for float32 and
        below. Sums, priors and posteriors are float64 always.
    precision : {"high", "fast", "mixed"}, default="high"
        Of float32 products over rows, on a backend that has two; one that has not says so in the log. "high" is as good
        as float32. "fast" errs up to a thousandth of a component's size, and computes labels and probabilities so as
        well. "mixed" is fast until a pass raises the bound by less than `tol`, and then high, two passes or more.
    block_rows : int or None, default=None
        Rows that a kernel treats at once; None for its own choice, on a GPU by its free memory. Where a GPU runs out
        of memory they are halved, with a warning in the log.

    What differs
    ------------
    - Rows can be torch tensors, CuPy arrays, whatever has `__dlpack__`, h5py datasets, and lists of two-dimensional
      arrays, one after the other. Results and fitted arrays are then of that kind, on that device (of h5py: NumPy's).
      There k-means, its seeds and their sums are computed on the device by other code with other random numbers, so the
      start is another for `init_params` "kmeans" and "k-means++"; for "random" and "random_from_data" it is the same.
    - `fit` and `fit_predict` take `sample_weight`; `partial_fit`, `prune`, `save`, `counts_`, `n_active_`,
      `lower_bound_per_row_`, `responsibilities_statistics_`, `backend_` and `device_` are as in `fastclust.DPGMM`.
    - Of tied covariance, `lower_bound_` is a number; scikit-learn 1.9's is an array of one.
    - float32 rows: scikit-learn adds 10 eps of float32 rows to each component, here it is of float64 always; and what
      max_iter=0 leaves is float64.
    - `covariance_prior` of spherical covariance is one number; scikit-learn takes other shapes without looking.
    - A NaN is named with its row and feature. Scikit-learn's private methods do not exist.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(initialise.STARTS))],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"spherical", "tied", "diag", "full"})],
        "weight_concentration_prior_type": [StrOptions({"dirichlet_process", "dirichlet_distribution"})],
        "weight_concentration_prior": [None, Interval(Real, 0.0, None, closed="neither")],
        "mean_precision_prior": [None, Interval(Real, 0.0, None, closed="neither")],
        "mean_prior": [None, "array-like"],
        "degrees_of_freedom_prior": [None, Interval(Real, 0.0, None, closed="neither")],
        "covariance_prior": [None, "array-like", Interval(Real, 0.0, None, closed="neither")],
        "device": [str, torch.device],
        "backend": [StrOptions({"auto", *kernels.BACKENDS})],
        "dtype": [StrOptions(set(DTYPES)), None],
        "precision": [StrOptions({"high", "fast", "mixed"})],
        "block_rows": [Interval(Integral, 1, None, closed="left"), None],
    }
    bound_per_row = False
    feature_range = None
    sort_sticks = False

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: kernels.CovarianceType = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Literal["kmeans", "k-means++", "random", "random_from_data"] = "kmeans",
        weight_concentration_prior_type: variational.WeightPrior = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: str | torch.device = "auto",
        backend: str = "auto",
        dtype: str | None = None,
        precision: str = "high",
        block_rows: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device
        self.backend = backend
        self.dtype = dtype
        self.precision = precision
        self.block_rows = block_rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled mixture, also one that scikit-learn's own class left."""
        theirs: dict[str, Any] = {"device": "auto", "backend": "auto", "dtype": None, "block_rows": None}
        theirs |= {"precision": "high"}
        if "n_features_in_" in state and "centre_" not in state:
            theirs |= {"centre_": np.zeros(state["n_features_in_"]), "feature_offset_": 0.0, "feature_scale_": 1.0}
            theirs |= {"batch_statistics_": {}, "last_new_batch_": 0}
        super().__setstate__(theirs | state)

    # The rest is not public.

    def _starts(self, given: Given, alone: bool) -> dict[str, initialise.Start]:
        return initialise.STARTS_ON_HOST if given.host and alone else initialise.STARTS

    def _floats(self, given: Given, result: torch.Tensor) -> Any:
        return given.like(result.double() if given.host else result)  # scikit-learn's are float64 for float32 rows too

    def _present(self, given: Given) -> None:
        """Give fitted arrays the kind of the rows, and priors from the rows their dtype, as scikit-learn does."""
        self.lower_bounds_ = [np.float64(bound) for bound in self.lower_bounds_]
        self.lower_bound_ = self.lower_bounds_[-1] if self.lower_bounds_ else self.lower_bound_
        narrow = given.host and getattr(given.parts[0], "dtype", None) == np.float32
        for name, ours in (("mean_prior", "mean_prior_"), ("covariance_prior", "covariance_prior_")):
            value, asked = getattr(self, ours), getattr(self, name)
            from_rows = asked is None and not (name == "covariance_prior" and self._outer)
            if isinstance(value, (np.ndarray, np.generic)) and (
                (from_rows and narrow) or getattr(asked, "dtype", None) == np.float32
            ):
                setattr(self, ours, value.astype(np.float32))
        if self.covariance_type == "spherical" and self.covariance_prior is not None:
            self.covariance_prior_ = self.covariance_prior
        if given.host or given.like is host:
            return
        names = ARRAYS + (() if self.covariance_type == "tied" else ("degrees_of_freedom_",))
        names += () if self.covariance_type == "spherical" else ("covariance_prior_",)
        for name in names:
            setattr(self, name, given.like(torch.from_numpy(host(getattr(self, name)))))
        self._set_gammas(*self._gammas(), given.like)

    def _say_start(self, start: int) -> None:
        if self.verbose:
            sys.stdout.write(f"Initialization {start}\n")
        self._clock = [time.time()] * 2

    def _reporter(self, start: int, total: float, on_pass: Callable[[int, float, float], None] | None) -> Any:
        def report(n_pass: int, bound: float, change: float) -> None:
            if on_pass is not None:
                on_pass(n_pass, bound / total, change / total)
            if n_pass % self.verbose_interval == 0 and self.verbose == 1:
                sys.stdout.write(f"  Iteration {n_pass}\n")
            elif n_pass % self.verbose_interval == 0 and self.verbose >= 2:
                now = time.time()
                lapse, self._clock[1] = now - self._clock[1], now
                sys.stdout.write(f"  Iteration {n_pass}\t time lapse {lapse:.5f}s\t ll change {change:.5f}\n")

        return report

    def _say_end(self, start: int, ascent: engine.Ascent) -> None:
        state = "converged" if ascent.converged else "did not converge"
        if self.max_iter and self.verbose == 1:
            sys.stdout.write(f"Initialization {state}.\n")
        elif self.max_iter and self.verbose >= 2:
            lapse = time.time() - self._clock[0]
            sys.stdout.write(
                f"Initialization {state}. time lapse {lapse:.5f}s\t lower bound {ascent.lower_bounds[-1]:.5f}.\n"
            )
