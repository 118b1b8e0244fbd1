"""The priors of a fit: what the user gave, checked, or what scikit-learn would take from the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array

from fastclust.rows import Rows
from fastclust.summary import Summary
from fastclust.variational import Prior


def set_priors(model: Any, rows: Rows, summary: Summary) -> Prior:
    """Check a model's priors, set their fitted attributes, and return them in the passes' coordinates.

    Raises ValueError for a prior of another shape, not finite, not positive, or with too few degrees of freedom.
    """
    n_features, full = rows.blocks.n_features, model.covariance_type in ("full", "tied")
    scale, offset, centre = (part.cpu() for part in (rows.scale, rows.offset, rows.centre))
    alpha = model.weight_concentration_prior
    model.weight_concentration_prior_ = 1.0 / model.n_components if alpha is None else alpha
    model.mean_precision_prior_ = 1.0 if model.mean_precision_prior is None else model.mean_precision_prior
    nu = model.degrees_of_freedom_prior
    model.degrees_of_freedom_prior_ = n_features if nu is None else nu
    if model.degrees_of_freedom_prior_ <= n_features - 1:
        raise ValueError(
            "The parameter 'degrees_of_freedom_prior' should be greater than "
            f"{n_features - 1}, but got {model.degrees_of_freedom_prior_:.3f}."
        )
    if model.mean_prior is None:
        model.mean_prior_ = ((summary.mean - offset) * scale).numpy()
    else:
        model.mean_prior_ = _array("mean_prior", model.mean_prior, (n_features,))
    if model.covariance_prior is None:
        if summary.total <= 1:
            raise ValueError(
                f"the rows count as {summary.total:.3g} in all, which leaves their covariance without a meaning: "
                "sample_weight says how often a row counts; scale it, or give covariance_prior"
            )
        spread = torch.outer(scale, scale) if full else scale**2
        covariance = (spread * summary.scatter / (summary.total - 1)).numpy()
        model.covariance_prior_ = covariance.mean() if model.covariance_type == "spherical" else covariance
    else:
        shape = {"diag": (n_features,), "spherical": ()}.get(model.covariance_type, (n_features, n_features))
        model.covariance_prior_ = _array("covariance_prior", model.covariance_prior, shape, model.covariance_type)
        _check_positive(model.covariance_prior_, model.covariance_type)
    device = rows.blocks.device
    return Prior(
        covariance_type=model.covariance_type,
        weight_prior=model.weight_concentration_prior_type,
        alpha=float(model.weight_concentration_prior_),
        beta=float(model.mean_precision_prior_),
        m=(torch.from_numpy(model.mean_prior_) - centre).to(device),
        nu=float(model.degrees_of_freedom_prior_),
        W_inv=torch.as_tensor(model.covariance_prior_, dtype=torch.float64).to(device),
        reg_covar=float(model.reg_covar),
        origin=-rows.centre,
    )


def _array(name: str, value: Any, shape: tuple[int, ...], kind: str = "") -> np.ndarray:
    """Return a prior as float64, checked."""
    try:
        given = check_array(value, dtype=[np.float64, np.float32], ensure_2d=False) if shape else value
        array = np.array(given, dtype=np.float64)  # a copy: what was given may change, or be read-only
    except (TypeError, ValueError) as error:  # in scikit-learn's words, which do not say of what
        raise type(error)(f"{error} ({name})") from None
    if array.shape != shape:
        theirs = f"{kind} {name}" if kind else "means"  # what scikit-learn's messages call it
        raise ValueError(f"The parameter '{theirs}' should have the shape of {shape}, but got {array.shape} as {name}")
    if not np.isfinite(array).all():
        raise ValueError(f"The parameter '{name}' has NaN or infinite values")
    return array


def _check_positive(covariance: np.ndarray, kind: str) -> None:
    # scikit-learn's words: it calls this prior a precision.
    if covariance.ndim == 2:
        if not (np.allclose(covariance, covariance.T) and np.all(np.linalg.eigvalsh(covariance) > 0.0)):
            raise ValueError(
                f"'{kind} precision' should be symmetric, positive-definite, and so should covariance_prior"
            )
    elif not np.all(covariance > 0.0):
        raise ValueError(f"'{kind} precision' should be positive, and so should covariance_prior")
