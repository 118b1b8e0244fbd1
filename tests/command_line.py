"""Call the command line in this process, and tiny inputs for it."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from test_images import photograph

from fastclust.program import main

NETWORK = ("--model", "squeezenet1_1", "--weights", "random", "--size", "64")
MIXTURE = ("--components", "3", "--max-iter", "5")
SMALL = (*NETWORK, "--layer", "1", *MIXTURE)


@dataclass
class Result:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str


def call(*words: object) -> Result:
    """Run `fastclust` with these words; an exception that is not an exit is the test's."""
    out, err = io.StringIO(), io.StringIO()
    patched = mock.patch.multiple(sys, argv=["fastclust", *map(str, words)], unraisablehook=sys.unraisablehook)
    with patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    status = end.value.code
    assert isinstance(status, int)
    return Result(status, out.getvalue(), err.getvalue())


def photographs(folder: Path, count: int = 4) -> Path:
    """Write small photographs 0.png, 1.png ... to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(70, 90, number)).save(folder / f"{number}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
