"""Seal files again that a test changed with h5py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastclust import seal


def reseal(path: Path, **changes: Any) -> None:
    """Seal all of a file's bytes anew, but for the spans that it had; changes: of what its seal says."""
    content = bytearray(path.read_bytes())
    n_spans = seal.HEAD.unpack_from(content)[3]
    kind, version = content[10:32].rstrip(b"\0").decode(), seal.HEAD.unpack_from(content)[4]
    spans = tuple(seal.SPAN.iter_unpack(content[seal.SPANS : seal.SPANS + seal.SPAN.size * n_spans]))
    what = seal.Seal(kind, version, len(content), len(content), spans)
    seal.put(content, replace(what, **changes))
    path.write_bytes(content)


def covered(path: Path) -> int:
    """Return the number of bytes that a file's seal covers, of a store's all but the rows."""
    return int(seal.HEAD.unpack_from(path.read_bytes())[5])
