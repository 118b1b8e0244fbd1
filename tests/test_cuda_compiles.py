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

DIRECT, FUSED = ["assign", "statistics"], "fused"
LARGEST, SMALLEST = launch.Shape(64, 4), launch.Shape(32, 1)
ALL = ("sm_80", "sm_89", "sm_90", "sm_120")
SPILLED = [  # where, and the bytes that a thread may store once a tile, of 5000 instructions, for want of 256 registers
    (launch.Fused(64, 56, pack=4), ALL[:3], 0),
    (launch.Fused(64, 56, pack=4), ALL[3:], 256),
    (launch.Fused(64, 64, pack=4), ALL, 640),
    (launch.Fused(32, 16), ALL, 0),
]
FLUSHED = "-ftz=true"  # CuPy adds it
CASES = [
    *((name, stored, LARGEST) for name in DIRECT for stored in launch.STORED),
    *((name, torch.float32, SMALLEST) for name in DIRECT),
    *((FUSED, torch.float32, cut) for cut in dict.fromkeys(cut for cut, _, _ in SPILLED)),
    *((FUSED, stored, launch.Fused(64, 56, exact=True, pack=4)) for stored in (torch.float16, torch.bfloat16)),
    (FUSED, torch.float16, launch.Fused(16, 8)),
]


def test_every_source_is_a_kernel_that_is_tested_here() -> None:
    assert sorted(path.stem for path in launch.SOURCES.glob("*.cu")) == sorted([*DIRECT, FUSED])


def resources(name: str, cut: launch.Shape | launch.Fused, target: str, folder: Path) -> tuple[int, int, int]:
    """Return the bytes that a kernel for float32 rows stores and loads for want of registers, and the registers."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = ["nvcc", "-cubin", f"-arch={target}", FLUSHED, "-Xptxas", "-v", "-Werror", "all-warnings"]
    source = launch.SOURCES / f"{name}.cu"
    run = subprocess.run(
        [*command, *cut.options(torch.float32), "-o", str(folder / "kernel"), str(source)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    spilled = [int(number) for number in re.findall(r"(\d+) bytes spill", run.stderr)]
    return *spilled, int(re.findall(r"Used (\d+) registers", run.stderr)[0])


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("name", DIRECT)
def test_nvcc_finds_registers_for_everything(name: str, target: str, tmp_path: Path, record_property) -> None:
    stored, loaded, registers = resources(name, LARGEST, target, tmp_path)
    record_property("bytes stored, bytes loaded, registers", (stored, loaded, registers))
    assert (stored, loaded) == (0, 0)
    assert registers <= 128, "four blocks of four warps no longer fit the registers of a multiprocessor"


@pytest.mark.parametrize(
    ("cut", "target", "most"), [(cut, one, most) for cut, targets, most in SPILLED for one in targets], ids=str
)
def test_nvcc_finds_registers_for_almost_everything(cut, target, most, tmp_path, record_property) -> None:
    stored, loaded, registers = resources(FUSED, cut, target, tmp_path)
    record_property("bytes stored, bytes loaded, registers", (stored, loaded, registers))
    assert max(stored, loaded) <= most
    assert registers <= 256, "two blocks of four warps no longer fit the registers of a multiprocessor"


@pytest.mark.parametrize(("name", "stored", "cut"), CASES, ids=str)
def test_nvrtc_compiles_it_without_a_header(name: str, stored: torch.dtype, cut: launch.Shape | launch.Fused) -> None:
    nvrtc = library()
    source = (launch.SOURCES / f"{name}.cu").read_text(encoding="utf-8")
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None) == 0
    options = [option.encode() for option in (*cut.options(stored), FLUSHED, "-arch=sm_90", "-std=c++14")]
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
