"""A disk that is full: one line that says so, what was done is kept, nothing half-written stands under a final name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import MIXTURE, NETWORK, call, contents, photographs
from read_only import enlarge_disk, fill_disk, small_disk

from fastclust import extract as extracting
from fastclust import merge as merging
from fastclust.store import open_store
from fastclust.verify import verify

MEGABYTE = 1 << 20
LAYERS = ("--layer", "1", "--layer", "classifier.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with images, a whole store and a model of its layer 1."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "images", 6)
    extract = ("extract", folder / "images", *NETWORK, *LAYERS, "--batch-size", "1")
    assert call(*extract, "--out", folder / "f.h5").status == 0
    fit = ("fit", folder / "f.h5", "--layer", "1", *MIXTURE)
    assert call(*fit, "--out", folder / "model.h5").status == 0
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 8 * MEGABYTE):
        yield tmp_path / "disk"


def test_an_extraction_keeps_what_is_done_and_resumes(made: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write, batches = disk / "f.h5", extracting._write, iter(range(6))

    def fill_after_two(*given: Any) -> float:
        if next(batches) == 2:
            fill_disk(disk, leave=20_000)
        return write(*given)

    command = ("extract", made / "images", *NETWORK, *LAYERS, "--batch-size", "1", "--out", store)
    with monkeypatch.context() as patch:
        patch.setattr(extracting, "_write", fill_after_two)
        patch.setattr(extracting, "_reserve", lambda path: None)  # as where a file system cannot
        result = call(*command)
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"fastclust: the disk of {store} is full; what is done is kept: free some room, then go on with --resume\n"
    )
    assert list(open_store(store).finished) == [0, 1]
    assert verify(store).damaged == {}
    again = call(*command, "--resume")
    assert (again.status, again.err) == (1, result.err)
    enlarge_disk(disk, 32 * MEGABYTE)
    assert call(*command, "--resume").status == 0
    assert store.read_bytes() == (made / "f.h5").read_bytes()


@pytest.mark.parametrize("left", [0, 4096, 8192])
def test_a_model_is_whole_or_not_there(made: Path, disk: Path, left: int) -> None:
    fill_disk(disk, left)
    before = set(disk.iterdir())
    command = ("fit", made / "f.h5", "--layer", "1", *MIXTURE)
    result = call(*command, "--out", disk / "model.h5")
    assert (result.status, result.out) == (1, "")
    full = f"fastclust: the disk of {disk / 'model.h5'} is full; it was not written: free some room, then give the "
    assert result.err == full + "command again\n"
    assert set(disk.iterdir()) == before


def test_an_earlier_model_stays_where_the_disk_is_full(made: Path, disk: Path) -> None:
    (disk / "model.h5").write_bytes((made / "model.h5").read_bytes())
    fill_disk(disk, leave=4096)
    command = ("fit", made / "f.h5", "--layer", "1", *MIXTURE, "--out", disk / "model.h5", "--overwrite")
    result = call(*command)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert (disk / "model.h5").read_bytes() == (made / "model.h5").read_bytes()
    assert {path.name for path in disk.iterdir()} == {"model.h5", "filler"}


def test_label_images_are_whole_or_not_there(made: Path, disk: Path, tmp_path: Path) -> None:
    command = ("label", made / "f.h5", "--layer", "1", "--model", made / "model.h5", "--out")
    assert call(*command, tmp_path / "whole").status == 0
    filler = fill_disk(disk, leave=7 * 4096)
    result = call(*command, disk / "out")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), result.err
    assert result.err.startswith(f"fastclust: the disk of {disk / 'out'}")
    assert " is full; it was not written: free some room" in result.err
    written, whole = contents(disk / "out"), contents(tmp_path / "whole")
    assert 2 < len(written) < len(whole)
    assert all(whole[name] == content for name, content in written.items()), "each is whole, under its final name"
    os.truncate(filler, 0)
    assert call(*command, disk / "out", "--overwrite").status == 0
    assert contents(disk / "out") == whole


def test_a_merged_store_is_whole_or_not_there(
    made: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path / "other", 1)
    other, out, copy = tmp_path / "other.h5", disk / "all.h5", merging._copy
    assert call("extract", tmp_path / "other", *NETWORK, *LAYERS, "--out", other).status == 0
    command = ("merge", made / "f.h5", other, "--out", out)
    assert call(*command).status == 0
    before, places = out.read_bytes(), iter(range(7))

    def fill_after_three(*given: Any) -> None:
        if next(places) == 3:
            fill_disk(disk, leave=8192)
        copy(*given)

    monkeypatch.setattr(merging, "_copy", fill_after_three)
    result = call(*command, "--overwrite")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"fastclust: the disk of {out} is full; it was not written: free some room")
    assert result.err.count("\n") == 1
    assert out.read_bytes() == before
    assert {path.name for path in disk.iterdir()} == {"all.h5", "filler"}
    result = call(*command, "--overwrite")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "free some, or take fewer images" in result.err, "found before anything is written"
