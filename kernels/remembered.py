"""Which proofs passed on this machine before: a small file each, beside what Triton compiled.

A file counts where everything in it is as it is now: the device, its driver, the versions and the kernels' sources.
What cannot be read, or says something else, is as if it were not there: the kernel is proven again.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("fastclust")

SOURCES = Path(__file__).resolve().parent
SUFFIXES = (".py", ".cu", ".cuh")
DRIVER = Path("/proc/driver/nvidia/version")
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # the driver's own
DISTRIBUTIONS = ("torch", "triton", "triton-windows", "cupy-cuda13x", "cupy-cuda12x", "cupy", "fastclust")

Key = dict[str, Any]


def folder() -> Path:
    """Return where proofs are kept: in Triton's cache, as TRITON_CACHE_DIR or TRITON_HOME say; it need not exist."""
    given = os.environ.get("TRITON_CACHE_DIR")
    cached = Path(given) if given else Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"
    return cached / "fastclust-proofs"


def passed(device: torch.device, what: Key) -> bool:
    """Say whether a proof, of an operation on a device, is remembered as passed."""
    whole = {**surroundings(device), **what}
    return _read(_file(whole)) == whole


def remember(device: torch.device, what: Key) -> None:
    """Remember that a proof passed; where nothing can be written, log it once."""
    whole = {**surroundings(device), **what}
    path = _file(whole)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(whole, file, sort_keys=True)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        _cannot_write(str(path.parent), str(error))


def all_passed(device: torch.device) -> Iterator[Key]:
    """Iterate over the proofs that are remembered for a device as it is now."""
    around = surroundings(device)
    for path in sorted(folder().glob("*.json")):
        found = _read(path)
        if found is not None and around.items() <= found.items() and path == _file(found):
            yield found


def surroundings(device: torch.device) -> Key:
    """Return what a proof holds for: the device, its driver, the versions, and a digest of the kernels' sources."""
    about: Key = {"device": device.type, "capability": "", "driver": ""}
    if device.type == "cuda" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(device)
        about |= {"device": found.name, "capability": f"{found.major}.{found.minor}", "driver": _driver()}
    return about | {"versions": _versions(), "sources": digest()}


@cache
def digest() -> str:
    """Return a digest of all sources of the kernels."""
    found = hashlib.sha256()
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in SUFFIXES):
        found.update(f"{path.relative_to(SOURCES).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def _driver() -> str:
    """Return the versions of the driver: of the CUDA that it offers, and its own where Linux says it."""
    offered = ctypes.c_int()
    with suppress(OSError, AttributeError):  # torch does not say it
        ctypes.CDLL(LIBRARY).cuDriverGetVersion(ctypes.byref(offered))
    try:
        own = DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        own = ""
    return f"{offered.value or ''} {own}".strip()


def _file(whole: Key) -> Path:
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return folder() / f"{name[:32]}.json"


def _read(path: Path) -> Key | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@cache
def _cannot_write(where: str, why: str) -> None:
    log.warning("proofs of kernels cannot be remembered in %s (%s): each process proves them again", where, why)
