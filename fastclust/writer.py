"""Write feature stores: the file is laid out once at its final size, then filled image by image.

Nothing but plain writes at the datasets' offsets follows the creation, so a kill at any moment leaves the HDF5
structure whole, and a full disk is a plain OSError. Rows reach the disk (fsync) before their image is marked done.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fastclust.store import DONE, FORMAT, LEFT_OUT, VERSION, ImageRecord, LayerRecord, existing_file, open_store

REASON_BYTES = 240
ALIGNMENT = 64  # bytes, a cache line: mapped rows are aligned for any dtype


def create_store(
    path: str | Path,
    images: Sequence[ImageRecord],
    layers: Sequence[LayerRecord],
    dtype: str,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> "StoreWriter":
    """Create a store at its final size, and open it for writing.

    With `overwrite` a file already there is replaced at the last moment, by the finished new file. Provenance values
    are str, bool, int, float, or what JSON can hold.

    Raises FileExistsError; FileNotFoundError where the folder is missing; OSError (ENOSPC) before anything is written
    where the disk has too little room; ValueError for a dtype other than float16 and float32, or with no rows.
    """
    path = Path(path)
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype {dtype!r}: expected float16 or float32")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: resume it, overwrite it (--resume, --overwrite), or name another file")
    if path.exists():
        with path.open("rb") as old:
            _lock(old.fileno(), path)  # refuse to take a file from under another process
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")
    empty = [layer.name for layer in layers if layer.n_rows == 0]
    if empty or not layers or not images:
        raise ValueError(f"{path}: no rows to store: {len(images)} images, {len(layers)} layers {empty}")
    _check_room(path, images, layers, dtype)
    aside = path.with_name(f".{path.name}.new")
    try:
        _write_empty(aside, images, layers, dtype, provenance)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return StoreWriter(path)


class StoreWriter:
    """Open a store for writing: alone (Raises OSError where another process writes to it), and only what is pending.

    A context manager. Rows count once `commit` or `close` has marked their image done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = existing_file(path)
        self._file = self.path.open("r+b", buffering=0)
        try:
            _lock(self._file.fileno(), self.path)
            self.store = open_store(self.path)
        except BaseException:
            self._file.close()
            raise
        self._written: list[int] = []

    def write(self, index: int, features: Mapping[str, NDArray[Any]]) -> None:
        """Write one image's features: every layer's (h, w, D), or (D,) where it is dense, of any float dtype.

        Raises ValueError where shapes differ from the store's, or a value is NaN, infinite or beyond the store's dtype.
        """
        if set(features) != set(self.store.layers):
            raise ValueError(f"expected the layers {', '.join(self.store.layers)}, got {', '.join(features)}")
        checked = {name: self._checked(index, name, array) for name, array in features.items()}
        for name, array in checked.items():
            start = int(self.store.layers[name].starts[index])
            row_bytes = self.store.layers[name].n_features * self.store.dtype.itemsize
            self._put(self.store._offsets[f"layers/{name}/rows"] + start * row_bytes, array)
        self._written.append(index)

    def leave_out(self, index: int, reason: str) -> None:
        """Mark an image as left out, with a reason in one line (cut to REASON_BYTES bytes of UTF-8)."""
        text = np.array([_fixed(reason)], dtype=f"S{REASON_BYTES}")
        self._put(self.store._offsets["images/reason"] + index * REASON_BYTES, text)
        self._put(self.store._offsets["images/state"] + index, np.array([LEFT_OUT], dtype=np.uint8))

    def commit(self) -> None:
        """Bring the rows written since the last commit to the disk, then mark their images done."""
        if not self._written:
            return
        os.fsync(self._file.fileno())
        for index in self._written:
            self._put(self.store._offsets["images/state"] + index, np.array([DONE], dtype=np.uint8))
        self._written = []

    def close(self) -> None:
        """Commit what was written and close the file. Closing twice is harmless."""
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

    def _put(self, offset: int, array: NDArray[Any]) -> None:
        self._file.seek(offset)
        left = memoryview(array.reshape(-1).view(np.uint8).data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if error.errno == errno.ENOSPC:
                why = f"the disk of {self.path} is full; what is done is kept: free some room, then go on with --resume"
                raise OSError(errno.ENOSPC, why) from error
            raise


def _write_empty(
    aside: Path, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], dtype: str, provenance: Mapping[str, Any]
) -> None:
    with h5py.File(aside, "w", libver="earliest", alignment_threshold=1, alignment_interval=ALIGNMENT) as file:
        file.attrs.update({"format": FORMAT, "format_version": VERSION, "dtype": dtype})
        attributes = file.create_group("provenance").attrs
        for key, value in provenance.items():
            plain = isinstance(value, str | bool | int | float)
            attributes[key if plain else f"{key}.json"] = value if plain else json.dumps(value)
        table = file.create_group("images")
        for column in ("path", "name", "label", "group"):
            _add(table, column, _texts([getattr(image, column) for image in images]))
        for column in ("size", "input_size"):
            _add(table, column, np.array([getattr(image, column) for image in images], dtype=np.int64))
        _add(table, "state", np.array([image.state for image in images], dtype=np.uint8))
        _add(table, "reason", np.array([_fixed(image.reason) for image in images], dtype=f"S{REASON_BYTES}"))
        for layer in layers:
            group = file.create_group(f"layers/{layer.name}", track_order=False)
            group.attrs.update({"node": layer.node, "kind": layer.kind})
            _add(group, "shapes", layer.shapes.astype(np.int64))
            _add(group, "starts", layer.starts)
            group.create_dataset("rows", (layer.n_rows, layer.n_features), dtype, dcpl=_contiguous(filled=False))
    with aside.open("r+b") as raw:
        os.fsync(raw.fileno())


def _contiguous(filled: bool) -> Any:
    """Creation properties: contiguous, allocated at once; unfilled rows leave the file sparse until written."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if filled else h5py.h5d.FILL_TIME_NEVER)
    return plan


def _add(group: Any, name: str, array: NDArray[Any]) -> None:
    dtype = h5py.string_dtype("utf-8", array.dtype.itemsize) if array.dtype.kind == "S" else array.dtype
    group.create_dataset(name, array.shape, dtype, dcpl=_contiguous(filled=True))[...] = array.astype(dtype)


def _check_room(path: Path, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], dtype: str) -> None:
    widest = max(len(image.path) + len(image.name) + len(image.label) + len(image.group) for image in images)
    needed = len(images) * (4 * widest + REASON_BYTES + 64 + 24 * len(layers))
    needed += sum(layer.n_rows * layer.n_features * np.dtype(dtype).itemsize + 8192 for layer in layers)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        fewer = "free some, or take fewer images or layers" + (", or --dtype float16" if dtype == "float32" else "")
        raise OSError(
            errno.ENOSPC,
            f"{path} needs {needed / 1e9:.3g} GB ({needed} bytes), its disk has {free} bytes free: {fewer}",
        )


def _lock(descriptor: int, path: Path) -> None:
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


def _fixed(reason: str) -> bytes:
    line = " ".join(reason.split()).encode("utf-8", "surrogateescape")[:REASON_BYTES]
    return line.decode("utf-8", "ignore").encode()


def _texts(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode("utf-8", "surrogateescape") for text in texts] or [b""], dtype=np.bytes_)
