"""Rows that break careless arithmetic: no NaN, no crash, and float32 within 1e-3 of float64 on the same rows."""

import warnings

import numpy as np
import pytest
from conftest import relu_features
from sklearn.exceptions import ConvergenceWarning

from fastclust import DPGMM, BayesianGaussianMixture

KINDS = ("full", "tied", "diag", "spherical")


def groups(n: int = 600, d: int = 4) -> np.ndarray:
    """Rows of three groups that nobody mistakes for one another, of deviation one."""
    random = np.random.default_rng(0)
    return 10 * np.eye(3, d)[random.integers(3, size=n)] + random.normal(size=(n, d))


def tight_and_far() -> np.ndarray:
    """What makes E[x^2] - E[x]^2 negative in float32, as scikit-learn issues 30382 and 30415 tell of variances.

    A column whose mean is thousands of its deviations, one that hardly varies, and one that is ordinary.
    """
    random = np.random.default_rng(1)
    return np.stack([random.normal(5_000, 0.5, 800), random.normal(30, 1e-3, 800), random.normal(0, 1, 800)], 1)


CASES = {
    "a variance that float32 squares lose": tight_and_far(),
    "a mean of 1e4 deviations": groups() + 1e4,
    "a mean of 1e6 deviations": groups() + 1e6,
    "means of either sign": groups() * [1, -1, 1, -1] + [1e4, -1e4, 1e6, 0],
    "one dead channel": relu_features(600, 6),
    "a dead channel far out": np.c_[groups(), np.full(600, 12345.678)],
    "all rows equal": np.full((50, 3), 3.7),
    "all rows equal and far": np.full((50, 3), -1e3),
    "as many rows as components": groups(5, 3),
    "columns of very different scale": groups() * [1e-6, 1e-2, 1e2, 1e6],
    "a tiny scale": groups() * 1e-12,
    "one row apart": np.r_[groups(300), [[1e4] * 4]],
}


def fit(estimator, X, dtype, **parameters):
    common = {"n_components": 5, "init_params": "random_from_data", "random_state": 0, "max_iter": 15, "tol": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator(dtype=dtype, **common | parameters).fit(X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("estimator", [DPGMM, BayesianGaussianMixture])
def test_float32_is_within_a_thousandth_of_float64(estimator, name, kind):
    X = CASES[name].astype(np.float32)
    narrow, wide = (fit(estimator, X.astype(dtype), dtype, covariance_type=kind) for dtype in ("float32", "float64"))
    for model in (narrow, wide):
        for attribute in ("means_", "covariances_", "weights_", "precisions_cholesky_", "lower_bounds_"):
            assert np.isfinite(getattr(model, attribute)).all(), attribute
        assert np.isfinite(model.score_samples(X)).all()
        np.testing.assert_allclose(model.predict_proba(X).sum(1), 1, rtol=1e-5)
    deviation = np.maximum(X.astype(np.float64).std(0), 1e-3)  # reg_covar's own deviation
    np.testing.assert_array_less(np.abs(narrow.means_ - wide.means_) / deviation, 1e-3)
    np.testing.assert_allclose(narrow.weights_, wide.weights_, atol=1e-3)
    np.testing.assert_allclose(narrow.mean_precision_, wide.mean_precision_, rtol=1e-3, atol=1e-3)
    variances, others = (
        np.diagonal(model.covariances_, axis1=-2, axis2=-1) if kind in ("full", "tied") else model.covariances_
        for model in (narrow, wide)
    )
    np.testing.assert_allclose(variances, others, rtol=1e-3)
    per_row = (narrow.lower_bound_per_row_, wide.lower_bound_per_row_)
    assert per_row[0] == pytest.approx(per_row[1], abs=1e-3 * max(abs(per_row[1]), 1))
    margin = np.sort(wide.predict_proba(X.astype(np.float64)), axis=1)
    sure = margin[:, -1] - margin[:, -2] > 1e-2
    assert (narrow.predict(X) == wide.predict(X.astype(np.float64)))[sure].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random"])
def test_a_variance_never_turns_negative_whatever_the_start(kind, start):
    for X in (tight_and_far(), groups() + 1e6):
        for estimator in (DPGMM, BayesianGaussianMixture):
            model = fit(estimator, X.astype(np.float32), "float32", covariance_type=kind, init_params=start)
            assert np.isfinite(model.lower_bound_)
            floor = model.reg_covar * 1e-3
            eigenvalues = np.linalg.eigvalsh(model.covariances_) if kind in ("full", "tied") else model.covariances_
            assert eigenvalues.min() > floor
