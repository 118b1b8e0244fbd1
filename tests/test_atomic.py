"""Files that are there whole or not at all, and what killed processes leave beside them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from read_only import immutable

from fastclust.atomic import remove_leftovers, written_aside


def test_a_file_is_replaced_at_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed = tmp_path / "f", []
    path.write_text("before")
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(path.read_text()), flush(file)))
    with written_aside(path) as aside:
        aside.write_text("after")
        assert aside.parent == tmp_path
        assert path.read_text() == "before"
    assert flushed == ["before"], "flushed to the disk, before it is renamed"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(5, "no")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "f"
    path.write_text("before")
    with pytest.raises(type(error)) as caught, written_aside(path) as aside:
        aside.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        with written_aside(tmp_path / name) as aside:
            aside.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_a_file_that_may_not_be_replaced_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("before")
    with (
        immutable(path),
        pytest.raises(PermissionError, match=r"/f cannot be replaced \(Operation not permitted\)"),
        written_aside(path) as aside,
    ):
        aside.write_text("after")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, written_aside(tmp_path / "no" / "f") as aside:
        aside.write_text("x")
    assert caught.value.filename == str(tmp_path / "no" / "f")


@pytest.mark.skipif(os.name != "posix", reason="kills a process; elsewhere nothing is cleaned up")
def test_leftovers_of_killed_processes_go_and_others_stay(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from fastclust.atomic import written_aside\n"
        "with written_aside(Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a\nb.h5")])
    assert run.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    left.with_name(left.name.replace("a\nb", "model")).write_text("half")
    others = [".model.h5.part", ".x.elsewhere-1-01234567.part", "model.part"]
    for name in others:
        (tmp_path / name).write_text("of somebody else")
    remove_leftovers.cache_clear()
    with written_aside(tmp_path / "model.h5") as mine:
        mine.write_text("whole")
        remove_leftovers.cache_clear()
        remove_leftovers(tmp_path)  # as another process does now
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "model.h5"])
