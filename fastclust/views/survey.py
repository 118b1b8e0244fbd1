"""One pass over a store's images under the mixtures of its layers: counts, overlaps of layers, exemplars, label images.

Images are read one after the other and let go, so memory holds one image's labels of each layer, and what is returned.
A unit is a pixel of a layer's feature map; of a dense layer, an image.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastclust.arrays import host
from fastclust.fitted import FittedMixture
from fastclust.labels import Progress, check_finished, check_layer, quiet
from fastclust.parts import let_go
from fastclust.picture import enlarge
from fastclust.receptive import Field
from fastclust.store import LayerRecord, Store

BLOCK = 65_536  # rows whose probabilities are in memory at a time
AN_IMAGE = 2  # exemplars of a cluster from one image, at most
TRIED = 512  # units, the most probable first, among which an image's second exemplar is looked for

Fields = Callable[[int, int], Mapping[str, Field]]
"""Returns each layer's receptive fields for inputs of (height, width) pixels."""


@dataclass(frozen=True, order=True)
class Exemplar:
    """A unit that is typical of a cluster: ln of the cluster's weight times its density there, and where it is.

    place: of the image among the store's finished ones.
    """

    log_density: float
    place: int
    row: int
    column: int


@dataclass(frozen=True)
class Layer:
    """What a pass found in one layer.

    counts: (K, n_images) int64, units that each component wins in each finished image. exemplars: of each component,
    the most probable first. shown: label images (h, w) by place. reduced: whether some of them have fewer pixels than
    the layer has units.
    """

    record: LayerRecord
    model: FittedMixture
    counts: NDArray[np.int64]
    exemplars: list[list[Exemplar]]
    shown: dict[int, NDArray[np.integer]] = field(default_factory=dict)
    reduced: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What a pass found: layers in order, and between each and the next one a table of overlaps (K, K') int64.

    Of overlaps[i], entry (k, l) counts places that are component k in layer i and l in layer i + 1, on the finer of
    the two layers' grids, the other enlarged to it by nearest neighbour.
    """

    layers: list[Layer]
    overlaps: list[NDArray[np.int64]]


def survey(
    store: Store,
    models: Mapping[str, FittedMixture],
    fields: Fields,
    shown: Sequence[int],
    *,
    most: int = 6,
    side: int = 448,
    progress: Progress = quiet,
) -> Survey:
    """Go once over the finished images of a store.

    models: by layer. fields: where exemplars are, and which overlap. shown: places of the images whose label images are
    kept, at most `side` pixels high and wide. most: exemplars of a cluster.

    An exemplar is a unit that its cluster wins; among those the ones where the cluster's ln density is largest, at most
    two of an image, whose receptive fields do not overlap.
    Raises ValueError as `fastclust.labels.label_layer` does, before the pass where it can.
    """
    check_finished(store)
    n_images = len(store.finished)
    layers = []
    for name, model in models.items():
        record = store.layer(name)
        check_layer(store, record, model)
        components = len(model.counts_)
        layers.append(
            Layer(record, model, np.zeros((components, n_images), dtype=np.int64), [[] for _ in range(components)])
        )
    sizes = [len(layer.counts) for layer in layers]
    overlaps = [np.zeros(pair, dtype=np.int64) for pair in pairwise(sizes)]
    wanted = set(shown)
    for place, index in enumerate(store.finished):
        progress("survey", place, n_images, store.images[index].name)
        size = store.images[index].input_size
        here = []
        for layer in layers:
            labels, density = _read(store, layer, int(index))
            layer.counts[:, place] = np.bincount(labels.ravel(), minlength=len(layer.counts))
            _keep_exemplars(layer, place, labels, density, fields(*size)[layer.record.name], most)
            if place in wanted:
                layer.shown[place] = _at_most(labels, side)
                if layer.shown[place].shape != labels.shape:
                    layer.reduced.append(place)
            here.append(labels)
        for table, (one, following) in zip(overlaps, pairwise(here), strict=True):
            table += _overlap(one, following, table.shape)
    for layer in layers:
        for kept in layer.exemplars:
            kept.sort(reverse=True)
    progress("survey", n_images, n_images, "")
    return Survey(layers, overlaps)


def _read(store: Store, layer: Layer, index: int) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Return an image's labels (h, w), and ln of weight times density of the cluster that wins each unit (h, w)."""
    features = store.image_rows(layer.record.name, index)
    rows, model = features.reshape(-1, layer.record.n_features), layer.model
    labels, density = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.float64)
    for low in range(0, len(rows), BLOCK):
        block = slice(low, min(low + BLOCK, len(rows)))
        labels[block] = host(model.predict(rows[block]))
        won = host(model.predict_proba(rows[block]))[np.arange(block.stop - low), labels[block]]
        density[block] = host(model.score_samples(rows[block])) + np.log(won)  # p(x, k) = p(x) p(k | x)
        let_go(rows, low, block.stop)
    shape = features.shape[:2]
    return labels.reshape(shape), density.reshape(shape)


def _keep_exemplars(
    layer: Layer, place: int, labels: NDArray[np.integer], density: NDArray[np.floating], seen: Field, most: int
) -> None:
    """Let an image's best units take the place of worse exemplars, which stand in heaps, the least probable first."""
    order = np.lexsort((-density.ravel(), labels.ravel()))
    starts = np.searchsorted(labels.ravel()[order], np.arange(len(layer.counts) + 1))
    for k in np.flatnonzero(np.diff(starts)):
        taken: list[tuple[int, int]] = []
        for unit in order[starts[k] : min(starts[k + 1], starts[k] + TRIED)]:
            row, column = divmod(int(unit), labels.shape[1])
            found, kept = Exemplar(float(density[row, column]), place, row, column), layer.exemplars[k]
            if len(kept) == most and found.log_density <= kept[0].log_density:
                break
            if all(_apart(seen, (row, column), other) for other in taken):
                (heapq.heappush if len(kept) < most else heapq.heapreplace)(kept, found)
                taken.append((row, column))
                if len(taken) == AN_IMAGE:
                    break


def _apart(seen: Field, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether the fields of two units have no pixel in common."""
    top, left, bottom, right = seen.box(*one)
    above, before, below, behind = seen.box(*other)
    return top >= below or above >= bottom or left >= behind or before >= right


def _overlap(one: NDArray[np.integer], other: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int64]:
    size = (max(one.shape[0], other.shape[0]), max(one.shape[1], other.shape[1]))
    pairs = enlarge(one, size).astype(np.int64) * shape[1] + enlarge(other, size)
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _at_most(labels: NDArray[np.integer], side: int) -> NDArray[np.integer]:
    """Return labels in the dtype that they need, reduced by nearest neighbour to at most `side` pixels a side."""
    scale = min(1.0, side / max(labels.shape))
    size = max(1, round(labels.shape[0] * scale)), max(1, round(labels.shape[1] * scale))
    return np.asarray(labels if scale == 1 else enlarge(labels, size))
