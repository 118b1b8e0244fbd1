"""Rows from files and from computations: every row once and in order, whatever they come from, in flat memory."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import relu_features

from fastclust import DPGMM, parts
from fastclust.blocks import Blocks

CPU = torch.device("cpu")


class Computed:
    """Rows that are computed when they are asked for, cut where they say, and what they were asked for."""

    def __init__(self, rows: np.ndarray, bounds: list[int]) -> None:
        self.rows, self.bounds = rows, np.array(bounds)
        self.shape, self.dtype, self.device = rows.shape, rows.dtype, CPU
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.asked.append((rows.start, rows.stop))
        return torch.from_numpy(self.rows[rows].copy())


def sources(X: np.ndarray, folder: Path) -> dict[str, object]:
    """The same rows as everything that rows can come from."""
    X.tofile(folder / "rows.bin")
    with h5py.File(folder / "rows.h5", "w") as file:
        file["rows"] = X
    mapped = np.memmap(folder / "rows.bin", X.dtype, "r", shape=X.shape)
    return {
        "array": X,
        "map": mapped,
        "view of a map": mapped.view(np.ndarray),
        "private map": np.memmap(folder / "rows.bin", X.dtype, "c", shape=X.shape),
        "file": h5py.File(folder / "rows.h5", "r")["rows"],
        "computed": Computed(X, [0, 300, 301, 900, len(X)]),
        "list": [mapped[:700], Computed(X[700:1100], [0, 200, 400]), X[1100:]],
    }


@pytest.mark.parametrize("kind", ["array", "map", "view of a map", "private map", "file", "computed", "list"])
def test_every_row_arrives_once_in_order_and_can_be_taken(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fastclust.blocks.READ_BYTES", 100 * 16 * 4)
    X = relu_features(1501).astype(np.float32)
    blocks = Blocks(sources(X, tmp_path)[kind], CPU)
    for _ in range(2):
        assert np.array_equal(np.concatenate([block.numpy().copy() for block in blocks]), X)
    index = np.array([0, 1, 99, 100, 101, 300, 699, 700, 1099, 1100, 1500])
    assert np.array_equal(blocks.take(index).numpy(), X[index])
    assert blocks.dtypes == {torch.float32}


def test_a_fit_does_not_depend_on_where_rows_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr("fastclust.blocks.READ_BYTES", 300 * 16 * 4)
    X = relu_features(1501).astype(np.float32)
    models = {
        kind: DPGMM(5, random_state=0, dtype="float64", max_iter=30, tol=0).fit(source)
        for kind, source in sources(X, tmp_path).items()
    }
    for kind, model in models.items():
        np.testing.assert_allclose(model.lower_bounds_, models["array"].lower_bounds_, rtol=1e-10, err_msg=kind)
        np.testing.assert_array_equal(model.predict(X), models["array"].predict(X))
    np.testing.assert_array_equal(models["map"].means_, models["file"].means_)  # cut alike: the same bits


def test_computed_rows_are_asked_for_where_they_are_cut(tmp_path):
    X = relu_features(1000).astype(np.float16)
    rows = Computed(X, [0, 400, 1000])
    model = DPGMM(4, random_state=0, max_iter=3, tol=0).fit(rows)
    assert set(rows.asked) == set(pairwise(rows.bounds.tolist()))
    assert model.n_iter_ == 3
    rows.asked.clear()
    labels = model.predict(rows)
    assert rows.asked == list(pairwise(rows.bounds.tolist()))
    assert np.array_equal(labels, model.predict(X))


def test_what_was_written_to_a_private_map_stays(tmp_path):
    np.zeros((4096, 4), dtype=np.float32).tofile(tmp_path / "rows.bin")
    rows = np.memmap(tmp_path / "rows.bin", np.float32, "c", shape=(4096, 4))
    rows[:] = 1
    parts.let_go(rows, 0, len(rows))
    assert not parts.is_mapped(rows) and (rows == 1).all()


FLAT = """
import sys, torch, numpy as np
from fastclust import DPGMM, machine
rows = np.memmap(sys.argv[1], np.float16, "r").reshape(-1, 64)
DPGMM(8, random_state=0, max_iter=1).fit(rows[:20_000])
before = machine.peak_memory()
model = DPGMM(8, random_state=0, max_iter=3, tol=0).fit(rows)
model.score(rows)
print(machine.peak_memory() - before, rows.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: the peak cannot be read")
def test_memory_does_not_grow_with_the_rows_of_a_file(tmp_path):
    some = relu_features(50_000, 64).astype(np.float16)
    with (tmp_path / "rows.bin").open("wb") as file:
        for _ in range(160):
            file.write(some.tobytes())
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FLAT, str(tmp_path / "rows.bin")],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, size = map(int, run.stdout.split())
    assert size > 1e9
    assert growth < 0.5 * size
