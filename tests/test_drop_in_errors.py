"""What BayesianGaussianMixture refuses, and how: scikit-learn's exceptions, warnings and leading words."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from conftest import blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs

from fastclust import BayesianGaussianMixture as Ours

KINDS = ("full", "tied", "diag", "spherical")
X = blobs(40, 3, 2)
WORDS = 4  # that two messages begin with alike, where ours does not begin with the whole of scikit-learn's


def refused(ask: Callable[[type], object]) -> None:
    """Check that both classes refuse with the same exception, or ours with a subclass of it, and the same words."""
    raised = []
    for estimator in (Theirs, Ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ask(estimator)
            except Exception as error:
                raised.append(error)
            else:
                pytest.fail(f"{estimator} refused nothing")
    theirs, ours = raised
    assert isinstance(ours, type(theirs)), (theirs, ours)
    assert str(ours).startswith(str(theirs)) or leading(ours) == leading(theirs), (theirs, ours)


def leading(message: object) -> list[str]:
    return str(message).replace(":", " ").replace(".", " ").split()[:WORDS]


def with_value(value: float, dtype: str = "float64") -> np.ndarray:
    rows = X.astype(dtype)
    rows[3, 1] = value
    return rows


ROWS = {
    "NaN": with_value(np.nan),
    "NaN in float32": with_value(np.nan, "float32"),
    "NaN everywhere": np.full((10, 3), np.nan),
    "infinity": with_value(np.inf),
    "minus infinity in float16": with_value(-np.inf, "float16"),
    "infinity in lists": [[np.inf, 1.0, 2.0], [1.0, 2.0, 3.0]],
    "None": np.array([[1, None, 2], [2, 3, 3], [3, 4, 4]], dtype=object),
    "missing in a frame": pd.DataFrame({"a": [1.0, 2, None], "b": [1, 2, 3.0], "c": [1, 2, 3.0]}).convert_dtypes(),
    "sparse matrix": scipy.sparse.csr_matrix(X),
    "sparse array": scipy.sparse.coo_array(X),
    "strings": np.array([["a", "b", "c"]] * 10),
    "strings as objects": np.array([["a", 1.0, 2.0]] * 10, dtype=object),
    "strings in a frame": pd.DataFrame({"a": ["x", "y", "z"], "b": [1, 2, 3], "c": [1, 2, 3]}),
    "a string": "abc",
    "complex": X.astype(complex),
    "one dimension": X[:, 0],
    "a series": pd.Series([1.0, 2.0, 3.0]),
    "three dimensions": X[None],
    "no dimension": np.array(3.0),
    "a number": 3.0,
    "no rows": np.zeros((0, 3)),
    "no columns": np.zeros((5, 0)),
    "no lists": [],
    "an empty list": [[]],
    "ragged lists": [[1, 2], [3]],
    "nothing": None,
    "a dictionary": {"a": [1, 2, 3]},
    "a set": {1, 2},
    "a matrix": np.matrix(X),
    "names of several types": pd.DataFrame({"a": [1.0, 2, 3], 1: [1, 2, 3.0], "c": [1, 2, 3.0]}),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_bad_rows(rows):
    refused(lambda kind: kind().fit(rows))
    refused(lambda kind: kind().fit_predict(rows))
    fitted = {kind: kind().fit(X) for kind in (Theirs, Ours)}
    for method in ("predict", "predict_proba", "score_samples", "score"):
        refused(lambda kind, method=method: getattr(fitted[kind], method)(rows))


def test_too_few_rows_and_other_widths():
    refused(lambda kind: kind().fit(X[:1]))
    refused(lambda kind: kind(n_components=41).fit(X))
    refused(lambda kind: kind(n_components=41).fit_predict(X))
    for method in ("predict", "predict_proba", "score_samples", "score"):
        refused(lambda kind, method=method: getattr(kind(), method)(X))
        refused(lambda kind, method=method: getattr(kind().fit(X), method)(X[:, :2]))
        assert np.isfinite(getattr(Ours().fit(X), method)(X[:1])).all()
    refused(lambda kind: kind().sample())
    for count in (0, -1):
        refused(lambda kind, count=count: kind().fit(X).sample(count))


def test_names_that_are_others():
    frame = pd.DataFrame(X, columns=list("abc"))
    refused(lambda kind: kind().fit(frame).predict(frame[["b", "a", "c"]]))
    refused(lambda kind: kind().fit(frame).predict(frame.rename(columns={"a": "z"})))
    refused(lambda kind: kind().fit(frame).predict(frame[["a", "b"]]))
    for fitted_to, asked in ((frame, X), (X, frame)):
        said = []
        for kind in (Theirs, Ours):
            with pytest.warns(UserWarning, match="feature names") as caught:
                kind().fit(fitted_to).predict(asked)
            said.append([str(warning.message) for warning in caught])
        assert said[0] == said[1]


NOT_POSITIVE = (0, -1, np.nan, "a", [1, 2])
PARAMETERS = {
    "n_components": (0, -1, 1.5, "2", None),
    "covariance_type": ("round", None, 1),
    "tol": (-1, "a", None, np.nan),
    "reg_covar": (-1, "a", None, np.nan),
    "max_iter": (-1, 1.5, None),
    "n_init": (0, 1.5, None),
    "init_params": ("zeros", None, 3),
    "weight_concentration_prior_type": ("pitman_yor", None),
    "weight_concentration_prior": NOT_POSITIVE,
    "mean_precision_prior": NOT_POSITIVE,
    "degrees_of_freedom_prior": (*NOT_POSITIVE, 1.5, 2),
    "mean_prior": (0, "abc", [0.0], np.zeros((3, 1)), [np.nan, 0, 0], [np.inf, 0, 0], ["a", "b", "c"], [1j, 0, 0]),
    "random_state": (-1, "a", 1.5, 2**32, np.random.default_rng(0)),
    "warm_start": ("a", None, 2),
    "verbose": (-1, "a", None),
    "verbose_interval": (0, -1, 1.5, None),
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_bad_parameters(name):
    for value in PARAMETERS[name]:
        refused(lambda kind, value=value: kind(**{name: value}).fit(X))
    refused(lambda kind: kind().set_params(**{name + "_": 1}))
    refused(lambda kind: kind(**{name + "_": 1}))


COVARIANCES = {
    "full": (1.0, np.array(2.0), [1.0], np.ones(3), np.eye(2), -np.eye(3), np.triu(np.ones((3, 3))), np.eye(3)[None]),
    "tied": (1.0, np.array(2.0), [1.0], np.ones(3), np.eye(2), -np.eye(3), np.zeros((3, 3)), np.eye(3) * 1j),
    "diag": (1.0, np.array(2.0), [1.0], np.ones(2), np.eye(3), -np.ones(3), np.array([1.0, 1.0, 0.0])),
    "spherical": (0, -1, np.nan, "abc"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_covariance_priors(kind):
    """Of spherical, scikit-learn's class takes some arrays without looking; ours takes one number, as is documented."""
    values = list(COVARIANCES[kind])
    if kind != "spherical":
        values += [np.full((3, 3), np.nan), np.array([1.0, np.nan, 1.0]), [1.0, np.inf, 1.0], ["a", "b", "c"], "abc"]
    for value in values:
        refused(lambda estimator, value=value: estimator(covariance_type=kind, covariance_prior=value).fit(X))
    if kind == "spherical":
        with pytest.raises(ValueError, match=r"'spherical covariance_prior' should have the shape of \(\)"):
            Ours(covariance_type=kind, covariance_prior=[1.0]).fit(X)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_ill_defined_covariances(kind, dtype):
    rows = np.zeros((10, 2), dtype=dtype)
    refused(lambda estimator: estimator(covariance_type=kind, reg_covar=0).fit(rows))


def test_values_whose_squares_overflow_are_named():
    """scikit-learn's class refuses them too, with what LAPACK says."""
    for dtype in ("float64", "float32"):
        rows = np.array([[np.finfo(dtype).max, 1], [1, 2], [3, 4]], dtype=dtype)
        with pytest.raises(ValueError, match=f"their squares overflow {dtype}"):
            Ours().fit(rows)


def test_what_converges_not_warns_as_scikit_learn_does():
    said = []
    for kind in (Theirs, Ours):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(n_components=3, max_iter=1, random_state=0).fit(X)
            kind(n_components=3, max_iter=0, random_state=0).fit(X)
            kind(n_components=1).fit(X)
        said.append([(warning.category, str(warning.message)[:47]) for warning in caught])
    assert said[0] == said[1] == [(ConvergenceWarning, "Best performing initialization did not converge")]
