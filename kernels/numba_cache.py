"""Compiled functions, kept in files from one process to the next."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

log = logging.getLogger("fastclust")


def kept(function: Any) -> Any:
    """Let numba keep what it compiles of a function; where there is no folder that it can write to, the log says so."""
    try:
        function.enable_caching()
    except RuntimeError:  # "no locator available"
        _say_once()
        return function
    return function


@cache
def _say_once() -> None:
    log.warning(
        "numba finds no folder to keep compiled functions in: each process compiles them anew, for seconds; "
        "NUMBA_CACHE_DIR can name one"
    )
