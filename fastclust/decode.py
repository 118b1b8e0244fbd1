"""Decode images in the background, a few batches ahead of where they are needed, in threads or in processes.

A batch is a group of the list of images, of one input size each, whatever was decoded or computed before: so its
features have the same bits whenever they are computed.

Threads are the default on the CPU: Pillow holds no lock while it decodes and resizes, so they do what processes do, and
cost nothing to start (measured on two cores, ResNet-18 to layer3: 18.5 ms an image with two threads, 19.7 with two
processes). Where a GPU computes and many cores decode, what Python does between Pillow's calls makes threads wait for
each other. There processes are the default, one a core and at most PROCESSES of them (reasoned, not measured). A
process is this program's own interpreter on `fastclust.reader`, which imports no torch: its images come through a pipe,
and it ends with its stdin.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastclust import reader
from fastclust.reader import Decoded, decode
from fastclust.store import ImageRecord

AHEAD = 2  # batches that are decoded while another is computed
THREADS = min(8, os.cpu_count() or 1)
PROCESSES = min(16, os.cpu_count() or 1)


def groups(images: Sequence[ImageRecord], batch_size: int) -> list[list[int]]:
    """Return images in batches of one input size, in the list's order; those left out at the start are in none."""
    unfilled: dict[tuple[int, int], list[int]] = {}
    found: list[list[int]] = []
    for index, image in enumerate(images):
        if image.input_size == (0, 0):
            continue
        group = unfilled.get(image.input_size)
        if group is None or len(group) == batch_size:
            group = unfilled[image.input_size] = []
            found.append(group)
        group.append(index)
    return found


class Decoder:
    """Decode images in the background. A context manager.

    workers: how many processes; 0 for threads in this one; None for what suits the device that computes.
    Raises ValueError where workers is below 0.
    """

    def __init__(self, transform: dict[str, Any], workers: int | None, device: torch.device) -> None:
        if workers is not None and workers < 0:
            raise ValueError(f"workers {workers}: expected 0 for threads, or a number of processes")
        if workers is None:
            workers = 0 if device.type == "cpu" else PROCESSES
        self.workers, self.transform = workers, transform
        self._pool = ThreadPoolExecutor(workers or THREADS, thread_name_prefix="fastclust-decoder")
        self._own = threading.local()  # each thread's own process
        self._started: list[_Worker] = []

    def submit(self, image: ImageRecord) -> "Future[Decoded]":
        """Have an image decoded. The result raises RuntimeError where the process that decoded it has died."""
        return self._pool.submit(self._decode, image.path, image.input_size)

    def close(self) -> None:
        """Decode what has been begun, and nothing more."""
        self._pool.shutdown(cancel_futures=True)
        for worker in self._started:
            worker.end()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _decode(self, path: str, size: tuple[int, int]) -> Decoded:
        if not self.workers:
            return decode(path, size, self.transform)
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker()
            self._started.append(worker)
        return worker.decode(path, size, self.transform)


class _Worker:
    """A process that decodes."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(reader.__file__)]  # -P: our modules are not for it to import
        # In a session of its own Ctrl-C does not reach it: it ends when this process closes its stdin, or is no more.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def decode(self, path: str, size: tuple[int, int], transform: dict[str, Any]) -> Decoded:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        try:
            pickle.dump((path, size, transform), asked, protocol=5)
            asked.flush()
            answer: Decoded | Exception = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            status = self._process.wait()
            raise RuntimeError(
                f"a worker process died (exit status {status}) while it decoded {path}: fewer --workers need less "
                "memory, and 0 takes threads instead; what is done is kept"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Close its stdin, at which it ends."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # it is dead, and something was still on its way to it
                continue
        self._process.wait()


class Batches:
    """Groups of images as pixels, of which the next AHEAD are decoded while one is worked on.

    wrap: the first group comes after the last, as in passes over them. keep: bytes of decoded images, the first ones,
    that stay in memory for the next pass. seconds: of decoding, so far.
    """

    def __init__(
        self, decoder: Decoder, images: Sequence[ImageRecord], batches: list[list[int]], wrap: bool, keep: int = 0
    ) -> None:
        self.seconds = 0.0
        self._decoder, self._images, self._batches, self._wrap = decoder, images, batches, wrap
        self._coming: dict[int, Future[Decoded]] = {}  # by image
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._room = keep

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[dict[int, NDArray[np.uint8]], dict[int, str]]:
        """Return a batch: its images (H, W, 3) by their index, and why the others cannot be used by theirs."""
        soon = self._soon(number)
        for index in self._coming.keys() - set(soon):  # somebody jumped
            self._coming.pop(index).cancel()
        for index in soon:
            if index not in self._coming and index not in self._kept:
                self._coming[index] = self._decoder.submit(self._images[index])
        pixels, unusable = dict[int, NDArray[np.uint8]](), dict[int, str]()
        for index in self._batches[number]:
            if index in self._kept:
                pixels[index] = self._kept[index]
                continue
            image, seconds = self._coming.pop(index).result()
            self.seconds += seconds
            if isinstance(image, str):
                unusable[index] = image
                continue
            pixels[index] = image
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._kept[index] = image
        return pixels, unusable

    def _soon(self, number: int) -> list[int]:
        """The images of a batch and of those after it, in order."""
        numbers = range(number, number + AHEAD + 1)
        some = {i % len(self) if self._wrap else i: None for i in numbers if self._wrap or i < len(self)}
        return [index for i in some for index in self._batches[i]]
