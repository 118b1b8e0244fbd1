"""Compiled functions, kept in files from one process to the next."""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("fastclust")


def digest(folder: Path) -> str:
    """Return what tells the sources of compiled functions in a folder from others."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


SOURCES = digest(Path(__file__).parent)


def kept(function: Any) -> Any:
    """Let numba keep what it compiles of a function, which is compiled anew where any of the sources has changed.

    numba itself looks at the file of the function alone, and not at those of what is inlined in it. Where there is no
    folder that it can write to, nothing is kept, and the log says so.
    """
    try:
        function.enable_caching()
    except RuntimeError:  # "no locator available"
        _say_once()
        return function
    index = function._cache._cache_file
    index._source_stamp = (index._source_stamp, SOURCES)
    return function


@cache
def _say_once() -> None:
    log.warning(
        "numba finds no folder to keep compiled functions in: each process compiles them anew, for seconds; "
        "NUMBA_CACHE_DIR can name one"
    )
