"""The HDF5 feature store: its layout, and reading it.

    /                       attributes dtype, and, for other HDF5 tools, format and format_version
    provenance              attributes: model, weights, transform, versions ...; names that end in .json hold JSON text
    images/path, name, label, group, reason      (n_images,) fixed-length UTF-8
    images/size, input_size                      (n_images, 2) int64, (height, width), 0 where unknown
    images/state                                 (n_images,) uint8: DONE, LEFT_OUT, any other is PENDING
    layers/NAME             attributes node, kind
    layers/NAME/rows                             (total_rows, n_features) float16 or float32
    layers/NAME/shapes, starts                   (n_images, 2), (n_images + 1,) int64
    layers/NAME/checksums                        (n_images,) uint64: xxh3 of each finished image's rows, as in the file

A seal (`fastclust.seal`) stands before all that, and covers all but states, reasons, checksums and rows, so damage is
found before HDF5 sees it. It also has the format, its version and the length of the file. Format version 1 had neither
seal nor checksums, and is not read.

Every dataset is contiguous and allocated at its final size when the file is made (libver="earliest"), under a temporary
name that a rename removes. HDF5 never opens it for writing again: rows, checksums, flags and reasons are plain writes
at the datasets' offsets. So no kill leaves half-written metadata, readers need no lock, and rows can be mapped into
memory. The rows come last, so that a file cut short within them has all its tables: `fastclust.repair` mends it.
"""

import difflib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from fastclust.seal import check

FORMAT = "fastclust.features"
VERSION = 2  # 1 had neither seal nor checksums
STATES = PENDING, DONE, LEFT_OUT = 0, 1, 2


@dataclass(frozen=True)
class ImageRecord:
    """One image of a store. Sizes are (height, width) in pixels, (0, 0) where unknown."""

    path: str
    name: str
    label: str
    group: str
    size: tuple[int, int]
    input_size: tuple[int, int]
    state: int = PENDING  # or DONE, LEFT_OUT
    reason: str = ""


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a store. Shapes are each image's (height, width) there: (1, 1) where dense, (0, 0) with no rows."""

    name: str
    node: str
    kind: str  # "conv" or "dense"
    n_features: int
    shapes: NDArray[np.int64]  # (n_images, 2)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each image, then the number of rows: (n_images + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1, dtype=np.int64))]).astype(np.int64)

    @property
    def n_rows(self) -> int:
        return int(self.starts[-1])


@dataclass(frozen=True)
class Store:
    """A store as it was when it was opened; the rows are mapped, so they cost no memory until they are read."""

    path: Path
    dtype: np.dtype[Any]
    provenance: dict[str, Any]
    images: list[ImageRecord]
    layers: dict[str, LayerRecord]
    checksums: dict[str, NDArray[np.uint64]]  # (n_images,) by layer, 0 where pending
    n_bytes: int  # of the whole file, which may be cut short
    _maps: dict[str, NDArray[Any]]
    _offsets: dict[str, int]

    @cached_property
    def finished(self) -> NDArray[np.int64]:
        """Indices of the images that are done, ascending."""
        return np.flatnonzero([image.state == DONE for image in self.images]).astype(np.int64)

    def only_layer(self, asked: str | None) -> LayerRecord:
        """Return the record of the layer asked for, or of the only one. Raises ValueError where there are more."""
        if asked is None and len(self.layers) != 1:
            known = ", ".join(self.layers)
            raise ValueError(f"{self.path} has {len(self.layers)} layers: choose one with --layer, of {known}")
        return self.layer(asked or next(iter(self.layers)))

    def layer(self, name: str) -> LayerRecord:
        """Return a layer's record. Raises ValueError with the nearest names where there is none."""
        if name not in self.layers:
            near = difflib.get_close_matches(name, self.layers, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"{self.path} has no layer {name!r}: {hint}it has {', '.join(self.layers)}")
        return self.layers[name]

    def span(self, layer: str, index: int) -> tuple[int, int]:
        """Where one image's rows of a layer stand in the file: (first byte, number of bytes)."""
        record = self.layer(layer)
        row_bytes = record.n_features * self.dtype.itemsize
        start, stop = (int(row) * row_bytes for row in record.starts[index : index + 2])
        return self._offsets[f"layers/{layer}/rows"] + start, stop - start

    def rows(self, layer: str) -> list[NDArray[Any]]:
        """Return the finished rows, in file order: read-only (n_i, D), one for each unbroken run of finished images."""
        record = self.layer(layer)
        runs: list[list[int]] = []
        for index in self.finished:
            start, stop = int(record.starts[index]), int(record.starts[index + 1])
            if runs and runs[-1][1] == start:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        mapped = self._mapped(layer)
        return [mapped[start:stop] for start, stop in runs]

    def fingerprint(self, layer: str) -> str:
        """Return a text that tells the finished rows of a layer from others: a hash of the images' checksums."""
        self.layer(layer)
        found = np.ascontiguousarray(self.checksums[layer][self.finished], dtype="<u8")
        return hashlib.sha1(found.tobytes(), usedforsecurity=False).hexdigest()

    def image_rows(self, layer: str, index: int) -> NDArray[Any]:
        """Return one image's features, read-only (h, w, D). Raises ValueError where that image is not done."""
        record, image = self.layer(layer), self.images[index]
        if image.state != DONE:
            what = (
                f"was left out: {image.reason}" if image.state == LEFT_OUT else "is not extracted yet: --resume goes on"
            )
            raise ValueError(f"{self.path}: image {image.path} {what}")
        height, width = record.shapes[index]
        rows = self._mapped(layer)[record.starts[index] : record.starts[index + 1]]
        return rows.reshape(height, width, record.n_features)

    def _mapped(self, layer: str) -> NDArray[Any]:
        if layer not in self._maps:
            raise _cut_short(self.path, self.n_bytes)
        return self._maps[layer]


def open_store(path: str | Path, *, cut_short: bool = False) -> Store:
    """Open a store for reading, also while another process writes to it.

    With `cut_short` a file that ends within its rows is opened, too: its tables can be read, its rows cannot.

    Raises FileNotFoundError, IsADirectoryError, or ValueError where the file is not a store, is another kind of
    fastclust file, of another format version, cut short, or damaged.
    """
    path = existing_file(path)
    with path.open("rb", buffering=0) as raw:  # a buffer could hold checksums older than the states read before them
        seal = check(raw, path, FORMAT, VERSION, "a feature store, as `fastclust extract` writes")
        if not cut_short and os.fstat(raw.fileno()).st_size < seal.n_bytes:
            raise _cut_short(path, seal.n_bytes)
        try:
            with h5py.File(_Padded(raw, seal.n_bytes), "r") as file:
                return _read(path, raw, file, seal.n_bytes)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: HDF5 finds no feature store in it ({error})") from error


def open_features(path: str | Path) -> Store:
    """Open a store, or that of the folder of a run. Raises FileNotFoundError, and as `open_store`."""
    path = Path(path)
    if path.is_dir():
        if not (path / "features.h5").is_file():
            raise FileNotFoundError(
                f"{path} has no features.h5: expected a store that `fastclust extract` wrote, or the folder of a "
                "`fastclust run` without --no-store"
            )
        path = path / "features.h5"
    return open_store(path)


def _read(path: Path, raw: BinaryIO, file: Any, n_bytes: int) -> Store:
    """Read the tables, and map the rows where the file is not cut short; n_bytes: of the whole file."""
    whole = os.fstat(raw.fileno()).st_size >= n_bytes
    offsets = {name: file[name].id.get_offset() for name in ("images/state", "images/reason")}
    images = _read_images(file["images"])  # before the checksums: those of an image that is done stand
    layers, checksums, maps = {}, {}, {}
    for name, group in file["layers"].items():
        rows = group["rows"]
        layers[name] = LayerRecord(
            name, str(group.attrs["node"]), str(group.attrs["kind"]), rows.shape[1], group["shapes"][:]
        )
        checksums[name] = group["checksums"][:]
        offsets |= {f"layers/{name}/{part}": group[part].id.get_offset() for part in ("rows", "checksums")}
        if whole:
            mapped = np.memmap(raw, rows.dtype, "r", offsets[f"layers/{name}/rows"], rows.shape)
            maps[name] = mapped.view(np.ndarray)
    order = json.loads(file["provenance"].attrs.get("layers.json", "[]"))
    layers = {name: layers[name] for name in sorted(layers, key=lambda name: (*order, name).index(name))}
    provenance = {key.removesuffix(".json"): _value(key, value) for key, value in file["provenance"].attrs.items()}
    return Store(path, np.dtype(file.attrs["dtype"]), provenance, images, layers, checksums, n_bytes, maps, offsets)


class _Padded(io.RawIOBase):
    """A file opened for reading, with zeros after its end up to a number of bytes."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file, self._n_bytes, self._at = file, n_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._n_bytes)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        self._file.seek(self._at)
        while done < len(view) and (got := self._file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += got
        view[done:] = bytes(len(view) - done)
        self._at += len(view)
        return len(view)


def _value(key: str, attribute: Any) -> Any:
    if key.endswith(".json"):
        return json.loads(attribute)
    return attribute.item() if isinstance(attribute, np.generic) else attribute


def _read_images(table: Any) -> list[ImageRecord]:
    texts = {
        column: [text.decode("utf-8", "surrogateescape") for text in table[column][:]]
        for column in ("path", "name", "label", "group", "reason")
    }
    sizes = {column: [(int(h), int(w)) for h, w in table[column][:]] for column in ("size", "input_size")}
    return [
        ImageRecord(path, name, label, group, size, input_size, int(state) if state in STATES else PENDING, reason)
        for path, name, label, group, size, input_size, state, reason in zip(
            texts["path"],
            texts["name"],
            texts["label"],
            texts["group"],
            sizes["size"],
            sizes["input_size"],
            table["state"][:],
            texts["reason"],
            strict=True,
        )
    ]


def existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a feature store, as `fastclust extract` writes")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a feature store, as `fastclust extract` writes")
    return path


def _cut_short(path: Path, needed: int) -> ValueError:
    mend = "`fastclust extract --resume`, with all else as it was, repairs it; or copy it again"
    return ValueError(f"{path} is cut short: it needs {needed} bytes and has {path.stat().st_size}: {mend}")
