"""Whatever the rows, priors and parameters, the drop-in class fits what scikit-learn's does, to 1e-7 in float64."""

from dataclasses import dataclass

import numpy as np
import pytest
from agreement import apart, disagreement
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.mixture import BayesianGaussianMixture as Theirs

from fastclust import DPGMM
from fastclust import BayesianGaussianMixture as Ours

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")
TOLERANCE = {"float64": 1e-7, "float32": 1e-3}
CONDITION = {"float64": 1e8, "float32": 1e4}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
thorough = settings(deadline=None, derandomize=True, max_examples=150)


def rows_of(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """Return (n, d) rows: blobs; as a ReLU leaves them, one channel dead; moved a few deviations; whole numbers."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(4, d))[random.integers(4, size=n)] * 3 + random.normal(size=(n, d))
    if kind == "relu":
        rows = np.maximum(rows, 0)
        rows[:, d // 2] = 0
    elif kind == "moved":
        rows += random.uniform(-8, 8, size=d) * rows.std(0)
    elif kind == "whole":
        rows = np.round(rows)
    return rows


@dataclass(frozen=True)
class Problem:
    X: np.ndarray
    parameters: dict


@st.composite
def problems(draw: st.DrawFn, most_starts: int = 3, tolerances: tuple[float, ...] = (0.0, 1e-3, 1.0)) -> Problem:
    """Draw rows and every parameter that a fit depends on."""
    n, d = draw(st.integers(2, 80)), draw(st.integers(1, 6))
    k = n if n <= 8 and draw(st.booleans()) else draw(st.integers(1, min(n, 7)))
    seed = draw(st.integers(0, 10_000))
    kind = draw(st.sampled_from(KINDS))
    parameters = {
        "n_components": k,
        "covariance_type": kind,
        "weight_concentration_prior_type": draw(st.sampled_from(WEIGHT_PRIORS)),
        "init_params": draw(st.sampled_from(STARTS)),
        "n_init": draw(st.integers(1, most_starts)),
        "max_iter": draw(st.integers(0, 12)),
        "reg_covar": draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1])),
        "tol": draw(st.sampled_from(tolerances)),
        "random_state": seed,
    }
    random = np.random.default_rng(seed)
    root = random.normal(size=(d, d))
    covariance = root @ root.T + np.eye(d)
    priors = {
        "weight_concentration_prior": float(10 ** random.uniform(-3, 3)),
        "mean_precision_prior": float(10 ** random.uniform(-2, 2)),
        "mean_prior": random.normal(size=d),
        "degrees_of_freedom_prior": float(d - 1 + 10 ** random.uniform(-1, 1)),
        "covariance_prior": {"diag": np.diag(covariance), "spherical": covariance[0, 0]}.get(kind, covariance),
    }
    given_too = draw(st.sets(st.sampled_from(sorted(priors))))
    parameters |= {name: priors[name] for name in given_too}
    return Problem(rows_of(draw(st.sampled_from(["blobs", "relu", "moved", "whole"])), n, d, seed), parameters)


def well_defined(problem: Problem) -> bool:
    """Say whether no rounding decides if a covariance is positive definite: it clearly is, or a feature is all zero."""
    X, parameters = problem.X, problem.parameters
    if parameters["reg_covar"] or "covariance_prior" in parameters or (X == 0).all(0).any():
        return True
    spread = np.atleast_2d(np.cov(X.T))
    if parameters["covariance_type"] in ("diag", "spherical"):
        return bool((np.diag(spread) > 1e-9).all())
    return bool(np.linalg.eigvalsh(spread).min() > 1e-9)


def has_one_best_start(problem: Problem) -> bool:
    """Say whether scikit-learn's bounds tell the best start from the second; with a finite Dirichlet many are equal."""
    starts = problem.parameters["n_init"]
    if starts == 1 or not problem.parameters["max_iter"]:
        return True
    random = np.random.RandomState(problem.parameters["random_state"])
    single = problem.parameters | {"n_init": 1, "random_state": random}
    try:
        bounds = np.sort([np.ravel(Theirs(**single).fit(problem.X).lower_bound_)[0] for _ in range(starts)])
    except ValueError:
        return True
    return bool(bounds[-1] - bounds[-2] > 1e-7 * abs(bounds[-1]))


def predictions_apart(ours: Ours, theirs: Theirs, X: np.ndarray, X64: np.ndarray) -> dict[str, float]:
    """Return how far probabilities and log-densities are apart, and the largest margin of a label that differs."""
    proba = theirs.predict_proba(X64)
    best = np.sort(np.pad(proba, ((0, 0), (1, 0))), axis=1)
    return {
        "predict_proba": apart(ours.predict_proba(X), proba, 1.0),
        "score_samples": apart(ours.score_samples(X), theirs.score_samples(X64), 1.0),
        "predict": float(((best[:, -1] - best[:, -2]) * (ours.predict(X) != theirs.predict(X64))).max()),
    }


def compare(problem: Problem, dtype: str) -> None:
    """Fit both, ours to rows of a dtype, scikit-learn's to the same numbers in float64, and compare all they have."""
    X = problem.X.astype(dtype)
    X64 = X.astype(np.float64)
    theirs, ours = Theirs(**problem.parameters), Ours(**problem.parameters)
    try:
        theirs.fit(X64)
    except ValueError:
        assume(not problem.parameters["reg_covar"])  # else it is rounding that makes a covariance ill-defined
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            ours.fit(X)
        return
    if theirs.covariance_type in ("full", "tied"):  # an inverse multiplies rounding by this number
        assume(np.linalg.cond(theirs.covariances_).max() < CONDITION[dtype])
    ours.fit(X)
    found = disagreement(ours, theirs, X64) | predictions_apart(ours, theirs, X, X64)
    assert max(found.values()) < TOLERANCE[dtype], found
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    twin = Ours(**problem.parameters)
    twin.__setstate__(theirs.__getstate__())
    for one, other in zip(twin.sample(9), theirs.sample(9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(predictions_apart(twin, theirs, X64, X64).values()) < TOLERANCE["float64"]


def start_is_the_same(problem: Problem) -> bool:
    """Say whether scikit-learn's k-means, or its seeds, of float32 rows are those of the same numbers in float64."""
    start, k, seed = (problem.parameters[name] for name in ("init_params", "n_components", "random_state"))
    if start not in ("kmeans", "k-means++"):
        return True
    single = problem.X.astype(np.float32)
    if start == "k-means++":
        one, other = (kmeans_plusplus(X, k, random_state=seed)[1] for X in (single, single.astype(np.float64)))
    else:
        model = KMeans(k, n_init=1, random_state=seed)
        one, other = (model.fit(X).labels_ for X in (single, single.astype(np.float64)))
    return bool((one == other).all())


@thorough
@given(problem=problems())
def test_float64_fits_are_scikit_learns(problem):
    with np.errstate(all="ignore"):  # scikit-learn's sums over nothing
        assume(well_defined(problem) and has_one_best_start(problem))
        compare(problem, "float64")


@thorough
@given(problem=problems(most_starts=1, tolerances=(0.0,)))
def test_float32_fits_are_scikit_learns_of_the_same_numbers(problem):
    with np.errstate(all="ignore"):
        assume(well_defined(problem) and start_is_the_same(problem))
        compare(problem, "float32")


def weights_of(problem: Problem) -> np.ndarray:
    """Return whole weights of the rows, about a third of them zero, that leave enough rows."""
    random = np.random.default_rng(problem.parameters["random_state"] + 1)
    weights = random.integers(0, 4, size=len(problem.X)) * random.integers(0, 2, size=len(problem.X))
    weights[: problem.parameters["n_components"] + 1] = np.maximum(1, weights[: problem.parameters["n_components"] + 1])
    return weights


@thorough
@given(problem=problems(most_starts=1, tolerances=(0.0,)))
def test_whole_weights_are_repeated_rows(problem):
    """From the start that scikit-learn makes of the repeated rows, which a warm start takes over."""
    weights = weights_of(problem)
    repeated = np.repeat(problem.X, weights, axis=0)
    parameters = problem.parameters | {"warm_start": True, "max_iter": 0}
    assume(well_defined(Problem(repeated, problem.parameters)))
    with np.errstate(all="ignore"):
        theirs, ours = Theirs(**parameters), Ours()
        try:
            ours.__setstate__(theirs.fit(repeated).__getstate__())
            theirs.set_params(max_iter=problem.parameters["max_iter"]).fit(repeated)
        except ValueError:  # which the test of unweighted rows is about
            assume(False)
        if theirs.covariance_type in ("full", "tied"):
            assume(np.linalg.cond(theirs.covariances_).max() < CONDITION["float64"])
        ours.set_params(max_iter=theirs.max_iter).fit(problem.X, sample_weight=weights)
    found = disagreement(ours, theirs, repeated) | predictions_apart(ours, theirs, problem.X, problem.X)
    assert max(found.values()) < TOLERANCE["float64"], found
    won = np.bincount(ours.predict(problem.X), weights, minlength=theirs.n_components)
    np.testing.assert_array_equal(ours.counts_, won)


@thorough
@given(problem=problems(most_starts=1, tolerances=(0.0,)), kind=st.sampled_from([Ours, DPGMM]))
def test_rows_that_count_once_or_not_at_all(problem, kind):
    """Weights of 0 and 1 fit what the rows of weight 1 do, from the same draws; weights of 1 what no weights do."""
    once = np.minimum(weights_of(problem), 1)
    counted = problem.X[once > 0]
    assume(well_defined(problem) and well_defined(Problem(counted, problem.parameters)))
    parameters = problem.parameters | ({"dtype": "float64"} if kind is DPGMM else {})

    def fit(X: np.ndarray, weights: np.ndarray | None) -> Ours | DPGMM | None:
        try:
            return kind(**parameters).fit(X, sample_weight=weights)
        except ValueError as error:
            assert "ill-defined" in str(error)
            return None

    for X, expected, found in (
        (counted, fit(counted, None), fit(problem.X, once)),
        (problem.X, fit(problem.X, None), fit(problem.X, np.ones(len(problem.X)))),
    ):
        assert (expected is None) == (found is None)
        if expected is None or found is None:
            continue
        if expected.covariance_type in ("full", "tied"):
            assume(np.linalg.cond(expected.covariances_).max() < CONDITION["float64"])
        apart_by = disagreement(found, expected, X) | predictions_apart(found, expected, X, X)
        assert max(apart_by.values()) < TOLERANCE["float64"], apart_by
        np.testing.assert_array_equal(found.counts_, expected.counts_)
