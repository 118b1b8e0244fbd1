"""What is benchmarked: suites of cases, and what a pass of a case costs at least."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastclust.kernels import CovarianceType

FORMULAE = {
    "bytes": "N D times the bytes of a number as it is stored: the rows, read once",
    "flop": "8 N D K for diag, 4 N (D + 1) K for spherical, 2 N D^2 + 4 N D K for tied, 4 N K D^2 for full: the matrix "
    "products of a pass, a multiplication and an addition each counted, symmetry unused, no row left out",
    "gbytes_per_second": "bytes / median seconds of a pass",
    "gflop_per_second": "flop / median seconds of a pass; work that a backend finds unnecessary counts as done",
    "floor_seconds": "the larger of bytes / copy bandwidth and flop / rate of the matrix product: on the CPU in the "
    "dtype of the arithmetic; on a GPU bytes / the larger of the rates of copying and of reading, and the largest rate "
    "of any dtype, each product counted once",
    "split_floor_seconds": "on a GPU, the larger of bytes / bandwidth and products of numbers that are split in two: "
    "three of tf32 (high) or bfloat16 (fast) in place of one, but two for the linear terms of float16 rows in high, "
    "which tf32 holds exactly; of full covariance the E-step's alone, for in the M-step a row has few components",
}


@dataclass(frozen=True)
class Case:
    """One problem: rows of a kind of data, a mixture, what computes it, and how often what is timed.

    dtype: of the rows as stored, float32, float16 or float64; of float64 rows the arithmetic is float64, else float32.
    backend, precision: of ours; "high" is what every backend does.
    burn_in: passes before anything is timed, so that the state is a typical one. repeats: pairs of single passes.
    fit_passes, fit_repeats: the short fit from the start, and pairs of it.
    """

    data: str
    n: int
    d: int
    k: int
    covariance: CovarianceType
    dtype: str = "float32"
    backend: str = "auto"
    precision: str = "high"
    burn_in: int = 10
    repeats: int = 7
    fit_passes: int = 10
    fit_repeats: int = 3
    seed: int = 0

    @property
    def name(self) -> str:
        """What the case is called on the command line and in the records."""
        usual = {"dtype": "float32", "backend": "auto", "precision": "high"}
        unusual = [getattr(self, key) for key, value in usual.items() if getattr(self, key) != value]
        return "-".join([self.covariance, self.data, f"{self.n}x{self.d}", f"k{self.k}", *unusual])

    @property
    def arithmetic(self) -> str:
        """The dtype of the arithmetic over rows."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def bytes(self) -> int:
        """Bytes that a pass has to read; see FORMULAE."""
        return np.dtype(self.dtype).itemsize * self.n * self.d

    @property
    def flop(self) -> int:
        """Floating-point operations of a pass; see FORMULAE."""
        n, d, k = self.n, self.d, self.k
        return {
            "diag": 8 * n * d * k,
            "spherical": 4 * n * (d + 1) * k,
            "tied": 2 * n * d * d + 4 * n * d * k,
            "full": 4 * n * k * d * d,
        }[self.covariance]

    def floor_seconds(self, copy: float, rate: float) -> float:
        """Return the least that a pass can take where copying has `copy` GB/s and products `rate` GFLOP/s."""
        return max(self.bytes / copy, self.flop / rate) * 1e-9

    @property
    def split_flop(self) -> int:
        """Floating-point operations of a pass whose products are of split numbers; see FORMULAE."""
        n, d, k = self.n, self.d, self.k
        linear = 2 if (self.dtype, self.precision) == ("float16", "high") else 3  # products in place of one
        return {
            "diag": (linear + 3) * 4 * n * d * k,
            "spherical": linear * self.flop,
            "tied": 3 * self.flop,
            "full": 3 * 2 * n * k * d * d,
        }[self.covariance]

    def split_floor_seconds(self, bandwidth: float, rates: Mapping[str, float]) -> float:
        """Return the least with split products; bandwidth in GB/s, rates of products in GFLOP/s by dtype."""
        rate = rates["tf32" if self.precision == "high" else "bfloat16"]
        return max(self.bytes / bandwidth, self.split_flop / rate) * 1e-9


def suite(name: str) -> list[Case]:
    """Return the cases of a suite, all in pairs with scikit-learn but those of "growth" and "gpu".

    "quick" for a test's sake, "cpu" for the record, "sweep" for one thing at a time around its diag case, "growth" for
    rows over three decades, "gpu" for a CUDA device. Real features are among those of "cpu" where the environment
    variable FASTCLUST_DATA names their folder.
    """
    if name == "quick":
        return [Case("relu", 2_000, 16, 8, "diag", burn_in=3, repeats=3, fit_passes=3, fit_repeats=1)]
    if name == "sweep":
        return sweep()
    if name == "growth":
        return [Case("relu", 10**power, 64, 50, "diag", burn_in=5, repeats=5) for power in (4, 5, 6, 7)]
    if name == "gpu":
        return gpu()
    cases = []
    for data in ("blobs", "relu", *(["relu1_2"] if "FASTCLUST_DATA" in os.environ else [])):
        cases += [Case(data, 50_176, 64, 50, covariance) for covariance in ("diag", "spherical")]
        # scikit-learn's fit takes up to a minute here.
        cases.append(Case(data, 50_176, 64, 50, "tied", repeats=3, fit_repeats=1))
        cases.append(Case(data, 50_176, 64, 50, "full", repeats=2, fit_repeats=1))
    for n, d in ((12_544, 128), (3_136, 256), (784, 512)):  # the deeper layers of one image
        cases.append(Case("relu", n, d, 50, "diag"))
        cases.append(Case("relu", n, d, 50, "full", repeats=2, fit_repeats=1))
    cases += [Case("relu", n, 64, 50, "diag") for n in (10_000, 100_000)]
    cases.append(Case("relu", 1_000_000, 64, 50, "diag", repeats=2, fit_repeats=1))
    return cases


def sweep() -> list[Case]:
    """Return the cases that differ in one thing from the synthetic diag case of "cpu", and full in other dtypes."""
    base = Case("relu", 50_176, 64, 50, "diag", repeats=3, fit_repeats=1)
    cases = [replace(base, d=d) for d in (16, 256)] + [replace(base, k=k) for k in (10, 200)]
    cases += [replace(base, dtype=dtype) for dtype in ("float16", "float64")]
    cases += [replace(base, backend=backend) for backend in ("numba", "torch")]
    return cases + [replace(base, covariance="full", n=12_544, dtype=dtype) for dtype in ("float16", "float64")]


BOTH: tuple[CovarianceType, ...] = ("diag", "full")
GPU_BACKENDS: dict[str, tuple[tuple[CovarianceType, ...], tuple[str, ...]]] = {  # kinds of covariance, precisions
    "torch": (BOTH, ("high",)),
    "triton": (BOTH, ("high", "fast")),
    "cupy": (("diag",), ("high",)),  # the rest it leaves to torch
}
GPU_ROWS: dict[CovarianceType, int] = {"diag": 10_000_000, "full": 1_000_000}


def gpu() -> list[Case]:
    """Return what runs on a CUDA device, backend by backend, the plain one first: the others are compared with it."""
    return [
        Case("relu", GPU_ROWS[kind], 64, 50, kind, dtype, backend, precision, repeats=20, fit_passes=5)
        for backend, (kinds, precisions) in GPU_BACKENDS.items()
        for kind in kinds
        for dtype in ("float32", "float16")
        for precision in precisions
    ]
