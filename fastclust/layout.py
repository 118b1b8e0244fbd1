"""Lay out the file of a feature store: its seal, every table, and room for the rows after them.

HDF5 works in memory here, and the bytes are written plainly: on a full disk HDF5 cannot close its file, and ends the
process with a segmentation fault.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fastclust.seal import Seal, block_bytes, put
from fastclust.store import FORMAT, VERSION, ImageRecord, LayerRecord

REASON_BYTES = 240
ALIGNMENT = 64  # bytes, a cache line: mapped rows are aligned for any dtype


def lay_out(
    path: Path, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], dtype: str, provenance: Mapping[str, Any]
) -> None:
    """Write a store of the final size with all but the rows, for `writer.StoreWriter` to open.

    Nothing is checked: see `writer.create_store`, also for the parameters. Raises OSError where the disk is full.
    """
    memory, spans = _Memory(), []
    options = {"userblock_size": block_bytes(2 + len(layers)), "libver": "earliest"}
    with h5py.File(memory, "w", **options, alignment_threshold=1, alignment_interval=ALIGNMENT) as file:
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
        spans.append(_add(table, "state", np.array([image.state for image in images], dtype=np.uint8)))
        reasons = np.array([fixed(image.reason) for image in images], dtype=f"S{REASON_BYTES}")
        spans.append(_add(table, "reason", reasons))
        rows = []
        for layer in layers:
            group = file.create_group(f"layers/{layer.name}", track_order=False)
            group.attrs.update({"node": layer.node, "kind": layer.kind})
            _add(group, "shapes", layer.shapes.astype(np.int64))
            _add(group, "starts", layer.starts)
            spans.append(_add(group, "checksums", np.zeros(len(images), dtype=np.uint64)))
            plan = _contiguous(filled=False)
            rows.append(group.create_dataset("rows", (layer.n_rows, layer.n_features), dtype, dcpl=plan))
        file.flush()
        covered = memory.size
        for dataset in rows:
            dataset[0, 0] = 0  # rows are allocated now, after all else
    tables = memory.content.ljust(covered, b"\0")
    put(tables, Seal(FORMAT, VERSION, covered, memory.size, tuple(sorted(spans))))
    with path.open("wb") as raw:
        raw.write(tables)
        raw.truncate(memory.size)


def _contiguous(filled: bool) -> Any:
    """Creation properties: contiguous; filled at once, or allocated when first written and sparse until then."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY if filled else h5py.h5d.ALLOC_TIME_LATE)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if filled else h5py.h5d.FILL_TIME_NEVER)
    return plan


def _add(group: Any, name: str, array: NDArray[Any]) -> tuple[int, int]:
    """Add a dataset; return where it stands in the file: (offset, length)."""
    dtype = h5py.string_dtype("utf-8", array.dtype.itemsize) if array.dtype.kind == "S" else array.dtype
    dataset = group.create_dataset(name, array.shape, dtype, dcpl=_contiguous(filled=True))
    dataset[...] = array.astype(dtype)
    return dataset.id.get_offset(), dataset.nbytes


class _Memory(io.RawIOBase):
    """A file in memory that keeps no zeros after the last byte that is none, but the size that it has with them."""

    def __init__(self) -> None:
        self.content, self.size, self._at = bytearray(), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self.content[self._at : self._at + len(view)].ljust(len(view), b"\0")
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        start, self._at = self._at, self._at + len(data)
        self.size = max(self.size, self._at)
        if start < len(self.content) or any(data):
            self.content.extend(bytes(max(0, self._at - len(self.content))))
            self.content[start : self._at] = data
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        del self.content[self.size :]
        return self.size


def fixed(reason: str) -> bytes:
    """Cut a reason to one line of at most REASON_BYTES bytes of UTF-8."""
    line = " ".join(reason.split()).encode("utf-8", "surrogateescape")[:REASON_BYTES]
    return line.decode("utf-8", "ignore").encode()


def _texts(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode("utf-8", "surrogateescape") for text in texts] or [b""], dtype=np.bytes_)
