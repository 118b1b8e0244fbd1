"""Make a store that was damaged fit to go on with: nothing that is whole is lost, the rest is pending again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fastclust.store import PENDING, existing_file, open_store
from fastclust.verify import damaged
from fastclust.writer import lock, open_to_write

log = logging.getLogger("fastclust")


def repair(path: str | Path) -> int:
    """Mark the images pending whose rows are not those of their checksums, and give a file cut short its length again.

    Return how many there were; the log says so, too.
    Raises what `store.open_store` raises, and OSError where the file cannot be written, or another process writes it.
    """
    path = existing_file(path)
    with open_to_write(path) as file:
        lock(file.fileno(), path)
        store = open_store(path, cut_short=True)
        bad = [index for index, layers in damaged(store) if layers]
        for index in bad:
            file.seek(store._offsets["images/state"] + index)
            file.write(bytes([PENDING]))
        os.fsync(file.fileno())
        short = os.fstat(file.fileno()).st_size < store.n_bytes
        if short:  # only now: no reader shall find zeros in place of rows
            file.truncate(store.n_bytes)
            os.fsync(file.fileno())
    if bad or short:
        cut = " was cut short" if short else ""
        log.warning(
            "%s%s: damaged images, which are computed again: %d of %d", path, cut, len(bad), len(store.finished)
        )
    return len(bad)
