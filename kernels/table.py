"""Which backends there are, which can run here, and why the others cannot."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol, cast

import torch

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision, Statistics


class Backend(Protocol):
    """The functions that every backend module has; `rows` are (N, D) of any float dtype, as they are stored.

    precision: how exact products over rows are; a backend that has one arithmetic uses it, whatever is asked for.
    """

    PRECISIONS: tuple[Precision, ...]

    def unavailable(self, device: torch.device) -> str | None:
        """Say in a few words why this backend cannot run on a device; None where it can."""

    def statistics(
        self,
        rows: torch.Tensor,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        weights: torch.Tensor | None = None,
        block_rows: int | None = None,
        precision: Precision = "high",
    ) -> Statistics:
        """Return the statistics of rows (N, D) under the coefficients; weights (N,) count a row w_n times."""

    def moments(
        self,
        rows: torch.Tensor,
        responsibilities: torch.Tensor,
        covariance_type: CovarianceType,
        about: torch.Tensor,
        frame: Frame,
        dtype: torch.dtype,
    ) -> Statistics:
        """Return the statistics of rows (N, D) for given responsibilities (N, K); log_norm and entropy are zero.

        about: (K, D), the reference points of full covariance, in the frame's units; others have the origin.
        N is small enough for several (N, D) arrays.
        """

    def assign(
        self,
        rows: torch.Tensor,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        block_rows: int | None = None,
        precision: Precision = "high",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return for each row its most probable component (N,) int32 and ln sum_k rho_nk (N,) in dtype."""

    def responsibilities(
        self,
        rows: torch.Tensor,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        block_rows: int | None = None,
        precision: Precision = "high",
    ) -> torch.Tensor:
        """Return the responsibilities (N, K) in dtype."""


AUTOMATIC = ("numba", "torch")  # best first
# Others run when they are asked for: no GPU has run the Triton or CUDA kernels yet, and the reference is slow.
BACKENDS = (*AUTOMATIC, "triton", "cupy", "reference")


def available(device: torch.device) -> dict[str, str | None]:
    """Return for each backend None where it can run on a device, and the reason where it cannot."""
    reasons: dict[str, str | None] = {}
    for name in BACKENDS:
        try:
            reasons[name] = _module(name).unavailable(device)
        except ImportError as error:
            reasons[name] = f"{error}"
    return reasons


def select(name: str, device: torch.device) -> tuple[str, Backend, dict[str, str]]:
    """Choose a backend for a device.

    name: "auto" for the first of AUTOMATIC that can run, or one of BACKENDS.
    Returns its name, the module, and the reasons why better ones were passed over.
    Raises ValueError for a name that is none of them, RuntimeError where the one asked for cannot run.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, and was {name!r}")
    reasons = available(device)
    if name != "auto":
        if reasons[name] is not None:
            able = [other for other in BACKENDS if reasons[other] is None]
            raise RuntimeError(f"backend {name!r} cannot run on {device}: {reasons[name]}; {', '.join(able)} can")
        return name, _module(name), {}
    passed_over: dict[str, str] = {}
    for other in AUTOMATIC:
        reason = reasons[other]
        if reason is None:
            return other, _module(other), passed_over
        passed_over[other] = reason
    raise RuntimeError(f"no backend can run on {device}: {passed_over}")


def left(backend: Backend, kind: CovarianceType, dtype: torch.dtype, stored: Iterable[torch.dtype]) -> str | None:
    """Say why a backend leaves the passes over rows to the torch backend's functions; None where it does not.

    dtype: of the arithmetic. stored: the dtypes of the rows. A backend that leaves any has a function `why_not`.
    """
    why_not = getattr(backend, "why_not", lambda *what: None)
    return next((reason for one in stored if (reason := why_not(kind, dtype, one)) is not None), None)


def _module(name: str) -> Backend:
    return cast(Backend, importlib.import_module(f"fastclust.kernels.{name}"))
