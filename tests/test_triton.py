"""The Triton kernels: tests/triton_cases.py in the interpreter and on a GPU, and compiled where there is none."""

import importlib
import os
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from fastclust import kernels
from fastclust.kernels import triton as backend

pytest.importorskip("triton")
from binaries import Binary, compiled
from launches import CALLS, CARDS, call, launches_of, name_of

from fastclust.kernels.triton import launch, shapes

HERE = Path(__file__).parent
CARD = CARDS[90]
NO_PRODUCTS = ("tiled_softmax", "list_rows")


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


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[Any, ...], list[Binary]]:
    """Return what CALLS would start on a card that is not here, compiled."""
    if launch.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    started = {one: launches_of(partial(call, *one), [CARD]) for one in CALLS}
    found = dict(compiled(list(dict.fromkeys(chain.from_iterable(started.values())))))
    return {one: [found[some] for some in launches] for one, launches in started.items()}


@pytest.mark.parametrize("asked", CALLS, ids=name_of)
def test_kernels_compile_for_a_gpu_that_is_not_here(asked, binaries, record_property):
    """Products are on tensor cores, in the numbers that were asked for, whatever the compiler calls them."""
    _, (_, d, k), kind, _, precision = asked
    assert binaries[asked]
    for binary in binaries[asked]:
        record_property(str(binary), (binary.registers, binary.stack_bytes, binary.shared_bytes))
        assert not binary.failure, f"{binary}: {binary.failure}"
        if binary.kernel in NO_PRODUCTS:
            assert not binary.products
            continue
        number = ".f64" if binary.kernel == "listed_moments" else ".bf16" if precision == "fast" else ".tf32"
        assert binary.products, binary
        assert all(number in name for name in binary.products), f"{binary}: {binary.products}"
        if binary.kernel.startswith("fused"):
            cut = shapes.fused_shape(k, d, kind == "diag", CARD.shared_memory_per_block_optin)
            assert binary.shared_bytes <= cut.shared_bytes(kind == "diag"), "the formula promised less"


def test_a_device_with_too_little_shared_memory_is_told_every_number() -> None:
    small = shapes.fused_shape(50, 64, True, 64 << 10)
    assert small.columns < small.width
    with pytest.raises(RuntimeError, match=r"K = 128 components of D = 128 features need \d+ bytes.*has 1024"):
        shapes.fused_shape(128, 128, True, 1024)


def test_where_there_is_no_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.unavailable(torch.device("cpu")) == "needs a CUDA device"
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu: needs a CUDA device; numba, torch"):
        kernels.select("triton", torch.device("cpu"))
    importlib.import_module("fastclust.kernels.triton.launch")  # as triton is
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "after triton was imported" in str(backend.unavailable(torch.device("cpu")))
