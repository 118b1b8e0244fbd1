"""Writing a store while a second interrupt has it closed already."""

import threading
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from made_store import made_store

from fastclust import writer
from fastclust.store import DONE, PENDING, open_store
from fastclust.verify import verify
from fastclust.writer import StoreWriter


def test_a_store_that_is_closed_while_a_thread_writes_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is held between finding its place in the file and writing there, until the other one has written."""
    between, other_wrote, wrote = threading.Event(), threading.Event(), threading.Event()

    def held() -> bool:
        return threading.current_thread().name == "held"

    class Slow(FileIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            place = super().seek(offset, whence)
            if held() and not between.is_set():
                between.set()
                other_wrote.wait(0.5)
            return place

        def write(self, data: memoryview) -> int:  # type: ignore[override]
            count = super().write(data)
            if held():
                wrote.set()
            elif between.is_set():
                other_wrote.set()
                wrote.wait(0.5)
            return count

    rows = np.random.default_rng(0).normal(size=(2, 9, 9, 4)).astype(np.float32)
    made_store(tmp_path / "s.h5", {"one": list(rows)}, done=0)
    monkeypatch.setattr(writer, "open_to_write", lambda path: Slow(path, "r+"))
    store = StoreWriter(tmp_path / "s.h5")
    store.write(0, {"one": rows[0]})
    errors: list[Exception] = []

    def write() -> None:
        try:
            store.write(1, {"one": rows[1]})
        except ValueError as error:
            errors.append(error)

    writing = threading.Thread(target=write, name="held")
    writing.start()
    assert between.wait(10)
    store.close()
    writing.join()
    assert not verify(tmp_path / "s.h5").damaged
    found = open_store(tmp_path / "s.h5")
    np.testing.assert_array_equal(found.image_rows("one", 0), rows[0])
    assert [image.state for image in found.images] == [DONE, PENDING if errors else DONE]
    assert all("closed file" in str(error) for error in errors)
