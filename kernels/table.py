"""Which backends there are, which can run here, and why the others cannot."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol, cast

import torch

from fastclust.kernels.chosen import Chosen
from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Plan, Precision, Statistics


class Backend(Protocol):
    """The functions that every backend module has; `rows` are (N, D) of any float dtype, as they are stored.

    precision: how exact products over rows are; a backend that has one arithmetic uses it, whatever is asked for.
    """

    PRECISIONS: tuple[Precision, ...]

    def unavailable(self, device: torch.device) -> str | None:
        """Say in a few words why this backend cannot run on a device; None where it can."""

    def prepare(
        self,
        coefficients: Coefficients,
        frame: Frame,
        dtype: torch.dtype,
        precision: Precision = "high",
        block_rows: int | None = None,
    ) -> Plan:
        """Return the plan of an E-step, for rows on the coefficients' device, that computes in dtype.

        block_rows: rows that it treats at once, where it keeps anything of a row; None for its own choice.
        """

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


AUTOMATIC = {"cuda": ("triton", "cupy", "torch")}  # by kind of device, best first
ELSEWHERE = ("numba", "torch")
BACKENDS = ("numba", "torch", "triton", "cupy", "reference")
PROVEN = ("cuda",)  # kinds of device on which a backend is believed after a proof; tests cover the others
UNPROVEN = ("torch", "reference")  # what proofs are held against
ROOMS = {"cupy": "cuda"}  # whose module has another name


def available(device: torch.device) -> dict[str, str | None]:
    """Return for each backend None where it can run on a device, and the reason where it cannot."""
    return {name: _unavailable(name, device) for name in BACKENDS}


def usable(name: str, device: torch.device) -> Backend:
    """Return the module of a backend that can run on a device, as it is, proven or not.

    Raises ValueError for a name that is none of BACKENDS, RuntimeError where the backend cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, and was {name!r}")
    reason = _unavailable(name, device)
    if reason is not None:
        able = [other for other, why in available(device).items() if why is None]
        raise RuntimeError(f"backend {name!r} cannot run on {device}: {reason}; {', '.join(able)} can")
    return module(name)


def _unavailable(name: str, device: torch.device) -> str | None:
    try:
        return module(name).unavailable(device)
    except ImportError as error:
        return f"{error}"


def select(name: str, device: torch.device) -> tuple[str, Backend, dict[str, str]]:
    """Choose a backend for a device.

    name: "auto" for the first of AUTOMATIC that can run, or one of BACKENDS.
    Returns its name, the module, and the reasons why better ones were passed over. On a kind of device where backends
    have to prove themselves, it is a `Chosen` in the module's place, and the name that of the first that may.
    Raises ValueError for a name that is none of them, RuntimeError where the one asked for cannot run.
    """
    if name != "auto":
        found = usable(name, device)
        if device.type in PROVEN and name not in UNPROVEN:
            return name, Chosen(device, {name: found}, {}, only=True), {}
        return name, found, {}
    reasons = available(device)
    wanted = AUTOMATIC.get(device.type, ELSEWHERE)
    able = [other for other in wanted if reasons[other] is None]
    if not able:
        raise RuntimeError(f"no backend can run on {device}: { {other: reasons[other] for other in wanted} }")
    first, unable = able[0], {other: reason for other in wanted if (reason := reasons[other]) is not None}
    passed_over = {other: reason for other, reason in unable.items() if wanted.index(other) < wanted.index(first)}
    if device.type in PROVEN:
        return first, Chosen(device, {other: module(other) for other in able}, unable), passed_over
    return first, module(first), passed_over


def ran(backend: Backend, name: str) -> str:
    """Return the name of the backend that passed over rows last. name: of the one that was expected to."""
    return backend.ran or name if isinstance(backend, Chosen) else name


def precisions(backend: Backend) -> tuple[Precision, ...]:
    """Return the arithmetics of the backend that passed over rows last; before any did, of all that may."""
    last = backend.candidates.get(backend.ran or "", backend) if isinstance(backend, Chosen) else backend
    return last.PRECISIONS


def left(backend: Backend, kind: CovarianceType, dtype: torch.dtype, stored: Iterable[torch.dtype]) -> str | None:
    """Say why a backend leaves the passes over rows to the torch backend's functions; None where it does not.

    dtype: of the arithmetic. stored: the dtypes of the rows. A backend that leaves any has a function `why_not`.
    """
    why_not = getattr(backend, "why_not", lambda *what: None)
    return next((reason for one in stored if (reason := why_not(kind, dtype, one)) is not None), None)


def statistics(
    backend: Backend,
    rows: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    dtype: torch.dtype,
    weights: torch.Tensor | None = None,
    precision: Precision = "high",
    block_rows: int | None = None,
) -> Statistics:
    """Return the statistics of rows (N, D) that are all there: a pass of one block."""
    plan = backend.prepare(coefficients, frame, dtype, precision, block_rows)
    plan.add(rows, weights)
    return plan.result()


def module(name: str) -> Backend:
    """Return a backend's module as it is, proven or not. Raises ImportError where what it needs is missing."""
    return cast(Backend, importlib.import_module(f"fastclust.kernels.{ROOMS.get(name, name)}"))
