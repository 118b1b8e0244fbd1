"""The lower bound never falls: four covariances, two priors, four starts, fifty seeds; and where it may."""

import warnings

import numpy as np
import pytest
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs

from fastclust import DPGMM, BayesianGaussianMixture

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")


def bounds_of(model, X) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.ravel(model.fit(X).lower_bounds_)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_never_falls(kind, weight_prior, start):
    for seed in range(50):
        X = blobs(60 + seed, 3, 4, seed)
        if seed % 2:  # half zeros, and no channel dead
            X = np.maximum(X - np.median(X, axis=0), 0)
        model = DPGMM(
            5,
            covariance_type=kind,
            weight_concentration_prior_type=weight_prior,
            init_params=start,
            random_state=seed,
            reg_covar=0,
            tol=0,
            max_iter=15,
            dtype="float64",
        )
        bounds = bounds_of(model, X)
        assert len(bounds) == 15
        assert (np.diff(bounds) >= -1e-9 * np.abs(bounds[1:])).all(), (seed, np.diff(bounds).min())


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_reg_covar_is_no_part_of_it_and_can_make_it_fall_as_scikit_learns_does(kind):
    """A dead channel has no variance but reg_covar: what the bound gains by it each pass does not count."""
    fell = {"ours": 0, "theirs": 0}
    for seed in range(12):
        X = relu_features(400, 7, seed)
        parameters = {"n_components": 6, "covariance_type": kind, "init_params": "k-means++", "random_state": seed}
        parameters |= {"max_iter": 30, "tol": 0}
        ours, theirs = (bounds_of(make(**parameters), X) for make in (BayesianGaussianMixture, Theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)
        for name, bounds in (("ours", ours), ("theirs", theirs)):
            fell[name] += bool((np.diff(bounds) < -1e-9 * np.abs(bounds[1:])).any())
    assert fell["ours"] == fell["theirs"]
    assert fell["theirs"] > 0


def largest_fall(bounds: np.ndarray) -> float:
    return float((np.diff(bounds) / np.abs(bounds[1:])).min())


@pytest.mark.parametrize(
    ("kind", "reg_covar", "seed", "fall"),
    [("full", 1e-6, 8, -1.6e-7), ("diag", 1e-3, 2, -6.6e-7), ("spherical", 1e-3, 10, -2.5e-6)],
)
def test_it_falls_as_far_as_scikit_learns_and_without_reg_covar_neither_falls(kind, reg_covar, seed, fall):
    X = relu_features(400, 7, seed)
    parameters = {"n_components": 6, "covariance_type": kind, "init_params": "k-means++", "random_state": seed}
    parameters |= {"max_iter": 30, "tol": 0}
    for make in (BayesianGaussianMixture, Theirs):
        assert largest_fall(bounds_of(make(**parameters, reg_covar=reg_covar), X)) == pytest.approx(fall, rel=0.05)
        without_dead = np.delete(X, 3, axis=1)
        assert largest_fall(bounds_of(make(**parameters, reg_covar=0), without_dead)) >= -1e-9


def test_the_native_bound_falls_by_millionths_with_reg_covar():
    X = relu_features(400, 7)
    parameters = {"covariance_type": "diag", "init_params": "k-means++", "random_state": 1, "max_iter": 30, "tol": 0}
    assert -1e-5 < largest_fall(bounds_of(DPGMM(6, dtype="float64", **parameters), X)) < -1e-6
    without_dead = np.delete(X, 3, axis=1)
    assert largest_fall(bounds_of(DPGMM(6, dtype="float64", reg_covar=0, **parameters), without_dead)) >= -1e-9


def test_where_no_feature_varies_the_bound_alternates_unless_there_is_a_prior():
    """The variances of the rows, all zero, are no prior: an empty component fits better than the one with the rows."""
    X = np.zeros((2523, 96))
    parameters = {"n_components": 3, "random_state": 0, "max_iter": 20}
    theirs = Theirs(covariance_type="diag", weight_concentration_prior=0.2, **parameters)
    for bounds in (bounds_of(DPGMM(**parameters), X), bounds_of(theirs, X) / len(X)):
        np.testing.assert_allclose(bounds[2:], bounds[:-2])
        assert bounds[1] - bounds[0] > 1
    assert DPGMM(covariance_prior=np.ones(96), **parameters).fit(X).converged_
