"""Blocks that shrink where the device runs out of memory: statistics stay what they were, and it is said once."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blobs

from fastclust import DPGMM, pieces
from fastclust.kernels import memory
from fastclust.kernels import torch as plain
from fastclust.kernels.torch.forms import TILE_BYTES_DEVICE, tile_rows


class Small:
    """The torch backend on a device that has room for so many rows at a time; `seen` are the rows of each call."""

    def __init__(self, room: int, late: int = 0) -> None:
        self.room, self.late, self.seen = room, late, list[int]()

    def __getattr__(self, name):
        return getattr(plain, name)

    def prepare(self, *given):
        """Return a plan that runs out of memory."""
        whole = plain.prepare(*given)

        def limited(name):
            def call(rows, *rest):
                self.seen.append(len(rows))
                if len(rows) > self.room and len(self.seen) > self.late:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                return getattr(whole, name)(rows, *rest)

            return call

        calls = {name: limited(name) for name in ("add", "assign", "responsibilities")}
        return SimpleNamespace(result=whole.result, **calls)

    def taken(self) -> list[int]:
        return [n for n in self.seen if n <= self.room]


def mixture(monkeypatch, backend, **parameters):
    monkeypatch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("small", backend, {}))
    parameters = {"n_components": 4, "init_params": "random_from_data", "random_state": 0, "max_iter": 5} | parameters
    return DPGMM(tol=0, dtype="float64", **parameters)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "LEAST_ROWS", 16)


@pytest.mark.filterwarnings("ignore:Best performing")
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("late", [0, 2], ids=["at once", "in the third pass"])
def test_statistics_are_those_of_whole_blocks(kind, late, monkeypatch, caplog):
    X = blobs(1000, 3, 4)
    weights = np.random.default_rng(0).integers(1, 4, size=1000)
    whole = mixture(monkeypatch, plain, covariance_type=kind).fit(X, sample_weight=weights)
    small = Small(100, late)
    labels, proba = whole.predict(X), whole.predict_proba(X)
    with caplog.at_level(logging.WARNING, logger="fastclust"):
        model = mixture(monkeypatch, small, covariance_type=kind).fit(X, sample_weight=weights)
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert said == ["cpu ran out of memory: 62 rows at a time from here on"]
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-12)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-9)
    np.testing.assert_array_equal(model.predict(X), labels)
    np.testing.assert_allclose(model.predict_proba(X), proba, atol=1e-9)
    assert small.seen[late : late + 5] == [1000, 500, 250, 125, 62]


@pytest.mark.filterwarnings("ignore:Best performing")
def test_a_fit_stays_with_the_size_that_it_found_and_counts_every_row_once(monkeypatch):
    X = blobs(1000, 3, 4)
    small = Small(100)
    mixture(monkeypatch, small).fit(X)
    assert len(small.seen) - len(small.taken()) == 4  # 1000, 500, 250, 125, in the first pass alone
    assert sum(small.taken()) == 6 * 1000  # five passes and the labels


def test_where_the_least_is_too_much_the_error_names_the_numbers(monkeypatch):
    X = blobs(1000, 3, 4)
    small = Small(10)
    with pytest.raises(torch.OutOfMemoryError, match=r"16 rows of 3 features at a time are too many .* allocate 9 GiB"):
        mixture(monkeypatch, small).fit(X)
    assert small.seen == [1000, 500, 250, 125, 62, 31, 16]


def test_halving_starts_where_the_backend_does(monkeypatch):
    X = blobs(1000, 3, 4)
    small = Small(100)
    with pytest.warns(match="Best performing"):
        mixture(monkeypatch, small, block_rows=200).fit(X)
    assert small.seen[:2] == [1000, 100]


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def broken(plan, *rest):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(plain.Plan, "add", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        mixture(monkeypatch, plain).fit(blobs(100, 3, 4))


def test_a_tile_takes_no_more_than_a_share_of_what_is_free(monkeypatch):
    """40 GiB free of 80; of them, half is torch's own cache, of which a half is in use."""
    cuda, gib = torch.device("cuda:0"), 1 << 30
    free = [20 * gib]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 * gib)
    assert memory.free_bytes(cuda) == 40 * gib
    assert memory.share_of_free(cuda, TILE_BYTES_DEVICE) == TILE_BYTES_DEVICE
    much = tile_rows(1000, cuda)
    assert TILE_BYTES_DEVICE / 2 < 1000 * much <= TILE_BYTES_DEVICE
    free[0] = -20 * gib + (64 << 20)
    assert 4 << 20 < 1000 * tile_rows(1000, cuda) <= 8 << 20
    free[0] = -20 * gib
    assert tile_rows(1000, cuda) == 64
    assert memory.free_bytes(torch.device("cpu")) is None
