"""Fitting batch by batch: the statistics of every batch are kept, and rounds over them converge to what fit finds."""

import copy
import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs

import fastclust
from fastclust import DPGMM, BayesianGaussianMixture, memo
from fastclust.blocks import Blocks

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
COMMON = {"n_components": 6, "random_state": 0, "dtype": "float64"}


def fit(model, X, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, **more)


def rounds(model, batches, count, **more):
    for _ in range(count):
        for batch in batches:
            model.partial_fit(batch, **more)
    return model


def separate(n=2000, d=4):
    """Rows around four centres that no component can share: whatever the path, it ends in one place."""
    random = np.random.default_rng(3)
    return 12 * np.eye(4, d)[random.integers(4, size=n)] + random.normal(size=(n, d))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("estimator", [DPGMM, BayesianGaussianMixture])
def test_ten_rounds_over_twenty_batches_end_where_fit_ends(estimator, weight_prior, kind):
    X = separate()
    batches = np.array_split(X, 20)
    parameters = COMMON | {"covariance_type": kind, "weight_concentration_prior_type": weight_prior}
    if kind == "tied":  # spare components split blobs while the one covariance is wide, and how depends on the path
        parameters["n_components"] = 4
    streamed = estimator(**parameters)
    streamed.partial_fit(batches[0])
    at_once = copy.deepcopy(streamed).set_params(warm_start=True, tol=1e-10, max_iter=1000)
    rounds(streamed, batches[1:], 1)
    rounds(streamed, batches, 9)
    at_once.fit(X)
    assert abs(streamed.lower_bound_per_row_ - at_once.lower_bound_per_row_) < 1e-6
    assert streamed.n_iter_ == 200
    np.testing.assert_allclose(streamed.means_, at_once.means_, atol=1e-3)
    assert (streamed.predict(X) == at_once.predict(X)).all()
    assert (streamed.counts_ == at_once.counts_).all()
    np.testing.assert_allclose(streamed.mean_prior_, at_once.mean_prior_, rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance_prior_, at_once.covariance_prior_, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_where_it_ends_a_pass_of_fit_changes_nothing(kind):
    """A fixed point of the one is a fixed point of the other, also where components overlap."""
    X = blobs(600, 3)
    batches = np.array_split(X, 5)
    model = rounds(DPGMM(covariance_type=kind, tol=1e-12, **COMMON), batches, 400)
    assert model.converged_
    before = {name: np.copy(getattr(model, name)) for name in ("means_", "covariances_", "weights_")}
    bound = model.lower_bound_
    fit(model.set_params(warm_start=True, max_iter=1, tol=0), X)
    assert model.lower_bound_ == pytest.approx(bound, abs=1e-9)
    for name, value in before.items():
        np.testing.assert_allclose(getattr(model, name), value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
def test_going_over_known_batches_never_lowers_the_bound(kind, weight_prior):
    X = blobs(700, 4)
    batches = np.array_split(X, 7)
    model = DPGMM(covariance_type=kind, weight_concentration_prior_type=weight_prior, reg_covar=0, **COMMON)
    rounds(model, batches, 8)
    bounds = np.array(model.lower_bounds_)
    assert len(bounds) == model.n_iter_ == 56
    assert (np.diff(bounds[6:]) >= -1e-9 * np.abs(bounds[7:])).all()
    assert bounds[-1] > bounds[6] + 1e-4


def test_the_first_round_of_one_batch_is_a_pass_of_fit():
    X = relu_features(500, 6)
    one = BayesianGaussianMixture(init_params="random_from_data", covariance_type="full", **COMMON)
    rounds(one, [X], 5)
    five = fit(BayesianGaussianMixture(max_iter=5, tol=0, init_params="random_from_data", **COMMON), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = Theirs(n_components=6, random_state=0, max_iter=5, tol=0, init_params="random_from_data").fit(X)
    for name in ("means_", "covariances_", "weights_", "lower_bounds_", "mean_precision_"):
        np.testing.assert_allclose(getattr(one, name), getattr(five, name), rtol=1e-8, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(getattr(one, name), getattr(theirs, name), rtol=1e-7, atol=1e-10, err_msg=name)


def test_how_rows_are_cut_into_blocks_is_no_part_of_a_batch(monkeypatch, tmp_path):
    X, weights = blobs(300, 3, 4), np.arange(300.0)
    cpu = torch.device("cpu")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        for given in (weights, None):
            whole = memo.fingerprint(Blocks(X, cpu, given))
            assert memo.fingerprint(Blocks([X[:120], X[120:]], cpu, given)) == whole
            monkeypatch.setattr("fastclust.blocks.READ_BYTES", 50 * 3 * 8)
            dataset = file.create_dataset(f"rows{given is None}", data=X)
            assert len(list(Blocks(dataset, cpu))) == 6
            assert memo.fingerprint(Blocks(dataset, cpu, given)) == whole
            assert memo.fingerprint(Blocks(X[::-1], cpu, given)) != whole
            assert memo.fingerprint(Blocks(X.astype(np.float32), cpu, given)) != whole
    assert memo.fingerprint(Blocks(X, cpu, weights[::-1].copy())) != memo.fingerprint(Blocks(X, cpu, weights))


def test_a_batch_is_known_by_its_content_or_its_name():
    X = blobs(400, 3)
    first, second = X[:200], X[200:]
    model = rounds(DPGMM(**COMMON), [first, second, first.copy(), np.asfortranarray(second)], 1)
    assert len(model.batch_statistics_) == 2
    assert model.counts_.sum() == 400
    model.partial_fit(first.astype(np.float32))  # other numbers
    model.partial_fit(first, sample_weight=np.full(200, 2.0))  # other weights
    assert len(model.batch_statistics_) == 4
    twice = DPGMM(**COMMON)
    for name in ("monday", "tuesday", "monday"):
        twice.partial_fit(first, batch=name)
    assert list(twice.batch_statistics_) == ["monday", "tuesday"]
    assert twice.counts_.sum() == 400
    twice.partial_fit(second, batch="monday")  # what was monday's is forgotten
    assert twice.counts_.sum() == 400
    np.testing.assert_allclose(twice.mean_prior_, X.mean(0))


def test_it_says_when_a_round_changed_nothing():
    batches = np.array_split(separate(400), 4)
    model = DPGMM(tol=1e-6, **COMMON)
    states = []
    for _ in range(10):
        for batch in batches:
            states.append(model.partial_fit(batch).converged_)
    assert not any(states[:7])  # a round after the first was not over yet
    assert states[-1]
    model.partial_fit(blobs(50, 4))
    assert not model.converged_


@pytest.mark.parametrize("kind", KINDS)
def test_one_map_for_all_batches_follows_their_range(kind):
    """The smallest and largest value come in other batches than the first: every kept statistic has to follow."""
    X = separate() * np.linspace(0.2, 1, 2000)[:, None] - 3
    batches = np.array_split(X, 4)
    parameters = COMMON | {"covariance_type": kind, "feature_range": (0, 10), "n_components": 4}
    model = rounds(DPGMM(**parameters), batches, 60)
    assert model.feature_offset_ == pytest.approx(X.min())
    assert model.feature_scale_ == pytest.approx(10 / (X.max() - X.min()))
    at_once = copy.deepcopy(model).set_params(warm_start=True, tol=1e-10, max_iter=300)
    at_once.fit(X)
    assert at_once.n_iter_ < 300
    assert model.lower_bound_ == pytest.approx(at_once.lower_bound_, abs=1e-6)
    np.testing.assert_allclose(model.covariance_prior_, at_once.covariance_prior_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_far_from_the_origin(kind):
    X = np.round(separate(800) * 2**20) / 2**20
    here, there = (
        rounds(DPGMM(covariance_type=kind, **COMMON | {"dtype": dtype}), np.array_split(X + by, 4), 5)
        for by, dtype in ((0.0, "float64"), (2.0**13, "float32"))
    )
    np.testing.assert_allclose(there.means_ - 2.0**13, here.means_, atol=1e-3)
    assert there.lower_bound_ == pytest.approx(here.lower_bound_, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_count_twice_are_rows_that_come_twice(kind):
    X = separate(300)
    weights = np.random.default_rng(0).integers(0, 3, size=300)
    parameters = COMMON | {"covariance_type": kind}
    start = DPGMM(**parameters).partial_fit(X[:100])
    weighted, repeated = copy.deepcopy(start), copy.deepcopy(start)
    for part in (slice(100, 200), slice(200, 300)):
        weighted.partial_fit(X[part], sample_weight=weights[part])
        repeated.partial_fit(np.repeat(X[part], weights[part], axis=0))
    for name in ("means_", "covariances_", "weights_", "lower_bound_", "counts_"):
        np.testing.assert_allclose(
            getattr(weighted, name), getattr(repeated, name), rtol=1e-9, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_was_saved_goes_on(kind, tmp_path):
    batches = np.array_split(blobs(400, 3), 4)
    model = rounds(DPGMM(covariance_type=kind, feature_range=(0, 10), **COMMON), batches, 1)
    model.save(tmp_path / "model.h5")
    restored = [fastclust.load(tmp_path / "model.h5"), pickle.loads(pickle.dumps(model))]
    rounds(model, batches, 1)
    for other in restored:
        rounds(other, batches, 1)
        assert len(other.batch_statistics_) == 4
        np.testing.assert_array_equal(other.means_, model.means_)
        np.testing.assert_array_equal(other.lower_bounds_, model.lower_bounds_)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_goes_on_with_more_rows(kind):
    X = separate(900)
    model = fit(DPGMM(covariance_type=kind, max_iter=300, tol=1e-8, **COMMON), X[:600])
    model.partial_fit(X[600:])
    assert next(iter(model.batch_statistics_)) == "fit"
    assert model.counts_.sum() == 900
    whole = fit(DPGMM(covariance_type=kind, max_iter=300, tol=1e-8, **COMMON), X)
    np.testing.assert_allclose(model.mean_prior_, whole.mean_prior_)
    np.testing.assert_allclose(np.sort(model.weights_), np.sort(whole.weights_), atol=0.01)


def test_a_start_without_a_pass_is_a_start():
    X = separate(900)
    model = fit(DPGMM(max_iter=0, **COMMON), X)
    assert model.batch_statistics_ == {}
    with pytest.raises(AttributeError, match="needs a pass"):
        model.responsibilities_statistics_  # noqa: B018
    begun = model.means_.copy()
    first = X[:300]
    model.partial_fit(first)
    again = fit(copy.deepcopy(model).set_params(max_iter=0), X)
    np.testing.assert_allclose(again.means_, begun, rtol=1e-12)
    posterior = fit(DPGMM(max_iter=0, **COMMON), X).set_params(warm_start=True, max_iter=1)
    np.testing.assert_allclose(model.means_, fit(posterior, first).means_, rtol=1e-9, atol=1e-12)


def test_tensors_stream_too():
    batches = [torch.from_numpy(part) for part in np.array_split(separate(400), 4)]
    model = rounds(BayesianGaussianMixture(**COMMON), batches, 2)
    plain = rounds(DPGMM(**COMMON, covariance_type="full", weight_concentration_prior=1 / 6), batches, 2)
    assert isinstance(model.means_, torch.Tensor)
    np.testing.assert_allclose(model.means_, plain.means_, rtol=1e-9)


def test_batches_that_cannot_be_fitted_are_named():
    with pytest.raises(ValueError, match="n_samples >= n_components"):
        DPGMM(6).partial_fit(blobs(5, 3))
    model = DPGMM(6).partial_fit(blobs(50, 3))
    before = model.means_.copy()
    for rows, message in (
        (blobs(50, 2), "expecting 3 features"),
        (np.full((3, 3), np.nan), "contains NaN"),
        (np.zeros((0, 3)), "0 sample"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(rows)
    with pytest.raises(ValueError, match="at least one non-zero"):
        model.partial_fit(blobs(5, 3), sample_weight=np.zeros(5))
    np.testing.assert_array_equal(model.means_, before)
    model.partial_fit(blobs(1, 3))  # one row is a batch
    assert model.counts_.sum() == 51
