"""A pass on a GPU never waits for it, but for the bound: shown with fake CUDA tensors, which have no values to look at.

torch's fake tensors know shape, dtype and device, and raise where an operation needs a value. What they let through
although a GPU would be waited for, the mode `NoWaiting` finds: copies from and to the host, checks of errors, masks as
an index. The last test asks a real GPU, where there is one.
"""

import importlib.util
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blobs
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastclust import DPGMM, engine
from fastclust.blocks import Blocks
from fastclust.kernels import Coefficients, Frame
from fastclust.kernels import torch as plain
from fastclust.rows import Rows
from fastclust.variational import IllDefinedCovarianceError, Posterior, Prior

KINDS = ("full", "tied", "diag", "spherical")
CUDA = torch.device("cuda:0")
N, D, K = 5000, 7, 5


class Waited(Exception):
    """The host would have waited for the device."""


class NoWaiting(TorchDispatchMode):
    """Raise Waited for operations that fake tensors know, and for which the host waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        if any(part.device.type == "cpu" for part in given):
            raise Waited(f"{func} reads the host's memory")
        target = kwargs.get("device")
        if given and target is not None and torch.device(target).type == "cpu":
            raise Waited(f"{func} copies to the host")
        if name == "_linalg_check_errors":
            raise Waited(f"{func} looks for errors")
        masks = (torch.bool, torch.uint8)
        if name.startswith(("index", "_index")) and any(getattr(part, "dtype", None) in masks for part in given[1:]):
            raise Waited(f"{func} has a mask for an index")
        return func(*args, **kwargs)


class Kernel:
    """What stands for a compiled kernel: started over a grid, it says its name."""

    def __init__(self, name: str, started: list[str]) -> None:
        self.name, self.started = name, started

    def __getitem__(self, grid):
        return lambda *given, **options: self.started.append(self.name)


WAITS = (Waited, DataDependentOutputException, DynamicOutputShapeException)


def fake(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=CUDA)


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    """What a real device would be asked for; torch's answers are not the host's to wait for."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 1 << 30)
    monkeypatch.setattr("fastclust.blocks.lane_of", lambda device: None)  # the rows are there already


def a_pass(
    monkeypatch, kind, dtype, weighted, weight_prior, moved
) -> tuple[Rows, Prior, Posterior, torch.Tensor | None]:
    """Return the rows, prior, posterior and scatter of a fit on a GPU, of fake tensors."""
    frame = Frame(fake(D), fake(D)) if moved else Frame()  # chosen once a fit, by value
    monkeypatch.setattr(Rows, "__post_init__", lambda self: object.__setattr__(self, "frame", frame))
    blocks = Blocks(fake(N, D, dtype=torch.float32), CUDA)
    blocks.weights = fake(N) if weighted else None
    rows = Rows(blocks, plain, dtype, fake(D), fake(D), fake(D))
    shape = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[kind]
    gamma2 = None if weight_prior == "dirichlet_distribution" else fake(K)
    nu = fake() if kind == "tied" else fake(K)
    posterior = Posterior(kind, fake(K), gamma2, fake(K), fake(K, D), nu, fake(*shape), fake(*shape))
    own = fake(*shape[kind != "tied" :])
    prior = Prior(kind, weight_prior, 1.0, 1.0, fake(D), float(D), own, 1e-6, fake(D))
    return rows, prior, posterior, fake(D, D) if kind == "tied" else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_waits_for_the_bound_alone(kind, weighted, dtype, monkeypatch):
    weight_prior = "dirichlet_distribution" if weighted else "dirichlet_process"
    bounds = iter([1.0, 3.0, 4.0, 4.0])
    fetched = []

    def given(bound):
        fetched.append(bound)
        return next(bounds)

    monkeypatch.setattr(engine, "fetched", given)
    with FakeTensorMode():
        rows, prior, start, scatter = a_pass(monkeypatch, kind, dtype, weighted, weight_prior, moved=weighted)
        with NoWaiting():
            ascent = engine.Ascent(start)
            found = engine.ascend(rows, prior, ascent, scatter=scatter, tol=0.1, max_passes=9, sort_sticks=not weighted)
    assert found.converged
    assert found.n_passes == len(fetched) == 4  # one wait a pass
    assert {(bound.device, bound.shape, bound.dtype) for bound in fetched} == {(CUDA, (), torch.float64)}
    assert found.posterior.m.device == found.statistics.sx.device == CUDA
    assert found.statistics.sx.shape == (K, D)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_labels_and_the_first_sums_wait_for_nothing(kind, monkeypatch):
    with FakeTensorMode():
        rows, _, start, _ = a_pass(monkeypatch, kind, torch.float32, True, "dirichlet_process", True)
        given = (rows.blocks.parts[0], engine.coefficients(start), rows.frame, torch.float32)
        with NoWaiting():
            assert plain.statistics(*given, rows.blocks.weights, 999).nk.shape == (K,)
            labels, density = plain.assign(*given, 999)
            assert (labels.dtype, density.dtype) == (torch.int32, torch.float32)
            assert plain.responsibilities(*given, 999).shape == (N, K)
            first = plain.moments(given[0], fake(N, K), kind, fake(K, D), rows.frame, torch.float32)
            assert first.nk.device == CUDA


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.bincount(x[0].long()),
        lambda x: torch.linalg.cholesky(x @ x.T),
        lambda x: torch.linalg.inv(x @ x.T),
        lambda x: x + torch.tensor([1.0, 2.0], device=CUDA),
        lambda x: x.copy_(torch.ones(3, 2)),
        lambda x: x[[0, 1]],
    ],
)
def test_what_waits_is_found(wait):
    with FakeTensorMode(), NoWaiting(), pytest.raises(WAITS):
        wait(fake(3, 2))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("k", [K, 200], ids=["fused", "tiled"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_starting_the_triton_kernels_waits_for_nothing(kind, k, monkeypatch):
    import triton

    from fastclust.kernels import triton as backend
    from fastclust.kernels import triton_launch as launch

    started = []
    for name, value in vars(launch).items():
        if isinstance(value, triton.JITFunction):
            monkeypatch.setattr(launch, name, Kernel(name, started))
    h200 = {"shared_memory_per_block_optin": 232448, "shared_memory_per_multiprocessor": 233472}
    h200 |= {"regs_per_multiprocessor": 65536, "multi_processor_count": 132}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**h200))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with FakeTensorMode(), NoWaiting():
        coefficients = Coefficients(kind, fake(k), fake(k, D), fake(k, D) if kind == "diag" else fake(k))
        given = (fake(N, D, dtype=torch.float32), coefficients, Frame(fake(D), fake(D)), torch.float32)
        assert backend.statistics(*given, fake(N)).sx.shape == (k, D)
        assert backend.assign(*given)[0].shape == (N,)
    assert {"fused_statistics", "fused_assign"} <= set(started) if k == K else "tiled_moments" in started


@pytest.mark.parametrize("kind", KINDS)
def test_a_covariance_that_is_not_positive_definite_is_found_with_the_bound(kind, monkeypatch):
    """In the second pass the statistics of a component are such as no rows have; the bound is then not a number."""
    X = blobs(200, 3, 4)
    passes = []

    def statistics(*given):
        found = plain.statistics(*given)
        passes.append(found)
        if len(passes) < 2:
            return found
        if kind == "tied":  # the means lie outside of the rows
            return replace(found, sx=found.sx * 10)
        sxx = found.sxx.clone()
        sxx[1] *= -1
        return replace(found, sxx=sxx)

    backend = SimpleNamespace(**vars(plain) | {"statistics": statistics})
    monkeypatch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("broken", backend, {}))
    with pytest.raises(IllDefinedCovarianceError, match="ill-defined empirical covariance"):
        DPGMM(4, covariance_type=kind, device="cpu", random_state=0, tol=0, dtype="float64").fit(X)
    assert len(passes) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_on_a_gpu_waits_for_the_bound_alone(kind, monkeypatch):
    X = torch.from_numpy(blobs(5000, 7, 5)).cuda()
    monkeypatch.undo()
    fetched, whole = engine.fetched, engine.ascend

    def unguarded(bound):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return fetched(bound)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    def guarded(*given, **options):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return whole(*given, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine, "fetched", unguarded)
    monkeypatch.setattr(engine, "ascend", guarded)
    model = DPGMM(5, covariance_type=kind, device="cuda", backend="torch", random_state=0).fit(X)
    assert model.n_iter_ > 2
    on_host = DPGMM(5, covariance_type=kind, device="cpu", backend="torch", random_state=0).fit(X.cpu())
    np.testing.assert_allclose(model.lower_bound_, on_host.lower_bound_, rtol=1e-4)
