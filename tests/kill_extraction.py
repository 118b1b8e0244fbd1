"""Kill extractions at random moments and resume them: run by test_extract in a process of its own, which forks.

Torch is imported once, and computes nothing but shapes before a fork. The moments are spread over the run, however
fast the machine is: each is a number of batches that the child has reported, and a random time after that.
Prints a JSON list: for each kill, how many images were done, or -1 where there was no store yet.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastclust.extract import extract
from fastclust.networks import Network
from fastclust.store import open_store
from fastclust.verify import damaged, verify

KILLS = 20
LAYERS = ["features.0", "2", "classifier.1", "flatten"]


def child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    Network("squeezenet1_1", LAYERS).shapes(64, 64)  # imports much, once
    batches = mmap.mmap(-1, 1)

    def start(name: str) -> int:
        def report(done: int, total: int, rate: str) -> None:
            batches[0] += 1

        batches[0] = 0
        return child(
            lambda: extract(
                [folder / "images"],
                out=folder / name,
                model="squeezenet1_1",
                weights="random",
                layers=LAYERS,
                size=64,
                dtype="float32",
                batch_size=2,
                resume=True,
                progress=report,
            )
        )

    def finish(name: str) -> None:
        if os.waitpid(start(name), 0)[1] != 0:
            raise RuntimeError(f"extracting {name} failed")

    pid = start("whole.h5")
    while batches[0] < 1 and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    began = time.monotonic()
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("extracting whole.h5 failed")
    whole, total = open_store(folder / "whole.h5"), batches[0]
    each = (time.monotonic() - began) / total  # seconds of a batch
    moment = random.Random(0)
    found = []
    for number in range(KILLS):
        name = f"killed{number}.h5"
        pid = start(name)
        while batches[0] < number * total // KILLS:
            time.sleep(0.0005)
        time.sleep(moment.uniform(0, each))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        done = -1
        if (folder / name).exists():
            store = open_store(folder / name)
            done = len(store.finished)
            if any(layers for _, layers in damaged(store)):
                raise RuntimeError(f"kill {number}: an image is marked done and does not fit its checksums")
            for layer in whole.layers:
                for index in store.finished:
                    if store.image_rows(layer, index).tobytes() != whole.image_rows(layer, index).tobytes():
                        raise RuntimeError(f"kill {number}: image {index}, layer {layer} is marked done and differs")
        finish(name)
        if (folder / name).read_bytes() != (folder / "whole.h5").read_bytes():
            raise RuntimeError(f"kill {number}, after {done} images: the resumed store differs")
        if verify(folder / name).images != len(whole.finished):
            raise RuntimeError(f"kill {number}: the resumed store is not whole")
        found.append(done)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
