"""The Triton kernels: tests/triton_cases.py in the interpreter and on a GPU, and compiled where there is none."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels import problem

from fastclust import kernels
from fastclust.kernels import Frame
from fastclust.kernels import triton as backend

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent
SM_90 = 90
SHARED_BYTES = 227 << 10


@pytest.mark.parametrize("place", ["interpreter"] + ["cuda"] * torch.cuda.is_available())
def test_kernels_agree_with_the_oracle(place: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if place == "interpreter":  # read when triton is imported, so in a process of its own
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


class Recorder:
    """Stand in for a kernel: note what it is started with, and run nothing."""

    def __init__(self, kernel: Any, starts: list[Any]) -> None:
        self.kernel, self.starts = kernel, starts

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **constants: self.starts.append((self.kernel, given, constants))


POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"} | {
    torch.int32: "*i32",
    torch.int16: "*i16",
}
KERNELS = {
    "triton_launch": ("fused_statistics", "fused_assign", "tiled_log_rho", "tiled_softmax", "tiled_moments"),
    "triton_full_launch": ("full_log_rho", "tied_log_rho", "list_rows", "listed_moments"),
}


def compiled(kernel: Any, given: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """Compile a kernel for sm_90 as its launch would: ones are constants, and multiples of 16 are known to be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {
        name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in constants
    }
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, given, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    ordered = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=ordered, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", SM_90, 32), options=options)


SMALL, LARGE = (640, 64, 50), (640, 512, 200)


@pytest.mark.parametrize(
    ("what", "shape", "kind", "stored", "precision"),
    [
        ("statistics", SMALL, "diag", torch.float32, "high"),
        ("statistics", SMALL, "diag", torch.float16, "fast"),
        ("statistics", SMALL, "spherical", torch.bfloat16, "high"),
        ("statistics", (640, 128, 128), "diag", torch.float32, "high"),
        ("statistics", (1, 1, 1), "diag", torch.float32, "high"),
        ("responsibilities", (1, 1, 1), "diag", torch.float32, "high"),
        ("assign", SMALL, "diag", torch.float32, "high"),
        ("assign", LARGE, "diag", torch.float16, "high"),
        ("statistics", LARGE, "spherical", torch.float32, "high"),
        ("statistics", LARGE, "diag", torch.float32, "fast"),
        ("statistics", SMALL, "full", torch.float32, "high"),
        ("statistics", (640, 130, 3), "full", torch.float16, "fast"),
        ("statistics", (1, 1, 1), "full", torch.float32, "high"),
        ("assign", SMALL, "full", torch.bfloat16, "fast"),
        ("statistics", SMALL, "tied", torch.float32, "high"),
        ("responsibilities", (640, 512, 3), "tied", torch.float16, "fast"),
    ],
    ids=str,
)
def test_kernels_compile_for_a_gpu_that_is_not_here(what, shape, kind, stored, precision, monkeypatch, record_property):
    from fastclust.kernels import triton_launch as launch

    if launch.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    starts: list[Any] = []
    for module, names in KERNELS.items():
        for name in names:
            place = f"fastclust.kernels.{module}.{name}"
            monkeypatch.setattr(place, Recorder(pkgutil.resolve_name(place), starts))
    rows, coefficients = problem(*shape, kind)
    getattr(backend, what)(rows.to(stored), coefficients, Frame(), torch.float32, precision=precision)
    assert starts
    for kernel, given, constants in starts:
        tight = constants.get("TIGHT")
        try:
            binary = compiled(kernel, given, constants)
        except Exception as error:
            if "ptxas" in str(error).lower() and "not found" in str(error).lower():
                pytest.skip(f"no assembler: {error}")
            raise
        text = binary.asm["ptx"]
        products = len(re.findall(r"wgmma\.mma_async\.sync", text)), len(re.findall(r"mma\.sync\.aligned", text))
        number = "bf16" if precision == "fast" else "tf32"
        record_property(f"{kernel.__name__} tight={tight}", f"{binary.metadata.shared} {products}")
        assert binary.metadata.shared <= SHARED_BYTES
        if kernel.__name__ in ("tied_log_rho", "listed_moments"):
            assert (sum(products) > 0) == constants.get("OUTER", True)
            assert products[1] == len(re.findall(r"mma\.sync\.aligned\.m8n8k4\.row\.col\.f64", text))
        elif kernel.__name__ not in ("tiled_softmax", "list_rows"):
            assert sum(products) > 0
            assert re.search(rf"mma[a-z_.0-9]*\.{number}\.{number}", text), "products are on tensor cores, as asked"
            if shape != (1, 1, 1):
                assert products[0] > 0
        if kernel.__name__.startswith("fused"):
            shape_ = launch.fused_shape(shape[2], shape[1], kind == "diag", SHARED_BYTES)
            assert binary.metadata.shared <= shape_.shared_bytes(kind == "diag"), "the formula promised less"


def test_a_device_with_too_little_shared_memory_is_told_every_number() -> None:
    from fastclust.kernels import triton_launch as launch

    small = launch.fused_shape(50, 64, True, 64 << 10)
    assert small.columns < small.width
    with pytest.raises(RuntimeError, match=r"K = 128 components of D = 128 features need \d+ bytes.*has 1024"):
        launch.fused_shape(128, 128, True, 1024)


def test_where_there_is_no_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.unavailable(torch.device("cpu")) == "needs a CUDA device"
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu: needs a CUDA device; numba, torch"):
        kernels.select("triton", torch.device("cpu"))
    importlib.import_module("fastclust.kernels.triton_launch")  # as triton is
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "after triton was imported" in str(backend.unavailable(torch.device("cpu")))
