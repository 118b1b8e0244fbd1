"""Stores of made features, of one layer or more, for tests that need no network."""

from pathlib import Path
from typing import Any

import numpy as np

from fastclust.store import ImageRecord, LayerRecord, Store, open_store
from fastclust.writer import create_store


def made_store(
    path: Path, layers: dict[str, list[np.ndarray]], *, weights: str = "w", done: int | None = None, size: int = 32
) -> Store:
    """Write a store of each layer's features (h, w, D), an array an image, of which `done` are finished; open it."""
    count = len(next(iter(layers.values())))
    images = [ImageRecord(f"/{path.stem}/{i}.png", f"{i}", "", "", (size, size), (size, size)) for i in range(count)]
    records = [
        LayerRecord(name, f"node.{name}", "conv", arrays[0].shape[2], np.array([one.shape[:2] for one in arrays]))
        for name, arrays in layers.items()
    ]
    provenance: dict[str, Any] = {
        "weights": "file",
        "weights_source": "w.pth",
        "weights_sha256": weights,
        "model": "vgg16",
        "seed": 0,
        "size": size,
        "layers": list(layers),
    }
    with create_store(path, images, records, "float32", provenance) as writer:
        for index in range(count if done is None else done):
            writer.write(index, {name: arrays[index].astype(np.float32) for name, arrays in layers.items()})
    return open_store(path)
