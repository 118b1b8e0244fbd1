"""Images as points: each image's row of a dense layer, or its map of a convolutional layer pooled over its places.

Points of many features are projected on the first of their principal components before a mixture is fitted. Under the
Gauss-Wishart prior of `fastclust.DPGMM`, whose degrees of freedom are D, a cluster of n points in D dimensions pays

    1/2 sum_i (ln((n + D) / 2) - psi((n + i) / 2)),  i = 1 ... D,  about D^2 / 4n nats a point

for not knowing its variances. With thousands of features and hundreds of images that outweighs all but the plainest
structure, and one cluster takes all. So as many components are kept as let a cluster of a tenth of N images pay 0.1
nats:

    D = sqrt(N / 25), at least 2

Maps and points are read a block at a time and let go. Points that are not a store's own stand in temporary files that
are mapped into memory, so memory does not grow with the number of images.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA
from sklearn.exceptions import ConvergenceWarning

from fastclust.arrays import host
from fastclust.estimator import DPGMM
from fastclust.fitted import FittedMixture
from fastclust.labels import Progress, check_finished, quiet, source_of
from fastclust.parts import let_go
from fastclust.store import Store

VALUES = 2**22  # features in memory at a time
POOLS = ("mean", "max")  # of each channel, over the places of a map

Points = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """The first d principal components of points: mean (D,), components (d, D) and the share of the variance in them.

    Of as many points as fit into a few megabytes it is exact; of more, scikit-learn's incremental one.
    """

    mean: Floats
    components: Floats
    share: float

    def __call__(self, points: Points) -> Floats:
        """Return points (n, D) in these components: (n, d)."""
        return np.asarray((points - self.mean) @ self.components.T, dtype=np.float64)


@dataclass(frozen=True)
class Clustered:
    """The finished images of a store as points, and the clusters of a mixture that was fitted to them.

    clusters: (n,) int64, the most probable component of each. log_density: (n,) ln of the mixture's density, in nats,
    in the units of the mixture. log_own: (n,) ln of the cluster's weight times its density. projection: what the
    mixture saw the points through, None where it saw the points themselves.
    """

    model: FittedMixture
    projection: Projection | None
    clusters: NDArray[np.int64]
    log_density: Floats
    log_own: Floats

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Images of each component: (K,) int64."""
        return np.bincount(self.clusters, minlength=len(self.model.weights_))


def image_points(store: Store, layer: str, pool: str | None, progress: Progress = quiet) -> Points:
    """Return the points of a store's finished images, in order: (n, D), mapped from a file.

    pool: how the maps of a convolutional layer become points, of POOLS; None for a dense layer.
    Raises ValueError where no image is finished, the layer is not there, or `pool` does not go with it.
    """
    check_finished(store)
    record = store.layer(layer)
    if record.kind == "dense":
        if pool is not None:
            raise ValueError(f"{layer} is dense, a row an image: --pool is for convolutional layers, leave it out")
        rows = store.rows(layer)
        if len(rows) == 1:
            return rows[0]
    elif pool not in POOLS:
        height, width = record.shapes[store.finished[0]]
        raise ValueError(
            f"{layer} is convolutional, with a map of {height} x {width} places for an image: say with --pool mean or "
            f"--pool max how to make one point of it{'' if pool is None else f', not {pool!r}'}"
        )
    points = _scratch(len(store.finished), record.n_features)
    for place, index in enumerate(store.finished):
        progress(f"pool {layer}", place, len(points), "")
        points[place] = pooled(store.image_rows(layer, int(index)), pool or "mean")
        let_go(points, place, place + 1)
    progress(f"pool {layer}", len(points), len(points), "")
    return points


def pooled(features: NDArray[Any], pool: str) -> Floats:
    """Return the mean, summed in float64, or the largest value of each channel of a map (h, w, D): (D,)."""
    rows = features.reshape(-1, features.shape[-1])
    found = np.full(rows.shape[1], 0.0 if pool == "mean" else -np.inf)
    for low, block in _blocks(rows):
        if pool == "mean":
            found += block.sum(axis=0, dtype=np.float64)
        else:
            np.maximum(found, block.max(axis=0), out=found)
        let_go(rows, low, low + len(block))
    return found / len(rows) if pool == "mean" else found


def principal_components(n_images: int, n_features: int) -> int:
    """Return how many principal components of points to keep, by the rule above, and no more than there are."""
    return min(n_features, n_images - 1, max(2, math.isqrt(n_images // 25)))


def project(points: Points, n_components: int) -> tuple[Projection, Points]:
    """Return the first principal components of points (n, D), and the points in them, (n, n_components) float32.

    Raises ValueError for more components than features, or than points but one, and for a feature that is NaN or
    infinite.
    """
    n, d = points.shape
    if not 1 <= n_components <= min(n - 1, d):
        raise ValueError(
            f"{n_components} principal components of {n} images of {d} features: --pca can be at most {min(n - 1, d)}; "
            "0 is for the features themselves"
        )
    found = IncrementalPCA(n_components)
    for low, block in _blocks(points, n_components):
        values = np.asarray(block, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("features are NaN or infinite: extract anew")
        with np.errstate(invalid="ignore"):  # points that are all the same have no variance to share
            found.partial_fit(values)
        let_go(points, low, low + len(block))
    projection = Projection(found.mean_, found.components_, float(np.nan_to_num(found.explained_variance_ratio_).sum()))
    projected = _scratch(n, n_components)
    for low, block in _blocks(points):
        projected[low : low + len(block)] = projection(block)
        let_go(points, low, low + len(block))
    return projection, projected


def cluster_images(
    store: Store,
    layer: str,
    pool: str | None,
    parameters: dict[str, Any],
    progress: Progress = quiet,
    *,
    pca: int | None = None,
) -> Clustered:
    """Fit a mixture to a store's finished images as points, and find the cluster of each.

    parameters: of DPGMM, with n_components None for 50, or as many as there are images where these are fewer. pca: the
    principal components that are kept, 0 for the features themselves, None for the rule of the module.
    Raises ValueError as `image_points` and `project`, where there is one image, or fewer than components, and for a
    feature that is NaN or infinite.
    """
    record, n_images = store.layer(layer), len(store.finished)
    check_finished(store)
    if n_images < 2:
        raise ValueError(f"{store.path} has features of one image: clusters of images need two or more")
    components = parameters["n_components"] or min(50, n_images)
    if n_images < components:
        raise ValueError(
            f"{layer} has {n_images} images, each a point, and the mixture {components} components: use fewer "
            f"components (--components {n_images}) or more images"
        )
    points = image_points(store, layer, pool, progress)
    kept = principal_components(*points.shape) if pca is None else pca
    projection = None
    if kept and (pca is not None or kept < record.n_features):
        progress(f"project {layer}", 0, 1, f"{kept} principal components")
        projection, points = project(points, kept)
        progress(f"project {layer}", 1, 1, "")
    model = DPGMM(**parameters | {"n_components": components})

    def on_pass(n_pass: int, bound: float, change: float) -> None:
        progress(f"fit {layer}", n_pass, model.max_iter, f"bound {bound:.4f} ({change:+.1e}) nats an image")

    progress(f"fit {layer}", 0, model.max_iter, f"start: {model.init_params}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # converged_ says so
        model.fit(points, on_pass=on_pass)
    # Of points that are not the layer's own rows it is no model of the layer, and `label` is to refuse it.
    steps = [record.node, *([f"{pool} over places"] if pool else []), *([f"{kept} components"] if projection else [])]
    model.source_ = source_of(store, record) | {"node": ", ".join(steps)}
    progress(f"fit {layer}", model.n_iter_, model.n_iter_, f"{model.n_active_} clusters in use")
    return Clustered(model, projection, *assign(model, points))


def assign(model: FittedMixture, points: Points) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return the cluster of each point (n, d), its log-density, and ln of its cluster's weight times density: (n,)."""
    clusters, density, own = [], [], []
    for low, block in _blocks(points):
        labels = np.asarray(host(model.predict(block)), dtype=np.int64)
        won = host(model.predict_proba(block))[np.arange(len(block)), labels]
        density.append(np.asarray(host(model.score_samples(block)), dtype=np.float64))
        own.append(density[-1] + np.log(won))  # p(x, k) = p(x) p(k | x)
        clusters.append(labels)
        let_go(points, low, low + len(block))
    return np.concatenate(clusters), np.concatenate(density), np.concatenate(own)


def _scratch(n: int, d: int) -> NDArray[np.float32]:
    """Return an array (n, d) in a temporary file, which goes with it."""
    with tempfile.TemporaryFile() as file:  # the map keeps the file
        mapped: NDArray[np.float32] = np.memmap(file, np.float32, "w+", shape=(n, d))
    return mapped


def _blocks(rows: Points, least: int = 1) -> Iterator[tuple[int, Points]]:
    """Yield rows (n, D) in blocks of nearly the same size, none of fewer than `least`, each with its first row."""
    n = max(1, min(math.ceil(rows.size / VALUES), len(rows) // least))
    edges = np.linspace(0, len(rows), n + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield low, rows[low:high]
