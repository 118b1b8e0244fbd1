"""What is benchmarked: suites of cases, and what a pass of a case costs at least."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastclust.kernels import CovarianceType

FORMULAE = {
    "bytes": "N D 4: the rows, read once",
    "flop": "8 N D K for diag, 4 N (D + 1) K for spherical, 2 N D^2 + 4 N D K for tied, 4 N K D^2 for full: the matrix "
    "products of a pass, a multiplication and an addition each counted, symmetry unused, no row left out",
    "gbytes_per_second": "bytes / median seconds of a pass",
    "gflop_per_second": "flop / median seconds of a pass; work that a backend finds unnecessary counts as done",
    "floor_seconds": "the larger of bytes / copy bandwidth and flop / rate of the matrix product",
}


@dataclass(frozen=True)
class Case:
    """One problem: rows of a kind of data, a mixture, and how often what is timed.

    burn_in: passes before anything is timed, so that the state is a typical one. repeats: pairs of single passes.
    fit_passes, fit_repeats: the short fit from the start, and pairs of it.
    """

    data: str
    n: int
    d: int
    k: int
    covariance: CovarianceType
    burn_in: int = 10
    repeats: int = 7
    fit_passes: int = 10
    fit_repeats: int = 3
    seed: int = 0

    @property
    def name(self) -> str:
        """What the case is called on the command line and in the records."""
        return f"{self.covariance}-{self.data}-{self.n}x{self.d}-k{self.k}"

    @property
    def bytes(self) -> int:
        """Bytes that a pass has to read; see FORMULAE."""
        return 4 * self.n * self.d

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


def suite(name: str) -> list[Case]:
    """Return the cases of a suite: "quick" for a test's sake, "cpu" for the record.

    Real features are among those of "cpu" where the environment variable FASTCLUST_DATA names their folder.
    """
    if name == "quick":
        return [Case("relu", 2_000, 16, 8, "diag", burn_in=3, repeats=3, fit_passes=3, fit_repeats=1)]
    cases = []
    for data in ("blobs", "relu", *(["relu1_2"] if "FASTCLUST_DATA" in os.environ else [])):
        cases += [Case(data, 50_176, 64, 50, covariance) for covariance in ("diag", "spherical")]
        # scikit-learn's fit takes up to a minute here.
        cases += [Case(data, 50_176, 64, 50, covariance, repeats=3, fit_repeats=1) for covariance in ("tied", "full")]
    for n, d in ((12_544, 128), (3_136, 256), (784, 512)):  # the deeper layers of one image
        cases.append(Case("relu", n, d, 50, "diag"))
        cases.append(Case("relu", n, d, 50, "full", repeats=3, fit_repeats=1))
    cases += [Case("relu", n, 64, 50, "diag") for n in (10_000, 100_000)]
    cases.append(Case("relu", 1_000_000, 64, 50, "diag", repeats=3, fit_repeats=1))
    return cases
