"""Dirichlet-process Gaussian mixtures over very many vectors of moderate width."""

from importlib.metadata import version

from fastclust.estimator import DPGMM, load

__version__ = version("fastclust")
__all__ = ["DPGMM", "__version__", "load"]
