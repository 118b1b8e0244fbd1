"""Copies beside computing: whatever order the queues of a device run in, every row arrives, and arrives whole.

The device is simulated: two queues whose work runs only when somebody waits for it, or by chance. A wait that was
forgotten shows up as rows that were written over before they were read, or read before they came.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import relu_features

from fastclust import DPGMM, blocks, staging
from fastclust.blocks import Blocks

CPU = torch.device("cpu")


class Event:
    done = False


class SimulatedLane:
    """A device on the host, with a queue of copies and one that computes; see the module.

    Work runs in a random order that the queues and their waits allow. forget: the method that this lane leaves out.
    """

    def __init__(self, seed: int, free: int = 0, forget: str = "") -> None:
        self.random, self.lock = np.random.default_rng(seed), threading.RLock()
        self.queues: dict[str, list[tuple[Event | None, Callable[[], None]]]] = {"copy": [], "compute": []}
        self.bytes = {"pinned": 0, "room": 0}
        self._free, self.forget = free, forget

    def pinned(self, n_bytes: int) -> torch.Tensor:
        self.bytes["pinned"] += n_bytes
        return torch.full((n_bytes,), 255, dtype=torch.uint8)  # NaN

    def room(self, n_bytes: int) -> torch.Tensor:
        self.bytes["room"] += n_bytes
        return torch.full((n_bytes,), 255, dtype=torch.uint8)

    def free(self) -> int:
        return self._free

    def send(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        if self.forget != "after":
            self.queue("copy", after)
        self.queue("copy", None, lambda: target.copy_(source))
        return self.mark("copy")

    def queued(self) -> Event:
        return self.mark("compute")

    def hold(self, event: Event) -> None:
        if self.forget != "hold":
            self.queue("compute", event)

    def keep(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        self.queue("compute", None, lambda: room.copy_(rows))

    def wait(self, event: Event) -> None:
        if self.forget == "wait":
            return
        while not event.done:
            self.run()

    def mark(self, name: str) -> Event:
        event = Event()
        self.queue(name, None, lambda: setattr(event, "done", True))
        return event

    def queue(self, name: str, after: Event | None, work: Callable[[], Any] = lambda: None) -> None:
        with self.lock:
            self.queues[name].append((after, work))
        for _ in range(self.random.integers(3)):
            self.run()

    def run(self) -> bool:
        """Do one thing at the head of a queue; return whether there was any that could be done."""
        with self.lock:
            able = [name for name, queue in self.queues.items() if queue and (queue[0][0] is None or queue[0][0].done)]
            if able:
                self.queues[str(self.random.choice(able))].pop(0)[1]()
            return bool(able)


def seen_by(lane: SimulatedLane, rows: Blocks) -> torch.Tensor:
    """Return the rows that the computing queue sees, each block when its turn comes."""
    seen: list[torch.Tensor] = []
    for block in rows:
        lane.queue("compute", None, lambda block=block: seen.append(block.clone()))
    while lane.run():
        pass
    return torch.cat(seen)


@pytest.fixture
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "COPY_BYTES", 16 * 3 * 8)


@pytest.fixture(params=["array", "float16", "strided", "backwards", "integers", "tensor", "file", "list"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, np.ndarray]]:
    """A source, and its rows as NumPy sees them."""
    X = np.random.default_rng(1).normal(size=(203, 3)) * 100
    if request.param != "file":
        yield {
            "array": (X, X),
            "float16": (X.astype(np.float16), X.astype(np.float16)),
            "strided": (np.repeat(X, 2, axis=0)[::2], X),
            "backwards": (X[::-1], X[::-1]),
            "integers": (X.astype(np.int16), X.astype(np.int16)),
            "tensor": (torch.from_numpy(X.astype(np.float32)), X.astype(np.float32)),
            "list": ([X[:50], X[50:51], X[51:]], X),
        }[request.param]
        return
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        yield file.create_dataset("rows", data=X.astype(np.float16)), X.astype(np.float16)


@pytest.mark.usefixtures("small_copies")
@pytest.mark.parametrize("seed", range(5))
def test_every_row_arrives_whole_and_in_order(source, seed):
    given, X = source
    lane = SimulatedLane(seed)
    rows = Blocks(given, CPU, lane=lane)
    for _ in range(2):
        np.testing.assert_array_equal(seen_by(lane, rows).numpy(), X)
    assert max(lane.bytes.values()) <= 2 * 2 * blocks.COPY_BYTES  # two buffers on either side, in two iterations


@pytest.mark.usefixtures("small_copies")
@pytest.mark.parametrize("forget", ["after", "hold", "wait"])
def test_the_simulation_finds_a_wait_that_is_left_out(forget):
    X = np.arange(609.0).reshape(203, 3)
    wrong = 0
    for seed in range(20):
        lane = SimulatedLane(seed, forget=forget)
        wrong += not np.array_equal(seen_by(lane, Blocks(X, CPU, lane=lane)).numpy(), X)
    assert wrong > 0


@pytest.mark.usefixtures("small_copies")
def test_rows_that_fit_stay_on_the_device(source, monkeypatch):
    given, X = source
    lane = SimulatedLane(0, free=1 << 20)
    rows = Blocks(given, CPU, lane=lane)
    np.testing.assert_array_equal(seen_by(lane, rows).numpy(), X)
    monkeypatch.setattr(blocks, "staged", None)  # nothing is copied any more
    again = list(rows)
    assert len(again) == len(rows.parts)
    np.testing.assert_array_equal(torch.cat(again).numpy(), X)
    assert rows.take(np.array([0, 60, 202])).tolist() == X[[0, 60, 202]].tolist()


@pytest.mark.usefixtures("small_copies")
def test_an_iteration_that_was_left_halfway_disturbs_nothing():
    X = np.arange(609.0).reshape(203, 3)
    lane = SimulatedLane(3, free=1 << 20)
    rows = Blocks(X, CPU, lane=lane)
    for block in rows:
        assert len(block) == 16
        break
    assert not any("reader" in thread.name for thread in threading.enumerate())
    np.testing.assert_array_equal(seen_by(lane, rows).numpy(), X)


@pytest.mark.usefixtures("small_copies")
def test_what_the_reader_meets_is_raised():
    class Broken(np.ndarray):
        def __getitem__(self, index):
            if isinstance(index, slice) and index.start == 64:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    X = np.zeros((203, 3)).view(Broken)
    seen = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for block in Blocks(X, CPU, lane=SimulatedLane(0)):
            seen += len(block)
    assert seen == 64


def test_rows_stream_where_the_memory_that_is_free_is_in_pieces(monkeypatch, caplog):
    def none(*size, **options):
        raise torch.OutOfMemoryError("no")

    lane = SimulatedLane(0, free=1 << 40)
    rows = Blocks(np.ones((100, 3)), CPU, lane=lane)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, logger="fastclust"):
        patch.setattr(blocks.torch, "empty", none)
        assert float(seen_by(lane, rows).sum()) == 300
    assert "2400 bytes of rows do not stay on cpu" in caplog.text


def test_the_cpu_needs_no_lane():
    X = np.ones((4, 2))
    assert staging.lane_of(CPU) is None
    (block,) = Blocks(X, CPU)
    assert block.data_ptr() == X.ctypes.data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("small_copies")
def test_a_gpu_gets_every_row(source, monkeypatch):
    given, X = source
    monkeypatch.setattr(blocks, "KEPT_SHARE", 0.0)
    rows = Blocks(given, torch.device("cuda"))
    for _ in range(20):
        seen = torch.cat([block.clone() for block in rows])
        np.testing.assert_array_equal(seen.cpu().numpy(), X)


class PoisonedLane(SimulatedLane):
    """A device that is never late, and that puts NaN where rows were once they have been taken back."""

    lent: torch.Tensor | None = None

    def send(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> torch.Tensor:
        return target.copy_(source)

    def hold(self, event: torch.Tensor) -> None:
        self.lent = event

    def queued(self) -> None:
        if self.lent is not None:
            self.lent.fill_(torch.nan)
        self.lent = None

    def keep(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        room.copy_(rows)

    def wait(self, event: Any) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Best performing")
@pytest.mark.parametrize("free", [0, 1 << 30], ids=["streamed", "kept"])
@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random", "random_from_data"])
def test_nothing_reads_rows_that_were_taken_back(start, free, monkeypatch, tmp_path):
    """The fits of rows in a file, and of an array with weights, are those of the same rows seen whole."""
    X = relu_features(700, 4).astype(np.float32)
    weights = np.random.default_rng(0).integers(0, 3, size=len(X))
    parameters = {"init_params": start, "random_state": 0, "max_iter": 4, "dtype": "float64", "covariance_type": "full"}

    def results(rows: Any) -> list[np.ndarray]:
        model = DPGMM(4, **parameters).fit(rows)
        found = [np.array(model.lower_bounds_), model.means_, model.predict(rows), model.predict_proba(rows)]
        found += [model.score_samples(rows), model.partial_fit(rows).means_]
        return [*found, DPGMM(4, **parameters).fit(X, sample_weight=weights).means_]

    expected = results(X)
    monkeypatch.setattr(blocks, "lane_of", lambda device: PoisonedLane(0, free))
    monkeypatch.setattr(blocks, "COPY_BYTES", 200 * 4 * 4)
    monkeypatch.setattr(blocks.Blocks, "_is_away", lambda self, index: self._sources[index] is self.parts[index])
    if not free:
        first, second, *_ = Blocks(X, CPU)
        assert bool(first.isnan().all() & second.isnan().all()), "what is held on to is not poisoned"
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        found = results(file.create_dataset("rows", data=X))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)
