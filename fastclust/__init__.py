"""Dirichlet-process Gaussian mixtures over very many vectors of moderate width."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastclust.estimator import DPGMM, load

__version__ = version("fastclust")
__all__ = ["DPGMM", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the estimator, and torch with it, when it is first asked for: `fastclust --help` needs neither."""
    if name in ("DPGMM", "load"):
        return getattr(import_module("fastclust.estimator"), name)
    raise AttributeError(f"module 'fastclust' has no attribute {name!r}")
