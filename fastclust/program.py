"""How the program starts and ends: signals, errors in one line, and the exit status.

Exit status: 0 where all was done; 1 for an error, named in one line; 2 for words that cannot be parsed; 3 where all was
done but for images that had to be left out, which are named; 130 after Ctrl-C, 143 after SIGTERM.

Of the processes that torchrun starts, the first prints; of the others, errors alone.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import typer

from fastclust.cli import app
from fastclust.console import complain, first_speaks

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SHARED = ("extract", "fit", "label")  # commands that torchrun's processes share
# Whether click is a package of its own or a part of Typer depends on the version of Typer.
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
STOPPED = {
    "run": "finished images are kept: the same command with --resume goes on",
    "run --no-store": "nothing is stored: the same command with --overwrite starts anew",
    "extract": "finished images are kept: the same command with --resume goes on",
    "merge": "no store was written: the same command starts anew",
    "fit": "no model was written: the same command starts anew; with --checkpoint, --resume would go on",
    "label": "the label images so far are kept: the same command with --resume goes on",
    "atlas": "finished images are kept: the same command with --resume goes on, and fits again",
    "centres": "the pictures so far are kept, the table is not written: the same command with --overwrite starts anew",
    "images": "its results are not all there: the same command, with --overwrite where some are, starts anew",
    "figure4": "the figure is not whole: the same command with --overwrite starts anew",
    "report": "no report was written: the same command starts anew",
    "compare": "nothing was written: the same command starts anew",
    "agree": "nothing was written: the same command starts anew",
}


class Terminated(BaseException):
    """SIGTERM has come."""


def main() -> None:
    """Run the command line and exit."""
    logging.basicConfig(level=logging.WARNING, format="fastclust: %(message)s")
    # Large pages for torch's large tensors, where Linux gives them to those that ask: VGG-19 to conv1_2 of an image
    # took 0.8 of the CPU time. The variable is read when the first tensor is made, and this process is ours.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in image files that it reads all the same
    rank, size = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    who = f"fastclust (process {rank} of {size})" if size > 1 else "fastclust"
    first_speaks(rank == 0 or size == 1)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _insist
    status = 0
    found: dict[str, Any] = {}  # what a command says of itself
    try:
        if size > 1 and next(iter(sys.argv[1:]), "") not in SHARED:
            raise ValueError(f"torchrun is for {', '.join(SHARED)}: one process does the rest")
        status = app(standalone_mode=False, obj=found) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Terminated:
        status = 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if isinstance(error, USAGE_ERROR):
            error.show()
            sys.exit(2)
        if not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)):
            raise
        if os.environ.get("FASTCLUST_TRACEBACK"):
            raise
        complain(f"{who}: {_reason(error)}")
        status = 1
    if status in (130, 143):  # Typer may have caught the interrupt
        command = next(iter(sys.argv[1:]), "")
        remark = STOPPED.get("run --no-store" if command == "run" and "--no-store" in sys.argv else command)
        kept = found.get("checkpoint")
        if kept is not None and kept.exists():
            remark = f"the fit so far is in {kept}: the same command with --resume goes on"
        if remark and "--overwrite" in sys.argv:
            remark = remark.replace("with --resume", "with --resume in place of --overwrite")
        complain(f"stopped; {remark}" if remark else "stopped")
    sys.exit(status)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _insist(unraisable: UnraisableHookArgs) -> None:
    """Let a signal come once more where Python drops what it raised: in a destructor or a weak reference's callback."""
    number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(unraisable.exc_type)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    main_thread = threading.main_thread().ident or 0

    def again() -> None:
        time.sleep(0.01)  # by then the main thread has left the callback
        if sys.platform == "win32":
            _thread.interrupt_main(number)
        else:  # a signal indeed, which also ends a wait
            signal.pthread_kill(main_thread, number)

    _thread.start_new_thread(again, ())  # not threading's: the callback may have come while one of its locks was held


def _reason(error: Exception) -> str:
    """An error in one line; a plain one of the operating system as FILE: REASON, without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(text.split()) or type(error).__name__
