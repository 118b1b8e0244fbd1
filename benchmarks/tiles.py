"""From features to a converged mixture: the drop-in class against scikit-learn's, relu1_2 of VGG-19 on eight tiles.

Both get the same rows, parameters, `random_state` and stopping rule, so both make the same passes but for rounding:
once in float64, and once in float32, where a hundred passes may amplify the rounding until the two end in different
optima. Ours is fitted three times and scikit-learn's once, since that takes minutes. The bounds are recorded, and where
ours is the lower one by more than `tol`, which is what the rule itself can tell apart, the run fails.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs

from benchmarks.data import SOURCES
from benchmarks.timing import seconds, short, spread
from fastclust import BayesianGaussianMixture as Ours

ROWS, FEATURES, COMPONENTS = 401_408, 64, 50
DTYPES = ("float64", "float32")
TOL_PER_ROW = 1e-3  # nats; scikit-learn's rule is on the sum over rows
MAX_ITER = 200
REST = 1.0  # seconds


def run(
    dtype: str = "float32", data: str = "relu1_2", n: int = ROWS, d: int = FEATURES, k: int = COMPONENTS
) -> dict[str, Any]:
    """Return the record of a case.

    dtype: of the rows and of the arithmetic. data: a name of `benchmarks.data.SOURCES`.
    """
    X = SOURCES[data](n, d, 0).astype(dtype)
    tol = TOL_PER_ROW * n
    parameters: dict[str, Any] = {
        "n_components": k,
        "covariance_type": "diag",
        "weight_concentration_prior": 0.2,
        "init_params": "random_from_data",
        "tol": tol,
        "max_iter": MAX_ITER,
        "random_state": 0,
    }
    record: dict[str, Any] = {
        "name": f"converged-diag-{data}-{n}x{d}-k{k}-{dtype}",
        "data": data,
        "n": n,
        "d": d,
        "k": k,
    }
    record |= {"covariance": "diag", "dtype": str(X.dtype), "parameters": parameters}
    sides = {
        "ours": fit([Ours(**parameters, device="cpu") for _ in range(3)], X),
        "theirs": fit([Theirs(**parameters)], X),
    }
    ratio = sides["theirs"]["seconds"]["median"] / sides["ours"]["seconds"]["median"]
    higher = sides["ours"]["lower_bound"] - sides["theirs"]["lower_bound"]
    record |= {**sides, "ratio": short(ratio), "bound_difference_per_row": short(higher / n)}
    if higher < -tol:
        record["refused"] = f"the bound of ours is lower by {-higher / n:.1e} nats a row"
    return record


def fit(models: list[Any], X: np.ndarray) -> dict[str, Any]:
    """Fit models that are alike, one after the other; return their seconds and what the last one reached."""
    found = []
    for model in models:
        time.sleep(REST)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the record says it
            found.append(seconds(lambda: model.fit(X)))  # noqa: B023
    return {
        "seconds": spread(found),
        "fits": len(models),
        "n_iter": int(model.n_iter_),
        "converged": bool(model.converged_),
        "lower_bound": float(model.lower_bound_),
    } | ({"backend": model.backend_} if hasattr(model, "backend_") else {})


def line(record: dict[str, Any]) -> str:
    """Return the record in one line."""
    sides = (
        f"{side} {some['seconds']['median']:.4g} s, {some['n_iter']} passes{', converged' * some['converged']}"
        for side, some in ((side, record[side]) for side in ("ours", "theirs"))
    )
    text = f"{record['name']}  {'; '.join(sides)}; {record['ratio']:.1f} times faster, bound higher by "
    text += f"{record['bound_difference_per_row']:.1e} nats a row"
    return f"{text}  REFUSED: {record['refused']}" if "refused" in record else text
