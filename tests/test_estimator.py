"""The estimator as a user meets it: input kinds, errors, attributes, files, and what a fit promises."""

import json
import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from hypothesis import given, settings
from hypothesis import strategies as st
from sealing import reseal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import BayesianGaussianMixture

import fastclust
from fastclust import DPGMM
from fastclust.kernels import torch as plain

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")


def fit(X, **parameters) -> DPGMM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DPGMM(**{"n_components": 6, "random_state": 0, "max_iter": 30} | parameters).fit(X)


@pytest.mark.parametrize("kind", KINDS)
def test_separate_blobs_are_found_and_the_rest_of_the_components_die(kind):
    random = np.random.default_rng(1)
    truth = random.integers(4, size=3000)
    X = random.normal(size=(4, 3))[truth] * 20 + random.normal(size=(3000, 3))
    model = fit(X, n_components=12, covariance_type=kind, max_iter=200)
    labels = model.predict(X)
    assert model.converged_
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == model.n_active_  # no label in two blobs
    if kind == "tied":  # it splits blobs while the one covariance is still wide, as scikit-learn's does
        assert 4 <= model.n_active_ < 12
    else:
        assert model.n_active_ == 4
        np.testing.assert_allclose(np.sort(model.weights_)[-4:], np.sort(np.bincount(truth)) / 3000, atol=0.01)
    assert model.weights_.sum() == pytest.approx(1)
    assert model.counts_.sum() == 3000


@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["kmeans", "random", "random_from_data"])
def test_the_bound_never_falls(kind, weight_prior, start):
    for seed, X in enumerate((blobs(400, 4), relu_features(400, 7))):
        model = fit(
            X,
            covariance_type=kind,
            weight_concentration_prior_type=weight_prior,
            init_params=start,
            random_state=seed,
            dtype="float64",
            tol=0,
            reg_covar=0 if kind == "spherical" else 1e-6,
        )
        bounds = np.array(model.lower_bounds_)
        assert (np.diff(bounds) >= -1e-9 * np.abs(bounds[1:])).all()
        assert len(bounds) == model.n_iter_ == 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_tolerance_means_the_same_for_any_number_of_rows(kind):
    X = blobs(500, 3)
    once, thrice = (fit(rows, covariance_type=kind, tol=1e-3, max_iter=100) for rows in (X, np.concatenate([X] * 3)))
    assert once.converged_
    assert thrice.converged_
    assert abs(once.lower_bounds_[-1] - once.lower_bounds_[-2]) < 1e-3
    # Per row, the priors weigh less where there are more rows, and the rest is the same.
    assert thrice.lower_bound_ == pytest.approx(once.lower_bound_, abs=0.3)


def test_inputs_of_every_kind_give_one_fit(tmp_path):
    X = relu_features(600, 8).astype(np.float32)
    model = fit(X)
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["rows"] = X
    np.save(tmp_path / "rows.npy", X)
    readonly = X.copy()
    readonly.flags.writeable = False
    with h5py.File(tmp_path / "rows.h5") as file:
        inputs = {
            "columns first": np.asfortranarray(X),
            "every second": np.repeat(X, 2, axis=0)[::2],
            "backwards twice": X[::-1].copy()[::-1],
            "read only": readonly,
            "big endian": X.astype(">f4"),
            "memory map": np.load(tmp_path / "rows.npy", mmap_mode="r"),
            "h5py": file["rows"],
            "torch": torch.from_numpy(X),
            "torch with a gradient": torch.from_numpy(X.copy()).requires_grad_(),
            "parts": [X[:100], X[100:101], X[101:]],
            "lists": X.tolist(),
            "float64": X.astype(np.float64),
        }
        for name, rows in inputs.items():
            other = fit(rows)
            np.testing.assert_allclose(other.means_, model.means_, rtol=1e-4, atol=1e-5, err_msg=name)
            assert (np.asarray(other.predict(rows)) == model.predict(X)).all(), name


def test_integers_and_half_precision():
    X = np.round(blobs(500, 4) * 10)
    model = fit(X)
    for rows in (X.astype(np.int16), X.astype(np.float16), X.astype(np.int64), torch.from_numpy(X).bfloat16()):
        assert (np.asarray(fit(rows).predict(rows)) == model.predict(X)).mean() > 0.99
    assert (fit(X > 0).predict(X > 0) >= 0).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_torch_in_torch_out():
    X = torch.from_numpy(blobs(300, 3))
    model = fit(X)
    for result, shape in (
        (model.predict(X), (300,)),
        (model.predict_proba(X), (300, 6)),
        (model.score_samples(X), (300,)),
        (model.fit_predict(X), (300,)),
    ):
        assert isinstance(result, torch.Tensor)
        assert result.shape == shape
        assert result.device == X.device
    for result in (model.predict(X.numpy()), model.predict_proba(X.numpy()), model.score_samples(X.numpy())):
        assert isinstance(result, np.ndarray)
    assert model.predict(X.numpy()).dtype == np.int64
    assert isinstance(model.means_, np.ndarray)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_agree_with_one_another(kind):
    X = blobs(700, 4)
    model = fit(X, covariance_type=kind, dtype="float64")
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (proba.argmax(1) == model.predict(X)).all()
    assert model.score(X) == pytest.approx(model.score_samples(X).mean())
    assert (clone(model).fit_predict(X) == model.predict(X)).all()
    assert (np.bincount(model.predict(X), minlength=6) == model.counts_).all()
    for rows in (1, 7, 10_000):  # blocks change nothing
        assert (fit(X, covariance_type=kind, dtype="float64", block_rows=rows).predict(X) == model.predict(X)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_mixtures_moments(kind):
    X = blobs(2000, 3) * 7 + 100
    model = fit(X, covariance_type=kind, feature_range=(0, 10))
    drawn, components = model.sample(20_000)
    assert drawn.shape == (20_000, 3)
    assert np.bincount(components, minlength=6) / 20_000 == pytest.approx(model.weights_, abs=0.02)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=0.1 * X.std())
    np.testing.assert_allclose(drawn.std(0), X.std(0), rtol=0.1)
    assert (model.sample(5)[0] == fit(X, covariance_type=kind, feature_range=(0, 10)).sample(5)[0]).all()
    with pytest.raises(ValueError, match="at least one sample"):
        model.sample(0)


def test_a_feature_range_is_one_affine_map_of_all_features():
    X = relu_features(500, 5) * 37 - 4
    model = fit(X, feature_range=(0, 10))
    mapped = (X - X.min()) * 10 / (X.max() - X.min())
    plain = fit(mapped)
    assert model.feature_offset_ == pytest.approx(X.min())
    np.testing.assert_allclose(model.means_, plain.means_, atol=1e-4)
    np.testing.assert_allclose(model.covariances_, plain.covariances_, rtol=1e-3)
    assert (model.predict(X) == plain.predict(mapped)).all()
    assert model.means_.min() >= -1e-6
    assert model.means_.max() <= 10
    constant = fit(np.full((20, 3), 5.0), feature_range=(0, 10), n_components=2)
    assert constant.feature_scale_ == 1
    with pytest.raises(ValueError, match="must rise"):
        fit(X, feature_range=(10, 0))


def test_the_same_seed_gives_the_same_bits():
    X = relu_features(3000, 9)
    one, two, other = fit(X), fit(X), fit(X, random_state=1)
    assert (one.means_ == two.means_).all()
    assert one.lower_bounds_ == two.lower_bounds_
    assert not np.array_equal(one.means_, other.means_)


def test_the_best_of_several_starts_is_kept():
    X = blobs(300, 2, 9)
    random = np.random.RandomState(4)
    singles = [fit(X, init_params="random_from_data", random_state=random).lower_bound_ for _ in range(4)]
    assert fit(X, init_params="random_from_data", random_state=4, n_init=4).lower_bound_ == pytest.approx(max(singles))


def test_a_warm_start_goes_on():
    X = blobs(500, 3)
    whole = fit(X, max_iter=12, tol=0, dtype="float64")
    model = DPGMM(6, random_state=0, max_iter=6, tol=0, warm_start=True, dtype="float64")
    with pytest.warns(ConvergenceWarning, match="max_iter = 6"):
        model.fit(X)
    with pytest.warns(ConvergenceWarning):
        model.fit(X)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-9)
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_[6:], rtol=1e-12)
    with pytest.raises(ValueError, match="X has 2 features"):
        model.fit(X[:, :2])


def test_no_passes_leave_the_start():
    model = DPGMM(3, max_iter=0, random_state=0).fit(blobs(100, 2))
    assert model.n_iter_ == 0
    assert not model.converged_
    assert model.lower_bounds_ == []
    assert model.predict(blobs(100, 2)).shape == (100,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
def test_a_saved_model_is_the_same_model(kind, weight_prior, tmp_path):
    X = relu_features(400, 5)
    model = fit(X, covariance_type=kind, weight_concentration_prior_type=weight_prior, feature_range=(0, 10))
    model.save(tmp_path / "model.h5")
    loaded = fastclust.load(tmp_path / "model.h5")
    assert set(vars(loaded)) == set(vars(model))
    for name, value in vars(model).items():
        np.testing.assert_equal(getattr(loaded, name), value, err_msg=name)
        assert type(getattr(loaded, name)) is type(value) or np.isscalar(value), name
    # Products may differ in the last bit with where in memory their factors lie.
    np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), rtol=1e-5, atol=1e-7)
    assert (loaded.predict(X) == model.predict(X)).all()
    loaded.save(tmp_path / "model.h5")  # over itself
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]
    assert (pickle.loads(pickle.dumps(model)).predict(X) == model.predict(X)).all()


NUMPYS = [
    ("feature_range", (np.float32(0), np.float32(10))),
    ("feature_range", [0, 10]),
    ("degrees_of_freedom_prior", np.int64(6)),
    ("weight_concentration_prior", np.float32(0.5)),
    ("sort_sticks", np.True_),
    ("mean_prior", torch.zeros(3)),
]


@pytest.mark.parametrize(("name", "value"), NUMPYS, ids=str)
def test_a_model_whose_parameters_are_numpys_numbers_or_a_tensor_is_saved(name, value, tmp_path):
    X = blobs(200, 3)
    model = fit(X, **{name: value})
    model.save(tmp_path / "model.h5")
    loaded = fastclust.load(tmp_path / "model.h5")
    np.testing.assert_array_equal(getattr(loaded, name), value)
    assert (loaded.fit(X).predict(X) == model.predict(X)).all()


def test_a_tensor_that_numpy_cannot_look_at_is_saved_as_a_parameter(tmp_path):
    """As one on a GPU is."""
    model = fit(blobs(200, 3)).set_params(mean_prior=torch.zeros(3, requires_grad=True))
    model.save(tmp_path / "model.h5")
    np.testing.assert_array_equal(fastclust.load(tmp_path / "model.h5").mean_prior, np.zeros(3))


def test_whether_a_fit_converged_is_a_bool_that_files_hold(tmp_path):
    X = blobs(200, 3)
    drop_in = fastclust.BayesianGaussianMixture(n_components=3, random_state=0, tol=1.0, warm_start=True)
    model = drop_in.fit(X).fit(X, checkpoint=fastclust.Checkpoint(tmp_path / "fit.h5"))
    assert model.converged_ is True
    model.save(tmp_path / "model.h5")
    for _ in range(9):
        drop_in.partial_fit(X)
    assert drop_in.converged_ is True
    drop_in.save(tmp_path / "model.h5")
    assert fastclust.load(tmp_path / "model.h5").converged_ is True


def test_files_that_are_no_models_are_refused(tmp_path):
    X = blobs(100, 2)
    path = tmp_path / "model.h5"
    with pytest.raises(FileNotFoundError, match="no such file"):
        fastclust.load(path)
    with pytest.raises(IsADirectoryError):
        fastclust.load(tmp_path)
    with pytest.raises(NotFittedError):
        DPGMM().save(path)
    fit(X, n_components=2).save(path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is cut short" if size > 9 else "is not an HDF5 file"):
            fastclust.load(path)
    path.write_text(json.dumps({"means": 1}))
    with pytest.raises(ValueError, match="is not an HDF5 file: expected a model"):
        fastclust.load(path)
    path.write_bytes(whole)
    reseal(path, kind="fastclust.features")
    with pytest.raises(ValueError, match=r"is a fastclust\.features file: expected a model"):
        fastclust.load(path)
    path.write_bytes(whole)
    reseal(path, version=99)
    with pytest.raises(ValueError, match="version 99"):
        fastclust.load(path)


NOT_ROWS = [
    (np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]]), ValueError, "contains NaN: nan in row 0, feature 1"),
    (np.array([[1.0, 2.0], [2.0, np.inf], [4.0, 5.0]]), ValueError, "contains infinity: inf in row 1, feature 1"),
    (np.zeros(5), ValueError, "2D array"),
    (np.zeros((2, 3, 4)), ValueError, "dim 3"),
    (np.zeros((1, 3)), ValueError, "minimum of 2"),
    (np.zeros((0, 3)), ValueError, "0 sample"),
    (np.zeros((5, 0)), ValueError, "0 feature"),
    (np.zeros((5, 2), dtype=complex), ValueError, "[Cc]omplex"),
    (np.array([["a", "b"]] * 5), ValueError, "could not convert string to float"),
    ([np.zeros((3, 2)), np.zeros((3, 4))], ValueError, "different numbers of features"),
    (np.full((50, 2), 1e30) * np.arange(50)[:, None], ValueError, "overflow float32"),
]


@pytest.mark.parametrize(("rows", "kind", "message"), NOT_ROWS, ids=range(len(NOT_ROWS)))
def test_rows_that_cannot_be_fitted_are_named(rows, kind, message):
    with pytest.raises(kind, match=message):
        DPGMM(2).fit(rows)


def test_nan_is_named_when_predicting_too():
    X = blobs(50, 3)
    model = fit(X, n_components=2)
    X[17, 2] = np.nan
    for method in (model.predict, model.score_samples, model.score, model.predict_proba):
        with pytest.raises(ValueError, match="nan in row 17, feature 2"):
            method(X)


@pytest.mark.parametrize("estimator", [DPGMM, fastclust.BayesianGaussianMixture])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_beyond_the_arithmetics_range_are_named_when_predicting(dtype, estimator):
    X = blobs(50, 3)
    model = estimator(n_components=2, covariance_type="diag", random_state=0, dtype=dtype, tol=1).fit(X)
    X[17] = np.sqrt(np.finfo(dtype).max) * 10
    ways = "scale the rows" + " or dtype='float64'" * (dtype == "float32")
    for method in (model.predict, model.score_samples, model.score, model.predict_proba):
        with pytest.raises(ValueError, match=f"the log-density of row 17 overflows {dtype}: {ways}$"):
            method(X)


def test_a_loaded_model_can_be_fitted_again_and_its_file_cannot_replace_methods(tmp_path):
    X = blobs(50, 3)
    fit(X, n_components=2, feature_range=(0, 10), mean_prior=np.zeros(3)).save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file["fitted"]["predict"] = 1.0
        file["fitted"]["__init__"] = 1.0
    reseal(tmp_path / "model.h5")
    loaded = fastclust.load(tmp_path / "model.h5")
    assert loaded.fit(X).predict(X).shape == (50,)


def test_other_widths_and_unfitted_models_are_named():
    X = blobs(50, 3)
    model = fit(X, n_components=2)
    for method in (model.predict, model.predict_proba, model.score_samples, model.score):
        with pytest.raises(ValueError, match="X has 2 features, but DPGMM is expecting 3 features"):
            method(X[:, :2])
        with pytest.raises(NotFittedError):
            getattr(DPGMM(), method.__name__)(X)


BAD_PARAMETERS = [
    ({"n_components": 0}, "n_components"),
    ({"covariance_type": "round"}, "covariance_type"),
    ({"weight_concentration_prior": 0}, "weight_concentration_prior"),
    ({"weight_concentration_prior_type": "pitman_yor"}, "weight_concentration_prior_type"),
    ({"degrees_of_freedom_prior": 1.5}, "greater than 2, but got 1.5"),
    ({"mean_prior": [0.0]}, "mean_prior"),
    ({"covariance_prior": [1.0, -1.0, 1.0]}, "should be positive"),
    ({"covariance_prior": -np.eye(3), "covariance_type": "full"}, "positive-definite"),
    ({"tol": -1}, "tol"),
    ({"max_iter": -1}, "max_iter"),
    ({"init_params": "zeros"}, "init_params"),
    ({"dtype": "float16"}, "dtype"),
    ({"block_rows": 0}, "block_rows"),
    ({"precision": "low"}, "precision"),
    ({"feature_range": (0, 1, 2)}, "must rise from one number to another"),
    ({"feature_range": [1]}, "must rise from one number to another"),
    ({"backend": "jax"}, "backend"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS, ids=[str(next(iter(p))) for p, _ in BAD_PARAMETERS])
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        DPGMM(**{"n_components": 2} | parameters).fit(blobs(50, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_covariance_type_that_changed_after_the_fit_is_named(other, kind, tmp_path):
    X = blobs(60, 3)
    model = fit(X, n_components=3, covariance_type=kind).set_params(covariance_type=other, warm_start=True, tol=1)
    for use in (
        lambda: model.predict(X),
        lambda: model.predict_proba(X),
        lambda: model.score(X),
        lambda: model.sample(),
        lambda: model.save(tmp_path / "model.h5"),
        lambda: model.responsibilities_statistics_,
        lambda: model.partial_fit(X, batch="more"),
        lambda: model.fit(X),
        model.prune,
    ):
        if other == kind:
            use()
            continue
        with pytest.raises(ValueError, match=f"covariance_type is '{other}' now, and .* fitted with '{kind}': set it"):
            use()
    assert model.set_params(warm_start=False).fit(X).predict(X).shape == (60,)


def test_a_weight_of_all_rows_is_one_for_each():
    X = blobs(60, 3)
    model = DPGMM(3, random_state=0, tol=1e-3)
    expected = model.fit(X, sample_weight=np.full(60, 2.0)).means_
    for weight in (2, 2.0, np.float64(2)):
        np.testing.assert_array_equal(model.fit(X, sample_weight=weight).means_, expected)
    with pytest.raises(ValueError, match="Negative values"):
        model.fit(X, sample_weight=-1.0)


def test_devices_and_backends_are_what_was_asked_for(caplog):
    X = blobs(50, 3)
    with caplog.at_level("INFO", logger="fastclust"):
        model = fit(X, n_components=2, device="cpu")
    assert model.backend_ == "numba"
    assert model.device_ == "cpu"
    assert "backend numba on cpu" in caplog.text
    assert fit(X, n_components=2, backend="torch").backend_ == "torch"
    oracle = fit(X, n_components=2, backend="reference", device="cpu")
    assert oracle.backend_ == "reference"
    np.testing.assert_allclose(oracle.means_, model.means_, rtol=1e-3, atol=1e-3)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA device"):
            fit(X, device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_backend_that_is_named_is_the_one_that_passed_over_the_rows(kind, dtype, monkeypatch, caplog):
    X = blobs(50, 3)
    passes = []
    whole = plain.Plan.add
    monkeypatch.setattr(plain.Plan, "add", lambda *given: (passes.append(1), whole(*given))[1])
    with caplog.at_level("INFO", logger="fastclust"):
        model = fit(X, n_components=2, device="cpu", covariance_type=kind, dtype=dtype, max_iter=3)
    left = kind == "tied"
    assert model.backend_ == ("torch" if left else "numba")
    assert len(passes) == (model.n_iter_ if left else 0)
    assert (f"; not numba: {kind} covariance has no numba kernel" in caplog.text) == left


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_rows_give_finite_models(kind, dtype):
    random = np.random.default_rng(0)
    cases = {
        "all rows equal": np.full((30, 4), 3.7),
        "all zero": np.zeros((30, 4)),
        "N = K": random.normal(size=(5, 4)),
        "one feature": random.normal(size=(30, 1)),
        "columns of very different scale": random.normal(size=(200, 4)) * 10.0 ** np.array([-6, -2, 2, 6]),
        "two copies of a column": np.repeat(random.normal(size=(100, 2)), 2, axis=1),
        "far, tight and dead": random.normal(size=(100, 4)) * [1, 1e-3, 0, 1] + [1e4, 5, 3, 0],
    }
    for name, X in cases.items():
        model = fit(X, n_components=5, covariance_type=kind, dtype=dtype)
        for attribute in ("means_", "covariances_", "weights_", "precisions_cholesky_", "lower_bounds_"):
            assert np.isfinite(getattr(model, attribute)).all(), (name, attribute)
        assert np.isfinite(model.score_samples(X)).all(), name
    assert DPGMM(1).fit(cases["one feature"]).n_active_ == 1


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(30, 120),
    d=st.integers(1, 8),
    k=st.integers(1, 6),
    kind=st.sampled_from(KINDS),
    weight_prior=st.sampled_from(WEIGHT_PRIORS),
    seed=st.integers(0, 99),
)
def test_any_fit_has_a_bound_that_never_falls_and_weights_that_sum_to_one(n, d, k, kind, weight_prior, seed):
    X = blobs(n, d, 3, seed)
    model = fit(
        X,
        n_components=min(k, n),
        covariance_type=kind,
        weight_concentration_prior_type=weight_prior,
        random_state=seed,
        dtype="float64",
        max_iter=15,
    )
    bounds = np.array(model.lower_bounds_)
    assert (np.diff(bounds) >= -1e-9 * np.maximum(np.abs(bounds[1:]), 1)).all()
    assert model.weights_.sum() == pytest.approx(1)
    assert 1 <= model.n_active_ <= min(k, n)


def test_where_the_rows_are_singular_the_bound_may_fall_as_scikit_learns_does():
    """reg_covar is added to every covariance and is no part of the bound: across the line of two rows it is all."""
    X = np.random.default_rng(0).normal(size=(2, 2))
    common = {"n_components": 2, "covariance_type": "full", "init_params": "random_from_data", "random_state": 1}
    ours = fit(X, dtype="float64", tol=0, max_iter=15, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = BayesianGaussianMixture(weight_concentration_prior=0.2, tol=0, max_iter=15, **common).fit(X)
    np.testing.assert_allclose(np.array(ours.lower_bounds_) * 2, theirs.lower_bounds_, rtol=1e-8)
    assert np.diff(theirs.lower_bounds_).min() < 0


def test_k_means_of_many_rows_says_that_it_samples(caplog, monkeypatch):
    from fastclust import initialise

    monkeypatch.setattr(initialise, "SEED_ROWS", 100)
    monkeypatch.setattr(initialise, "KMEANS_ROWS", 400)
    X = blobs(1000, 3)
    with caplog.at_level("INFO", logger="fastclust"):
        sampled = fit(X, max_iter=100)
    assert "k-means++ seeds come from 120 of 1000 rows" in caplog.text
    assert "k-means runs on 400 of 1000 rows" in caplog.text
    monkeypatch.undo()
    assert sampled.lower_bound_ == pytest.approx(fit(X, max_iter=100).lower_bound_, abs=0.5)
