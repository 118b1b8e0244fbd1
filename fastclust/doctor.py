"""What can run here: the machine, its devices, the versions, each backend or why it cannot run, and what is proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

import torch

from fastclust import kernels, machine
from fastclust.kernels import remembered
from fastclust.kernels.constructed import make
from fastclust.kernels.proof import OPERATIONS, Operation, prove

FLOAT32 = torch.float32
STORED = (torch.float32, torch.float16, torch.bfloat16)
KINDS: tuple[kernels.CovarianceType, ...] = get_args(kernels.CovarianceType)
SHAPES = {"cpu": ((7, 9),), "cuda": ((50, 64), (200, 130))}  # components and features: Triton has two paths on CUDA
COLUMNS = "{:<9} {:<7} {:<17} {:<10} {:>9} {:<9} {:<5} {:>8}  {}"


def lines() -> Iterator[str]:
    """Describe the machine, the versions, the devices and the backends, a line each."""
    about = machine.describe()
    for key in ("platform", "cpu", "cores", "memory_bytes", "torch_threads", "python", "cuda", "commit"):
        value = f"{about[key] / 2**30:.1f} GiB" if key == "memory_bytes" and about[key] else about[key]
        yield f"{key.removesuffix('_bytes'):<14}{'unknown' if value is None else value}"
    for name, number in about["versions"].items():
        yield f"{name:<14}{number or 'not installed'}"
    for device in about["devices"]:
        size = device["memory_bytes"] / 2**30
        yield f"{'device':<14}{device['name']}, {size:.0f} GiB, compute capability {device['capability']}"
    if not about["devices"]:
        yield f"{'device':<14}no CUDA device: the CPU computes"
    for where in _devices():
        chosen, _, _ = kernels.select("auto", torch.device(where))
        yield from _proven(torch.device(where))
        for name, reason in kernels.available(torch.device(where)).items():
            state = f"cannot run: {reason}" if reason else "chosen by auto" if name == chosen else "can run"
            yield f"{'backend':<14}{name} on {where}: {state}{'' if reason else _left(name, torch.device(where))}"


def _left(name: str, device: torch.device) -> str:
    """Say which passes over float32 rows a backend leaves to the torch backend."""
    kinds = [kind for kind in KINDS if kernels.left(kernels.module(name), kind, FLOAT32, [FLOAT32])]
    return f"; torch passes over the rows for {' and '.join(kinds)} covariance" if kinds else ""


def proofs() -> Iterator[tuple[str, bool]]:
    """Prove every operation of every backend that can run here: a line of a table for each, and whether it failed.

    An error is the largest of those that the operation makes, in units of what it may be.
    """
    yield COLUMNS.format("backend", "device", "operation", "covariance", "shape", "stored", "prec", "error", ""), False
    for where in _devices():
        device = torch.device(where)
        for name, reason in kernels.available(device).items():
            if reason is not None:
                yield f"{name:<9} {where:<7} cannot run: {reason}", False
            elif name != "reference":
                yield from _of_backend(name, device)


def _of_backend(name: str, device: torch.device) -> Iterator[tuple[str, bool]]:
    backend = kernels.module(name)
    for kind in KINDS:
        for stored in STORED:
            if (why := kernels.left(backend, kind, FLOAT32, [stored])) is not None:
                yield (
                    COLUMNS.format(name, device.type, "all", kind, "", _short(stored), "", "", f"left to torch: {why}"),
                    False,
                )
                continue
            for precision in backend.PRECISIONS:
                for operation in OPERATIONS:
                    if operation != "moments" or precision == "high":
                        for k, d in SHAPES[device.type]:
                            error, verdict, failed = _proof(name, operation, kind, stored, precision, device, k, d)
                            what = (name, device.type, operation, kind, f"{d} x {k}", _short(stored), precision)
                            yield COLUMNS.format(*what, error, verdict), failed


def _proof(
    name: str,
    operation: Operation,
    kind: kernels.CovarianceType,
    stored: torch.dtype,
    precision: kernels.Precision,
    device: torch.device,
    k: int,
    d: int,
) -> tuple[str, str, bool]:
    """Return the error of a proof, what it says, and whether it failed."""
    shape = {"spherical": (k,), "diag": (k, d), "tied": (d, d), "full": (k, d, d)}[kind]
    like = torch.empty(16, d, dtype=stored, device=device)
    sizes = (torch.empty(size, dtype=torch.float64, device=device) for size in ((k,), (k, d), shape))
    given = make("mixed", like, kernels.Coefficients(kind, *sizes), kernels.Frame(), True, precision)
    whole = (operation, given.rows, given.coefficients, given.frame, FLOAT32, precision, given.weights)
    try:
        proof = prove(kernels.module(name), *whole)
    except Exception as error:
        return "", f"FAILED: {type(error).__name__}: {error}", True
    return f"{proof.worst:.3f}", "ok" if proof.passed else f"FAILED: {proof.failures()}", not proof.passed


def _devices() -> list[str]:
    return ["cpu"] + ["cuda"] * torch.cuda.is_available()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _proven(device: torch.device) -> Iterator[str]:
    """Say what is remembered as proven on a device where backends have to prove themselves."""
    if device.type not in kernels.table.PROVEN:
        return
    found = Counter(f"{one['backend']} {one['covariance']}" for one in remembered.all_passed(device))
    said = ", ".join(f"{what} ({count})" for what, count in sorted(found.items()))
    yield f"{'proven':<14}on {device}: {said or 'nothing yet: a fit proves what it uses'}"
