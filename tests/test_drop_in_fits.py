"""Whatever the rows, priors and parameters, the drop-in class fits what scikit-learn's does, to 1e-7 in float64."""

from dataclasses import dataclass

import numpy as np
import pytest
from agreement import apart, disagreement
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.mixture import BayesianGaussianMixture as Theirs

from fastclust import BayesianGaussianMixture as Ours

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")
TOLERANCE = {"float64": 1e-7, "float32": 1e-3}
CONDITION = {"float64": 1e8, "float32": 1e4}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
thorough = settings(deadline=None, derandomize=True, max_examples=250)


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


@thorough
@given(problem=problems())
def test_float64_fits_are_scikit_learns(problem):
    with np.errstate(all="ignore"):  # of scikit-learn's
        assume(well_defined(problem))
        assume(has_one_best_start(problem))
        compare(problem, "float64")


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
