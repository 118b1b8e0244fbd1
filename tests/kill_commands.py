"""Kill `fit` and `label` at random moments and resume them: run by test_resuming in a process of its own, which forks.

    python kill_commands.py FOLDER      with FOLDER/features.h5, a store of one layer

Imports are made once, and a child starts with them. A command is killed, goes on with --resume, is killed again, and so
on; where only its end is left, or it ends meanwhile, it ends, its result is held against that of a run that nobody
killed, and it starts anew.
Prints a JSON object: by command, for each kill, how much was done: passes, or label images.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import torch

from fastclust import DPGMM, labels, model_file, pipeline, program, saved  # noqa: F401 (imported before the forks)
from fastclust.checkpoint import FORMAT, VERSION
from fastclust.store import open_store

KILLS = 20


def start(*words: object) -> int:
    """Run a command in a child; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    sys.argv = ["fastclust", *map(str, words)]
    try:
        program.main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)


def passes(checkpoint: Path) -> int:
    """How many passes a checkpoint holds; 0 where there is none."""
    if not checkpoint.exists():
        return 0
    _, found = model_file.read_groups(checkpoint, FORMAT, VERSION, ("state",), "a checkpoint")
    return len(found["state"]["now"]["lower_bounds"])


def kills(
    command: Callable[[str], tuple[object, ...]], done: Callable[[str], int], most: int, same: Callable[[str], bool]
) -> list[int]:
    """Kill and resume until there were KILLS kills; return how much was done at each, of `most`."""
    _finish(command("whole"))
    moment, found, number = random.Random(0), [], 0
    while len(found) < KILLS:
        name = f"killed{number}"
        pid = start(*command(name))
        enough = min(most, done(name) + moment.randrange(most // 4 + 1))
        ended = 0
        while not ended and done(name) < enough:
            ended = os.waitpid(pid, os.WNOHANG)[0]
        time.sleep(moment.uniform(0, 0.02))
        if not ended:
            os.kill(pid, signal.SIGKILL)
            if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                found.append(done(name))
                if found[-1] < most:
                    continue
                _finish(command(name))  # only its end was left: one that starts anew has more moments
        if not same(name):
            raise RuntimeError(f"{name}, after {len(found)} kills, is not what it would be without")
        number += 1
    _finish(command(f"killed{number}"))
    if not same(f"killed{number}"):
        raise RuntimeError(f"killed{number}, after {len(found)} kills, is not what it would be without")
    return found


def _finish(words: tuple[object, ...]) -> None:
    _, status = os.waitpid(start(*words), 0)
    if status != 0:
        raise RuntimeError(f"{words} ended with {os.waitstatus_to_exitcode(status)}")


def main(folder: Path) -> None:
    store = folder / "features.h5"
    torch.set_num_threads(1)  # with which no thread is started that a child would miss
    warm = DPGMM(3, max_iter=2, tol=0).fit(open_store(store).rows("1"))
    warm.predict(open_store(store).rows("1"))

    def fit(name: str) -> tuple[object, ...]:
        out, checkpoint = folder / f"{name}.h5", folder / f"{name}.checkpoint"
        given = ("--components", 5, "--max-iter", 60, "--tol", 0, "--every", "0s")
        return ("fit", store, "--out", out, "--checkpoint", checkpoint, "--resume", *given)

    def label(name: str) -> tuple[object, ...]:
        return ("label", store, "--model", folder / "whole.h5", "--out", folder / name, "--resume")

    def same_model(name: str) -> bool:
        return datasets(folder / "whole.h5") == datasets(folder / f"{name}.h5")

    def same_labels(name: str) -> bool:
        return pictures(folder / "whole") == pictures(folder / name)

    found = {
        "fit": kills(fit, lambda name: passes(folder / f"{name}.checkpoint"), 60, same_model),
        "label": kills(label, lambda name: len(list((folder / name).glob("labels/*.png"))), 10, same_labels),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def datasets(path: Path) -> dict[str, bytes]:
    """Every number and text in a model file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update(
                    {
                        name: (
                            item[()].tobytes()
                            if item.shape is not None and item.dtype.kind != "O"
                            else repr(dict(item.attrs))
                        )
                    }
                )
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def pictures(folder: Path) -> dict[str, bytes]:
    """Everything that a labelling left."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[1])
