"""Files that cannot be written or read, and disks that are small: for tests, which may run as root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


@contextlib.contextmanager
def bound_by_permissions(folder: Path) -> Iterator[None]:
    """Let permission bits below a folder bind this process, also where it is root's. It can write to the folder."""
    if os.name != "posix":
        pytest.skip("no permission bits here")
    if os.geteuid() != 0:
        yield
        return
    changed = []
    try:
        for one in (folder, *folder.parents):
            mode = one.stat().st_mode
            if mode & 0o055 != 0o055:
                changed.append((one, mode))
                one.chmod(mode | 0o055)
        for one in (folder, *folder.rglob("*")):
            os.chown(one, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(0)
        for one, mode in changed:
            one.chmod(mode)


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Give a file the attribute that no process, not even root's, may change or replace it."""
    try:
        set_on = subprocess.run(["chattr", "+i", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no chattr here")
    if set_on.returncode != 0:
        pytest.skip(f"cannot be made immutable here: {set_on.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """Mount an empty disk in memory of so many bytes on a folder, which is made."""
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount here")
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge_disk(folder: Path, n_bytes: int) -> None:
    """Give a disk of `small_disk` another size."""
    subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(folder)], check=True)


def fill_disk(folder: Path, leave: int) -> Path:
    """Fill a disk with a file but for so many bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    os.truncate(filler, filler.stat().st_size // 4096 * 4096 - leave)
    return filler
