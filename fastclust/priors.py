"""The priors of a fit: what the user gave, checked, or what scikit-learn would take from the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastclust.blocks import Summary
from fastclust.rows import Rows
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
            f"degrees_of_freedom_prior must be greater than n_features - 1 = {n_features - 1}, and was {nu}"
        )
    if model.mean_prior is None:
        model.mean_prior_ = ((summary.mean - offset) * scale).numpy()
    else:
        model.mean_prior_ = _array("mean_prior", model.mean_prior, (n_features,))
    if model.covariance_prior is None:
        spread = torch.outer(scale, scale) if full else scale**2
        covariance = (spread * summary.scatter / (summary.n_rows - 1)).numpy()
        model.covariance_prior_ = covariance.mean() if model.covariance_type == "spherical" else covariance
    else:
        shape = {"diag": (n_features,), "spherical": ()}.get(model.covariance_type, (n_features, n_features))
        model.covariance_prior_ = _array("covariance_prior", model.covariance_prior, shape)
        _check_positive(model.covariance_prior_)
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


def _array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"The parameter '{name}' has NaN or infinite values")
    return array


def _check_positive(covariance: np.ndarray) -> None:
    if covariance.ndim == 2:
        if not (np.allclose(covariance, covariance.T) and np.all(np.linalg.eigvalsh(covariance) > 0.0)):
            raise ValueError("'covariance_prior' should be symmetric, positive-definite")
    elif not np.all(covariance > 0.0):
        raise ValueError("'covariance_prior' should be positive")
