"""The estimator: its parameters, what they mean, and what a fit leaves."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from fastclust import kernels, variational
from fastclust.fitted import DTYPES
from fastclust.initialise import STARTS
from fastclust.mixture import Mixture


class DPGMM(Mixture):
    """Fit a Gaussian mixture with a Dirichlet-process (or finite Dirichlet) prior by variational inference.

    The Dirichlet process is truncated at `n_components` sticks (Blei and Jordan 2006), the Gaussians have
    Gauss-Wishart priors (Bishop 2006, section 10.2), and both follow scikit-learn's BayesianGaussianMixture, whose fit
    from the same start this one repeats number by number. What differs: defaults, `tol`, and the bound are per row, so
    that they mean the same for a thousand rows and for a hundred million; k-means samples where rows are many.

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
        Added to the diagonal of each component's covariance. It is no part of the lower bound, which can therefore fall
        by a millionth of itself or so where reg_covar is all the variance that a feature has; with 0 it never falls.
        Where no feature varies, the covariance of the rows is no prior: the bound may alternate until max_iter, as
        scikit-learn's does, unless covariance_prior is given.
    tol : float, default=1e-4
        Stop when a pass changes the lower bound by less, in nats per row.
    max_iter : int, default=200
        Most passes over the rows.
    n_init : int, default=1
        Starts; the best bound is kept.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default="kmeans"
        First responsibilities. "kmeans": the partition that k-means finds from k-means++ seeds, on a sample where there
        are more than 200,000 rows. "k-means++": the seeds alone. "random": uniform. "random_from_data": drawn rows.
    feature_range : (float, float) or None, default=None
        Map the rows by one affine map, the same for all features, so that the smallest and the largest value of all
        become these two (Malmgren-Hansen, Nielsen and Engholm 2017 use 0 to 10). Priors, means_, covariances_ and
        densities are in mapped units; every method takes unmapped rows.
    sort_sticks : bool, default=False
        Put the components in order of size after each E-step, largest first. It never lowers the bound of a Dirichlet
        process, whose sticks know no other order that is better (Kurihara, Welling and Teh 2007), and labels then count
        down from the most frequent cluster.
    warm_start : bool, default=False
        Go on from the last fit.
    random_state : int, RandomState or None, default=None
    device : str or torch.device, default="auto"
        Where to compute; "auto" for the rows' own device if they are on an accelerator, else CUDA if there is one.
        Rows from the host or a file are copied there while it computes, and stay for the length of a fit where they
        take no more than half of its free memory.
    backend : str, default="auto"
        The kernels; "auto" for the fastest that can run. `fastclust doctor` lists them.
    dtype : {"float32", "float64"}, default="float32"
        Arithmetic over rows. Sums, priors and posteriors are float64 always.
    precision : {"high", "fast", "mixed"}, default="high"
        Of float32 products over rows, on a backend that has two; one that has not says so in the log. "high" is as good
        as float32. "fast" errs up to a thousandth of a component's size, and computes labels and probabilities so as
        well. "mixed" is fast until a pass raises the bound by less than `tol`, and then high, two passes or more.
    block_rows : int or None, default=None
        Rows that a kernel treats at once; None for its own choice, on a GPU by its free memory. Where a GPU runs out
        of memory they are halved, with a warning in the log.
    verbose : int, default=0
        Print the bound every 10 passes (1) or every pass (2).

    Attributes
    ----------
    weights_ : (n_components,); means_ : (n_components, n_features)
    covariances_, precisions_, precisions_cholesky_ : by covariance_type, as in scikit-learn
    weight_concentration_ : pair of (n_components,) for the process, else (n_components,)
    mean_precision_, degrees_of_freedom_ : (n_components,)
    weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, covariance_prior_
    lower_bound_, lower_bound_per_row_ : float, scikit-learn's lower bound divided by the number of rows
    lower_bounds_ : list, one a pass
    n_iter_ : int; converged_ : bool; n_features_in_ : int
    counts_ : (n_components,) int64, rows of the fit that each component is the most probable one of; with
        sample_weight, their weight, float64
    n_active_ : int, components that win at least one row
    responsibilities_statistics_ : dict of arrays, from which the posterior follows
    batch_statistics_ : dict of the batches that partial_fit has seen, or of one, "fit"; last_new_batch_ : int, the call
        of partial_fit that brought the last new one
    feature_names_in_ : (n_features_in_,) of object, only where rows came with names
    feature_offset_, feature_scale_ : float, mapped = (row - feature_offset_) * feature_scale_
    backend_, device_ : str, what computed: the backend whose kernels passed over the rows, and where
    source_ : dict, only of models that `fastclust fit` or `run` fitted: model, node, layer and weights of the
        rows, what tells the rows from others, and of how many they are a sample
    All arrays are NumPy's, of float64 where nothing else is said.
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
        "feature_range": ["array-like", None],
        "sort_sticks": ["boolean"],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "backend": [StrOptions({"auto", *kernels.BACKENDS})],
        "dtype": [StrOptions(set(DTYPES))],
        "precision": [StrOptions({"high", "fast", "mixed"})],
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
        init_params: str = "kmeans",
        feature_range: tuple[float, float] | None = None,
        sort_sticks: bool = False,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
        backend: str = "auto",
        dtype: str = "float32",
        precision: str = "high",
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
        self.sort_sticks = sort_sticks
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.backend = backend
        self.dtype = dtype
        self.precision = precision
        self.block_rows = block_rows
        self.verbose = verbose
