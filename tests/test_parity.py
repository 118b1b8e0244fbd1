"""The same data, priors and start as scikit-learn's BayesianGaussianMixture give the same fit, number by number."""

import warnings

import numpy as np
import pytest
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from fastclust import DPGMM

KINDS = ("full", "tied", "diag", "spherical")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
TOLERANCE = {"float64": 1e-8, "float32": 1e-3}
FAR = 1e3  # deviations; scikit-learn's own diag covariance has lost eight digits to cancellation at 1e4
DATA = {  # numbers that float32 holds, so that both sides see the same
    "blobs": blobs().astype(np.float32).astype(np.float64),
    "relu": relu_features().astype(np.float32).astype(np.float64),
    "far": (blobs() + FAR).astype(np.float32).astype(np.float64),
}


def fitted(X: np.ndarray, dtype: str, **parameters: object) -> tuple[DPGMM, BayesianGaussianMixture]:
    """Return our fit in a dtype and scikit-learn's in float64, of 20 passes from the same start."""
    common = (
        {"n_components": 8, "max_iter": 20, "tol": 0.0, "random_state": 3}
        | {"init_params": "random_from_data"}
        | parameters
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = BayesianGaussianMixture(weight_concentration_prior=0.2, **common).fit(X)
        return DPGMM(dtype=dtype, **common).fit(X), theirs


def disagreement(ours: DPGMM, theirs: BayesianGaussianMixture, X: np.ndarray) -> dict[str, float]:
    """Return the largest relative difference of each attribute, element by element.

    What can be zero is measured against its natural scale: a mean against the feature's deviation (of a dead feature:
    of all), a covariance against the two variances, a Cholesky factor's element against the root of its precision.
    """

    def largest(name: str, scale: np.ndarray | float | None = None) -> float:
        a, b = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
        assert a.shape == b.shape
        assert a.dtype == np.float64
        return float(np.max(np.abs(a - b) / (np.abs(b) if scale is None else np.maximum(np.abs(b), scale))))

    spread = X.std(0)
    root_c = root_p = None
    if ours.covariance_type in ("full", "tied"):
        variances = np.diagonal(theirs.covariances_, axis1=-2, axis2=-1)
        precisions = np.diagonal(theirs.precisions_, axis1=-2, axis2=-1)
        root_c = np.sqrt(variances[..., :, None] * variances[..., None, :])
        root_p = np.sqrt(precisions)[..., :, None]
    (bound,) = np.ravel(theirs.lower_bound_)  # scikit-learn 1.9's is an array for tied covariance
    return {
        "weight_concentration_": largest("weight_concentration_"),
        "weights_": largest("weights_", 1 / len(X)),
        "mean_precision_": largest("mean_precision_"),
        "means_": largest("means_", np.where(spread > 0, spread, X.std())),
        "degrees_of_freedom_": largest("degrees_of_freedom_"),
        "covariances_": largest("covariances_", root_c),
        "precisions_cholesky_": largest("precisions_cholesky_", root_p),
        "precisions_": largest("precisions_", None if root_p is None else root_p * np.swapaxes(root_p, -1, -2)),
        "lower_bound_": abs(ours.lower_bound_ * len(X) - bound) / abs(bound),
    }


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", list(DATA))
def test_twenty_passes_agree(data, kind, weight_prior, dtype):
    X = DATA[data]
    ours, theirs = fitted(X, dtype, covariance_type=kind, weight_concentration_prior_type=weight_prior)
    assert ours.n_iter_ == theirs.n_iter_ == 20
    found = disagreement(ours, theirs, X)
    assert max(found.values()) < TOLERANCE[dtype], found
    np.testing.assert_allclose(
        np.array(ours.lower_bounds_) * len(X), np.ravel(theirs.lower_bounds_), rtol=TOLERANCE[dtype]
    )
    disputed = ours.predict(X) != theirs.predict(X)
    margin = np.sort(theirs.predict_proba(X), axis=1)[:, -1] - np.sort(theirs.predict_proba(X), axis=1)[:, -2]
    assert not (disputed & (margin > 10 * TOLERANCE[dtype])).any()
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=10 * TOLERANCE[dtype])
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), atol=100 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("weight_prior", WEIGHT_PRIORS)
def test_a_dense_layers_shape_agrees(weight_prior, dtype):
    X = np.maximum(blobs(165, 4096, 4), 0).astype(np.float32).astype(np.float64)
    ours, theirs = fitted(
        X, dtype, covariance_type="diag", weight_concentration_prior_type=weight_prior, init_params="random_from_data"
    )
    found = disagreement(ours, theirs, X)
    assert max(found.values()) < TOLERANCE[dtype], found
    assert (ours.predict(X) == theirs.predict(X)).all()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", KINDS)
def test_priors_that_are_given_agree(kind, dtype):
    X = relu_features(800, 6)
    random = np.random.default_rng(0)
    root = random.normal(size=(6, 6))
    covariance = {"full": root @ root.T + np.eye(6), "tied": root @ root.T + np.eye(6)}
    priors = {
        "mean_precision_prior": 0.3,
        "mean_prior": random.normal(size=6),
        "degrees_of_freedom_prior": 9.5,
        "covariance_prior": covariance.get(kind, 2.5 if kind == "spherical" else random.lognormal(size=6)),
        "reg_covar": 1e-3,
    }
    ours, theirs = fitted(X, dtype, covariance_type=kind, **priors)
    found = disagreement(ours, theirs, X)
    assert max(found.values()) < TOLERANCE[dtype], found
    for name in ("mean_prior_", "mean_precision_prior_", "degrees_of_freedom_prior_", "covariance_prior_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_the_origin_changes_nothing(kind):
    """Ten thousand deviations away, the fit is the one at the origin, moved.

    To 1e-6: the 10 eps rows that scikit-learn's equations put at the user's origin weigh 2e-15 * 2^28 there.
    """
    X = np.round(blobs() * 2**20) / 2**20  # moving such numbers by a power of two rounds nothing
    common = {"n_components": 8, "covariance_type": kind, "max_iter": 20, "tol": 0.0, "random_state": 3}
    for dtype, tolerance in (("float64", 1e-6), ("float32", 1e-3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            here, there = (DPGMM(dtype=dtype, **common).fit(X + by) for by in (0.0, 2.0**14))
        np.testing.assert_allclose(there.means_ - 2.0**14, here.means_, atol=tolerance * X.std())
        np.testing.assert_allclose(there.degrees_of_freedom_, here.degrees_of_freedom_, rtol=tolerance)
        np.testing.assert_allclose(there.lower_bound_, here.lower_bound_, rtol=tolerance)
        assert (there.predict(X + 2.0**14) == here.predict(X)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_real_features_agree(kind, data_folder, tmp_path):
    """relu1_2 of VGG-19 on a histology tile, 20 passes from the same start, 20 components."""
    from fastclust.extract import extract
    from fastclust.store import open_store

    extract(
        [sorted((data_folder / "images" / "histology").glob("*.png"))[0]],
        out=tmp_path / "features.h5",
        model="vgg19",
        weights=data_folder / "weights" / "vgg19_conv1_1-conv3_1.pth",
        layers=["relu1_2"],
        dtype="float32",
    )
    X = open_store(tmp_path / "features.h5").rows("relu1_2")[0][::7].astype(np.float64)
    X *= 10 / X.max()
    assert (X == 0).mean() > 0.3
    for dtype, tolerance in TOLERANCE.items():
        ours, theirs = fitted(X, dtype, covariance_type=kind, n_components=20)
        found = disagreement(ours, theirs, X)
        assert max(found.values()) < tolerance, found
