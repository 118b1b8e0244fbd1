"""A pass on a GPU waits for it once, for the bound and what is told with it: shown with fake CUDA tensors.

torch's fake tensors have no values: they know shape, dtype and device, and raise where an operation needs a value. What
they let through although a GPU would be waited for, the mode `NoWaiting` finds: copies from and to the host, checks of
errors, masks as an index. The last test asks a real GPU, where there is one.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
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

from fastclust import DPGMM, engine, graph, kernels
from fastclust.blocks import Blocks
from fastclust.kernels import Coefficients, Frame, chosen
from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Totals
from fastclust.rows import Rows
from fastclust.sums import ColumnSums
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

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say

    def __getitem__(self, grid):
        return lambda *given, **options: self.say(self.name)


def stand_in_for_triton(monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]) -> None:
    """Have each kernel of the Triton backend say its name in place of being started, on a device that is an H200."""
    import triton

    from fastclust.kernels import triton as backend

    names = [about.name for about in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")]
    for module in [importlib.import_module(name) for name in names]:  # all, before any would import a stand-in
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.JITFunction):
                monkeypatch.setattr(module, name, Kernel(name, say))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H200)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


H200 = SimpleNamespace(
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    regs_per_multiprocessor=65536,
    multi_processor_count=132,
)
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
    monkeypatch.setattr(graph, "recorder", lambda device, kind: None)  # tests/test_launches.py has one


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
    fetched, read = [], []
    prepare = plain.prepare

    def given(told):
        fetched.append(told)
        return [next(bounds), 1e-9, 3.0]

    def prepared(given, *more):
        read.append(given.n_components)
        return prepare(given, *more)

    monkeypatch.setattr(engine, "fetched", given)
    monkeypatch.setattr(plain, "prepare", prepared)
    with FakeTensorMode():
        rows, prior, start, scatter = a_pass(monkeypatch, kind, dtype, weighted, weight_prior, moved=weighted)
        size = {"full": 2 * D, "tied": D, "diag": 2 * D, "spherical": D + 1}[kind]
        sums = ColumnSums("torch", "high", fake(1 + size), fake(1 + size))
        options = {"scatter": scatter, "sums": sums, "tol": 0.1, "max_passes": 9, "sort_sticks": not weighted}
        with NoWaiting():
            found = engine.ascend(rows, prior, engine.Ascent(start), **options)
    assert found.converged
    assert found.n_passes == len(fetched) == 4  # one wait a pass
    assert read == [K, K - 2, K - 2, K - 2]  # as the first wait told
    assert {(told.device, told.shape, told.dtype) for told in fetched} == {(CUDA, (3,), torch.float64)}
    assert found.posterior.m.device == found.statistics.sx.device == CUDA
    assert found.statistics.sx.shape == (K, D)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_labels_and_the_first_sums_wait_for_nothing(kind, monkeypatch):
    with FakeTensorMode():
        rows, _, start, _ = a_pass(monkeypatch, kind, torch.float32, True, "dirichlet_process", True)
        given = (rows.blocks.parts[0], engine.coefficients(start), rows.frame, torch.float32)
        with NoWaiting():
            plan = plain.prepare(*given[1:], block_rows=999)
            plan.add(given[0], rows.blocks.weights)
            assert plan.result().nk.shape == (K,)
            labels, density = plan.assign(given[0])
            assert (labels.dtype, density.dtype) == (torch.int32, torch.float32)
            assert plan.responsibilities(given[0]).shape == (N, K)
            first = plain.moments(given[0], fake(N, K), kind, fake(K, D), rows.frame, torch.float32)
            assert first.nk.device == CUDA


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_of_a_backend_that_has_proven_itself_waits_for_nothing(kind, monkeypatch, tmp_path):
    """The first asks for a proof; what it said is looked up from then on. Fake tensors have no values to prove with."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(chosen, "_verdicts", {})
    asked = []
    monkeypatch.setattr(chosen, "failure", lambda module, given: asked.append(given[0]))
    shape = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[kind]
    standing = SimpleNamespace(PRECISIONS=("high",), prepare=plain.prepare, moments=plain.moments)
    with FakeTensorMode():
        backend = chosen.Chosen(CUDA, {"triton": standing}, {})
        given = (Coefficients(kind, fake(K), fake(K, D), fake(*shape)), Frame(fake(D), fake(D)), torch.float32)
        rows = fake(N, D, dtype=torch.float32)
        for _ in range(3):
            with NoWaiting():
                plan = backend.prepare(*given)
                plan.add(rows, fake(N))
                plan.add(rows[:100], fake(100))
                assert plan.result().sx.shape == (K, D)
                plan.assign(rows)
    assert asked == ["statistics", "assign"]
    assert backend.ran == "triton"


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
    from fastclust.kernels import triton as backend

    started = []
    stand_in_for_triton(monkeypatch, started.append)
    with FakeTensorMode(), NoWaiting():
        coefficients = Coefficients(kind, fake(k), fake(k, D), fake(k, D) if kind == "diag" else fake(k))
        given = (fake(N, D, dtype=torch.float32), coefficients, Frame(fake(D), fake(D)), torch.float32)
        assert kernels.statistics(backend, *given, fake(N)).sx.shape == (k, D)
        assert backend.prepare(*given[1:]).assign(given[0])[0].shape == (N,)
    assert {"fused_statistics", "fused_assign"} <= set(started) if k == K else "tiled_moments" in started


@pytest.mark.parametrize("kind", KINDS)
def test_a_covariance_that_is_not_positive_definite_is_found_with_the_bound(kind, monkeypatch):
    """In the second pass the statistics of a component are such as no rows have; the bound is then not a number."""
    X = blobs(200, 3, 4)
    passes = []

    def result(plan):
        found = Totals.result(plan)
        passes.append(found)
        if len(passes) < 2:
            return found
        if kind == "tied":  # the means lie outside of the rows
            return replace(found, sx=found.sx * 10)
        sxx = found.sxx.clone()
        sxx[1] *= -1
        return replace(found, sxx=sxx)

    monkeypatch.setattr(plain.Plan, "result", result)
    with pytest.raises(IllDefinedCovarianceError, match="ill-defined empirical covariance"):
        DPGMM(4, covariance_type=kind, device="cpu", backend="torch", random_state=0, tol=0, dtype="float64").fit(X)
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
