"""Rows to benchmark on: Gaussian blobs, features as a ReLU leaves them, and real ones where there is data; float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def blobs(n: int, d: int, seed: int = 0) -> Rows:
    """Return (n, d) rows around 50 centres, with deviations from 0.5 to 2; neighbours overlap."""
    random = np.random.default_rng(seed)
    kind = random.integers(50, size=n)
    deviation = random.uniform(0.5, 2.0, size=(50, 1)).astype(np.float32)
    centres = random.standard_normal((50, d), dtype=np.float32)
    return centres[kind] + deviation[kind] * random.standard_normal((n, d), dtype=np.float32)


def relu(n: int, d: int, seed: int = 0) -> Rows:
    """Return (n, d) rows like those of a layer after its ReLU: about half zeros, heavy tails, channel 3 dead, 0 to 10.

    Eight causes, each from a few kinds of place, mixed into d channels of different loudness, with noise of their own.
    """
    random = np.random.default_rng(seed)
    kinds = random.standard_normal((30, 8), dtype=np.float32)
    causes = kinds[random.integers(30, size=n)] + 0.3 * random.standard_normal((n, 8), dtype=np.float32)
    causes *= random.lognormal(sigma=0.6, size=(n, 1)).astype(np.float32)
    mixed = causes @ random.standard_normal((8, d), dtype=np.float32)
    mixed += 0.3 * random.standard_normal((n, d), dtype=np.float32)
    mixed *= random.lognormal(sigma=0.7, size=d).astype(np.float32)
    rows: Rows = np.maximum(mixed, 0, out=mixed)
    rows[:, 3] = 0
    return _to_ten(rows)


def relu_on(device: torch.device, n: int, d: int, dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Return (n, d) rows of the same kind as `relu`'s, made on a device by its own random numbers.

    They are made a million at a time, so that no more than the rows and a few hundred MB is ever held.
    """
    random = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random, device=device)

    kinds, mixing, loudness = normal(30, 8), normal(8, d), (0.7 * normal(d)).exp()
    rows = torch.empty(n, d, device=device)
    for part in torch.split(rows, 1_000_000):
        kind = torch.randint(30, (len(part),), generator=random, device=device)
        causes = (kinds[kind] + 0.3 * normal(len(part), 8)) * (0.6 * normal(len(part), 1)).exp()
        torch.matmul(causes, mixing, out=part)
        part.add_(normal(len(part), d), alpha=0.3).mul_(loudness).clamp_(min=0)
    rows[:, 3] = 0
    return rows.mul_(10 / rows.max()).to(getattr(torch, dtype))


def relu1_2(n: int, d: int, seed: int = 0) -> Rows:
    """Return the first n rows of relu1_2 of VGG-19 on histology tiles, 0 to 10, from the folder FASTCLUST_DATA names.

    50,176 rows are one tile. Raises ValueError where there are not n rows of d features. seed: unused.
    """
    rows = _extracted(Path(os.environ["FASTCLUST_DATA"]))[:n]
    if rows.shape != (n, d):
        raise ValueError(f"relu1_2 of the tiles gives {rows.shape} rows and features where {(n, d)} were asked for")
    return _to_ten(rows)


@cache
def _extracted(folder: Path) -> Rows:
    """Return relu1_2 of all tiles."""
    from fastclust.extract import extract  # with torchvision, which no other rows need
    from fastclust.store import open_store

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "features.h5"
        weights = folder / "weights" / "vgg19_conv1_1-conv3_1.pth"
        images = [folder / "images" / "histology"]
        extract(images, out=store, model="vgg19", layers=["relu1_2"], weights=weights, dtype="float32")
        parts = open_store(store).rows("relu1_2")
        rows: Rows = np.concatenate(parts)
    return rows


def _to_ten(rows: Rows) -> Rows:
    """Map rows by one affine map, so that the smallest value is 0 and the largest 10."""
    low, high = rows.min(), rows.max()
    scaled: Rows = (rows - low) * np.float32(10 / (high - low))
    return scaled


SOURCES: dict[str, Callable[[int, int, int], Rows]] = {"blobs": blobs, "relu": relu, "relu1_2": relu1_2}
