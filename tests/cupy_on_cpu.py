"""A stand-in for CuPy that runs kernels on the CPU: g++ compiles the sources, `cuda_on_cpu.h` runs the threads.

What `fastclust.kernels.cuda.launch` calls is here, under CuPy's names, and memory that shows what is read beyond it.
"""

import ctypes
import mmap
import subprocess
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
FOLDER = tempfile.TemporaryDirectory(prefix="fastclust-kernels-")
REVERSED = False  # whether threads and blocks run in reverse order


@cache
def library(code: str, options: tuple[str, ...], name: str) -> ctypes.CDLL:
    """Compile a kernel as the launcher asks for it."""
    path = Path(FOLDER.name) / f"{abs(hash((code, options, name)))}.so"
    text = f'#include "cuda_on_cpu.h"\n{code}\nRUN({name})\n'
    flags = [
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-march=native",
        "-w",
        "-shared",
        "-fPIC",
        f"-I{HERE}",
    ]
    command = ["g++", *flags, *options, "-x", "c++", "-", "-o", str(path)]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = ctypes.CDLL(str(path))
    found.run_kernel.restype = found.names.restype = ctypes.c_char_p
    return found


class Kernel:
    """A kernel, as RawModule.get_function gives it."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self.found = found
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int) -> None:
        assert shared_mem == self.found.size_of_shared(), "the formula and sizeof(Shared) differ"
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        values = [np.array(value) for value in args]
        assert [str(value.dtype) for value in values] == self.found.names().decode().split()
        places = (ctypes.c_void_p * len(args))(*(value.ctypes.data for value in values))
        problem = self.found.run_kernel(*grid, *block, shared_mem, REVERSED, places)
        assert problem is None, problem.decode()


class RawModule:
    """Sources that are compiled when a kernel is asked for."""

    def __init__(self, *, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        self.code, self.options = code, options

    def get_function(self, name: str) -> Kernel:
        return Kernel(library(self.code, self.options, name))


class Stream:
    """A stream that is torch's."""

    from_external = staticmethod(nullcontext)


cuda = SimpleNamespace(Device=nullcontext, Stream=Stream)


def before_a_wall(values: torch.Tensor) -> torch.Tensor:
    """Return the same values, and behind them memory that may not be touched."""
    size, page = values.numel() * values.element_size(), mmap.PAGESIZE
    room = max(-(-size // page), 1) * page
    memory = mmap.mmap(-1, room + page)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + room
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), page, 0) == 0
    whole = torch.frombuffer(memory, dtype=values.dtype, count=room // values.element_size())
    return whole[len(whole) - values.numel() :].view(values.shape).copy_(values)
