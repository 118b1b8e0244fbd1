"""How far a fit of ours is from scikit-learn's, number by number, on scales that no zero upsets."""

from typing import Any

import numpy as np

FITTED = (
    "weight_concentration_",
    "weights_",
    "mean_precision_",
    "means_",
    "degrees_of_freedom_",
    "covariances_",
    "precisions_cholesky_",
    "precisions_",
)
PRIORS = (
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)


def disagreement(ours: Any, theirs: Any, X: np.ndarray, unit: float = 1.0) -> dict[str, float]:
    """Return the largest relative difference of each fitted attribute, element by element.

    What can be zero is measured against its natural scale: a mean against the feature's deviation (of a dead feature:
    of all), a covariance against the two variances, a Cholesky factor's element against the root of its precision, a
    weight against a row, a bound against the largest of the fit. unit: what ours divides the bound by.
    """
    spread = X.std(0)
    scale: dict[str, Any] = {
        "weights_": 1 / len(X),
        "means_": np.where(spread > 0, spread, X.std() or 1.0),
        "mean_prior_": np.where(spread > 0, spread, X.std() or 1.0),
    }
    if theirs.covariance_type in ("full", "tied"):
        variances = np.diagonal(theirs.covariances_, axis1=-2, axis2=-1)
        precisions = np.diagonal(theirs.precisions_, axis1=-2, axis2=-1)
        priors = np.diagonal(theirs.covariance_prior_)
        scale["covariances_"] = np.sqrt(variances[..., :, None] * variances[..., None, :])
        scale["covariance_prior_"] = np.sqrt(np.outer(priors, priors))
        scale["precisions_cholesky_"] = np.sqrt(precisions)[..., :, None]
        scale["precisions_"] = np.sqrt(precisions[..., :, None] * precisions[..., None, :])
    found = {name: apart(getattr(ours, name), getattr(theirs, name), scale.get(name, 0.0)) for name in FITTED + PRIORS}
    bounds = np.ravel(theirs.lower_bounds_)  # scikit-learn 1.9's are arrays of one for tied covariance
    if len(bounds):
        largest = np.abs(bounds).max()
        found["lower_bounds_"] = apart(np.multiply(ours.lower_bounds_, unit), bounds, largest)
        found["lower_bound_"] = apart(ours.lower_bound_ * unit, np.ravel(theirs.lower_bound_)[0], largest)
    return found


def apart(a: Any, b: Any, scale: Any = 0.0) -> float:
    """Return the largest difference of a from b, element by element, against the larger of |b| and the scale."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    size = np.broadcast_to(np.maximum(np.abs(b), scale), b.shape)
    return float(
        np.max(np.where(a == b, 0.0, np.abs(a - b) / np.where(size > 0, size, np.finfo(float).tiny)), initial=0)
    )
