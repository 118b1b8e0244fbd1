"""Extraction: a model, layers and images in, a feature store out, streamed.

Threads or processes decode ahead (`fastclust.decode`) while the network runs (`fastclust.forward`), and one thread
writes behind it, straight from where the network's values were cast to: two buffers that are used in turn. Memory holds
a few batches whatever the number of images. Batches are fixed groups of the list of images, of one input size each. A
resumed extraction computes a broken-off batch again as a whole, so its rows have the same bits (given the same device,
versions and threads).
"""

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastclust.decode import Batches, Decoder, groups
from fastclust.forward import Buffers, Forward
from fastclust.group import ALONE, Group
from fastclust.images import find_images
from fastclust.networks import LayerInfo, list_layers, list_models
from fastclust.plan import check_file, check_same, make_plan, plan_images
from fastclust.reader import UNREADABLE, read_image
from fastclust.repair import repair
from fastclust.store import DONE, LEFT_OUT, PENDING, ImageRecord, LayerRecord, open_store
from fastclust.writer import StoreWriter, create_store

__all__ = [
    "ExtractReport",
    "LayerInfo",
    "extract",
    "find_images",
    "input_image",
    "list_layers",
    "list_models",
    "shown_image",
]

PARTS = ("decode", "forward", "write", "waited_for_decoding", "waited_for_disk", "stream", "total")


@dataclass
class ExtractReport:
    """What an extraction did.

    seconds: of work `decode` (added up over threads or processes), `forward` (with normalising and casting) and
    `write`, which overlap; of the thread that runs the network, `stream` from the first batch to the last, of which it
    stood still `waited_for_decoding` and `waited_for_disk`; and `total`, with planning and reading the weights.
    """

    done: int = 0  # images in the store with features, now and before
    resumed: int = 0  # of these, done before
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    streamed: int = 0  # images that this extraction computed and wrote
    nbytes: int = 0  # of features that it wrote

    @property
    def rates(self) -> dict[str, float]:
        """Images and megabytes (10^6 bytes) of features in a second of the stream; 0 where nothing was left to do."""
        stream = self.seconds["stream"] or float("inf")
        return {"images_per_second": self.streamed / stream, "megabytes_per_second": self.nbytes / 1e6 / stream}

    @property
    def shares(self) -> dict[str, float]:
        """What share of the stream went to the model, and to waiting for decoding and disk; the rest is bookkeeping."""
        stream = self.seconds["stream"] or float("inf")
        names = {"model": "forward", "decoding": "waited_for_decoding", "disk": "waited_for_disk"}
        return {name: self.seconds[part] / stream for name, part in names.items()}


def extract(
    images: Sequence[str | Path],
    *,
    out: str | Path,
    model: str,
    layers: Sequence[str],
    weights: str | Path = "pretrained",
    size: int | str = 224,
    dtype: str = "float16",
    batch_size: int = 8,
    labels: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    check: Callable[[Sequence[LayerRecord]], None] | None = None,
    begin: Callable[[], None] | None = None,
    group: Group = ALONE,
) -> ExtractReport:
    """Extract the features of images at layers of a torchvision classification model into a store.

    images      files and folders; see find_images
    out         the store. Where it exists: `resume` continues it, `overwrite` replaces it once all input is found good
    layers      names or numbers; see networks
    weights     "pretrained" (torchvision's default weights), "random" (torchvision's initialisation under `seed`), or a
                .pth, .pt or .safetensors file
    size        pixels: the shorter side is resized and the centre cropped as the published weights' transform does it,
                in proportion; or "full", each image as large as it is
    dtype       float16 or float32
    labels      CSV file of path, label[, group]; without it, an image's label is its folder's name
    device      "auto" (cuda where available, else cpu), or a torch device
    workers     processes that decode images; 0 for threads in this one; None for what suits: see decode
    progress    called with (images finished, images, a remark with the rate in MB/s) each time a batch is in the store
    check       called with the layers, before anything is written: what it raises ends the extraction
    begin       called once, when nothing stands in the way and the store is about to change
    group       processes that each compute a share of the batches into the one store, which they all can write to; the
                report's seconds are this one's

    Unreadable images, and those too small for the network, are left out: the report and the store say why.

    Raises ValueError, FileNotFoundError, FileExistsError, ConnectionError (pretrained weights out of reach) or OSError
    before anything is written where the input cannot work; ValueError also where no image at all could be used, and
    where a feature is not finite or beyond `dtype`, and RuntimeError where a worker process dies: what was done before
    that stays.
    """
    began = time.perf_counter()
    path = Path(out)
    if group.rank == 0:
        check_file(path, resume, overwrite)
    plan = make_plan(images, model, layers, weights, size, dtype, batch_size, labels, device, seed)
    network, provenance, records = plan.network, plan.provenance, plan.records
    decoder = Decoder(provenance["transform"], workers, plan.device)
    if group.rank > 0:
        forward = plan.load()
        group.wait()
        writer = StoreWriter(path, alone=False)
    elif resume and path.exists():
        before = open_store(path, cut_short=True)
        check_same(before, provenance, records)
        planned = list(before.layers.values())
        forward = plan.load()
        if check is not None:
            check(planned)
        repair(path)
        writer = StoreWriter(path)
        if begin is not None:
            begin()
    else:
        records, planned = plan_images(records, network, size)
        forward = plan.load()
        if check is not None:
            check(planned)
        writer = create_store(path, records, planned, dtype, provenance, overwrite=overwrite, begin=begin)
    del plan.state
    report = ExtractReport()
    with writer, decoder:
        if group.rank == 0:
            _reserve(path)
            group.wait()
        group.wait()  # all have seen what is pending before any changes it
        _run(writer, decoder, forward, report, progress, group)
    group.wait()
    finished = open_store(path)
    report.done = len(finished.finished)
    report.left_out = [(image.path, image.reason) for image in finished.images if image.state == LEFT_OUT]
    report.seconds["total"] = time.perf_counter() - began
    group.wait()  # all have read it
    if report.done == 0:
        path.unlink(missing_ok=True)
        raise ValueError(
            f"none of the {len(records)} images could be used; {report.left_out[0][0]}: {report.left_out[0][1]}"
        )
    return report


def input_image(record: ImageRecord, provenance: dict[str, Any]) -> NDArray[np.uint8]:
    """Read what the network saw of an image, before normalisation: (H, W, 3) uint8. Raises OSError, ValueError."""
    return read_image(record.path, provenance["transform"])


def shown_image(record: ImageRecord, provenance: dict[str, Any]) -> tuple[NDArray[np.uint8], bool]:
    """Read what the network saw of an image for a picture, and say whether it can be read: where not, it is grey.

    A file that is gone, broken, or of another size by now is no reason to lose a picture of all the others.
    """
    try:
        pixels = input_image(record, provenance)
    except UNREADABLE:
        pixels = np.empty((0, 0, 3), dtype=np.uint8)
    if pixels.shape[:2] == tuple(record.input_size):
        return pixels, True
    return np.full((*record.input_size, 3), 217, dtype=np.uint8), False


def _reserve(path: Path) -> None:
    """Have the file system give a sparse file its place on the disk, where it can do that without writing.

    Measured on ext4: writing into place that is reserved costs a tenth of the CPU time, since the system then caches
    the file in large pieces, and so the network has that time.
    """
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None) if os.name == "posix" else None
    if fallocate is None:  # not Linux
        return
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    with path.open("r+b") as file:
        fallocate(file.fileno(), 0, 0, path.stat().st_size)  # where that fails, the file stays sparse


def _run(
    writer: StoreWriter,
    decoder: Decoder,
    forward: Forward,
    report: ExtractReport,
    progress: Callable[[int, int, str], None] | None,
    group: Group,
) -> None:
    """Decode, compute and write every batch that has an image pending; of a group's this process's share."""
    store, seconds = writer.store, report.seconds
    states = [image.state for image in store.images]
    report.resumed = states.count(DONE)
    pending = [
        [index for index in batch if states[index] != LEFT_OUT]
        for batch in groups(store.images, store.provenance["batch_size"])
        if any(states[index] == PENDING for index in batch)
    ]
    pending = pending[len(pending) * group.rank // group.size : len(pending) * (group.rank + 1) // group.size]
    batches = Batches(decoder, store.images, pending, wrap=False)
    buffers = [Buffers(torch.device("cpu"), pinned=forward.device.type == "cuda") for _ in range(2)]
    writing: Future[float] | None = None
    began = time.perf_counter()

    def settle() -> None:
        """Wait for the batch that is being written."""
        if writing is not None:
            with _Clock(seconds, "waited_for_disk"):
                seconds["write"] += writing.result()
            seconds["stream"] = time.perf_counter() - began
            if progress is not None:
                rate = f"images, {report.rates['megabytes_per_second']:.0f} MB/s"
                progress(len(states) - states.count(PENDING), len(states), rate)

    behind = ThreadPoolExecutor(1, thread_name_prefix="fastclust-writer")
    try:
        for number, members in enumerate(pending):
            with _Clock(seconds, "waited_for_decoding"):
                images, unusable = batches[number]
            seconds["decode"] = batches.seconds
            values = {}
            if images:
                with _Clock(seconds, "forward"):
                    found = forward(list(images.values()), buffers[number % 2])
                    values = {name: value.numpy() for name, value in found.items()}
            settle()
            group.check()
            missing = [index for index in members if states[index] == PENDING]
            rows = {
                index: {name: value[place] for name, value in values.items()}
                for place, index in enumerate(images)
                if index in missing
            }
            reasons = {index: reason for index, reason in unusable.items() if index in missing}
            report.streamed += len(rows)
            report.nbytes += sum(value.nbytes for some in rows.values() for value in some.values())
            writing = behind.submit(_write, writer, rows, reasons)
            for index in missing:
                states[index] = LEFT_OUT if index in reasons else DONE
        settle()
    finally:
        behind.shutdown()


class _Clock:
    """Add the seconds that a block takes to a part."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._start


def _write(writer: StoreWriter, rows: dict[int, dict[str, NDArray[Any]]], reasons: dict[int, str]) -> float:
    """Write one batch, and the seconds it took."""
    start = time.perf_counter()
    for index, reason in reasons.items():
        writer.leave_out(index, reason)
    for index, values in rows.items():
        writer.write(index, values)
    writer.commit()
    return time.perf_counter() - start
