"""BayesianGaussianMixture stands in for scikit-learn's: in its own tests and checks, by its signature and its types."""

import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from agreement import disagreement
from conftest import blobs, relu_features
from sklearn.mixture import BayesianGaussianMixture as Theirs
from sklearn.utils.estimator_checks import check_estimator

from fastclust import DPGMM
from fastclust import BayesianGaussianMixture as Ours

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")
TOLERANCE = 1e-7  # relative, in float64
ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_scikit_learns_own_tests_pass_on_our_class(tmp_path):
    """All 21, but for the one that calls private methods; the next test says the same through public ones."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-c", str(tmp_path / "pytest.ini"), "-p", "replace_scikit_learns_class"]
    command += ["-p", "no:cacheprovider", "-k", "not test_compare_covar_type", "-v", "--color=no", "--pyargs"]
    command += ["sklearn.mixture.tests.test_bayesian_mixture", "sklearn.mixture.tests.test_mixture"]
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": search, "PYTEST_ADDOPTS": "", "SKLEARN_SEED": "0"}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "collected 21 items / 1 deselected / 20 selected" in run.stdout
    assert run.stdout.count(" PASSED") == 20, run.stdout
    assert "20 passed, 1 deselected" in run.stdout.splitlines()[-1]


@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
def test_covariance_types_are_averages_of_the_full_one_after_the_first_m_step(weight_prior):
    """scikit-learn's test_compare_covar_type, with max_iter=0 for its private calls."""
    X = blobs(400, 3, 4)
    common = {"n_components": 8, "weight_concentration_prior_type": weight_prior, "max_iter": 0, "random_state": 0}
    full, tied, diag, spherical = (Ours(covariance_type=kind, **common).fit(X) for kind in KINDS)
    scatter = full.covariances_ * full.degrees_of_freedom_[:, None, None]
    across = diag.covariances_ * diag.degrees_of_freedom_[:, None]
    assert len(np.unique(full.degrees_of_freedom_)) > 1
    np.testing.assert_allclose(tied.covariances_ * tied.degrees_of_freedom_, scatter.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(across, np.diagonal(scatter, axis1=1, axis2=2), rtol=1e-9)
    np.testing.assert_allclose(spherical.covariances_ * spherical.degrees_of_freedom_, across.mean(1), rtol=1e-9)


CHECKED = {
    "drop-in": Ours(),
    "native, one component": DPGMM(1),
    # Sorted, for with repeated rows k-means++ finds the same two seeds in another order.
    "native, two components": DPGMM(2, sort_sticks=True),
}


@pytest.mark.parametrize("estimator", CHECKED.values(), ids=list(CHECKED))
def test_scikit_learns_checks_pass(estimator):
    """Whatever scikit-learn's own class passes, and more, for ours take sample_weight.

    DPGMM() has 50 components, and the checks have a dozen rows.
    """

    def outcomes(estimator: object) -> dict[str, set[str]]:
        results = check_estimator(estimator, on_fail=None, on_skip=None)
        return {
            status: {result["check_name"] for result in results if result["status"] == status}
            for status in ("passed", "failed", "skipped", "xfail")
        }

    theirs, ours = outcomes(Theirs()), outcomes(estimator)
    assert len(theirs["passed"]) >= 39
    assert ours["failed"] <= theirs["failed"]
    assert ours["skipped"] <= theirs["skipped"]
    assert not ours["xfail"]
    assert ours["passed"] >= theirs["passed"]
    assert "check_sample_weight_equivalence_on_dense_data" in ours["passed"]


def test_the_signatures_begin_with_scikit_learns():
    methods = ("__init__", "fit", "fit_predict", "predict", "predict_proba", "score", "score_samples", "sample")
    for name in methods:
        theirs, ours = (
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()]
            for kind in (Theirs, Ours)
        )
        assert ours[: len(theirs)] == theirs, name
        assert all(default is not inspect.Parameter.empty for _, _, default in ours[len(theirs) :]), name
    assert Theirs().get_params().items() <= Ours().get_params().items()
    assert {name for name in dir(Theirs()) if not name.startswith("_")} <= set(dir(Ours()))
    assert repr(Ours(n_components=3, tol=1)) == repr(Theirs(n_components=3, tol=1))
    assert Ours().__sklearn_tags__() == Theirs().__sklearn_tags__()


def kind_of(value: object) -> object:
    """Return the type of a value, and of an array its dtype and shape; of a list, of what is in it."""
    if isinstance(value, (tuple, list)):
        return type(value), tuple(kind_of(part) for part in value)
    return type(value), getattr(value, "dtype", None), getattr(value, "shape", None)


def given_priors(kind: str, dtype: type) -> dict:
    covariance = {"diag": np.full(3, 2.0), "spherical": np.float64(2)}.get(kind, 2 * np.eye(3))
    return {
        "weight_concentration_prior": dtype(2),
        "mean_precision_prior": dtype(2),
        "mean_prior": np.ones(3, dtype=dtype),
        "degrees_of_freedom_prior": dtype(5),
        "covariance_prior": covariance.astype(dtype),
    }


@pytest.mark.filterwarnings("ignore:covariance is not symmetric")  # of scikit-learn's float32 starts
@pytest.mark.parametrize("priors", [None, np.float64, np.float32, np.int64], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64"])
def test_attributes_and_results_have_scikit_learns_types(dtype, priors):
    """Types, dtypes and shapes, with two exceptions.

    Of tied covariance the bounds are numbers, and scikit-learn's arrays of one. What float32 rows leave after no pass
    is float64, and scikit-learn's mostly float32; after any pass that is float64 as well.
    """
    X = (blobs(60, 3, 3) * 4).astype(dtype)
    for kind, weight_prior, passes in itertools.product(KINDS, WEIGHT_PRIORS, (0, 3)):
        parameters = {
            "covariance_type": kind,
            "weight_concentration_prior_type": weight_prior,
            "max_iter": passes,
            "n_components": 2,
            "random_state": 0,
            "init_params": "random_from_data",
            **({} if priors is None else given_priors(kind, priors)),
        }
        theirs, ours = (estimator(**parameters).fit(X) for estimator in (Theirs, Ours))
        names = [name for name in vars(theirs) if name.endswith("_")]
        assert len(names) == 18
        for name in names:
            expected, found = (kind_of(getattr(model, name)) for model in (theirs, ours))
            if kind == "tied" and passes and name in ("lower_bound_", "lower_bounds_"):
                number = kind_of(np.float64(0))
                expected = (list, (number,) * theirs.n_iter_) if name == "lower_bounds_" else number
            if passes or dtype != "float32" or "prior" in name:
                assert found == expected, (name, kind, weight_prior, passes)
        for method in ("predict", "predict_proba", "score_samples", "score", "fit_predict"):
            assert kind_of(getattr(ours, method)(X)) == kind_of(getattr(theirs, method)(X)), method
        assert kind_of(ours.sample(7)) == kind_of(theirs.sample(7))


def test_names_of_features_and_set_output_are_as_in_scikit_learn():
    X = pd.DataFrame(blobs(40, 3), columns=list("abc"))
    theirs, ours = (estimator(n_components=2).fit(X) for estimator in (Theirs, Ours))
    assert list(ours.feature_names_in_) == list(theirs.feature_names_in_) == ["a", "b", "c"]
    assert ours.feature_names_in_.dtype == theirs.feature_names_in_.dtype
    assert not hasattr(Ours().fit(X.to_numpy()), "feature_names_in_")
    for name in ("set_output", "get_feature_names_out", "transform"):
        assert hasattr(ours, name) == hasattr(theirs, name)
    assert type(ours.predict(X)) is type(theirs.predict(X)) is np.ndarray


def pair(X: np.ndarray, **parameters: object) -> tuple[Ours, Theirs]:
    """Return both estimators fitted to X, from the same start."""
    common = {"n_components": 4, "random_state": 0, "tol": 0.0, "max_iter": 5} | parameters
    theirs = {name: value for name, value in common.items() if name != "dtype"}
    return Ours(**common).fit(X), Theirs(**theirs).fit(X)


def assert_same(ours: Ours, theirs: Theirs, X: np.ndarray) -> None:
    found = disagreement(ours, theirs, X)
    assert max(found.values()) < TOLERANCE, found
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    assert (ours.predict(X) == theirs.predict(X)).all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_passes_leave_scikit_learns_start(kind, start):
    """With several starts too: the last of them is left, for without a pass there is no bound to choose by."""
    for X in (blobs(150, 4), relu_features(150, 5)):
        for starts in (1, 3):
            ours, theirs = pair(X, covariance_type=kind, init_params=start, max_iter=0, n_init=starts)
            assert_same(ours, theirs, X)
            assert ours.lower_bound_ == theirs.lower_bound_ == -np.inf
            assert ours.lower_bounds_ == theirs.lower_bounds_ == []
    first, _ = pair(X, covariance_type=kind, init_params=start, max_iter=0)
    assert not np.array_equal(first.means_, ours.means_)


ROWS = blobs(150, 4) * 3
NUMBERS = {
    "float16": (ROWS * 100).astype(np.float16),
    "int16": (ROWS * 1000).astype(np.int16),
    "int8": (ROWS * 5).round().clip(-128, 127).astype(np.int8),
    "uint8": (ROWS * 5 + 100).round().clip(0, 255).astype(np.uint8),
    "bool": ROWS > 0,
    "big-endian": ROWS.astype(">f8"),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_rows_of_every_dtype_have_scikit_learns_start(numbers, start):
    X = NUMBERS[numbers]
    ours, theirs = pair(X, covariance_type="diag", init_params=start, max_iter=0, dtype="float64")
    assert_same(ours, theirs, X.astype(np.float64))  # scikit-learn's predict squares integers as they are
    weights = np.random.default_rng(0).integers(0, 3, size=len(X))
    once = Ours(**ours.get_params()).fit(X[weights > 0])
    np.testing.assert_allclose(Ours(**ours.get_params()).fit(X, sample_weight=weights > 0).means_, once.means_)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_several_starts_is_scikit_learns(kind, start):
    X = blobs(200, 3, 8, seed=5)
    common = {"n_components": 4, "tol": 0.0, "max_iter": 5, "covariance_type": kind, "init_params": start}
    random = np.random.RandomState(0)  # handed from fit to fit, it makes the starts that one fit makes
    singles = [Theirs(random_state=random, **common).fit(X).lower_bound_ for _ in range(4)]
    assert np.ptp(singles) > 0.01  # nats
    ours, theirs = pair(X, covariance_type=kind, init_params=start, n_init=4)
    assert_same(ours, theirs, X)
    assert ours.lower_bound_ == pytest.approx(np.max(singles), rel=1e-9)


@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_warm_starts_go_on_as_scikit_learns_do(kind, weight_prior):
    """Across other rows, another number of passes, and convergence, which counts from the last fit's bound."""
    X, other = blobs(300, 3), blobs(200, 3, seed=1)
    common = {"n_components": 4, "covariance_type": kind, "weight_concentration_prior_type": weight_prior}
    ours, theirs = (kind(**common, random_state=0, warm_start=True, max_iter=2, tol=1e-3) for kind in (Ours, Theirs))
    for rows, passes in ((X, 2), (X, 1), (other, 3), (X, 0), (X, 300), (X, 300)):
        for model in (ours, theirs):
            model.set_params(max_iter=passes).fit(rows)
        assert_same(ours, theirs, rows)
    assert ours.n_iter_ == 1
    assert ours.converged_


@pytest.mark.parametrize("kind", KINDS)
def test_fit_predict_is_predict_after_fit(kind):
    X = relu_features(300, 5)
    common = {"n_components": 6, "covariance_type": kind, "random_state": 0, "max_iter": 4}
    labels = Ours(**common).fit_predict(X)
    assert (labels == Ours(**common).fit(X).predict(X)).all()
    assert (labels == Theirs(**common).fit_predict(X)).all()
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize(("verbose", "interval"), [(0, 1), (1, 1), (1, 3), (True, 10), (2, 1), (2, 4), (3, 2)])
def test_what_is_printed_is_scikit_learns(verbose, interval, capsys):
    X = blobs(200, 3, 3)
    printed = []
    for passes, starts, warm in ((7, 2, False), (200, 1, True), (0, 2, False)):
        for estimator in (Theirs, Ours):
            model = estimator(
                n_components=3,
                random_state=0,
                init_params="random",
                max_iter=passes,
                n_init=starts,
                warm_start=warm,
                verbose=verbose,
                verbose_interval=interval,
            )
            model.fit(X)
            model.fit(X)
            printed.append(re.sub(r"\d+\.\d{5}s", "<seconds>", capsys.readouterr().out))
    for theirs, ours in zip(printed[::2], printed[1::2], strict=True):
        assert ours == theirs
    assert bool(printed[0]) == bool(verbose)
    assert ("<seconds>" in printed[0]) == (verbose >= 2)
