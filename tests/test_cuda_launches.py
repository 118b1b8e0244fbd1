"""What a pass by the CUDA kernels starts on a device, counted with fake tensors; none of it waits for the device."""

from types import SimpleNamespace

import pytest
import torch
from test_no_waiting import CUDA, NoWaiting, fake
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclust.kernels import Coefficients, Frame
from fastclust.kernels import cuda as backend
from fastclust.kernels.cuda import launch

N, D = 5000, 7
H200 = {"multi_processor_count": 132, "shared_memory_per_multiprocessor": 228 << 10}
H200 |= {"shared_memory_per_block_optin": 227 << 10, "major": 9}
STARTS_NOTHING = {"empty", "new_empty", "expand", "view", "unsqueeze", "select", "slice", "split", "split_with_sizes"}
STARTS_NOTHING |= {"unbind", "detach", "_unsafe_view", "as_strided", "alias", "prim::device"}


class Starts(NoWaiting):
    """Note what is started on the device: torch's operations by name, but for views and allocations."""

    def __init__(self, started: list[str]) -> None:
        super().__init__()
        self.started = started

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in STARTS_NOTHING:
            self.started.append(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Put a device of fake tensors in place; return what is started on it, kernels by name."""
    seen = []
    monkeypatch.setattr(launch, "start", lambda name, shape, grid, rows, *more: seen.append(name))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**H200))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 1 << 30)
    return seen


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("k", [50, 200], ids=["once", "in rounds"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_block_of_rows_is_a_few_launches_and_what_is_of_size_k_is_made_once(kind, k, started):
    kernels = ["assign", "statistics"] if k > 64 else ["fused"]
    with FakeTensorMode(), Starts(started):
        coefficients = Coefficients(kind, fake(k), fake(k, D), fake(k, D) if kind == "diag" else fake(k))
        rows, weights = fake(N, D, dtype=torch.float16), fake(N)
        plan = backend.prepare(coefficients, Frame(fake(D), fake(D)), torch.float32)
        for given, expected in (
            ((rows,), kernels),
            ((rows, weights.float()), kernels),
            ((rows, weights), ["_to_copy", *kernels]),
        ):
            started.clear()
            plan.add(*given)
            assert started == expected
        started.clear()
        found = plan.result()
        assert len(started) <= 4, started
        assert found.sx.shape == (k, D)
        assert found.sx.device == CUDA
        started.clear()
        plan.renew(coefficients)
        assert len(started) <= (6 if k > 64 else 46), started  # tables of products; a CUDA graph starts them at once
        started.clear()
        plan.clear()
        assert not started
        plan.assign(rows)
        assert started == ["assign", "log_", "add_"]
