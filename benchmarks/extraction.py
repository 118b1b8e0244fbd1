"""Extraction against bare forward passes, and what a store must read at to beat computing features again.

A bare pass is the pruned network alone on the same images at the same batch size: decoded and normalised before,
float32 with channels first in memory and contiguous, in inference mode, nothing kept. The same with channels last is
recorded beside it. Extraction is `fastclust.extract` to a float16 store on this machine's disk: `stream` is from the
first batch asked for to the last one on the disk, `total` has planning and weights too. The three are interleaved, and
the features are held to the bare pass's before anything is timed.

A layer is recomputed as `fastclust.live` does it, with decoding and with the decoded images kept from the pass before;
the crossover is a float16 store's bytes an image over those seconds. A store is read as a fit reads it: warm, from the
system's cache, and cold, after the system was told to drop the file from it (a virtual machine's host may still have
it in its own).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import CPU, seconds, short, spread
from fastclust import live
from fastclust.blocks import Blocks
from fastclust.extract import extract
from fastclust.plan import Plan, make_plan
from fastclust.reader import read_image
from fastclust.store import Store, open_store

AIM = 1.15  # of the seconds of an extraction over those of the bare passes
REPEATS, PASSES = 7, 3
SIZE, BATCH = 224, 8
TOLERANCE = 2e-3  # of a feature, over the largest: float16 keeps 11 bits
REST = 1.0  # seconds
VGG, RESNET = ("vgg19", "vgg19_conv1_1-conv3_1.pth"), ("resnet18", "resnet18_conv1-layer3.pth")
AGAINST_BARE = ((*VGG, "conv1_2"), (*RESNET, "layer3"))
RECOMPUTED = (
    *((*VGG, layer) for layer in ("conv1_2", "pool2", "relu2_2")),
    *((*RESNET, layer) for layer in ("relu", "layer1", "layer3")),
)


def run() -> Iterator[dict[str, Any]]:
    """Yield the record of each case on the images and weights in the folder that FASTCLUST_DATA names."""
    data = Path(os.environ["FASTCLUST_DATA"])
    images = [data / "images" / "imagenet", data / "images" / "bsds500" / "train"]
    for model, weights, layer in AGAINST_BARE:
        yield against_bare(images, model, data / "weights" / weights, layer)
    for model, weights, layer in RECOMPUTED:
        yield recomputed(images, model, data / "weights" / weights, layer)


def against_bare(
    images: Sequence[Path], model: str, weights: str | Path, layer: str, size: int = SIZE, repeats: int = REPEATS
) -> dict[str, Any]:
    """Return the record of extractions and bare passes, seconds an image; "refused" in place of times if wrong."""
    plan = _plan(images, model, weights, layer, size)
    record = _about("bare", plan, layer)
    n = record["images"]
    first = list(_inputs(plan))
    last = [batch.contiguous(memory_format=torch.channels_last) for batch in first]
    plan.load()
    network = {"bare_channels_last": plan.network}
    plan = _plan(images, model, weights, layer, size)
    plan.load()
    plan.network._runner.to(memory_format=torch.contiguous_format)
    network["bare"] = plan.network
    inputs = {"bare": first, "bare_channels_last": last}
    found: dict[str, list[float]] = {name: [] for name in ("bare", "bare_channels_last", "stream", "total")}
    cpu: dict[str, list[float]] = {name: [] for name in ("bare", "bare_channels_last", "extraction")}

    def bare(name: str) -> None:
        with torch.inference_mode():
            for batch in inputs[name]:
                network[name](batch, _nothing)

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "features.h5"
        options: dict[str, Any] = {"model": model, "layers": [layer], "weights": weights, "size": size, "device": "cpu"}
        extract(images, out=store, batch_size=BATCH, **options)
        record["errors"] = {"features": _error(open_store(store), layer, network["bare"], first)}
        if record["errors"]["features"] > TOLERANCE:
            return record | {"refused": f"features differ from the bare pass's by more than {TOLERANCE} of the largest"}
        for name in inputs:
            bare(name)
        for _ in range(repeats):
            for name in inputs:
                time.sleep(REST)
                start = time.process_time()
                found[name].append(seconds(lambda: bare(name)) / n)  # noqa: B023
                cpu[name].append((time.process_time() - start) / n)
            time.sleep(REST)
            start = time.process_time()
            report = extract(images, out=store, batch_size=BATCH, overwrite=True, **options)
            cpu["extraction"].append((time.process_time() - start) / n)
            for name in ("stream", "total"):
                found[name].append(report.seconds[name] / n)
    record["seconds_per_image"] = {name: spread(values) for name, values in found.items()}
    record["cpu_seconds_per_image"] = {name: spread(values) for name, values in cpu.items()}
    record["ratio"] = {
        f"{ours}_over_{theirs}": spread([a / b for a, b in zip(found[ours], found[theirs], strict=True)])
        for ours in ("stream", "total")
        for theirs in inputs
    }
    record |= {"aim": AIM, "reached": record["ratio"]["stream_over_bare"]["median"] <= AIM}
    record["rates"] = {name: short(value) for name, value in report.rates.items()}
    record["shares"] = {name: short(value) for name, value in report.shares.items()}
    return record


def recomputed(
    images: Sequence[Path], model: str, weights: str | Path, layer: str, size: int = SIZE, passes: int = PASSES
) -> dict[str, Any]:
    """Return the record of a layer that is computed again, and of the store that it is computed in place of."""
    options: dict[str, Any] = {"model": model, "layers": [layer], "weights": weights, "size": size, "device": "cpu"}
    record = _about("recomputed", _plan(images, model, weights, layer, size), layer)
    n = record["images"]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "features.h5"
        extract(images, out=path, batch_size=BATCH, **options)
        found: dict[str, list[float]] = {}
        for name, keep in (("with_decoding", 0), ("images_kept", live.KEPT_BYTES)):
            with mock.patch.object(live, "KEPT_BYTES", keep), live.open_live(images, **options) as alive:
                rows = alive.rows(layer)
                if not _same(open_store(path).rows(layer), rows):
                    return record | {"refused": "recomputed rows are not those of the store"}
                time.sleep(REST)
                found[name] = [seconds(lambda: _read(rows)) / n for _ in range(passes)]  # noqa: B023
        nbytes = sum(part.nbytes for part in open_store(path).rows(layer))
        read: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(passes):
            _drop(path)
            for name in ("cold", "warm"):
                stored = open_store(path).rows(layer)
                read[name].append(nbytes / seconds(lambda: _read(stored)) / 1e6)  # noqa: B023
    record["bytes_per_image"] = nbytes // n
    record["seconds_per_image"] = {name: spread(values) for name, values in found.items()}
    record["crossover_megabytes_per_second"] = {
        name: short(nbytes / n / value["median"] / 1e6) for name, value in record["seconds_per_image"].items()
    }
    record["store_megabytes_per_second"] = {name: spread(values) for name, values in read.items()}
    return record


def line(record: dict[str, Any]) -> str:
    """Return a record in one line."""
    if "refused" in record:
        return f"{record['name']}  REFUSED: {record['refused']}"
    each = ", ".join(f"{name} {value['median'] * 1e3:.4g}" for name, value in record["seconds_per_image"].items())
    text = f"{record['name']}  ms an image: {each}; "
    if record["kind"] == "bare":
        return text + ", ".join(f"{name} {value['median']:.3f}" for name, value in record["ratio"].items())
    reads = ", ".join(f"{name} {value['median']:.4g}" for name, value in record["store_megabytes_per_second"].items())
    return f"{text}a store beats it from {record['crossover_megabytes_per_second']} MB/s on; it reads {reads} MB/s"


def _about(kind: str, plan: Plan, layer: str) -> dict[str, Any]:
    about = plan.provenance
    return {
        "name": f"{kind}-{about['model']}-{layer}-{about['size']}",
        "kind": kind,
        "model": about["model"],
        "layer": layer,
        "weights_sha256": about["weights_sha256"],
        "images": len(plan.records),
        "size": about["size"],
        "batch_size": about["batch_size"],
        "dtype": about["dtype"],
        "arithmetic": about["arithmetic"],
        "threads": torch.get_num_threads(),
    }


def _plan(images: Sequence[Path], model: str, weights: str | Path, layer: str, size: int) -> Plan:
    return make_plan(images, model, [layer], weights, size, "float16", BATCH, None, "cpu", 0)


def _inputs(plan: Plan) -> Iterator[Tensor]:
    """Batches of images as torchvision would normalise them: (n, 3, H, W) float32, contiguous."""
    transform = plan.provenance["transform"]
    mean, std = (torch.tensor(transform[name]).view(3, 1, 1) for name in ("mean", "std"))
    for low in range(0, len(plan.records), BATCH):
        some = [read_image(record.path, transform) for record in plan.records[low : low + BATCH]]
        pixels = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float()
        yield pixels.div_(255).sub_(mean).div_(std).contiguous()


def _nothing(layer: str, values: Tensor) -> Tensor:
    return values[:0]


def _error(store: Store, layer: str, network: Any, inputs: list[Tensor]) -> float:
    """The largest error of a feature in a store, over the largest feature."""
    worst = largest = 0.0
    with torch.inference_mode():
        for place, batch in enumerate(inputs):
            values = network(batch)[layer].numpy()
            for index, expected in enumerate(values, place * BATCH):
                rows = store.image_rows(layer, index).astype(np.float32).reshape(expected.shape)
                worst = max(worst, float(np.abs(rows - expected).max()))
                largest = max(largest, float(np.abs(expected).max()))
    return short(worst / largest)


def _same(stored: list[Any], computed: list[Any]) -> bool:
    return all(
        np.array_equal(one[low:high], other[low:high].numpy())
        for one, other in zip(stored, computed, strict=True)
        for low, high in pairwise(map(int, other.bounds))
    )


def _read(rows: list[Any]) -> None:
    """Pass over rows as a fit does, and look at every value."""
    for block in Blocks(rows, CPU):
        block.view(torch.int16).max()


def _drop(path: Path) -> None:
    """Have the system write a file to the disk and drop it from its cache, where it can be told to."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
