"""What only a GPU can show of the CUDA kernels; tests/test_cuda.py runs there, too."""

import importlib.util

import pytest
import torch
from test_kernels import TOLERANCE, _on_origin, errors, problem

from fastclust import kernels
from fastclust.kernels import Coefficients, Frame, Statistics
from fastclust.kernels import cuda as backend
from fastclust.kernels import torch as plain

if not (torch.cuda.is_available() and importlib.util.find_spec("cupy")):
    pytest.skip("needs a CUDA device and CuPy, as the half of test_cuda.py that is left out", allow_module_level=True)


def on_device(n: int, kind: str = "diag") -> tuple[torch.Tensor, Coefficients]:
    rows, c = problem(n, 64, 50, kind)
    device = torch.device("cuda")
    return rows.half().to(device), Coefficients(kind, c.offset.to(device), c.means.to(device), c.precision.to(device))


def on_host(statistics: Statistics) -> Statistics:
    return Statistics(*(part if part is None else part.cpu() for part in vars(statistics).values()))


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_million_rows_agree_with_float64_and_are_the_same_bits_again(kind: str) -> None:
    rows, coefficients = on_device(1_000_003, kind)
    expected = kernels.statistics(plain, rows, coefficients, Frame(), torch.float64)
    one, two = (kernels.statistics(backend, rows, coefficients, Frame(), torch.float32) for _ in range(2))
    assert max(errors(_on_origin(on_host(one)), _on_origin(on_host(expected))).values()) < TOLERANCE[torch.float32]
    for first, second in zip(vars(one).values(), vars(two).values(), strict=True):
        assert torch.equal(first, second)


def test_a_launch_waits_for_its_own_stream_and_the_host_for_none() -> None:
    rows, coefficients = on_device(100_000)
    expected = kernels.statistics(backend, rows, coefficients, Frame(), torch.float32)
    late, busy = torch.zeros_like(rows), torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                busy = busy @ busy / 4096
            late.copy_(rows)
            found = kernels.statistics(backend, late, coefficients, Frame(), torch.float32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.equal(found.sx, expected.sx)
