"""Does it transfer: how much of the features of a layer of one store looks like another's.

A mixture with density p is fitted to the rows of some of A's images; the others are held out. The split is by image,
since the rows of an image are much alike. Let q be the 1 % quantile of ln p over all rows of A's held-out images. A row
x of B is

    of A's clusters     ln p(x) >= q
    far                 ln p(x) < q: less probable than 99 % of the rows of images that the mixture has not seen

Far rows may be alike among themselves. So B's images are halved at random, a mixture with density p' is fitted to the
far rows of one half, in A's units, and a far row of the other half is

    of a new cluster    ln p'(x) >= q: as probable in clusters found in other images of B as A's rows are in A's
    far from all        ln p'(x) < q

and the same with the halves exchanged, so that every far row is judged by clusters that its image had no part in. A
half with fewer than FEWEST far rows has no new clusters; in a B of one image new clusters cannot be told.

Images differ, so of held-out images one by one more or less than 1 % of the rows are far. B stops looking like A at the
first layer where B's median image has more far rows than any held-out image of A. The separation needs no threshold:
it is the probability that a row of B is less probable under p than a row of a held-out image of A, 0.5 where the two
are alike, ties counting half; below that B is more probable than A, as flat pictures are. Density says nothing of which
clusters are used. The usage does: half the sum over clusters of |share of B's rows - share of A's held-out rows|, by
each row's most probable cluster, far or not: 0 where B uses A's clusters as A does, 1 where it uses others of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from fastclust.estimator import DPGMM
from fastclust.fitted import FittedMixture
from fastclust.labels import Progress, check_finished, check_layer, quiet
from fastclust.layer_fit import fit_layer
from fastclust.parts import let_go
from fastclust.store import PENDING, LayerRecord, Store

QUANTILE = 0.01  # of the rows of A's held-out images are far
FEWEST = 100  # far rows in a half of B's images that new clusters are looked for in
MOST = 50_000  # far rows that new clusters are fitted to, and up to one an image more


@dataclass(frozen=True)
class Reference:
    """A mixture of a layer of A, and the rows of images that it was not fitted to.

    scores: ln density of all rows of the held-out images, in nats, ascending (n,) float32. far: share of each held-out
    image's rows that are far (n_images,). threshold: q, in nats. shares: of the held-out rows, by cluster (K,).
    """

    layer: LayerRecord
    model: FittedMixture
    scores: NDArray[np.float32]
    far: NDArray[np.float64]
    threshold: float
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Transfer:
    """How B's rows of a layer look to A's mixture; shares are of rows, densities in nats a row.

    clusters: of A in use. log_density_a, log_density_b: means over the held-out rows of A, and over B's. far_a, far_b:
    share of each image's rows that are far. far: of all of B's rows. new: share of all of B's rows that are of new
    clusters, None where that cannot be told. separation, usage: see the module. shares_a, shares_b: by cluster of A.
    """

    layer: str
    clusters: int
    converged: bool
    threshold: float
    log_density_a: float
    log_density_b: float
    far_a: list[float]
    far_b: list[float]
    far: float
    new: float | None
    separation: float
    usage: float
    shares_a: list[float]
    shares_b: list[float]


def part_of(store: Store, places: Sequence[int] | NDArray[np.int64]) -> Store:
    """Return a store as if of its finished images only those at some places were done."""
    kept = {int(store.finished[place]) for place in places}
    images = [image if index in kept else replace(image, state=PENDING) for index, image in enumerate(store.images)]
    return replace(store, images=images)


def fit_reference(
    a: Store,
    layer: str,
    mixture: dict[str, Any],
    *,
    held_out: float = 0.5,
    sample: int | None = None,
    progress: Progress = quiet,
) -> Reference:
    """Fit a mixture to a layer of some of A's images, drawn under its random_state, and score the others.

    Raises ValueError where A has fewer than two finished images, and as `fastclust.pipeline.fit_layer`.
    """
    check_finished(a)
    n_images = len(a.finished)
    if n_images < 2:
        raise ValueError(
            f"{a.path} has 1 finished image: at least 2 are needed, one to fit to and one to hold out; or give models "
            "of other images with --models"
        )
    order = np.random.default_rng(mixture.get("random_state")).permutation(n_images)
    n_held = min(max(1, round(held_out * n_images)), n_images - 1)
    model, _ = fit_layer([part_of(a, order[n_held:])], layer, mixture, progress, sample=sample)
    return given_reference(part_of(a, order[:n_held]), layer, model, progress)


def given_reference(held: Store, layer: str, model: FittedMixture, progress: Progress = quiet) -> Reference:
    """Score the rows of images that a mixture was not fitted to. Raises ValueError as `check_layer`."""
    check_finished(held)
    record = held.layer(layer)
    check_layer(held, record, model)
    per_image, counts = [], np.zeros(len(model.counts_), dtype=np.int64)
    for place, index in enumerate(held.finished):
        progress(f"hold out {layer}", place, len(held.finished), held.images[index].name)
        scores, used = read_rows(held, record, int(index), model)
        per_image.append(scores)
        counts += used
    progress(f"hold out {layer}", len(held.finished), len(held.finished), "")
    scores = np.sort(np.concatenate(per_image))
    threshold = float(np.quantile(scores, QUANTILE))
    far = np.array([(one < threshold).mean() for one in per_image])
    return Reference(record, model, scores, far, threshold, counts / counts.sum())


def read_rows(
    store: Store, record: LayerRecord, index: int, model: FittedMixture
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return ln density of an image's rows, in nats, (n,), and how many rows each cluster wins (K,).

    Raises ValueError for a feature that is not finite.
    """
    rows = store.image_rows(record.name, index).reshape(-1, record.n_features)
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{store.path}: {record.name} of image {store.images[index].path} has NaN or infinite features: extract "
            "anew"
        )
    scores = np.asarray(model.score_samples(rows), dtype=np.float32)
    used = np.bincount(np.asarray(model.predict(rows)), minlength=len(model.counts_))
    let_go(rows, 0, len(rows))
    return scores, used


def transfer(
    reference: Reference,
    b: Store,
    mixture: dict[str, Any],
    *,
    sample: int | None = None,
    progress: Progress = quiet,
) -> Transfer:
    """Hold B's rows of a layer against A's; mixture: of DPGMM, for new clusters.

    Raises ValueError where B's layer is not that of the mixture, or no image of B is finished.
    """
    check_finished(b)
    record = b.layer(reference.layer.name)
    check_layer(b, record, reference.model)
    n_images, scores, far = len(b.finished), reference.scores, list[NDArray[np.int64]]()
    total = below = 0.0
    counts = np.zeros(len(reference.shares), dtype=np.int64)
    for place, index in enumerate(b.finished):
        found, used = read_rows(b, record, int(index), reference.model)
        counts += used
        total += float(found.sum(dtype=np.float64))
        less = (np.searchsorted(scores, found, "left") + np.searchsorted(scores, found, "right")) / 2
        below += float((1 - less / len(scores)).sum())
        far.append(np.flatnonzero(found < reference.threshold))
        progress(f"compare {record.name}", place, n_images, b.images[index].name)
    sizes = record.shapes[b.finished].prod(axis=1)
    new = _new_rows(reference, b, far, mixture, max(FEWEST, min(sample or MOST, MOST)))
    n_rows = int(sizes.sum())
    shares = counts / n_rows
    return Transfer(
        layer=record.name,
        clusters=int(reference.model.n_active_),
        converged=bool(reference.model.converged_),
        threshold=reference.threshold,
        log_density_a=float(scores.mean(dtype=np.float64)),
        log_density_b=total / n_rows,
        far_a=reference.far.tolist(),
        far_b=[len(one) / int(size) for one, size in zip(far, sizes, strict=True)],
        far=sum(map(len, far)) / n_rows,
        new=None if new is None else new / n_rows,
        separation=below / n_rows,
        usage=float(np.abs(shares - reference.shares).sum() / 2),
        shares_a=reference.shares.tolist(),
        shares_b=shares.tolist(),
    )


def _new_rows(
    reference: Reference, b: Store, far: Sequence[NDArray[np.int64]], mixture: dict[str, Any], most: int
) -> int | None:
    """Count the far rows of B that are of new clusters, None where B has one image; far: which rows, image by image."""
    if len(far) < 2:
        return None
    random = np.random.default_rng(mixture.get("random_state"))
    halves = np.array_split(random.permutation(len(far)), 2)
    found = 0
    for fitted_to, judged in (halves, halves[::-1]):
        n_far = sum(len(far[place]) for place in fitted_to)
        if n_far < FEWEST:
            continue
        share = min(1.0, most / n_far)
        drawn = {
            place: np.sort(random.choice(far[place], math.ceil(share * len(far[place])), replace=False))
            for place in fitted_to
        }
        rows = np.concatenate([_mapped(reference, b, place, index) for place, index in drawn.items()])
        components = min(mixture.get("n_components", 50), len(rows) // 2)
        model = DPGMM(**mixture | {"feature_range": None, "n_components": components})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows)
        for place in judged:
            if len(far[place]):
                scores = model.score_samples(_mapped(reference, b, place, far[place]))
                found += int((scores >= reference.threshold).sum())
    return found


def _mapped(reference: Reference, b: Store, place: int, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return some rows of an image in the units of A's mixture (n, D)."""
    rows = b.image_rows(reference.layer.name, int(b.finished[place])).reshape(-1, reference.layer.n_features)
    chosen = rows[index].astype(np.float32)
    let_go(rows, 0, len(rows))
    return (chosen - np.float32(reference.model.feature_offset_)) * np.float32(reference.model.feature_scale_)


def stops_at(found: Sequence[Transfer]) -> str | None:
    """Return the first layer where B's median image has more far rows than any held-out image of A, if there is one."""
    return next((one.layer for one in found if np.median(one.far_b) > max(one.far_a)), None)
