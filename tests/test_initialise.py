"""The sums of a partition, however they are made, and what a start on an accelerator takes at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import relu_features
from test_no_waiting import CUDA, NoWaiting, fake
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclust import DPGMM, initialise
from fastclust.blocks import Blocks
from fastclust.kernels import Frame
from fastclust.kernels import torch as plain
from fastclust.rows import Rows


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", ["diag", "spherical", "tied"])
def test_sums_by_label_are_products_with_one_hot_responsibilities(kind, weighted):
    X = relu_features(5000, 8).astype(np.float32) + 100
    model = DPGMM(4, covariance_type=kind, random_state=0, max_iter=2, feature_range=(0, 10)).fit(X)
    _, rows = model._rows_of(X)
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (len(X),), generator=random, dtype=torch.int32) * (torch.arange(len(X)) > 50)
    w = torch.randint(0, 3, (len(X),), generator=random).double() if weighted else None
    part = torch.from_numpy(X)
    found = initialise._moments_by_label(rows, part, labels, w, 7, kind)  # component 6 has no row
    expected = initialise._moments(
        rows, part, initialise._one_hot(labels, 7), w, torch.zeros(7, 8, dtype=torch.float64), kind
    )
    assert found.nk[6] == 0
    for name in ("nk", "sx", "sxx", "about"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("free", "least", "most"), [(1 << 37, 1 << 18, 1 << 20), (1 << 30, 1 << 14, 1 << 17), (1, 1024, 1024)]
)
def test_an_accelerator_takes_as_many_rows_at_a_time_as_its_memory_allows(free, least, most, monkeypatch):
    """Of 10 M rows of 64 features and 50 components, few chunks: each pays for some launches."""
    monkeypatch.setattr("fastclust.kernels.memory.free_bytes", lambda device: free)
    rows = SimpleNamespace(blocks=SimpleNamespace(device=CUDA, n_features=64))
    size = initialise._chunk_rows(rows, 50)
    assert least <= size <= most
    assert size & (size - 1) == 0
    assert size * (17 * 50 + 16 * 64) <= max(min(free // 8, initialise.CHUNK_BYTES), 1024 * 1874)
    rows.blocks.device = torch.device("cpu")
    assert initialise._chunk_rows(rows, 50) == initialise.CHUNK


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_partition_on_an_accelerator_waits_for_nothing(kind, monkeypatch):
    monkeypatch.setattr("fastclust.kernels.memory.free_bytes", lambda device: 1 << 33)
    monkeypatch.setattr("fastclust.blocks.lane_of", lambda device: None)
    monkeypatch.setattr(Rows, "__post_init__", lambda self: object.__setattr__(self, "frame", frame))
    with FakeTensorMode():
        frame = Frame(fake(7), fake(7))
        rows = Rows(Blocks(fake(5000, 7, dtype=torch.float32), CUDA), plain, torch.float32, fake(7), fake(7), fake(7))
        with NoWaiting():
            plan = initialise._nearest(rows, fake(5, 7))
            found = initialise._hard(rows, plan, rows.blocks.parts[0], fake(5000), fake(5, 7), kind)
    assert found.sx.device == CUDA
    assert found.sx.shape == (5, 7)


def test_a_partition_has_one_plan_for_all_its_chunks(monkeypatch):
    X = relu_features(3000, 4).astype(np.float32)
    _, rows = DPGMM(4, random_state=0, tol=1e-2, max_iter=500).fit(X[:100])._rows_of(X)
    monkeypatch.setattr(initialise, "CHUNK", 1000)
    whole, plans, parts = rows.backend.prepare, [], []
    backend = SimpleNamespace(**vars(rows.backend))
    backend.prepare = lambda *given: (plans.append(1), whole(*given))[1]
    hard = initialise._hard
    monkeypatch.setattr(initialise, "_hard", lambda *given: (parts.append(1), hard(*given))[1])
    object.__setattr__(rows, "backend", backend)
    initialise.kmeans(rows, 4, "diag", np.random.RandomState(0))
    assert len(parts) == 3 * len(plans) > 3
