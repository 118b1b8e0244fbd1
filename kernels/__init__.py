"""Sufficient statistics of a Gaussian mixture, by backend."""

if __name__ != "fastclust.kernels":
    raise ImportError(f"these kernels are fastclust.kernels and cannot be imported as {__name__!r}")
