"""Repair: resuming computes again what is damaged, nothing else, and ends with an uninterrupted store's bytes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from command_line import NETWORK, call
from read_only import immutable
from sealing import covered
from test_extract import SQUEEZE, photographs
from test_verify import flip

from fastclust.extract import ExtractReport, extract
from fastclust.repair import repair
from fastclust.store import DONE, open_store
from fastclust.verify import verify
from fastclust.writer import StoreWriter

OPTIONS: dict[str, Any] = {**SQUEEZE, "layers": ["2", "flatten"], "batch_size": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with seven photographs (images) and their whole store (whole.h5)."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "images", 7)
    extract([folder / "images"], out=folder / "whole.h5", **OPTIONS)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of the whole store, to be damaged."""
    return Path(shutil.copy(made / "whole.h5", tmp_path / "f.h5"))


def resume(made: Path, path: Path, **more: Any) -> ExtractReport:
    return extract([made / "images"], out=path, resume=True, **{**OPTIONS, **more})


def cut(fraction: float) -> Callable[[Path], set[int]]:
    """Cut a store at a part of its rows, or by one byte; what is damaged is what ends behind the cut."""

    def apply(path: Path) -> set[int]:
        store, tables = open_store(path), covered(path)
        length = min(int(tables + fraction * (store.n_bytes - tables)), store.n_bytes - 1)
        os.truncate(path, length)
        return {index for index in range(7) for layer in store.layers if sum(store.span(layer, index)) > length}

    return apply


def flipped(path: Path) -> set[int]:
    store = open_store(path)
    flip(path, store.span("2", 3)[0] + 1000)
    flip(path, store.span("flatten", 6)[0] + 17)
    return {3, 6}


def checksum_flipped(path: Path) -> set[int]:
    flip(path, open_store(path)._offsets["layers/2/checksums"] + 8 * 2 + 3)
    return {2}


def flagged(path: Path) -> set[int]:
    store = open_store(path)
    with h5py.File(path, "r+") as file:
        for name in store.layers:
            start, stop = store.layers[name].starts[[4, 6]]
            file[f"layers/{name}/rows"][start:stop] = 0
            file[f"layers/{name}/checksums"][4:6] = 0
        assert (file["images/state"][:] == DONE).all()
    return {4, 5}


def both(path: Path) -> set[int]:
    return flipped(path) | cut(0.6)(path)


@pytest.mark.parametrize(
    "damage",
    [cut(1.0), cut(0.5), cut(0.0), checksum_flipped, flagged, both],
    ids=["cut by a byte", "cut by half", "no rows left", "checksum", "flags by hand", "cut and flipped"],
)
def test_resuming_computes_what_is_damaged_alone(
    made: Path, copied: Path, damage: Callable[[Path], set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    lost = damage(copied)
    assert 0 < len(lost) <= 7
    report = resume(made, copied)
    assert (report.done, report.resumed) == (7, 7 - len(lost))
    assert f"damaged images, which are computed again: {len(lost)} of 7" in caplog.text
    assert copied.read_bytes() == (made / "whole.h5").read_bytes()
    assert verify(copied).damaged == {}
    caplog.clear()
    assert repair(copied) == 0
    assert caplog.text == ""


def test_the_command_complains_in_one_line_and_repairs(made: Path, copied: Path) -> None:
    os.truncate(copied, copied.stat().st_size - 1)
    command = ("extract", made / "images", *NETWORK, "--layer", "2", "--layer", "flatten", "--batch-size", "2")
    result = call(*command, "--resume", "--out", copied)
    assert (result.status, result.out.count("\n")) == (0, 1)
    assert copied.read_bytes() == (made / "whole.h5").read_bytes()


def test_a_cut_store_of_another_extraction_stays_as_it_is(made: Path, copied: Path) -> None:
    os.truncate(copied, copied.stat().st_size - 1)
    before = copied.read_bytes()
    with pytest.raises(ValueError, match=r"cannot be resumed: its seed is 0, now 1"):
        resume(made, copied, seed=1)
    with pytest.raises(ValueError, match=r"cannot be resumed: its images or labels differ"):
        extract([made / "images" / "00.png"], out=copied, resume=True, **OPTIONS)
    assert copied.read_bytes() == before
    os.truncate(copied, covered(made / "whole.h5") - 1)
    with pytest.raises(ValueError, match=r"is cut short: .*: copy it again, or make it anew"):
        resume(made, copied)
    extract([made / "images"], out=copied, overwrite=True, **OPTIONS)
    assert copied.read_bytes() == (made / "whole.h5").read_bytes()


def test_a_damaged_image_whose_file_is_gone_is_left_out(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "images", tmp_path / "images")
    path = tmp_path / "f.h5"
    extract([tmp_path / "images"], out=path, **OPTIONS)
    flip(path, open_store(path).span("2", 1)[0])
    (tmp_path / "images" / "01.png").write_text("no image any more")
    report = extract([tmp_path / "images"], out=path, resume=True, **OPTIONS)
    assert (report.done, [Path(image).name for image, _ in report.left_out]) == (6, ["01.png"])


def test_a_repair_that_is_stopped_leaves_no_zeros_that_count(
    made: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(file: int) -> None:
        raise KeyboardInterrupt

    cut(0.5)(copied)
    length = copied.stat().st_size
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", stop)
        repair(copied)
    assert copied.stat().st_size == length, "its length comes last"
    assert any(image.state != DONE for image in open_store(copied, cut_short=True).images)
    resume(made, copied)
    assert copied.read_bytes() == (made / "whole.h5").read_bytes()


def test_a_store_that_another_process_writes_is_not_repaired(made: Path, copied: Path) -> None:
    flipped(copied)
    before = copied.read_bytes()
    with StoreWriter(copied), pytest.raises(OSError, match="is being written by another process"):
        repair(copied)
    assert copied.read_bytes() == before


def test_a_store_that_cannot_be_written_is_one_line(made: Path, copied: Path) -> None:
    flipped(copied)
    before = copied.read_bytes()
    command = ("extract", made / "images", *NETWORK, "--layer", "2", "--layer", "flatten", "--batch-size", "2")
    with immutable(copied):
        for more, words in (
            ("--resume", "cannot be written (Operation not permitted): make it writable"),
            ("--overwrite", "cannot be replaced (Operation not permitted): name another file"),
        ):
            result = call(*command, more, "--out", copied)
            assert (result.status, result.out) == (1, "")
            assert result.err == f"fastclust: {copied} {words}\n"
    assert copied.read_bytes() == before
    assert list(copied.parent.iterdir()) == [copied]
