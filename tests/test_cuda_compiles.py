"""The CUDA sources through NVIDIA's compilers: for GPUs that are not here, with what the launcher tells CuPy's."""

import ctypes
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastclust.kernels.cuda import launch as launch

KERNELS = ["assign", "statistics"]
LARGEST, SMALLEST = launch.Shape(64, 4), launch.Shape(32, 1)
FLUSHED = "-ftz=true"  # CuPy adds it


def test_every_source_is_a_kernel_that_is_tested_here() -> None:
    assert sorted(path.stem for path in launch.SOURCES.glob("*.cu")) == KERNELS


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("name", KERNELS)
def test_nvcc_finds_registers_for_everything(name: str, target: str, tmp_path: Path, record_property) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = ["nvcc", "-cubin", f"-arch={target}", FLUSHED, "-Xptxas", "-v", "-Werror", "all-warnings"]
    options = LARGEST.options(torch.float32)
    source = launch.SOURCES / f"{name}.cu"
    run = subprocess.run(
        [*command, *options, "-o", str(tmp_path / "kernel"), str(source)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    stored, loaded, registers = (
        int(re.findall(number, run.stderr)[0])
        for number in (r"(\d+) bytes spill stores", r"(\d+) bytes spill loads", r"Used (\d+) registers")
    )
    record_property("bytes stored, bytes loaded, registers", (stored, loaded, registers))
    assert (stored, loaded) == (0, 0), run.stderr
    assert registers <= 128, "four blocks of four warps no longer fit the registers of a multiprocessor"


@pytest.mark.parametrize(
    ("stored", "shape"), [(torch.float32, SMALLEST), *((stored, LARGEST) for stored in launch.STORED)], ids=str
)
@pytest.mark.parametrize("name", KERNELS)
def test_nvrtc_compiles_it_without_a_header(name: str, stored: torch.dtype, shape: launch.Shape) -> None:
    nvrtc = library()
    source = (launch.SOURCES / f"{name}.cu").read_text(encoding="utf-8")
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None) == 0
    options = [option.encode() for option in (*shape.options(stored), FLUSHED, "-arch=sm_90", "-std=c++14")]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert (status, log.value) == (0, b"")
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    binary = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetCUBIN(program, binary) == 0
    assert f".text.{name}\0".encode() in binary.raw
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def library() -> ctypes.CDLL:
    """Return NVRTC as torch or CuPy bring it with them."""
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.match(r"(libnvrtc\.so|nvrtc64_\d+_0\.dll)", file.name):
                return ctypes.CDLL(str(file.locate()))
    pytest.skip("NVRTC is not installed: torch for CUDA and cupy-cuda13x[ctk] bring it")
