"""What a backend leaves to the torch backend, said once in the log: a fallback is never silent."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger("fastclust")


@cache
def tell(backend: str, reason: str) -> None:
    """Log why a backend leaves something to the torch backend, the first time that it does."""
    log.info("backend %s leaves this to the torch backend: %s", backend, reason)


def left(backend: str, reason: str | None) -> bool:
    """Say whether there is a reason to leave something to the torch backend, and log it."""
    if reason is not None:
        tell(backend, reason)
    return reason is not None
