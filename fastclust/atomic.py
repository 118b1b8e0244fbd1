"""Files that are there whole or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def written_aside(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """Yield the name of a file beside `path`, to write to; afterwards flush it to the disk and move it to `path`.

    flush: False for files that can be made again and are looked at before they are trusted: it takes milliseconds.

    Where anything fails, what stood at `path` stays as it was and the file beside it goes. What killed processes of
    this machine left in the folder is removed, when a process first writes there.
    Raises OSError, which names `path`, where the disk is full or `path` cannot be replaced; and what the body raises.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    aside = path.with_name(f".{path.name[:40]}.{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield aside
        if flush:
            with aside.open("r+b") as file:
                os.fsync(file.fileno())
        try:
            aside.replace(path)
        except OSError as error:
            raise OSError(error.errno, f"{path} cannot be replaced ({error.strerror}): name another file") from error
    except OSError as error:
        if error.errno in FULL:
            why = f"the disk of {path} is full; it was not written: free some room, then give the command again"
            raise OSError(error.errno, why) from error
        if error.filename is not None and Path(error.filename) == aside:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            aside.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@cache
def remove_leftovers(folder: Path) -> None:
    """Remove files that processes of this machine were writing aside in a folder when they were killed."""
    if os.name != "posix" or not folder.is_dir():  # elsewhere a signal 0 is not harmless
        return
    pattern = re.compile(rf"\..*\.{re.escape(_here())}-(\d+)-[0-9a-f]{{8}}\.part", re.DOTALL)
    with suppress(OSError):
        for file in folder.iterdir():
            found = pattern.fullmatch(file.name)
            if found and not _alive(int(found[1])):
                file.unlink()


def _here() -> str:
    """The machine's name, as a part of a file's."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True
