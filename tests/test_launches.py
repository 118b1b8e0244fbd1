"""How many operations a pass starts on a GPU, counted with fake CUDA tensors, through the Triton backend.

Every operation of torch that does something on the device counts as one, and so does every start of a Triton kernel;
views, and memory that is only allocated, count as none. A graph is one, whatever is in it.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_no_waiting import D, NoWaiting, _memory, a_pass, fake, stand_in_for_triton  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastclust import engine, graph
from fastclust.alike import Alike
from fastclust.graph import WARM
from fastclust.rows import Rows
from fastclust.sums import ColumnSums

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

BLOCK, SMALL = 6, 12  # launches at most: of a block of rows, and of all that is K-sized in a pass
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "set_")


class Launches(TorchDispatchMode):
    """Count what is started on a CUDA device, and what for."""

    def __init__(self) -> None:
        super().__init__()
        self.of = {"rows": [], "small": []}
        self.now = "small"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        schema = func._schema
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        there = [part for part in tree_leaves((args, kwargs, out)) if isinstance(part, torch.Tensor)]
        name = schema.name.removeprefix("aten::")
        if (
            schema.name.startswith("aten::")
            and not view
            and name not in FREE
            and any(part.device.type == "cuda" for part in there)
        ):
            self.of[self.now].append(name)
        return out

    @contextmanager
    def reading(self) -> Iterator[None]:
        before, self.now = self.now, "rows"
        yield
        self.now = before

    def forget(self) -> None:
        self.of = {"rows": [], "small": []}


class Started:
    """What stands for a graph: its operations are counted apart, and each replay is one launch."""

    def __init__(self, launches: Launches, function) -> None:
        self.launches, before = launches, launches.of
        launches.of = {"rows": [], "small": []}
        self.found = function()
        self.inside, launches.of = launches.of, before

    def replay(self) -> None:
        self.launches.of["small"].append("graph")


def of_passes(
    monkeypatch, kind: str, *, recorded: bool, blocks: int = 1, merged: int = 1
) -> tuple[list[dict], list[Started]]:
    """Return what each pass of a fit through the Triton backend starts, and the graphs."""
    from fastclust.kernels import triton as backend

    launches, passes, graphs = Launches(), [], []

    stand_in_for_triton(monkeypatch, lambda name: launches.of[launches.now].append(name))
    read_into = Rows.read_into

    def reading(rows, plan):
        with launches.reading():
            return [size for _ in range(blocks) for size in read_into(rows, plan)]

    def record(function):
        graphs.append(Started(launches, function))
        return graphs[-1]

    def told(tensor):
        passes.append(launches.of)
        launches.forget()
        return [float(len(passes)), 0.0, float(merged), 0.0][: len(tensor)]

    monkeypatch.setattr(Rows, "read_into", reading)
    monkeypatch.setattr(engine, "fetched", told)
    monkeypatch.setattr(graph, "recorder", lambda device, kind: record if recorded else None)
    with FakeTensorMode():
        rows, prior, start, _ = a_pass(monkeypatch, kind, torch.float32, False, "dirichlet_process", moved=True)
        object.__setattr__(rows, "backend", backend)
        size = 1 + (2 * D if kind == "diag" else D + 1)
        sums = ColumnSums("triton", "high", fake(size), fake(size))
        with NoWaiting(), launches:
            begun = engine.Ascent(start, alike=Alike(merged, 1, merged))
            engine.ascend(rows, prior, begun, scatter=None, sums=sums, tol=0, max_passes=WARM + 4, sort_sticks=True)
    return passes, graphs


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_block_of_rows_is_a_few_launches(kind, monkeypatch):
    """The first block of the plan, and one more."""
    with monkeypatch.context() as patch:
        passes, _ = of_passes(patch, kind, recorded=True)
        first = passes[-1]["rows"]
    with monkeypatch.context() as patch:
        passes, _ = of_passes(patch, kind, recorded=True, blocks=2)
        both = passes[-1]["rows"]
    assert "fused_statistics" in first
    assert len(first) <= BLOCK
    assert len(both) - len(first) <= BLOCK


@pytest.mark.parametrize("merged", [1, 3], ids=["", "of three as one"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_what_is_k_sized_is_one_graph_and_a_copy_of_what_it_leaves(kind, merged, monkeypatch):
    passes, graphs = of_passes(monkeypatch, kind, recorded=True, merged=merged)
    assert [len(launches["small"]) <= SMALL for launches in passes[WARM + 1 :]] == [True] * 3
    assert passes[-1]["small"] == ["graph", "_foreach_copy_"]
    [only] = graphs
    assert not only.inside["rows"]
    assert len(only.inside["small"]) > 100


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_without_a_graph_they_are_started_one_by_one(kind, monkeypatch):
    passes, graphs = of_passes(monkeypatch, kind, recorded=False)
    assert not graphs
    assert {len(launches["small"]) for launches in passes} == {len(passes[0]["small"])}
    assert len(passes[0]["small"]) > 100


def test_views_and_memory_count_as_none():
    with FakeTensorMode(), Launches() as launches:
        x = fake(3, 4)
        x.T[1:].reshape(-1, 3).view(torch.int64).diagonal().unsqueeze(0).expand(5, 3)
        torch.empty_like(x)
        assert launches.of["small"] == []
        (x + 1).sum(0).copy_(x[0])
        torch.ones(2)
        assert launches.of["small"] == ["add", "sum", "copy_"]
