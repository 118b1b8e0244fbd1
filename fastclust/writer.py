"""Write feature stores: the file is laid out once at its final size, then filled image by image.

Nothing but plain writes at the datasets' offsets follows the creation, so a kill at any moment leaves the HDF5
structure whole, and a full disk is a plain OSError. Rows, and the checksums of what was written, reach the disk (fsync)
before their image is marked done.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclust.atomic import FULL, written_aside
from fastclust.layout import REASON_BYTES, fixed, lay_out
from fastclust.store import DONE, LEFT_OUT, ImageRecord, LayerRecord, existing_file, open_store
from fastclust.verify import checksum


def create_store(
    path: str | Path,
    images: Sequence[ImageRecord],
    layers: Sequence[LayerRecord],
    dtype: str,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
    begin: Callable[[], None] | None = None,
) -> "StoreWriter":
    """Create a store at its final size, and open it for writing.

    With `overwrite` a file already there is replaced at the last moment, by the finished new file; begin: called just
    before that. Provenance values are str, bool, int, float, or what JSON can hold.

    Raises FileExistsError; FileNotFoundError where the folder is missing; OSError (ENOSPC) before anything is written
    where the disk has too little room; ValueError for a dtype other than float16 and float32, or with no rows.
    """
    path = Path(path)
    check_new(path, images, layers, dtype, overwrite)
    with written_aside(path) as aside:
        lay_out(aside, images, layers, dtype, provenance)
        if begin is not None:
            begin()
    return StoreWriter(path)


def check_new(
    path: Path, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], dtype: str, overwrite: bool
) -> None:
    """Refuse what `create_store` cannot make, with its errors; OSError also where another process writes the store."""
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype {dtype!r}: expected float16 or float32")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: resume it, overwrite it (--resume, --overwrite), or name another file")
    if path.exists():
        with path.open("rb") as old:
            lock(old.fileno(), path)  # refuse to take a file from under another process
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")
    empty = [layer.name for layer in layers if layer.n_rows == 0]
    if empty or not layers or not images:
        raise ValueError(f"{path}: no rows to store: {len(images)} images, {len(layers)} layers {empty}")
    _check_room(path, images, layers, dtype)


class StoreWriter:
    """Open a store for writing: alone (Raises OSError where another process writes to it), and only what is pending.

    alone: False for one of several processes that write different images of the store, of which the first keeps others
    out. A context manager. Rows count once `commit` or `close` has marked their image done. One thread may close it
    while another writes, which then raises ValueError. Raises OSError also where the file or its disk is read-only.
    """

    def __init__(self, path: str | Path, *, alone: bool = True) -> None:
        self.path = existing_file(path)
        self._file = open_to_write(self.path)
        try:
            if alone:
                lock(self._file.fileno(), self.path)
            self.store = open_store(self.path)
        except BaseException:
            self._file.close()
            raise
        self._written: list[int] = []
        self._one_at_a_time = threading.RLock()

    def write(self, index: int, features: Mapping[str, NDArray[Any]]) -> None:
        """Write one image's features: every layer's (h, w, D), or (D,) where it is dense, of any float dtype.

        Raises ValueError where shapes differ from the store's, or a value is NaN, infinite or beyond the store's dtype.
        """
        if set(features) != set(self.store.layers):
            raise ValueError(f"expected the layers {', '.join(self.store.layers)}, got {', '.join(features)}")
        checked = {name: self._checked(index, name, array) for name, array in features.items()}
        for name, array in checked.items():
            self.write_bytes(index, name, [array.reshape(-1).view(np.uint8).data])
        self.finish(index)

    def write_bytes(self, index: int, layer: str, chunks: Iterable[memoryview]) -> int:
        """Write one image's rows of a layer as they stand in a store of this dtype; return and store their checksum.

        chunks: bytes, which follow each other. Nothing is checked; the rows count after `finish`.
        """
        start, _ = self.store.span(layer, index)

        def put() -> Iterator[memoryview]:
            at = start
            for chunk in chunks:
                self._put(at, chunk)
                at += len(chunk)
                yield chunk

        found = checksum(put())
        place = self.store._offsets[f"layers/{layer}/checksums"] + 8 * index
        self._put(place, np.array([found], dtype=np.uint64).view(np.uint8).data)
        return found

    def finish(self, index: int) -> None:
        """Let an image, of which all layers are written, be marked done by the next commit."""
        self._written.append(index)

    def leave_out(self, index: int, reason: str) -> None:
        """Mark an image as left out, with a reason in one line (cut to REASON_BYTES bytes of UTF-8)."""
        text = np.array([fixed(reason)], dtype=f"S{REASON_BYTES}")
        self._put(self.store._offsets["images/reason"] + index * REASON_BYTES, text.view(np.uint8).data)
        self._put(self.store._offsets["images/state"] + index, memoryview(bytes([LEFT_OUT])))

    def commit(self) -> None:
        """Bring the rows written since the last commit to the disk, then mark their images done."""
        with self._one_at_a_time:
            written, self._written = self._written, []  # a second fsync would not report what the first could not write
            if not written:
                return
            with self._full_disk_named():
                os.fsync(self._file.fileno())
            for index in written:
                self._put(self.store._offsets["images/state"] + index, memoryview(bytes([DONE])))

    def close(self) -> None:
        """Commit what was written and close the file. Closing twice is harmless."""
        with self._one_at_a_time:
            if not self._file.closed:
                try:
                    self.commit()
                    os.fsync(self._file.fileno())
                finally:
                    self._file.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, index: int, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The features in the store's dtype, as rows."""
        layer, image = self.store.layers[name], self.store.images[index]
        height, width = (int(side) for side in layer.shapes[index])
        expected = (layer.n_features,) if layer.kind == "dense" else (height, width, layer.n_features)
        if array.shape != expected:
            raise ValueError(
                f"layer {name}, image {image.path}: expected features of shape {expected}, got {array.shape}"
            )
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, dtype=self.store.dtype)
        if not _finite(rows):
            value = array[~np.isfinite(rows.reshape(array.shape))].flat[0]
            if np.isfinite(value):
                limit = float(np.finfo(self.store.dtype).max)
                hint = f"beyond the {limit:g} that {self.store.dtype} can hold: extract anew with --dtype float32"
            else:
                hint = "not a finite number: look at the weights and at the image"
            raise ValueError(f"layer {name}, image {image.path}: a feature is {value:g}, {hint}")
        return rows

    def _put(self, offset: int, data: memoryview) -> None:
        with self._one_at_a_time, self._full_disk_named():
            self._file.seek(offset)
            while data:
                data = data[self._file.write(data) :]

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                why = f"the disk of {self.path} is full; what is done is kept: free some room, then go on with --resume"
                raise OSError(error.errno, why) from error
            raise


def open_to_write(path: Path) -> FileIO:
    """Open a file that exists for reading and writing, unbuffered. Raises OSError that says what to do."""
    try:
        return path.open("r+b", buffering=0)
    except OSError as error:
        raise type(error)(error.errno, f"{path} cannot be written ({error.strerror}): make it writable") from error


def _check_room(path: Path, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], dtype: str) -> None:
    widest = max(len(image.path) + len(image.name) + len(image.label) + len(image.group) for image in images)
    needed = len(images) * (4 * widest + REASON_BYTES + 64 + 32 * len(layers))
    needed += sum(layer.n_rows * layer.n_features * np.dtype(dtype).itemsize + 8192 for layer in layers)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        fewer = "free some, or take fewer images or layers" + (", or --dtype float16" if dtype == "float32" else "")
        raise OSError(
            errno.ENOSPC,
            f"{path} needs {needed / 1e9:.3g} GB ({needed} bytes), its disk has {free} bytes free: {fewer}",
        )


def lock(descriptor: int, path: Path) -> None:
    """Keep other writers from an open file until it is closed. Raises OSError where one has it."""
    try:
        import fcntl
    except ImportError:  # Windows: two writers of one file are not kept apart there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"{path} is being written by another process: wait for it, or stop it first") from error


def _finite(rows: NDArray[Any]) -> bool:
    if rows.dtype == np.float16:  # four times faster than isfinite, which has no float16 loop of its own
        return bool((rows.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(rows).all())
