"""Faults in the sources of the CUDA kernels, run on the CPU by `cupy_on_cpu`: a proof finds each."""

import shutil
import sys
from types import SimpleNamespace

import cupy_on_cpu
import pytest
import torch
from test_kernels import problem

from fastclust.kernels import Frame, constructed, proof
from fastclust.kernels import cuda as backend
from fastclust.kernels.cuda import launch as launch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels for the CPU")
BOTH = ("statistics", "assign")
FAULTS = {  # file, what is there, what stands there instead, and the operations that it breaks
    "the last column is masked": ("parts.cuh", "&& d < rows.d;", "&& d < rows.d - 1;", BOTH),
    "the last component has no table": ("parts.cuh", "first + j < k &&", "first + j < k - 1 &&", BOTH),
    "a difference has the bits of tf32": (
        "parts.cuh",
        "= fmaf(root, y[i] - mean, rest);",
        "= __uint_as_float(__float_as_uint(fmaf(root, y[i] - mean, rest)) & 0xffffe000u);",
        BOTH,
    ),
    "the last row is masked": ("statistics.cu", "if (row < n_rows)", "if (row < n_rows - 1)", ("statistics",)),
    "rows of weight zero count": ("statistics.cu", "weights[row * stride_w] : 1.0f", "1.0f : 1.0f", ("statistics",)),
    "components are swapped": ("statistics.cu", "nk[first + k] +=", "nk[first + (k ^ 1)] +=", ("statistics",)),
    "small shares are lost": ("statistics.cu", "[low + lane] != 0.0f", "[low + lane] > 0.01f", ("statistics",)),
    "the sum of shares is short": ("assign.cu", "if (below > CUT) total", "if (below > -1.0f) total", ("assign",)),
    "rows of the tile before": ("assign.cu", "* ROWS + n < n_rows;", "* ROWS + n < n_rows - 1;", ("assign",)),
}


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A copy of the sources, of which kernels are compiled for the CPU, as for a device of two multiprocessors."""
    h200 = {"shared_memory_per_block_optin": 227 << 10, "shared_memory_per_multiprocessor": 64 << 10}
    about = SimpleNamespace(**h200, multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setitem(sys.modules, "cupy", cupy_on_cpu)
    monkeypatch.setattr(constructed, "ROWS", (263, 263))
    copy = shutil.copytree(launch.SOURCES, tmp_path / "sources")
    monkeypatch.setattr(launch, "SOURCES", copy)
    launch._kernel.cache_clear()
    yield copy
    launch._kernel.cache_clear()


def found(operation, kind) -> proof.Proof:
    rows, coefficients = problem(150, 9, 6, kind)
    weights = torch.arange(len(rows)).double() % 3
    return proof.prove(backend, operation, rows.float(), coefficients, Frame(), torch.float32, "high", weights)


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_without_a_fault_all_pass(kind, sources):
    for operation in BOTH:
        assert (proved := found(operation, kind)).passed, proved.failures()


@pytest.mark.parametrize(
    ("fault", "operation"), [(fault, what) for fault, given in FAULTS.items() for what in given[3]]
)
def test_a_fault_in_the_source_is_found(fault, operation, sources):
    name, there, instead, _ = FAULTS[fault]
    text = (sources / name).read_text(encoding="utf-8")
    assert text.count(there) == 1
    (sources / name).write_text(text.replace(there, instead), encoding="utf-8")
    assert not found(operation, "diag").passed


def test_a_renewed_plan_that_keeps_its_table_is_found(sources, monkeypatch):
    prepare = backend.prepare

    def prepared(*given, **more):
        plan = prepare(*given, **more)
        monkeypatch.setattr(plan, "renew", lambda coefficients: plan.clear(), raising=False)
        return plan

    monkeypatch.setattr(backend, "prepare", prepared)
    assert not found("statistics", "diag").passed
