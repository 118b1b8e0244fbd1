"""Faults in the sources of the CUDA kernels, run on the CPU by `cupy_on_cpu`: a proof finds each."""

import shutil
import sys
from types import SimpleNamespace

import cupy_on_cpu
import numpy as np
import pytest
import torch
from test_kernels import problem

from fastclust.kernels import Frame, constructed, proof
from fastclust.kernels import cuda as backend
from fastclust.kernels.cuda import fused, plan
from fastclust.kernels.cuda import launch as launch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels for the CPU")
BOTH, ONE = ("statistics", "assign"), ("statistics",)
DIRECT = {  # file, what is there, what stands there instead, and the operations that it breaks
    "the last column is masked": ("direct.cuh", "&& d < rows.d;", "&& d < rows.d - 1;", BOTH),
    "the last component has no table": ("direct.cuh", "first + j < k &&", "first + j < k - 1 &&", BOTH),
    "a difference has the bits of tf32": (
        "direct.cuh",
        "= fmaf(root, y[i] - mean, rest);",
        "= __uint_as_float(__float_as_uint(fmaf(root, y[i] - mean, rest)) & 0xffffe000u);",
        BOTH,
    ),
    "the last row is masked": ("statistics.cu", "if (row < n_rows)", "if (row < n_rows - 1)", ONE),
    "rows of weight zero count": ("statistics.cu", "weights[row * stride_w] : 1.0f", "1.0f : 1.0f", ONE),
    "components are swapped": ("statistics.cu", "nk[first + k] +=", "nk[first + (k ^ 1)] +=", ONE),
    "small shares are lost": ("statistics.cu", "[low + lane] != 0.0f", "[low + lane] > 0.01f", ONE),
    "the sum of shares is short": ("assign.cu", "if (below > CUT) total", "if (below > -1.0f) total", ("assign",)),
    "rows of the tile before": ("assign.cu", "* ROWS + n < n_rows;", "* ROWS + n < n_rows - 1;", ("assign",)),
}
FUSED = {
    "the low part of rows is dropped": ("products.cuh", "if (!exact) multiply(", "if (0) multiply("),
    "the low part of tables is dropped": ("products.cuh", "    multiply(c, a_high, b_low.x, b_low.y);", ""),
    "low parts are other columns'": ("products.cuh", "b_low.x, b_low.y", "b_low.y, b_low.x"),
    "a span has no constant": ("products.cuh", "if (8 * step % SPAN == 0)", "if (step == 0)"),
    "tight components are left out": ("products.cuh", "place <= n_tight", "place < n_tight"),
    "tight components are put beside": ("products.cuh", "places |= 1ull << k", "places |= 1ull << (k ^ 1)"),
    "the last column is masked": ("fused.cu", "= c < rows.d ? (int)", "= c < rows.d - PACK ? (int)"),
    "the last row is masked": ("fused.cu", "? rows.n - first :", "? rows.n - first - 1 :"),
    "rows of weight zero count": ("fused.cu", "weight[i] = weights[row * stride_w];", "weight[i] = 1.0f;"),
    "the last row has no weight of its own": ("fused.cu", "weights && row < n_rows", "weights && row < n_rows - 1"),
    "weights are of other rows": ("fused.cu", "weights[row * stride_w]", "weights[(row ^ 1) * stride_w]"),
    "components are swapped": (
        "fused.cu",
        "component = threadIdx.x / 32 + WARPS * i;",
        "component = (threadIdx.x / 32 ^ 1) + WARPS * i;",
    ),
    "small shares are lost": ("fused.cu", "r[w] != 0.0f", "r[w] > 0.01f"),
    "the last share of 32 rows is lost": ("fused.cu", "while (sharing[w])", "while (sharing[w] & sharing[w] - 1)"),
    "sums of the last tiles are lost": ("fused.cu", "== flush_after || last", "== flush_after"),
    "a flush keeps what it wrote": (
        "fused.cu",
        "sums.sx[i][e] = sums.sxx[i][e] = 0.0f;\n        }\n    }\n}",
        "}\n    }\n}",
    ),
    "the frame is left out": ("fused.cu", "const bool moved = rows.frame &&", "const bool moved = false &&"),
}


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A copy of the sources, of which kernels are compiled for the CPU, as for a device of one multiprocessor."""
    about = SimpleNamespace(
        shared_memory_per_block_optin=227 << 10,
        shared_memory_per_multiprocessor=20 << 10,
        multi_processor_count=1,
        major=7,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setitem(sys.modules, "cupy", cupy_on_cpu)
    monkeypatch.setattr(constructed, "ROWS", (263, 263))
    copy = shutil.copytree(launch.SOURCES, tmp_path / "sources")
    monkeypatch.setattr(launch, "SOURCES", copy)
    launch._kernel.cache_clear()
    yield SimpleNamespace(folder=copy, about=about)
    launch._kernel.cache_clear()


def found(operation, kind, sources, fused) -> proof.Proof:
    """Return the proof of an operation: with tensor cores on 20 columns, two spans, and 13 components, two tiles."""
    sources.about.major = 8 if fused else 7
    rows, coefficients = problem(150, 20, 13, kind) if fused else problem(150, 9, 6, kind)
    weights = torch.arange(len(rows)).double() % 3
    frame = Frame(torch.full((rows.shape[1],), 0.25).double())
    return proof.prove(backend, operation, rows.float(), coefficients, frame, torch.float32, "high", weights)


def broken(sources, name, there, instead) -> None:
    text = (sources.folder / name).read_text(encoding="utf-8")
    assert text.count(there) == 1
    (sources.folder / name).write_text(text.replace(there, instead), encoding="utf-8")


@pytest.mark.parametrize("fused", [False, True], ids=["direct", "fused"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_without_a_fault_all_pass(kind, fused, sources):
    for operation in BOTH:
        assert (proved := found(operation, kind, sources, fused)).passed, proved.failures()


@pytest.mark.parametrize(
    ("fault", "operation"), [(fault, what) for fault, given in DIRECT.items() for what in given[3]]
)
def test_a_fault_in_the_source_is_found(fault, operation, sources):
    broken(sources, *DIRECT[fault][:3])
    assert not found(operation, "diag", sources, fused=False).passed


@pytest.mark.parametrize("fault", FUSED)
def test_a_fault_in_the_kernel_on_tensor_cores_is_found(fault, sources, monkeypatch):
    if fault == "a flush keeps what it wrote":  # a GPU gets rows for more than one flush
        monkeypatch.setattr(plan, "FLUSH", np.int32(1))
    broken(sources, *FUSED[fault])
    assert not found("statistics", "diag", sources, fused=True).passed


@pytest.mark.parametrize("fused", [False, True], ids=["direct", "fused"])
def test_a_renewed_plan_that_keeps_its_table_is_found(fused, sources, monkeypatch):
    prepare = backend.prepare

    def prepared(*given, **more):
        plan = prepare(*given, **more)
        monkeypatch.setattr(plan, "renew", lambda coefficients: plan.clear(), raising=False)
        return plan

    monkeypatch.setattr(backend, "prepare", prepared)
    assert not found("statistics", "diag", sources, fused).passed


def test_a_renewed_plan_that_keeps_its_list_of_tight_components_is_found(sources, monkeypatch):
    renew = fused.Tables.renew

    def renewed(tables, *given):
        kept = tables.tight.clone() if tables.ready else None
        renew(tables, *given)
        _ = tables.tight.copy_(kept) if tables.ready else None
        tables.ready = True

    monkeypatch.setattr(fused.Tables, "ready", False, raising=False)
    monkeypatch.setattr(fused.Tables, "renew", renewed)
    assert not found("statistics", "diag", sources, fused=True).passed
