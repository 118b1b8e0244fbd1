"""Run a command for a limited time, in a process group of its own, and keep the end of what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT_BYTES = 8192  # of what a command says
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, None where its time was up; the end of its output; its seconds."""

    status: int | None
    output: str
    seconds: float

    def failure(self) -> str | None:
        """Say in one line why it did not end well; None where it did."""
        if self.status is None:
            return f"was stopped after {self.seconds:.0f} s"
        if self.status < 0:
            return f"was ended by {signal.Signals(-self.status).name}"
        return f"ended with {self.status}" if self.status else None


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this checkout with this Python."""
    return [sys.executable, "-m", name, *arguments]


def run(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command from the checkout's root for so many seconds at most; then it and all that it started is killed.

    environment: what is added to this process's. This checkout comes first on its PYTHONPATH. Both of its outputs are
    read as they come, so that it never waits, and all but the last KEPT_BYTES are dropped.
    Raises OSError where the command cannot be started.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | own | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    _running.add(process)
    said = bytearray()
    reader = threading.Thread(target=_read, args=(process, said), daemon=True)
    reader.start()
    status: int | None = None
    try:
        status = process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        pass
    finally:
        _kill(process)
        _running.discard(process)
    reader.join(2.0)  # a process that left the group may hold the other end of the pipe
    return Ended(status, bytes(said).decode(errors="replace"), time.monotonic() - began)


def kill_all() -> None:
    """Kill whatever `run` has running, in any thread."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that a driver holds cannot be killed, and is not waited for
        process.wait(5.0)


def _read(process: subprocess.Popen[bytes], said: bytearray) -> None:
    assert process.stdout is not None
    while part := os.read(process.stdout.fileno(), 1 << 16):
        said += part
        del said[:-KEPT_BYTES]
