"""A device on which backends prove themselves, of CPU tensors: "triton" and "cupy" stand for themselves there.

As a program: fit a mixture there, and print as JSON which backend passed over the rows and how many proofs it took.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from broken import broken
from conftest import blobs

from fastclust import DPGMM
from fastclust.kernels import chosen, numba, proof, table
from fastclust.kernels import torch as plain


def of_torch() -> SimpleNamespace:
    """Return a backend that computes as torch does, and is another."""
    return SimpleNamespace(PRECISIONS=("high",), prepare=plain.prepare, moments=plain.moments)


class Device:
    """What can be set: faults by backend (`broken`), what raises, what cannot run. proven: proofs as they were made."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.raises: dict[str, Exception] = {}
        self.unable: dict[str, str] = {}
        self.without: tuple[torch.dtype, ...] = ()  # rows that triton has no kernel for
        self.proven: list[tuple[str, str]] = []
        self.rows = blobs(300, 9, 3).astype(np.float32)

    def fit(self, dtype: type = np.float32, sample_weight: Any = None, **more: Any) -> DPGMM:
        """Return a mixture that was fitted here."""
        parameters = {"n_components": 4, "random_state": 0, "max_iter": 3, "tol": 10.0, "device": "cpu"}
        parameters = {"covariance_type": "diag"} | parameters | more
        return DPGMM(**parameters).fit(self.rows.astype(dtype), sample_weight=sample_weight)

    def unavailable(self, name: str, device: torch.device) -> str | None:
        return self.unable.get(name)

    def module(self, name: str) -> Any:
        if name == "torch":
            return plain
        made = broken(numba if name == "cupy" else of_torch(), self.faults.get(name))
        prepare = made.prepare

        def raising(*given: Any, **more: Any) -> Any:
            if name in self.raises:
                raise self.raises[name]
            return prepare(*given, **more)

        made.prepare, made.name = raising, name

        def why_not(kind: str, dtype: torch.dtype, stored: torch.dtype) -> str | None:
            if kind == "tied":
                return "no kernel for tied"
            return f"no kernel for {stored}" if name == "triton" and stored in self.without else None

        made.why_not = why_not
        return made

    def prove(self, backend: Any, operation: str, rows: torch.Tensor, *rest: Any) -> proof.Proof:
        self.proven.append((backend.name, operation))
        return proof.prove(backend, operation, rows, *rest)


def install(set_: Callable[[Any, str, Any], None]) -> Device:
    """Have the CPU be such a device; set_: as monkeypatch.setattr."""
    device = Device()
    set_(table, "PROVEN", ("cpu",))
    set_(table, "AUTOMATIC", {"cpu": table.AUTOMATIC["cuda"]})
    set_(table, "_unavailable", device.unavailable)
    set_(table, "module", device.module)
    set_(chosen, "prove", device.prove)
    return device


if __name__ == "__main__":
    here = install(setattr)
    sys.stdout.write(json.dumps({"backend": here.fit().backend_, "proofs": len(here.proven)}))
