"""Dirichlet-process Gaussian mixtures over very many vectors of moderate width."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastclust.checkpoint import Checkpoint
    from fastclust.drop_in import BayesianGaussianMixture
    from fastclust.estimator import DPGMM
    from fastclust.saved import load

try:
    __version__ = version("fastclust")
except PackageNotFoundError:  # a checkout on the path that nobody installed
    __version__ = "0+uninstalled"
__all__ = ["DPGMM", "BayesianGaussianMixture", "Checkpoint", "__version__", "load"]

_HOMES = {"Checkpoint": "checkpoint", "DPGMM": "estimator", "BayesianGaussianMixture": "drop_in", "load": "saved"}


def __getattr__(name: str) -> Any:
    """Import an estimator, and torch with it, when it is first asked for: `fastclust --help` needs neither."""
    if name in _HOMES:
        return getattr(import_module(f"fastclust.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fastclust' has no attribute {name!r}")
