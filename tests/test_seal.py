"""Seals: whatever bytes are damaged, it is one clear line, and HDF5 sees nothing of it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command_line import call
from conftest import blobs
from sealing import covered, reseal
from test_store import features, layers, make, records

import fastclust
from fastclust import DPGMM, Checkpoint, checkpoint, seal
from fastclust.describe import describe
from fastclust.layout import ALIGNMENT
from fastclust.store import DONE, LEFT_OUT, PENDING, open_store
from fastclust.writer import StoreWriter, create_store

READERS: dict[str, Callable[[Path], Any]] = {
    "store": open_store,
    "cut store": lambda path: open_store(path, cut_short=True),
    "model": fastclust.load,
    "checkpoint": checkpoint.said,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a store, a model and a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    X = blobs(60, 3)
    model = DPGMM(2, random_state=0, max_iter=20, tol=0.1, backend="torch")
    model.fit(X, checkpoint=Checkpoint(folder / "checkpoint")).save(folder / "model")
    make(folder / "store", done=(0, 1, 4))
    found = {name: (folder / name).read_bytes() for name in ("store", "model", "checkpoint")}
    return found | {"cut store": found["store"]}


def spans(path: Path) -> list[tuple[int, int]]:
    """Where a file may change: its seal's spans, and what follows the covered bytes."""
    with path.open("rb") as file:
        found = seal.read(file, path)
    assert found is not None
    return [*found.spans, (found.covered, found.n_bytes - found.covered)]


def parsed(*given: Any, **options: Any) -> Any:
    raise AssertionError("HDF5 was asked to read damaged bytes")


@pytest.mark.parametrize("kind", READERS)
def test_damage_is_one_line_and_hdf5_sees_none_of_it(
    made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, whole, random = tmp_path / "f.h5", made[kind], np.random.default_rng(0)
    path.write_bytes(whole)
    mutable = spans(path)
    hdf5, harmless = h5py.File, 0
    for turn in range(600):
        content = bytearray(whole)
        limit = min(len(whole), (600, 20_000)[turn % 2])
        places = random.integers(0, limit, random.integers(1, 4)).tolist()
        for place in places:
            content[place] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        if content == whole or all(any(a <= place < a + n for a, n in mutable) for place in places):
            monkeypatch.setattr(h5py, "File", hdf5)
            READERS[kind](path)
            harmless += 1
            continue
        monkeypatch.setattr(h5py, "File", parsed)
        with pytest.raises(ValueError, match=r"f\.h5 is (damaged|not an HDF5 file|cut short)") as caught:
            READERS[kind](path)
        assert "\n" not in str(caught.value)
    assert harmless < 400
    assert (harmless > 0) == ("store" in kind)


@pytest.mark.parametrize("kind", ["store", "model", "checkpoint"])
def test_each_byte_of_the_seal_counts(
    made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(h5py, "File", parsed)
    for place in range(512):
        content = bytearray(made[kind])
        content[place] ^= 1 << place % 8
        (tmp_path / "f.h5").write_bytes(content)
        with pytest.raises(ValueError, match="is not an HDF5 file" if place < len(seal.MAGIC) else "is damaged"):
            READERS[kind](tmp_path / "f.h5")


@pytest.mark.parametrize("kind", ["store", "model", "checkpoint"])
def test_a_cut_is_one_line_at_every_length(
    made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(made[kind])
    needed, size = covered(path), len(made[kind])
    monkeypatch.setattr(h5py, "File", parsed)
    for length in {*range(12), 71, 511, 512, *range(513, needed, 97), needed - 1, min(needed, size - 1), size - 1}:
        path.write_bytes(made[kind][:length])
        words = "is cut short: it needs" if length >= len(seal.MAGIC) else "is not an HDF5 file: expected a"
        with pytest.raises(ValueError, match=words) as caught:
            READERS[kind](path)
        assert ("extract --resume" in str(caught.value)) == (kind == "store" and length >= needed)


def test_flags_reasons_and_checksums_may_hold_any_bytes(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=(0, 1, 4))
    store, random = open_store(path), np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(40):
        content = bytearray(whole)
        for start, length in spans(path):
            content[start : start + length] = random.bytes(length)
        content[store._offsets["images/state"] :][:5] = random.choice([0, 1, 2, 255], 5).astype(np.uint8).tobytes()
        path.write_bytes(content)
        found = open_store(path)
        assert {image.state for image in found.images} <= {PENDING, DONE, LEFT_OUT}
        result = call("inspect", path)
        assert (result.status, result.err) == (0, "")
        left_out = sum(image.state == LEFT_OUT for image in found.images)
        assert result.out.splitlines()[0].endswith("MB")
        assert sum(line.startswith("left out") for line in result.out.splitlines()) == left_out


def test_a_damaged_flag_is_pending_again(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=(0, 1, 3, 4))
    whole, place = path.read_bytes(), open_store(path)._offsets["images/state"]
    path.write_bytes(whole[: place + 1] + b"\x09" + whole[place + 2 :])
    assert list(open_store(path).finished) == [0, 3, 4]
    with StoreWriter(path) as writer:
        writer.write(1, features(1))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("n_layers", [1, 25, 26, 60])
def test_other_tools_read_sealed_stores_and_rows_are_aligned(tmp_path: Path, n_layers: int) -> None:
    table = [replace(layers()[0], name=f"layer{n}") for n in range(n_layers)]
    with create_store(tmp_path / "s.h5", records(), table, "float16", {"model": "m"}) as writer:
        writer.write(4, {layer.name: features(4)["relu1_2"] + n for n, layer in enumerate(table)})
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.userblock_size == (512 if n_layers < 26 else 2048 if n_layers > 57 else 1024)
        for n, layer in enumerate(table):
            rows = file[f"layers/{layer.name}/rows"]
            assert rows.id.get_offset() % ALIGNMENT == 0
            assert np.array_equal(rows[11:], (features(4)["relu1_2"] + n).astype("f2").reshape(-1, 7))
            assert np.array_equal(open_store(tmp_path / "s.h5").rows(layer.name)[0], rows[11:])


def test_a_newer_seal_is_told_from_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "s.h5")
    with monkeypatch.context() as patch:
        patch.setattr(seal, "FORMAT", 2)
        reseal(path)
    with pytest.raises(ValueError, match="has a seal of format 2, this fastclust reads 1: update fastclust"):
        open_store(path)


def test_a_file_that_is_cut_while_it_is_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "s.h5")
    size = path.stat()
    path.write_bytes(path.read_bytes()[:2000])
    monkeypatch.setattr(os, "fstat", lambda descriptor: size)
    with pytest.raises(ValueError, match="is damaged, or was changed by another tool"):
        open_store(path)


def test_a_damaged_model_is_described_in_one_line(made: dict[str, bytes], tmp_path: Path) -> None:
    content = bytearray(made["model"])
    content[1000] ^= 1
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"the digest of its first \d+ bytes is [0-9a-f]{16}, and was [0-9a-f]{16}: "):
        list(describe(tmp_path / "f.h5"))
