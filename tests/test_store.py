"""The store's file: what is written is read, also while it is being written; what is not a whole store is refused."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from sealing import reseal

from fastclust.store import DONE, LEFT_OUT, PENDING, ImageRecord, LayerRecord, open_store
from fastclust.writer import StoreWriter, create_store

SHAPES = np.array([[2, 3], [4, 1], [0, 0], [1, 1], [5, 2]])


def records() -> list[ImageRecord]:
    images = [ImageRecord(f"/ünï/{i}.png", f"{i}", f"label {i % 2}", "g" * i, (10 + i, 20), (8, 9)) for i in range(5)]
    images[2] = replace(images[2], state=LEFT_OUT, reason="not an image", input_size=(0, 0))
    return images


def layers() -> list[LayerRecord]:
    dense = np.minimum(SHAPES, 1)
    return [LayerRecord("relu1_2", "features.3", "conv", 7, SHAPES), LayerRecord("a.fc", "fc", "dense", 5, dense)]


def features(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    height, width = SHAPES[index]
    return {"relu1_2": rng.normal(size=(height, width, 7)).astype("f4"), "a.fc": rng.normal(size=5).astype("f4")}


def make(path: Path, dtype: str = "float32", done: tuple[int, ...] = (), **options: Any) -> Path:
    provenance = {
        "weights": "random",
        "weights_source": "random",
        "size": 8,
        "model": "vgg16",
        "seed": 3,
        "layers": ["relu1_2", "a.fc"],
        "transform": {"mean": [0.5], "crop": None},
    }
    with create_store(path, records(), layers(), dtype, provenance, **options) as writer:
        for index in done:
            writer.write(index, features(index))
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    store = open_store(make(tmp_path / "s.h5", dtype, done=(0, 1, 3, 4)))
    assert store.provenance["transform"] == {"mean": [0.5], "crop": None}
    assert (store.provenance["seed"], store.dtype) == (3, np.dtype(dtype))
    assert [replace(image, state=PENDING) for image in store.images if image.state == DONE] == [
        image for image in records() if image.state == PENDING
    ]
    assert store.images[2] == records()[2]
    assert list(store.layers) == ["relu1_2", "a.fc"]
    assert store.layers["a.fc"].node == "fc"
    assert list(store.layers["relu1_2"].starts) == [0, 6, 10, 10, 11, 21]
    for name in store.layers:
        assert np.array_equal(store.layers[name].shapes, next(la for la in layers() if la.name == name).shapes)
        for index in (0, 1, 3, 4):
            assert np.array_equal(store.image_rows(name, index).ravel(), features(index)[name].astype(dtype).ravel())
        rows = store.rows(name)
        assert len(rows) == 1, "an image with no rows does not break a run"
        assert not rows[0].flags.writeable
        assert rows[0].flags.aligned
    with h5py.File(store.path) as file:  # any HDF5 tool sees the same
        assert np.array_equal(file["layers/relu1_2/rows"][:], store.rows("relu1_2")[0])
        assert file["images/path"].asstr()[1] == "/ünï/1.png"


def test_rows_come_in_unbroken_runs_of_finished_images(tmp_path: Path) -> None:
    store = open_store(make(tmp_path / "s.h5", done=(4, 0, 3)))
    assert [len(rows) for rows in store.rows("relu1_2")] == [6, 11]
    assert list(store.finished) == [0, 3, 4]
    with pytest.raises(ValueError, match=r"image /ünï/1.png is not extracted yet"):
        store.image_rows("relu1_2", 1)
    with pytest.raises(ValueError, match=r"image /ünï/2.png was left out: not an image"):
        store.image_rows("relu1_2", 2)


def test_a_store_being_written_can_be_read_by_another_process(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s.h5", records(), layers(), "float32", {"model": "m"})
    code = f"from fastclust.store import open_store; print(len(open_store({str(writer.path)!r}).rows('a.fc')[0]))"
    with writer:
        writer.write(0, features(0))
        writer.commit()
        writer.write(1, features(1))
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "1", "rows that are written but not committed are not seen"
        second = subprocess.run(
            [sys.executable, "-c", f"from fastclust.writer import StoreWriter; StoreWriter({str(writer.path)!r})"],
            capture_output=True,
            text=True,
        )
        assert "is being written by another process" in second.stderr
    assert len(open_store(writer.path).finished) == 2


def test_resuming_writes_what_is_missing(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.h5", done=(0, 1, 3, 4)).read_bytes()
    parts = make(tmp_path / "parts.h5", done=(3,))
    with StoreWriter(parts) as writer:
        for index in (4, 0, 1):
            writer.write(index, features(index))
    assert parts.read_bytes() == whole


def test_leaving_out_keeps_a_reason_of_one_line(tmp_path: Path) -> None:
    with StoreWriter(make(tmp_path / "s.h5")) as writer:
        writer.leave_out(1, "é" * 200 + "\nsecond")
        writer.leave_out(3, "line\none")
    images = open_store(tmp_path / "s.h5").images
    assert (images[1].state, images[1].reason) == (LEFT_OUT, "é" * 120)
    assert images[3].reason == "line one"
    assert images[4].state == PENDING


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float16", 70000.0, ["70000", "65504", "--dtype float32"]),
        ("float16", np.nan, ["nan", "not a finite number"]),
        ("float32", -np.inf, ["-inf", "not a finite number"]),
        ("float32", np.float64(1e39), ["1e+39", "float32"]),
    ],
)
def test_values_that_the_store_cannot_hold_are_named(
    tmp_path: Path, dtype: str, value: float, words: list[str]
) -> None:
    with StoreWriter(make(tmp_path / "s.h5", dtype)) as writer:
        bad = {name: array.astype("f8") for name, array in features(1).items()}
        bad["relu1_2"][3, 0, 5] = value
        with pytest.raises(ValueError, match=r"layer relu1_2, image /ünï/1\.png") as caught:
            writer.write(1, bad)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(open_store(tmp_path / "s.h5").finished) == 0


def test_the_largest_float16_is_kept(tmp_path: Path) -> None:
    with StoreWriter(make(tmp_path / "s.h5", "float16")) as writer:
        writer.write(3, {"relu1_2": np.full((1, 1, 7), 65504.0), "a.fc": np.full(5, -65519.0)})
    assert open_store(tmp_path / "s.h5").image_rows("a.fc", 3).min() == -65504


def test_features_of_another_shape_or_layer_are_refused(tmp_path: Path) -> None:
    with StoreWriter(make(tmp_path / "s.h5")) as writer:
        with pytest.raises(ValueError, match=r"expected features of shape \(4, 1, 7\), got \(2, 3, 7\)"):
            writer.write(1, features(0))
        with pytest.raises(ValueError, match=r"expected the layers relu1_2, a.fc, got a.fc"):
            writer.write(1, {"a.fc": features(1)["a.fc"]})


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"--resume"):
        make(path)
    assert path.read_text() == "precious"
    make(path, overwrite=True, done=(0,))
    assert len(open_store(path).finished) == 1


def test_a_disk_too_small_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "s.h5", done=(0,))
    before = path.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda where: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"needs .* bytes\), its disk has 100 bytes free") as caught:
        make(path, overwrite=True)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_keeps_what_is_done(tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = make(tmp_path / "s.h5", done=(0,))
    writer = StoreWriter(path)
    writer._file.close()
    writer._file = Full(path, "r+b")
    with pytest.raises(OSError, match=r"disk of .*s\.h5 is full; .* go on with --resume"), writer:
        writer.write(1, features(1))
    assert list(open_store(path).finished) == [0]


def test_rows_that_could_not_be_flushed_never_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = make(tmp_path / "s.h5", done=(0,))
    with StoreWriter(path) as writer:
        writer.write(1, features(1))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
            patch.setattr(os, "fsync", fail)
            writer.commit()
        writer.write(3, features(3))
    assert list(open_store(path).finished) == [0, 3], "a second fsync says nothing of what the first one lost"


def test_a_failure_during_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk on fire"):
        make(tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_rows_and_flag_leaves_the_image_pending(tmp_path: Path) -> None:
    path = make(tmp_path / "s.h5", done=(0,))
    code = (
        "import os, signal, sys; sys.path.insert(0, 'tests')\n"
        "from test_store import features; from fastclust.writer import StoreWriter\n"
        f"writer = StoreWriter({str(path)!r}); writer.write(1, features(1)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    assert run.returncode == -signal.SIGKILL
    assert [image.state for image in open_store(path).images] == [DONE, PENDING, LEFT_OUT, PENDING, PENDING]
    StoreWriter(path).close()  # the lock died with its process


def damage(change: Callable[[Any], None], *, sealed: bool = False) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)
        if sealed:
            reseal(path)

    return apply


def foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "fastclust.features"  # as an older fastclust wrote it


def chunked(file: Any) -> None:
    rows = file["layers/relu1_2/rows"][:]
    del file["layers/relu1_2/rows"]
    file.create_dataset("layers/relu1_2/rows", data=rows, chunks=(4, 7))


@pytest.mark.parametrize(
    ("ruin", "words"),
    [
        (lambda path: path.write_bytes(b""), "is not an HDF5 file"),
        (lambda path: path.write_text("path,label"), "is not an HDF5 file"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), r"is cut short: it needs \d+ bytes and has \d+"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), r"is cut short: it needs \d+ bytes and has \d+"),
        (lambda path: os.truncate(path, 100), "is (cut short|damaged)"),
        (foreign, r"is an HDF5 file, but not one of fastclust's \(an older one's: make it anew\): expected a feature"),
        (lambda path: reseal(path, kind="fastclust.model"), "is a fastclust.model file: expected a feature store"),
        (lambda path: reseal(path, version=3), r"has format version 3, .* reads 2: update fastclust"),
        (lambda path: reseal(path, version=1), r"has format version 1, .* reads 2: .* make it anew"),
        (damage(lambda file: file.__delitem__("images/label"), sealed=True), "is damaged: HDF5 finds .*label"),
        (damage(lambda file: file.__delitem__("images/label")), "is damaged, or was changed by another tool"),
        (damage(lambda file: file["layers/a.fc/starts"].write_direct(np.arange(6))), "is damaged, or was changed"),
        (damage(chunked), "is damaged, or was changed by another tool"),
    ],
)
def test_what_is_not_a_whole_store_is_refused_in_one_line(
    tmp_path: Path, ruin: Callable[[Path], None], words: str
) -> None:
    path = make(tmp_path / "s.h5", done=(0, 1, 3, 4))
    ruin(path)
    for opening in (open_store, StoreWriter):
        with pytest.raises(ValueError, match=words) as caught:
            opening(path)
        assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_and_names_that_are_no_layers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.h5 does not exist: expected a feature store"):
        open_store(tmp_path / "nothing.h5")
    with pytest.raises(IsADirectoryError, match=r"is a folder: expected a feature store"):
        open_store(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"create it first"):
        make(tmp_path / "no" / "s.h5")
    store = open_store(make(tmp_path / "s.h5"))
    with pytest.raises(ValueError, match=r"no layer 'relu_1': did you mean relu1_2\?"):
        store.rows("relu_1")
    assert store.rows("relu1_2") == []
