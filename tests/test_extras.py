"""What scikit-learn's mixture does not have: weighted rows, pruning, sorted sticks, and the statistics of a fit."""

import warnings

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

import fastclust
from fastclust import DPGMM, BayesianGaussianMixture, variational
from fastclust.variational import Prior

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")
ESTIMATORS = (DPGMM, BayesianGaussianMixture)
ATTRIBUTES = ("means_", "covariances_", "weights_", "lower_bound_", "counts_", "mean_prior_", "covariance_prior_")


def fit(model, X, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, **more)


def same(one, other, rtol=1e-9):
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_counts_for_nothing_is_absent(kind, start, estimator):
    X = relu_features(300, 5)
    weights = np.random.default_rng(0).integers(0, 2, size=300)
    parameters = {"n_components": 4, "random_state": 0, "covariance_type": kind, "init_params": start}
    without, present = (estimator(max_iter=7, dtype="float64", **parameters) for _ in range(2))
    fit(without, X, sample_weight=weights)
    fit(present, X[weights > 0])
    same(without, present)
    assert without.n_active_ == present.n_active_
    wild = X.copy()
    wild[weights == 0] = 1e6  # no row of those has a say
    same(fit(estimator(max_iter=7, dtype="float64", **parameters), wild, sample_weight=weights), present)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_counts_twice_is_a_row_that_comes_twice(kind, estimator, dtype):
    X = relu_features(400, 5)
    weights = np.random.default_rng(1).integers(0, 4, size=400)
    parameters = {"n_components": 4, "covariance_type": kind, "dtype": dtype, "max_iter": 6, "warm_start": True}
    models = [fit(estimator(init_params="random_from_data", random_state=0, **parameters), X) for _ in range(2)]
    fit(models[0], X, sample_weight=weights)
    fit(models[1], np.repeat(X, weights, axis=0))
    same(*models, rtol=1e-9 if dtype == "float64" else 1e-3)
    assert models[0].counts_.sum() == weights.sum()
    assert models[0].counts_.dtype == np.float64


def test_weights_of_one_change_nothing_and_a_scale_is_a_number_of_rows():
    X = blobs(300, 3)
    parameters = {"n_components": 5, "random_state": 0, "dtype": "float64"}
    plain = fit(DPGMM(**parameters), X)
    same(fit(DPGMM(**parameters), X, sample_weight=np.ones(300)), plain)
    same(fit(DPGMM(**parameters), torch.from_numpy(X), sample_weight=torch.ones(300)), plain)
    with pytest.raises(ValueError, match="scale it, or give covariance_prior"):
        fit(DPGMM(**parameters), X, sample_weight=np.full(300, 1 / 300))
    given = fit(DPGMM(covariance_prior=np.ones(3), **parameters), X, sample_weight=np.full(300, 1 / 300))
    assert np.isfinite(given.means_).all()


def test_a_coreset_fits_like_its_rows():
    """Ten rows that each count for a hundred stand for a thousand that lie around them."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(10, 3)) * 10
    X = centres[np.arange(1000) % 10] + 1e-3 * random.normal(size=(1000, 3))
    parameters = {"n_components": 10, "random_state": 0, "dtype": "float64", "covariance_prior": np.ones(3)}
    whole = fit(DPGMM(**parameters), X)
    coreset = fit(DPGMM(**parameters), centres, sample_weight=np.full(10, 100.0))
    order, other = (np.lexsort(model.means_.round(1).T) for model in (whole, coreset))
    np.testing.assert_allclose(coreset.means_[other], whole.means_[order], atol=1e-2)
    np.testing.assert_allclose(np.sort(coreset.counts_), np.sort(whole.counts_))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), "sample_weight.shape"),
        (np.full(50, -1.0), "[Nn]egative"),
        (np.full(50, np.nan), "NaN"),
        (np.ones((50, 2)), "1D"),
        (np.zeros(50), "at least one non-zero"),
    ],
    ids=range(5),
)
def test_weights_that_are_none_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        DPGMM(2).fit(blobs(50, 3), sample_weight=weights)


def test_rows_that_count_must_be_enough_for_the_components():
    weights = np.r_[np.ones(3), np.zeros(47)]
    with pytest.raises(ValueError, match="n_components = 4, n_samples = 3"):
        DPGMM(4).fit(blobs(50, 3), sample_weight=weights)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_pruning_changes_no_prediction(kind, weight_prior, estimator, tmp_path):
    random = np.random.default_rng(1)
    X = random.normal(size=(4, 3))[random.integers(4, size=2000)] * 20 + random.normal(size=(2000, 3))
    parameters = {"covariance_type": kind, "weight_concentration_prior_type": weight_prior, "dtype": "float64"}
    parameters |= {"weight_concentration_prior": 1e-3}
    model = fit(estimator(n_components=15, random_state=0, max_iter=300, tol=1e-8, **parameters), X)
    dead = model.counts_ == 0
    assert dead.any()
    labels, proba, density = model.predict(X), model.predict_proba(X), model.score_samples(X)
    bound, nk = model.lower_bound_, model.responsibilities_statistics_["nk"]
    model.prune()
    kept = np.flatnonzero(~dead | (nk > 1e-8))
    assert len(model.means_) == len(model.weights_) == len(model.counts_) == len(kept) < 15
    assert model.weights_.sum() == pytest.approx(1)
    np.testing.assert_array_equal(kept[model.predict(X)], labels)
    np.testing.assert_allclose(model.predict_proba(X), proba[:, kept], atol=1e-8)
    np.testing.assert_allclose(model.score_samples(X), density, rtol=1e-9)
    assert model.lower_bound_ == bound
    assert model.responsibilities_statistics_["nk"].shape == (len(kept),)
    model.save(tmp_path / "model.h5")
    np.testing.assert_array_equal(fastclust.load(tmp_path / "model.h5").predict(X), model.predict(X))
    before = model.means_
    assert model.prune().means_ is before  # nothing is left to drop
    assert fit(model.set_params(warm_start=True), X).means_.shape == before.shape
    assert fit(model.set_params(warm_start=False), X).means_.shape == (15, 3)


def test_pruning_follows_dead_components_wherever_they_are():
    """Three of seven sticks go, the first, one in the middle and the last: E[ln pi] of the others stays."""
    gamma1 = torch.tensor([1.0, 301.0, 1.0, 1.0, 50.5, 2.25, 1.0], dtype=torch.float64)
    gamma2 = torch.tensor([351.95, 51.95, 51.95, 51.95, 1.45, 0.2, 0.2], dtype=torch.float64)
    keep = torch.tensor([1, 4, 5])

    def expected(one, two):
        empty = torch.empty(0)
        return variational.expected_log_weights(
            variational.Posterior("diag", one, two, empty, empty, empty, empty, empty)
        )

    found = variational.without((gamma1, gamma2), keep)
    torch.testing.assert_close(expected(*found), expected(gamma1, gamma2)[keep], rtol=1e-12, atol=1e-12)
    finite = variational.without((gamma1, None), keep)
    torch.testing.assert_close(expected(*finite), expected(gamma1, None)[keep], rtol=1e-12, atol=1e-12)
    assert finite[1] is None


@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_follows_from_the_statistics(kind, weight_prior):
    X = relu_features(500, 5) + 3
    model = fit(
        DPGMM(
            6,
            covariance_type=kind,
            weight_concentration_prior_type=weight_prior,
            random_state=0,
            dtype="float64",
            max_iter=9,
            tol=0,
            feature_range=(0, 10),
        ),
        X,
    )
    found = {name: torch.from_numpy(np.asarray(value)) for name, value in model.responsibilities_statistics_.items()}
    centre = found["about"][0] if kind == "tied" else torch.zeros(5, dtype=torch.float64)
    prior = Prior(
        kind,
        weight_prior,
        model.weight_concentration_prior_,
        model.mean_precision_prior_,
        torch.from_numpy(model.mean_prior_) - centre,
        model.degrees_of_freedom_prior_,
        torch.as_tensor(model.covariance_prior_),
        model.reg_covar,
        -centre,
    )
    posterior = variational.update(prior, found["nk"], found["sx"], found["sxx"], found["about"] - centre)
    np.testing.assert_allclose(posterior.m + centre, model.means_, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(posterior.covariances, model.covariances_, rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(posterior.beta, model.mean_precision_, rtol=1e-12)
    bound = float(variational.lower_bound(posterior, found["entropy"])) / 500
    assert bound == pytest.approx(model.lower_bound_, rel=1e-9)
    assert float(found["nk"].sum()) == pytest.approx(500)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_the_sums_that_they_are_said_to_be(kind):
    X = blobs(300, 3)
    model = fit(BayesianGaussianMixture(n_components=4, covariance_type=kind, random_state=0, max_iter=1, tol=0), X)
    again = fit(BayesianGaussianMixture(n_components=4, covariance_type=kind, random_state=0, max_iter=0), X)
    r = again.predict_proba(X)  # under which the one pass took its statistics
    found = model.responsibilities_statistics_
    np.testing.assert_allclose(found["nk"], r.sum(0), rtol=1e-9)
    away = X[:, None] - found["about"]  # (N, K, D)
    np.testing.assert_allclose(found["sx"], np.einsum("nk,nkd->kd", r, away), atol=1e-9)
    sxx = {
        "full": lambda: np.einsum("nk,nkd,nke->kde", r, away, away),
        "tied": lambda: away[:, 0].T @ away[:, 0],
        "diag": lambda: np.einsum("nk,nkd->kd", r, away**2),
        "spherical": lambda: np.einsum("nk,nkd->k", r, away**2),
    }[kind]()
    np.testing.assert_allclose(found["sxx"], sxx, atol=1e-8)
    np.testing.assert_allclose(found["log_norm"], again.score_samples(X).sum(), rtol=1e-9)
    np.testing.assert_allclose(found["entropy"], -(r * np.log(np.where(r > 0, r, 1))).sum(), rtol=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_bound_per_row_means_the_same_in_both(estimator):
    X = blobs(300, 3)
    model = fit(estimator(n_components=4, random_state=0, max_iter=5), X)
    assert model.lower_bound_per_row_ == pytest.approx(model.lower_bound_ / (1 if estimator is DPGMM else 300))
    assert model.n_active_ == len(np.unique(model.predict(X)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.floats(0, 1e4), min_size=1, max_size=12),
    alpha=st.floats(1e-3, 1e3),
)
def test_no_order_of_the_sticks_is_better_than_by_size(sizes, alpha):
    """The bound as a function of the order of given statistics: all but the sticks' own terms stay."""

    def sticks(nk):
        after = nk.flip(0).cumsum(0).flip(0) - nk
        gamma1, gamma2 = 1 + nk, alpha + after
        return float((torch.lgamma(gamma1) + torch.lgamma(gamma2) - torch.lgamma(gamma1 + gamma2)).sum())

    nk = torch.tensor(sizes, dtype=torch.float64)
    best = sticks(nk.sort(descending=True).values)
    for seed in range(8):
        order = torch.randperm(len(nk), generator=torch.Generator().manual_seed(seed))
        assert sticks(nk[order]) <= best + 1e-9 * max(1.0, abs(best))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_sorted_sticks_never_lower_the_bound_and_end_in_order(kind, start):
    for seed in range(6):
        X = blobs(300, 3, seed=seed)
        parameters = {"n_components": 7, "covariance_type": kind, "init_params": start, "random_state": seed}
        parameters |= {"dtype": "float64", "reg_covar": 0, "tol": 0, "max_iter": 30}
        model, plain = (fit(DPGMM(sort_sticks=sort, **parameters), X) for sort in (True, False))
        bounds = np.array(model.lower_bounds_)
        assert (np.diff(bounds) >= -1e-9 * np.abs(bounds[1:])).all()
        assert bounds[0] >= plain.lower_bounds_[0] - 1e-12  # the same responsibilities, in a better order
        nk = model.responsibilities_statistics_["nk"]
        assert (np.diff(nk) <= 1e-9).all()
        assert (np.bincount(model.predict(X), minlength=7) == model.counts_).all()


def test_sorted_sticks_stream():
    batches = np.array_split(blobs(400, 3), 4)
    model = DPGMM(6, random_state=0, sort_sticks=True, dtype="float64", reg_covar=0)
    for _ in range(4):
        for batch in batches:
            model.partial_fit(batch)
            assert (np.diff(model.responsibilities_statistics_["nk"]) <= 1e-9).all()
    bounds = np.array(model.lower_bounds_)
    assert (np.diff(bounds[3:]) >= -1e-9 * np.abs(bounds[4:])).all()
    assert model.counts_.sum() == 400
