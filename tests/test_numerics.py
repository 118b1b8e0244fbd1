"""Float32 fits what float64 does of the same rows: far from the origin, tight, dead, equal, of very different scale."""

import numpy as np
import pytest
import torch
from agreement import apart, disagreement
from conftest import blobs, relu_features

from fastclust import DPGMM, kernels
from fastclust import BayesianGaussianMixture as DropIn
from fastclust.kernels import Coefficients, Frame

KINDS = ("full", "tied", "diag", "spherical")
CPU = torch.device("cpu")
TOLERANCE = 1e-3
random = np.random.default_rng(0)
easy = blobs(600, 4, 4)
groups = 10 * np.eye(3, 4)[random.integers(3, size=600)] + random.normal(size=(600, 4))
ten_thousand, million = easy.std() * 1e4, easy.std() * 1e6

ROWS = {
    "10,000 deviations away": easy + ten_thousand,
    "1,000,000 deviations away": easy + million,
    "10,000 deviations away in some features": easy + ten_thousand * np.array([1, -1, 0.1, 0]),
    "1,000,000 deviations away in some features": easy + million * np.array([1, -1, 0.1, 0]),
    "means large against deviations": random.normal(size=(500, 3)) * [1e-2, 1e-3, 1] + [100, 50, 1000],
    "tight clusters beside a wide one": np.concatenate(
        [random.normal(size=(200, 3)) * 1e-4 + [x, -3, 1] for x in (5, 5.01)] + [random.normal(size=(200, 3))]
    ),
    "a tight cluster in a wide one": np.concatenate(
        [random.normal(size=(300, 2)) * 1e-3 + [10, -20], random.normal(size=(300, 2)) * 20]
    ),
    "a dead feature": easy * [1, 1, 0, 1],
    "a feature that is 3.7 throughout": easy * [1, 1, 0, 1] + [0, 0, 3.7, 0],
    "a feature that is 10,000.3 throughout": easy * [1, 1, 0, 1] + [0, 0, 1e4 + 0.3, 0],
    "a feature that is 12,345.678 throughout, and groups": np.c_[groups, np.full(600, 12345.678)],
    "groups 1,000,000 away, on either side": groups * [1, -1, 1, -1] + [1e4, -1e4, 1e6, 0],
    "groups of a tiny scale": groups * 1e-12,
    "one row apart": np.r_[groups[:300], [[1e4] * 4]],
    "one feature far, one tight": np.stack(
        [random.normal(5_000, 0.5, 800), random.normal(30, 1e-3, 800), random.normal(0, 1, 800)], 1
    ),
    "equal rows": np.full((30, 4), 3.7),
    "equal rows, far away": np.full((50, 3), -1e3),
    "zeros": np.zeros((30, 4)),
    "as many rows as components": random.normal(size=(5, 4)),
    "as many rows as components, far away": random.normal(size=(5, 4)) + 1e4,
    "features of very different scale": random.normal(size=(400, 4)) * 10.0 ** np.array([-6, -2, 2, 6]),
    "clusters of very different scale": easy * 10.0 ** np.array([-6, -2, 2, 6]),
    "clusters of very different scale, away": easy * 10.0 ** np.array([-3, -1, 1, 3]) + [1, 1e3, 1e4, 1e2],
    "features as a ReLU leaves them": relu_features(600, 6),
    "whole numbers": np.round(easy),
    "copies of columns": np.repeat(easy[:, :2], 2, axis=1),
    "copies of rows": np.repeat(easy[:12], 20, axis=0),
}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_float32_fits_what_float64_does_of_the_same_rows(rows, kind):
    """To 1e-3 of each number's natural scale, after no pass, one and twenty, and all of it finite."""
    X32 = rows.astype(np.float32)
    X = X32.astype(np.float64)
    for estimator, start, passes in (
        (DPGMM, "kmeans", 0),
        (DPGMM, "kmeans", 1),
        (DPGMM, "kmeans", 20),
        (DPGMM, "random", 0),
        (DPGMM, "random", 1),
        (DPGMM, "random_from_data", 20),
        (DropIn, "random_from_data", 1),
        (DropIn, "random_from_data", 20),
    ):
        common = {"n_components": 5, "covariance_type": kind, "init_params": start, "max_iter": passes}
        wide, narrow = (
            estimator(**common, tol=0, random_state=0, dtype=dtype).fit(given)
            for dtype, given in (("float64", X), ("float32", X32))
        )
        for name, value in vars(narrow).items():
            if name.endswith("_") and isinstance(value, (np.ndarray, float)) and (passes or name[:5] != "lower"):
                assert np.isfinite(value).all(), name
        found = disagreement(narrow, wide, X)
        found["predict_proba"] = apart(narrow.predict_proba(X32), wide.predict_proba(X), 1.0)
        found["score_samples"] = apart(narrow.score_samples(X32), wide.score_samples(X), 1.0)
        assert max(found.values()) < TOLERANCE, (estimator, start, passes, found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("estimator", [DPGMM, DropIn])
@pytest.mark.parametrize("kind", KINDS)
def test_single_rows_have_the_variance_that_reg_covar_gives(kind, estimator, dtype):
    """The two rows of scikit-learn issue 30382, a component each, in float32 throughout, as pull request 30415 does it.

    There E[x^2] - E[x]^2 of one row is -0.99999979 in float32, which no reg_covar of 0.1 makes up for. The priors are
    so weak that the variance is reg_covar's.
    """
    X = np.array([[9999.0], [0.0]], dtype=dtype)
    priors = {"mean_precision_prior": 1e-14, "degrees_of_freedom_prior": 1e-6, "weight_concentration_prior": 1.0}
    covariance = {"diag": [1e-9], "spherical": 1e-9}.get(kind, [[1e-9]])
    for passes in (0, 1, 5):
        model = estimator(
            n_components=2,
            covariance_type=kind,
            reg_covar=0.1,
            covariance_prior=covariance,
            max_iter=passes,
            tol=0,
            random_state=0,
            dtype=dtype,
            **priors,
        )
        model.fit(X)
        np.testing.assert_allclose(np.ravel(model.covariances_), 0.1, rtol=1e-5)
        np.testing.assert_allclose(np.sort(model.means_[:, 0]), [0, 9999], atol=1e-3)


@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_variance_falls_below_what_reg_covar_gives(kind, start):
    """Whichever seeds k-means finds in float32."""
    for name in ("one feature far, one tight", "1,000,000 deviations away", "tight clusters beside a wide one"):
        for estimator in (DPGMM, DropIn):
            common = {"n_components": 5, "covariance_type": kind, "init_params": start, "random_state": 0}
            model = estimator(max_iter=15, tol=0, **common).fit(ROWS[name].astype(np.float32))
            assert np.isfinite(model.lower_bounds_).all()
            variances = np.linalg.eigvalsh(model.covariances_) if kind in ("full", "tied") else model.covariances_
            assert variances.min() > model.reg_covar * 1e-3


BACKENDS = [name for name, reason in kernels.available(CPU).items() if reason is None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["diag", "spherical"])
@pytest.mark.parametrize("n_features", [1, 3, 16])
@pytest.mark.parametrize("n_rows", [400, 60_000])
def test_float32_sums_of_many_rows_that_are_alike_keep_their_variance(n_rows, n_features, kind, backend):
    """Rows that are alike round the same way: a sum of all of them in float32 would lose a third of the variance."""
    draw = np.random.default_rng(n_features)
    worst = 0.0
    for nats in (30, 100, 300, 1000, 2900):  # lambda m^2 of the component, the square of mean / deviation
        for spread in (1e-3, 0.1, 1.0):  # of its rows, in deviations
            mean = draw.uniform(0.5, 3, size=n_features)
            if kind == "spherical":
                mean[:] = mean[0]
            precision = nats / (mean**2 * n_features)
            near = mean + draw.normal(size=(n_rows, n_features)) * spread / np.sqrt(precision)
            others = draw.normal(size=(n_rows // 4, n_features)) * 3 - 9
            rows = torch.from_numpy(np.concatenate([near, others]).astype(np.float32))
            both = np.stack([precision, np.full(n_features, 0.1)])
            coefficients = Coefficients(
                kind,
                torch.from_numpy(np.log(both).sum(1) / 2),
                torch.from_numpy(np.stack([mean, np.full(n_features, -9.0)])),
                torch.from_numpy(both if kind == "diag" else both[:, 0]),
            )
            found, expected = (
                kernels.statistics(kernels.select(name, CPU)[1], rows, coefficients, Frame(), dtype)
                for name, dtype in ((backend, torch.float32), ("torch", torch.float64))
            )
            about = torch.from_numpy(np.stack([mean, mean]))
            variances = [given.moved(about).sxx[0].numpy() / given.nk[0].item() for given in (found, expected)]
            scale = 1 / precision if kind == "diag" else n_features / precision[0]
            worst = max(worst, float(np.max(np.abs(variances[0] - variances[1]) / scale)))
    assert worst < TOLERANCE, worst
