"""Hold the rows of a store against the checksums that were taken when they were written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import xxhash

from fastclust.store import LEFT_OUT, PENDING, Store, open_store

CHUNK = 1 << 22  # bytes that are read at a time


@dataclass
class Verification:
    """What `verify` found."""

    images: int = 0  # finished, and read
    pending: int = 0
    left_out: int = 0
    n_bytes: int = 0  # of rows
    damaged: dict[str, list[str]] = field(default_factory=dict)  # layers by the image's path
    seconds: float = 0.0


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read the rows of every finished image of a store, with flat memory, and compare them with their checksums.

    path: the store, which may be written to meanwhile. progress: called with (images read, images to read).
    Raises what `open_store` raises.
    """
    began = time.perf_counter()
    store = open_store(path)
    states = [image.state for image in store.images]
    found = Verification(len(store.finished), states.count(PENDING), states.count(LEFT_OUT))
    for done, (index, layers) in enumerate(damaged(store), 1):
        found.n_bytes += sum(store.span(layer, index)[1] for layer in store.layers)
        if layers:
            found.damaged[store.images[index].path] = layers
        if progress is not None:
            progress(done, found.images)
    found.seconds = time.perf_counter() - began
    return found


def damaged(store: Store) -> Iterator[tuple[int, list[str]]]:
    """Yield each finished image's index, and the layers whose rows in the file are not those of their checksums.

    The file may be cut short.
    """
    with store.path.open("rb", buffering=0) as file:
        for index in store.finished.tolist():
            found = {layer: checksum(stored_rows(file, store, layer, index)) for layer in store.layers}
            yield index, [layer for layer, value in found.items() if value != store.checksums[layer][index]]


def stored_rows(file: BinaryIO, store: Store, layer: str, index: int) -> Iterator[memoryview]:
    """Yield the bytes of one image's rows of a layer from a store's file, in chunks that hold until the next is asked.

    file: opened for reading, unbuffered. Where the file is cut short, what there is.
    """
    start, left = store.span(layer, index)
    buffer = memoryview(bytearray(min(left, CHUNK)))
    file.seek(start)
    while left:
        try:
            got = file.readinto(buffer[:left])  # type: ignore[attr-defined]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(store.path)) from error
        if not got:
            return
        yield buffer[:got]
        left -= got


def checksum(chunks: Iterable[memoryview]) -> int:
    """Return the checksum of bytes that follow each other: xxh3, 64 bits."""
    digest = xxhash.xxh3_64()
    for chunk in chunks:
        digest.update(chunk)
    return digest.intdigest()
