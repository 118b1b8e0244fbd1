"""The seal of an HDF5 file of ours: it tells damage before HDF5 sees it, which it may crash on or read for ever.

The seal is the file's user block, which other HDF5 tools skip. Little-endian:

    magic 10 bytes, kind 22 (the format's name), format of the seal 2, number of spans 2, version of the kind 4,
    covered 8, n_bytes 8, digest 8, own digest 8, then offset 8 and length 8 of each span, then zeros

The first `covered` bytes of the file's `n_bytes` never change, but for the spans. `digest` is the xxh3_64 of what lies
between the block and `covered`, without the spans; the seal's own digest is that of the block, with zeros in its place.
So what a file is, and how much of it to read, is known before any of it is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

MAGIC = b"\x89fastclust"
HDF5 = b"\x89HDF\r\n\x1a\n"
FORMAT = 1
HEAD = struct.Struct("<10s22sHHIQQQ")  # the seal's own digest follows
SPAN = struct.Struct("<QQ")
SPANS = HEAD.size + 8  # where they begin
CHUNK = 1 << 20  # bytes that are read at a time
ANEW = "copy it again, or make it anew with --overwrite"


@dataclass(frozen=True)
class Seal:
    """What a seal says: the format's name and version, bytes that never change but for the spans, bytes of the file."""

    kind: str
    version: int
    covered: int
    n_bytes: int
    spans: tuple[tuple[int, int], ...]  # (offset, length) of what may change within the covered bytes, ascending
    digest: int = 0  # of the covered bytes; `put` computes it


def block_bytes(n_spans: int) -> int:
    """Return the size of the user block that holds a seal: a power of two, 512 or more, as HDF5 asks for."""
    return max(512, 1 << (SPANS + SPAN.size * n_spans - 1).bit_length())


def put(content: bytearray | memoryview, what: Seal) -> None:
    """Write a file's seal into its first bytes: `block_bytes` of them, which HDF5 left empty.

    content: the covered bytes, or more of the file.
    """
    size, digest = block_bytes(len(what.spans)), xxhash.xxh3_64()
    view = memoryview(content)
    for start, stop in _fixed(size, what.covered, what.spans):
        digest.update(view[start:stop])
    head = HEAD.pack(
        MAGIC,
        what.kind.encode(),
        FORMAT,
        len(what.spans),
        what.version,
        what.covered,
        what.n_bytes,
        digest.intdigest(),
    )
    block = bytearray((head + bytes(8) + b"".join(SPAN.pack(*span) for span in what.spans)).ljust(size, b"\0"))
    block[HEAD.size : SPANS] = _own(block)
    view[:size] = block


def read(file: BinaryIO, path: Path) -> Seal | None:
    """Return a file's seal, None where it has none of ours; what it covers is not looked at.

    Raises ValueError where the seal is damaged, or cut short.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    block = file.read(512)
    if not block.startswith(MAGIC):
        return None
    if len(block) < 512:
        raise ValueError(f"{path} is cut short: it needs more than 512 bytes and has {size}: {ANEW}")
    _, kind, seals, n_spans, version, covered, n_bytes, digest = HEAD.unpack_from(block)
    block += file.read(block_bytes(n_spans) - 512)
    if _own(block) != block[HEAD.size : SPANS]:
        raise ValueError(f"{path} is damaged: its first {block_bytes(n_spans)} bytes are not as written: {ANEW}")
    if seals != FORMAT:
        raise ValueError(f"{path} has a seal of format {seals}, this fastclust reads {FORMAT}: update fastclust")
    spans = tuple(SPAN.iter_unpack(block[SPANS : SPANS + SPAN.size * n_spans]))
    return Seal(kind.rstrip(b"\0").decode(), version, covered, n_bytes, spans, digest)


def check(file: BinaryIO, path: Path, kind: str, version: int, what: str) -> Seal:
    """Return the seal of a file of this kind and version, after every covered byte was held against it.

    file: opened for reading; another process may change what lies within the spans, or behind the covered bytes.
    what: said of such files in errors.
    Raises ValueError where the file is another, damaged, or cut short within its covered bytes.
    """
    found = read(file, path)
    if found is None:
        file.seek(0)
        is_hdf5 = file.read(len(HDF5)) == HDF5
        other = (
            "an HDF5 file, but not one of fastclust's (an older one's: make it anew)" if is_hdf5 else "not an HDF5 file"
        )
        raise ValueError(f"{path} is {other}: expected {what}")
    if found.kind != kind:
        raise ValueError(f"{path} is a {found.kind} file: expected {what}")
    if found.version != version:
        advice = "update fastclust" if found.version > version else "an older one wrote it, make it anew"
        raise ValueError(f"{path} has format version {found.version}, this fastclust reads {version}: {advice}")
    _compare(file, path, found)
    return found


def _compare(file: BinaryIO, path: Path, what: Seal) -> None:
    """Hold the covered bytes against their digest."""
    size = os.fstat(file.fileno()).st_size
    if size < what.covered:
        raise ValueError(f"{path} is cut short: it needs {what.n_bytes} bytes and has {size}: {ANEW}")
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(CHUNK))
    for start, stop in _fixed(block_bytes(len(what.spans)), what.covered, what.spans):
        file.seek(start)
        while start < stop and (got := file.readinto(buffer[: stop - start])):  # type: ignore[attr-defined]
            digest.update(buffer[:got])
            start += got
    if digest.intdigest() != what.digest:
        found = f"the digest of its first {what.covered} bytes is {digest.hexdigest()}, and was {what.digest:016x}"
        raise ValueError(f"{path} is damaged, or was changed by another tool: {found}: {ANEW}")


def _fixed(start: int, covered: int, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the covered bytes behind the block that never change."""
    for offset, length in spans:
        yield start, offset
        start = offset + length
    yield start, covered


def _own(block: bytes | bytearray) -> bytes:
    """Return the digest of a block with zeros in its place."""
    blank = block[: HEAD.size] + bytes(8) + block[SPANS:]
    return xxhash.xxh3_64_intdigest(bytes(blank)).to_bytes(8, "little")
