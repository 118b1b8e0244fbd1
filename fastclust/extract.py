"""Extraction: a model, layers and images in, a feature store out, streamed.

Threads decode ahead while the network runs, and one thread writes behind it, so memory holds a few batches whatever the
number of images. Batches are fixed groups of the list of images, of one input size each. A resumed extraction computes
a broken-off batch again as a whole, so its rows have the same bits (given the same device, versions and threads).
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclust.images import UNREADABLE, find_images, read_image, read_labels, safe_names
from fastclust.networks import LayerInfo, Network, list_layers, list_models
from fastclust.plan import (
    check_options,
    check_same,
    make_transform,
    network_size,
    one_line,
    open_device,
    open_weights,
    plan_images,
)
from fastclust.repair import repair
from fastclust.store import DONE, LEFT_OUT, PENDING, ImageRecord, LayerRecord, Store, open_store
from fastclust.writer import StoreWriter, create_store

__all__ = ["ExtractReport", "LayerInfo", "extract", "find_images", "input_image", "list_layers", "list_models"]

AHEAD = 2  # batches that are decoded while another is computed
WORKERS = min(8, os.cpu_count() or 1)


@dataclass
class ExtractReport:
    """What an extraction did. Seconds are of work: decoding adds up over threads, and the three parts overlap."""

    done: int = 0  # images in the store with features, now and before
    resumed: int = 0  # of these, done before
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "forward": 0.0, "write": 0.0, "total": 0.0}
    )


@dataclass(frozen=True)
class _Batch:
    members: list[int]
    images: list["Future[tuple[NDArray[np.uint8] | str, float]]"]


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
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Sequence[LayerRecord]], None] | None = None,
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
    progress    called with (images finished, images) each time a batch is in the store

    Unreadable images, and those too small for the network, are left out: the report and the store say why.

    Raises ValueError, FileNotFoundError, FileExistsError, ConnectionError (pretrained weights out of reach) or OSError
    before anything is written where the input cannot work; ValueError also where no image at all could be used, and
    where a feature is not finite or beyond `dtype`: what was done before that stays.
    """
    began = time.perf_counter()
    path = Path(out)
    check_options(path, layers, size, dtype, batch_size, resume, overwrite)
    found = find_images(images)
    network = Network(model, layers, network_size(size))
    where = open_device(device)
    state, source, weights_sha256 = open_weights(model, weights, seed, size)
    provenance = {
        "model": model,
        "weights": str(weights) if weights in ("pretrained", "random") else "file",
        "weights_source": source,
        "weights_sha256": weights_sha256,
        "seed": seed,
        "layers": list(layers),
        "size": size,
        "transform": make_transform(model, size),
        "dtype": dtype,
        "batch_size": batch_size,
        "device": where.type,
        "versions": {name: version(name) for name in ("fastclust", "torch", "torchvision", "pillow", "h5py", "numpy")},
    }
    records = [
        ImageRecord(os.path.abspath(image), name, label, group, (0, 0), (0, 0))  # noqa: PTH100
        for image, name, (label, group) in zip(found, safe_names(found), read_labels(found, labels), strict=True)
    ]
    if resume and path.exists():
        before = open_store(path, cut_short=True)
        check_same(before, provenance, records)
        planned = list(before.layers.values())
        network.load(state, source, where)
        if check is not None:
            check(planned)
        repair(path)
        writer = StoreWriter(path)
    else:
        records, planned = plan_images(records, network, size)
        network.load(state, source, where)
        if check is not None:
            check(planned)
        writer = create_store(path, records, planned, dtype, provenance, overwrite=overwrite)
    del state
    report = ExtractReport()
    with writer, torch.inference_mode():
        _run(writer, network, where, report, progress)
    finished = open_store(path)
    report.done = len(finished.finished)
    report.left_out = [(image.path, image.reason) for image in finished.images if image.state == LEFT_OUT]
    report.seconds["total"] = time.perf_counter() - began
    if report.done == 0:
        path.unlink()
        raise ValueError(
            f"none of the {len(records)} images could be used; {report.left_out[0][0]}: {report.left_out[0][1]}"
        )
    return report


def input_image(record: ImageRecord, provenance: dict[str, Any]) -> NDArray[np.uint8]:
    """Read what the network saw of an image, before normalisation: (H, W, 3) uint8. Raises OSError, ValueError."""
    return read_image(record.path, provenance["transform"])


def _run(
    writer: StoreWriter,
    network: Network,
    device: torch.device,
    report: ExtractReport,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode, compute and write every batch that has an image pending."""
    store = writer.store
    states = [image.state for image in store.images]
    report.resumed = states.count(DONE)
    transform = store.provenance["transform"]
    mean = torch.tensor(transform["mean"], device=device).view(3, 1, 1)
    std = torch.tensor(transform["std"], device=device).view(3, 1, 1)
    behind, ahead = ThreadPoolExecutor(1), ThreadPoolExecutor(WORKERS)
    writing: deque[Future[float]] = deque()

    def settle() -> None:
        """Wait for the batch that is being written."""
        while writing:
            report.seconds["write"] += writing.popleft().result()
            if progress is not None:
                progress(len(states) - states.count(PENDING), len(states))

    try:
        for batch in _decoded(store, states, ahead):
            images, unusable = {}, {}
            for index, future in zip(batch.members, batch.images, strict=True):
                image, seconds = future.result()
                report.seconds["decode"] += seconds
                if isinstance(image, str):
                    unusable[index] = image
                else:
                    images[index] = torch.from_numpy(image)
            start = time.perf_counter()
            values = {}
            if images:
                pixels = torch.stack(list(images.values())).to(device)  # (n, H, W, 3)
                inputs = pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).contiguous()
                values = {name: _cast(value, store.dtype) for name, value in network(inputs).items()}
            report.seconds["forward"] += time.perf_counter() - start
            settle()
            missing = [index for index in batch.members if states[index] == PENDING]
            rows = {
                index: {name: value[place] for name, value in values.items()}
                for place, index in enumerate(images)
                if index in missing
            }
            reasons = {index: reason for index, reason in unusable.items() if index in missing}
            writing.append(behind.submit(_write, writer, rows, reasons))
            for index in missing:
                states[index] = LEFT_OUT if index in reasons else DONE
        settle()
    finally:
        ahead.shutdown(cancel_futures=True)
        behind.shutdown()


def _decoded(store: Store, states: list[int], pool: ThreadPoolExecutor) -> Iterator[_Batch]:
    """The batches that have an image pending, in order, decoding AHEAD of the one given out."""
    waiting: deque[_Batch] = deque()
    for group in _groups(store):
        if any(states[index] == PENDING for index in group):
            members = [index for index in group if states[index] != LEFT_OUT]
            futures = [pool.submit(_decode, store.images[index], store.provenance["transform"]) for index in members]
            waiting.append(_Batch(members, futures))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _groups(store: Store) -> list[list[int]]:
    """Images in batches of one input size, in the list's order; those that were left out at the start are in none."""
    open_groups: dict[tuple[int, int], list[int]] = {}
    groups: list[list[int]] = []
    for index, image in enumerate(store.images):
        if image.input_size == (0, 0):
            continue
        group = open_groups.get(image.input_size)
        if group is None or len(group) == store.provenance["batch_size"]:
            group = open_groups[image.input_size] = []
            groups.append(group)
        group.append(index)
    return groups


def _decode(record: ImageRecord, transform: dict[str, Any]) -> tuple[NDArray[np.uint8] | str, float]:
    """An image, or why there is none, and the seconds it took."""
    start = time.perf_counter()
    image: NDArray[np.uint8] | str
    try:
        image = read_image(record.path, transform)
        if image.shape[:2] != record.input_size:
            image = f"its size is no longer {record.input_size}, but {image.shape[:2]}"
    except UNREADABLE as error:
        image = one_line(error, record.path)
    return image, time.perf_counter() - start


def _cast(value: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """To NumPy, in the store's dtype where every value fits (the store refuses the others by name)."""
    if dtype == np.float16:
        low, high = value.aminmax()
        if low >= -65504 and high <= 65504:
            value = value.half()
    return value.cpu().numpy()


def _write(writer: StoreWriter, rows: dict[int, dict[str, NDArray[Any]]], reasons: dict[int, str]) -> float:
    """Write one batch, and the seconds it took."""
    start = time.perf_counter()
    for index, reason in reasons.items():
        writer.leave_out(index, reason)
    for index, values in rows.items():
        writer.write(index, values)
    writer.commit()
    return time.perf_counter() - start
