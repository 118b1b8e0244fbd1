"""A model and its images as a source of rows: a layer's features are computed again on every pass, and never stored.

`open_live` gives what stands in for a feature store; its rows have the bits of those that an extraction with the same
arguments stores, since both compute the same batches with the same code. They are cut where rows that are mapped from
a store are cut, so a fit has the same bits too. Decoded images stay in memory up to KEPT_BYTES, a fortieth of their
features' size; those beyond are decoded on every pass, ahead of where they are needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclust.blocks import COPY_BYTES, READ_BYTES
from fastclust.decode import Batches, Decoder, groups
from fastclust.extract import ExtractReport
from fastclust.forward import DTYPES, Buffers, Forward
from fastclust.networks import Network
from fastclust.plan import IDENTITY, make_plan, network_size, plan_images
from fastclust.store import DONE, LEFT_OUT, PENDING, ImageRecord, LayerRecord, Store

KEPT_BYTES = 1 << 30  # of decoded images
OPEN_BYTES = 1 << 30  # of features of batches whose images are not next to each other in the list


@dataclass(frozen=True)
class LiveStore(Store):
    """What is used like a feature store, and computes features when they are asked for. A context manager."""

    report: ExtractReport  # of what was computed so far, over all passes
    _features: dict[str, _Features]
    _decoder: Decoder

    def rows(self, layer: str) -> list[ModelBlocks]:  # type: ignore[override]
        """Return the rows of all images, in order: one part for each unbroken run of images that have rows."""
        record = self.layer(layer)
        runs: list[list[int]] = []
        for index in map(int, self.finished):
            if runs and record.starts[runs[-1][-1] + 1] == record.starts[index]:
                runs[-1].append(index)
            else:
                runs.append([index])
        return [ModelBlocks(self._features[layer], run) for run in runs]

    def fingerprint(self, layer: str) -> str:
        """Return a text that tells the rows of a layer from others: of model, weights, images and arithmetic."""
        return " ".join(part.fingerprint for part in self.rows(layer))

    def image_rows(self, layer: str, index: int) -> NDArray[Any]:
        """Compute one image's features (h, w, D), with the batch that it is in; quick for images in order.

        Raises ValueError where the image was left out.
        """
        record, image = self.layer(layer), self.images[index]
        if image.state != DONE:
            raise ValueError(f"image {image.path} was left out: {image.reason}")
        height, width = record.shapes[index]
        rows: NDArray[Any] = self._features[layer].of(index).cpu().numpy()
        return rows.reshape(height, width, record.n_features)

    def close(self) -> None:
        """Stop decoding."""
        self._decoder.close()

    def __enter__(self) -> LiveStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_live(
    images: Sequence[str | Path],
    *,
    model: str,
    layers: Sequence[str],
    weights: str | Path = "pretrained",
    size: int | str = 224,
    dtype: str = "float16",
    batch_size: int = 8,
    labels: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    check: Callable[[Sequence[LayerRecord]], None] | None = None,
) -> LiveStore:
    """Make features of images at layers of a model a source of rows; nothing is computed yet, and nothing stored.

    Parameters are those of `fastclust.extract.extract`. Every image is decoded once, so that those that are unreadable
    are left out, with the reason. dtype: of the rows, as in a store.

    Raises what `extract` raises before it writes, and ValueError where no image can be used. Later RuntimeError where
    an image is gone or has changed since, and ValueError where a feature is not finite or beyond `dtype`.
    """
    began = time.perf_counter()
    plan = make_plan(images, model, layers, weights, size, dtype, batch_size, labels, device, seed)
    decoder = Decoder(plan.provenance["transform"], workers, plan.device)
    records, planned = plan_images(plan.records, plan.network, size)
    if check is not None:
        check(planned)
    forwards = {layer: plan.load(Network(model, [layer], network_size(size))) for layer in layers}
    del plan.state
    members = groups(records, batch_size)
    batches = Batches(decoder, records, members, wrap=True, keep=KEPT_BYTES)
    seen, looked_at = _seen(records), 0
    try:
        for number, group in enumerate(members):
            looked_at += len(group)
            _, unusable = batches[number]
            for index, reason in unusable.items():
                records[index] = replace(records[index], state=LEFT_OUT, reason=reason)
                group.remove(index)
            if progress is not None:
                progress(looked_at, len(records), "images")
    except BaseException:
        decoder.close()
        raise
    records = [replace(record, state=DONE) if record.state == PENDING else record for record in records]
    report = ExtractReport(
        done=sum(record.state == DONE for record in records),
        left_out=[(record.path, record.reason) for record in records if record.state == LEFT_OUT],
    )
    if not report.done:
        decoder.close()
        raise ValueError(
            f"none of the {len(records)} images could be used; {report.left_out[0][0]}: {report.left_out[0][1]}"
        )
    report.seconds["total"] = time.perf_counter() - began
    features = {
        record.name: _Features(record, records, members, batches, forwards[record.name], plan.provenance, seen, report)
        for record in planned
    }
    return LiveStore(
        path=Path(f"{model} on {len(records)} images"),
        dtype=np.dtype(dtype),
        provenance=plan.provenance,
        images=records,
        layers={record.name: record for record in planned},
        checksums={},
        n_bytes=0,
        _maps={},
        _offsets={},
        report=report,
        _features=features,
        _decoder=decoder,
    )


class ModelBlocks:
    """Rows of a layer of consecutive images, computed when they are asked for: a part as of `fastclust.parts`.

    shape: (N, D). dtype: float16 or float32. bounds: (n + 1,) int64, where rows of a store would be cut. device: where
    the rows are. part[low:high] is a tensor (high - low, D) of its own.
    """

    ndim = 2

    def __init__(self, features: _Features, images: Sequence[int], low: int = 0, high: int | None = None) -> None:
        record = features.record
        self._features, self._images = features, list(images)
        self._starts = record.starts[self._images] - record.starts[self._images[0]]
        end = int(self._starts[-1] + record.shapes[self._images[-1]].prod())
        self._starts = np.append(self._starts, end)
        self._low, self._high = low, end if high is None else high
        self.device = features.device
        self.dtype = np.dtype(features.dtype)
        self.shape = (self._high - self._low, record.n_features)
        step = (READ_BYTES if self.device.type == "cpu" else COPY_BYTES) // (record.n_features * self.dtype.itemsize)
        cuts = [*range(0, end, max(1, step)), end]
        inside = [cut - low for cut in cuts if low < cut < self._high]
        self.bounds: NDArray[np.int64] = np.array([0, *inside, len(self)], dtype=np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        low, high, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows are computed in order: expected a slice with step 1, got {step}")
        low, high = low + self._low, max(low, high) + self._low
        first = int(np.searchsorted(self._starts, low, side="right")) - 1
        pieces = []
        while low < high:
            start, stop = int(self._starts[first]), min(high, int(self._starts[first + 1]))
            pieces.append(self._features.of(self._images[first])[low - start : stop - start])
            low, first = stop, first + 1
        if len(pieces) == 1:
            return pieces[0]
        empty = torch.empty((0, self.shape[1]), dtype=DTYPES[self.dtype.name], device=self.device)
        return torch.cat(pieces) if pieces else empty

    def between(self, low: int, high: int) -> ModelBlocks:
        """Return the rows from low to high, both of them bounds, as a part of their own."""
        return ModelBlocks(self._features, self._images, self._low + low, self._low + high)

    @property
    def fingerprint(self) -> str:
        """A text that tells these rows from others: a hash of model, weights, layer, images and arithmetic."""
        return self._features.fingerprint(self._images, self._low, self._high)


class _Features:
    """Features of a layer, a batch at a time, the batches that the extraction has."""

    def __init__(
        self,
        record: LayerRecord,
        images: Sequence[ImageRecord],
        members: list[list[int]],
        batches: Batches,
        forward: Forward,
        provenance: dict[str, Any],
        seen: list[tuple[int, int]],
        report: ExtractReport,
    ) -> None:
        self.record, self.device, self.dtype = record, forward.device, provenance["dtype"]
        self._images, self._members, self._batches, self._forward = images, members, batches, forward
        self._provenance, self._seen, self._report = provenance, seen, report
        self._number = {index: number for number, group in enumerate(members) for index in group}
        self._computed: dict[int, dict[int, Tensor]] = {}  # by the batch's number, then the image

    def of(self, index: int) -> Tensor:
        """Return an image's rows (h * w, D); a batch stays while the images asked for are among its own."""
        number = self._number[index]
        for other in list(self._computed):
            if not self._members[other][0] <= index <= self._members[other][-1]:
                del self._computed[other]
        if number not in self._computed:
            self._computed[number] = self._compute(number)
            sizes = [sum(rows.nbytes for rows in batch.values()) for batch in self._computed.values()]
            while len(self._computed) > 1 and sum(sizes) > OPEN_BYTES:
                del self._computed[next(iter(self._computed))]
                del sizes[0]
        return self._computed[number][index]

    def fingerprint(self, images: Sequence[int], low: int, high: int) -> str:
        """Say which rows these are: rows low to high of those of the images."""
        about = {key: self._provenance[key] for key in (*IDENTITY, "weights_source", "device", "versions")}
        files = [(self._images[index].path, *self._seen[index]) for index in images]
        batches = [self._members[number] for number in sorted({self._number[index] for index in images})]
        text = json.dumps([about, self.record.node, files, batches, low, high], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def _compute(self, number: int) -> dict[int, Tensor]:
        start = time.perf_counter()
        images, unusable = self._batches[number]
        seen = _seen([self._images[index] for index in self._members[number]])
        for index, now in zip(self._members[number], seen, strict=True):
            reason = unusable.get(index) or ("it has changed" if now != self._seen[index] else "")
            if reason:
                raise RuntimeError(
                    f"{self._images[index].path} is not what it was when this began: {reason}; what is not stored is "
                    "computed from the images on every pass: start anew, or store the features"
                )
        decoded = time.perf_counter()
        values = self._forward(list(images.values()), Buffers(self.device))[self.record.name]
        rows = dict(zip(images, values.reshape(len(images), -1, self.record.n_features), strict=True))
        if values.dtype != DTYPES[self.dtype] or (self.dtype == "float32" and not bool(values.isfinite().all())):
            self._refuse(rows)
        done = time.perf_counter()
        seconds, report = self._report.seconds, self._report
        seconds["decode"] = self._batches.seconds
        seconds["waited_for_decoding"] += decoded - start
        seconds["forward"] += done - decoded
        seconds["stream"] += done - start
        report.streamed += len(images)
        report.nbytes += values.nbytes
        return rows

    def _refuse(self, rows: dict[int, Tensor]) -> None:
        """Name the feature that the dtype cannot hold."""
        limit = torch.finfo(DTYPES[self.dtype]).max
        for index, some in rows.items():
            wrong = some[~(some.abs() <= limit)]
            if len(wrong):
                value = wrong[0].item()
                hint = "not a finite number: look at the weights and at the image"
                if np.isfinite(value):
                    hint = f"beyond the {limit:g} that {self.dtype} can hold: take --dtype float32"
                path = self._images[index].path
                raise ValueError(f"layer {self.record.name}, image {path}: a feature is {value:g}, {hint}")


def _seen(images: Sequence[ImageRecord]) -> list[tuple[int, int]]:
    """The size in bytes and the time of the last change, in ns, of each image's file; zeros where there is none."""
    found = []
    for image in images:
        try:
            status = os.stat(image.path)  # noqa: PTH116
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return found
