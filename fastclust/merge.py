"""Copy several feature stores of one network and layers into one, every row held against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastclust.atomic import written_aside
from fastclust.images import safe_names
from fastclust.layout import lay_out
from fastclust.store import DONE, LEFT_OUT, PENDING, ImageRecord, LayerRecord, Store, open_store
from fastclust.verify import stored_rows
from fastclust.writer import StoreWriter, check_new

SHARED = ("model", "weights_sha256", "layers", "size", "transform", "dtype")


@dataclass(frozen=True)
class Merger:
    """What `merge` did: how many images the new store has done and left out, and how many pending ones it has not."""

    done: int
    left_out: int
    pending: int


def merge(
    stores: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merger:
    """Copy the finished and left-out images of two or more stores into a new one, in that order, with flat memory.

    stores      of the same model, weights, layers, size, transform and dtype; no image in two of them, but pending
    out         the new store, there whole or not at all; `overwrite` replaces what is there
    progress    called with (images copied, images to copy)

    Names are made unique over all images, as one extraction makes them. The provenance is that of the first store, and
    `merged_from` has the names of the files. Images that are pending are not copied.

    Raises ValueError for stores that differ, which it names, for an image in two of them, and for rows that are not
    those of their checksums; and what `open_store` and `writer.create_store` raise.
    """
    paths, out = [Path(path) for path in stores], Path(out)
    if len(paths) < 2:
        raise ValueError(f"expected at least two stores to merge, got {len(paths)}")
    opened = [open_store(path) for path in paths]
    for path in paths:
        if out.exists() and out.samefile(path):
            raise ValueError(f"{out} is one of the stores to merge: name another file")
    for other in opened[1:]:
        _check_same(opened[0], other)
    kept = [(store, index) for store in opened for index, image in enumerate(store.images) if image.state != PENDING]
    _check_once(kept)
    images = _images(kept)
    layers = [
        LayerRecord(name, layer.node, layer.kind, layer.n_features, _shapes(kept, name))
        for name, layer in opened[0].layers.items()
    ]
    provenance = {**opened[0].provenance, "merged_from": [path.name for path in paths]}
    dtype = opened[0].dtype.name
    if not any(image.state == DONE for image in images):
        raise ValueError(f"none of the images in {', '.join(map(str, paths))} is extracted yet: nothing to merge")
    check_new(out, images, layers, dtype, overwrite)
    with written_aside(out) as aside:
        lay_out(
            aside,
            [replace(image, state=LEFT_OUT if image.state == LEFT_OUT else PENDING) for image in images],
            layers,
            dtype,
            provenance,
        )
        with StoreWriter(aside) as writer:
            for place, (store, index) in enumerate(kept):
                if images[place].state == DONE:
                    _copy(store, index, writer, place)
                if progress is not None:
                    progress(place + 1, len(kept))
    states = [image.state for image in images]
    total = sum(len(store.images) for store in opened)
    return Merger(states.count(DONE), states.count(LEFT_OUT), total - len(states))


def _copy(store: Store, index: int, writer: StoreWriter, place: int) -> None:
    """Copy one image's rows of every layer. Raises ValueError where they are not those of their checksums."""
    with store.path.open("rb", buffering=0) as file:
        for layer in store.layers:
            found = writer.write_bytes(place, layer, stored_rows(file, store, layer, index))
            if found != store.checksums[layer][index]:
                raise ValueError(
                    f"{store.path}: the rows of image {store.images[index].path} at {layer} are not as they were "
                    "written: `fastclust extract --resume` repairs it; nothing was merged"
                )
    writer.finish(place)


def _check_same(first: Store, other: Store) -> None:
    """Refuse a store that one extraction could not have made with the first."""

    def about(store: Store) -> dict[str, Any]:
        known = {key: store.provenance.get(key) for key in SHARED}
        if not known["weights_sha256"]:  # random, under a seed
            known |= {key: store.provenance.get(key) for key in ("weights", "seed")}
        made = {name: (layer.node, layer.kind, layer.n_features) for name, layer in store.layers.items()}
        return known | {"dtype": store.dtype.name, "layer table": made}

    one, two = about(first), about(other)
    for key in {**one, **two}:
        if one.get(key) != two.get(key):
            raise ValueError(
                f"{first.path} and {other.path} cannot be merged: their {key} is {one.get(key)!r} and {two.get(key)!r}"
            )


def _check_once(kept: list[tuple[Store, int]]) -> None:
    seen: dict[str, Store] = {}
    for store, index in kept:
        path = store.images[index].path
        if path in seen:
            raise ValueError(f"the image {path} is in both {seen[path].path} and {store.path}: merge one of them")
        seen[path] = store


def _images(kept: list[tuple[Store, int]]) -> list[ImageRecord]:
    """The records, under names that are unique over all of them."""
    records = [store.images[index] for store, index in kept]
    names = safe_names([Path(record.path) for record in records])
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def _shapes(kept: list[tuple[Store, int]], layer: str) -> np.ndarray:
    """Each image's (height, width) at a layer: (n_images, 2) int64."""
    return np.array([store.layers[layer].shapes[index] for store, index in kept], dtype=np.int64)
