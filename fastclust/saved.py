"""Reading a saved mixture, whichever estimator wrote it."""

from __future__ import annotations

import os
from pathlib import Path

from fastclust import model_file
from fastclust.drop_in import BayesianGaussianMixture
from fastclust.estimator import DPGMM

ESTIMATORS = {kind.__name__: kind for kind in (DPGMM, BayesianGaussianMixture)}


def load(path: str | os.PathLike[str]) -> DPGMM | BayesianGaussianMixture:
    """Return the mixture that its `save` wrote: a DPGMM or a BayesianGaussianMixture.

    Raises FileNotFoundError, and ValueError for a file that is not a model of ours, is of another version, or is cut
    short.
    """
    name, parameters, fitted = model_file.read(path)
    if name not in ESTIMATORS:
        raise ValueError(f"{path} is a model of a class that this fastclust does not know: {name}")
    kind = ESTIMATORS[name]
    known = set(kind().get_params())
    if not set(parameters) <= known:
        raise ValueError(f"{path} has parameters that this fastclust does not know: {sorted(set(parameters) - known)}")
    model = kind(**parameters)
    for attribute, value in fitted.items():
        if attribute.endswith("_") and not hasattr(kind, attribute):  # fitted attributes only, whatever the file says
            setattr(model, attribute, value)
    return model


def load_layer(folder: Path, layer: str) -> DPGMM | BayesianGaussianMixture:
    """Return the mixture of a layer that `fastclust run` or `fastclust atlas` left in a folder.

    Raises as `load`; FileNotFoundError where it is not there, with the command that goes on.
    """
    path = folder / layer / "model.h5"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: the run has not ended; `fastclust run --resume`, or `atlas --resume`, goes on"
        )
    return load(path)
