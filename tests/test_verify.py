"""Checksums: what is damaged is found, where a file is cut is told, and a store is read with flat memory."""

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from command_line import call
from read_only import bound_by_permissions
from sealing import covered
from test_store import features, layers, make, records

from fastclust.store import DONE, ImageRecord, LayerRecord, open_store
from fastclust.verify import verify
from fastclust.writer import StoreWriter, create_store

ALL = (0, 1, 3, 4)


def flip(path: Path, place: int, bit: int = 4) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_checksums_are_those_of_the_bytes_in_the_file(tmp_path: Path, dtype: str) -> None:
    path = make(tmp_path / "s.h5", dtype, done=(0, 1, 4))
    store, content = open_store(path), path.read_bytes()
    for layer in store.layers:
        for index in (0, 1, 4):
            start, n_bytes = store.span(layer, index)
            rows = content[start : start + n_bytes]
            assert rows == features(index)[layer].astype(dtype).tobytes()
            assert store.checksums[layer][index] == xxhash.xxh3_64_intdigest(rows)
        assert store.checksums[layer][3] == store.checksums[layer][2] == 0
    found = verify(path)
    assert (found.images, found.pending, found.left_out, found.damaged) == (3, 1, 1, {})
    assert found.n_bytes == ((6 + 4 + 10) * 7 + 3 * 5) * np.dtype(dtype).itemsize
    result = call("verify", path)
    assert (result.status, result.err) == (0, "")
    assert f"s.h5: 3 images as they were written (1 pending, 1 left out), {found.n_bytes} bytes in" in result.out
    assert result.out.count("\n") == 1


@pytest.mark.parametrize("index", ALL)
@pytest.mark.parametrize("layer", ["relu1_2", "a.fc"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, layer: str, index: int) -> None:
    path = make(tmp_path / "s.h5", done=ALL)
    start, n_bytes = open_store(path).span(layer, index)
    for place in (start, start + n_bytes // 2, start + n_bytes - 1):
        flip(path, place)
        assert verify(path).damaged == {f"/ünï/{index}.png": [layer]}
        flip(path, place)
    assert verify(path).damaged == {}


def test_what_is_damaged_is_named_a_line_an_image(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=ALL)
    store = open_store(path)
    for layer, index in (("relu1_2", 4), ("a.fc", 1), ("relu1_2", 1)):
        flip(path, store.span(layer, index)[0])
    result = call("verify", path)
    assert result.status == 1
    assert result.out.splitlines() == ["damaged: /ünï/1.png: relu1_2, a.fc", "damaged: /ünï/4.png: relu1_2"]
    assert result.err.count("\n") == 1
    assert f"{path}: the rows of 2 of 4 images are not as they were written: `fastclust extract --resume`" in result.err


def test_flags_that_claim_more_than_was_written_are_found(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=(0,))
    with h5py.File(path, "r+") as file:
        file["images/state"][3:] = DONE
    assert verify(path).damaged == {f"/ünï/{index}.png": ["relu1_2", "a.fc"] for index in (3, 4)}


@pytest.mark.parametrize(("n_images", "n_layers"), [(1, 1), (5, 40), (3000, 2)])
def test_nothing_but_rows_lies_behind_the_tables(tmp_path: Path, n_images: int, n_layers: int) -> None:
    images = [ImageRecord(f"/{n}.png", f"{n}", "l", "", (9, 9), (8, 8)) for n in range(n_images)]
    shapes = np.full((n_images, 2), 16)
    table = [LayerRecord(f"layer{n}", f"node{n}", "conv", 8, shapes) for n in range(n_layers)]
    provenance = {"model": "m", "long": "x" * 5000, "layers": [layer.name for layer in table]}
    path = create_store(tmp_path / "s.h5", images, table, "float32", provenance).path
    content = path.read_bytes()
    with h5py.File(path) as file:
        tables = covered(path)
        rows = [file[f"layers/{layer.name}/rows"].id.get_offset() for layer in table]
        assert min(rows) >= tables
        assert len(content) == max(rows) + file[f"layers/{table[0].name}/rows"].nbytes
    assert content[:tables].rstrip(b"\0")
    assert not any(content[tables:]), "rows are not written yet, and nothing else is there"
    assert path.stat().st_blocks * 512 < tables + 20_000, "sparse"


@pytest.mark.parametrize(
    "length", [lambda size, tables: size - 1, lambda size, tables: (size + tables) // 2, lambda size, tables: tables]
)
def test_a_store_cut_within_its_rows_says_how_to_repair_it(tmp_path: Path, length: Callable[[int, int], int]) -> None:
    path = make(tmp_path / "s.h5", done=ALL)
    whole, size = open_store(path), path.stat().st_size
    os.truncate(path, length(size, covered(path)))
    for opening in (open_store, StoreWriter, verify):
        with pytest.raises(ValueError, match=r"is cut short: it needs \d+ bytes and has \d+: .*extract --resume"):
            opening(path)
    for command in ("verify", "inspect"):
        result = call(command, path)
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
        assert "`fastclust extract --resume`, with all else as it was, repairs it" in result.err
    tables = open_store(path, cut_short=True)
    assert (tables.images, tables.n_bytes, list(tables.layers)) == (whole.images, size, list(whole.layers))
    assert all(np.array_equal(tables.checksums[layer], whole.checksums[layer]) for layer in whole.layers)
    with pytest.raises(ValueError, match="is cut short"):
        tables.rows("relu1_2")
    with pytest.raises(ValueError, match="is cut short"):
        tables.image_rows("relu1_2", 0)


def test_a_store_cut_within_its_tables_is_refused_in_one_line_at_every_length(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=ALL)
    content, tables = path.read_bytes(), covered(path)
    for length in [*range(0, tables, 61), tables - 1]:
        path.write_bytes(content[:length])
        for cut_short in (False, True):
            with pytest.raises(ValueError, match=r"is cut short: .*: copy it again|is damaged|not an HDF5") as caught:
                open_store(path, cut_short=cut_short)
            assert "\n" not in str(caught.value)
            assert "resume" not in str(caught.value)


def test_a_large_store_is_verified_with_flat_memory(tmp_path: Path) -> None:
    shapes = np.array([[400, 300]])
    layer = LayerRecord("1", "features.1", "conv", 100, shapes)
    image = ImageRecord("/0.png", "0", "", "", (400, 300), (400, 300))
    path = tmp_path / "s.h5"
    with create_store(path, [image], [layer], "float32", {"layers": ["1"]}) as writer:
        writer.write(0, {"1": np.ones((400, 300, 100), dtype=np.float32)})
    tracemalloc.start()
    try:
        found = verify(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.n_bytes == 48_000_000
    assert found.damaged == {}
    assert peak < 6_000_000


def test_finished_images_are_seen_and_whole_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    create_store(path, records(), layers(), "float32", {"model": "m"}).close()
    code = (
        "import sys, time; sys.path.insert(0, 'tests')\n"
        "from test_store import features; from fastclust.writer import StoreWriter\n"
        f"with StoreWriter({str(path)!r}) as writer:\n"
        "    print('open', flush=True)\n"
        "    for index in (0, 1, 3, 4):\n"
        "        time.sleep(0.2); writer.write(index, features(index)); time.sleep(0.1); writer.commit()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    seen = []
    while writer.poll() is None:
        found = verify(path)
        assert found.damaged == {}
        store = open_store(path)
        seen.append(len(store.finished))
        for index in store.finished:
            assert np.array_equal(store.image_rows("a.fc", index).ravel(), features(index)["a.fc"])
        time.sleep(0.01)
    writer.stdout.close()
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen) & {0, 1, 2, 3}) >= 3, f"it was not read while it was written: {seen}"
    assert len(open_store(path).finished) == 4


def test_a_store_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=ALL)
    path.chmod(0)
    with bound_by_permissions(tmp_path):
        for command in (["verify", path], ["inspect", path], ["fit", path, "--out", tmp_path / "m.h5"]):
            result = call(*command)
            assert (result.status, result.out) == (1, "")
            assert result.err == f"fastclust: {path}: Permission denied\n"
    path.chmod(0o644)
    model = tmp_path / "model.h5"
    model.touch(mode=0)
    with bound_by_permissions(tmp_path):
        result = call("label", path, "--model", model, "--out", tmp_path / "labels")
    assert result.err == f"fastclust: {model}: Permission denied\n"
