"""What can run here: the machine, its devices, the versions, and each backend or why it cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch

from fastclust import kernels, machine

FLOAT32 = torch.float32


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
    for where in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        chosen, _, _ = kernels.select("auto", torch.device(where))
        for name, reason in kernels.available(torch.device(where)).items():
            state = f"cannot run: {reason}" if reason else "chosen by auto" if name == chosen else "can run"
            yield f"{'backend':<14}{name} on {where}: {state}{'' if reason else _left(name, torch.device(where))}"


def _left(name: str, device: torch.device) -> str:
    """Say which passes over float32 rows a backend leaves to the torch backend."""
    _, backend, _ = kernels.select(name, device)
    kinds = [kind for kind in get_args(kernels.CovarianceType) if kernels.left(backend, kind, FLOAT32, [FLOAT32])]
    return f"; torch passes over the rows for {' and '.join(kinds)} covariance" if kinds else ""
