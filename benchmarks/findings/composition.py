"""Clusters of images against their classes: CIFAR-10 through squeezenet1_0, by layer and pooling, learned and random.

The images are FASTCLUST_DATA's, 60 of each class, resized to the network's 224 pixels; ImageNet's there are of a class
each, which leaves nothing to compare with. A case is a layer, how its maps become points, and the weights; a seed is
that of the fit's start, and of the weights where they are random. Each fit sees the principal components that
`fastclust images` keeps; how many clusters a fit to all features finds is recorded beside it, and the indices of
scikit-learn's k-means of the same components with as many clusters. Of the 9,999 tables of the permutation test the
mean purity is kept as well: purity rises with the number of clusters, whatever these are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from benchmarks.timing import short
from fastclust.extract import extract
from fastclust.store import Store, open_store
from fastclust.views.composition import PERMUTATIONS, agreement, drawn
from fastclust.views.points import cluster_images, image_points

MODEL, SIZE = "squeezenet1_0", 224
POINTS: tuple[tuple[str, str | None], ...] = (
    ("features.3.cat", "mean"),
    ("features.3.cat", "max"),
    ("features.7.cat", "mean"),
    ("features.7.cat", "max"),
    ("features.12.cat", "mean"),
    ("features.12.cat", "max"),
    ("flatten", None),
)
SHOWN = {"features.3.cat": "fire2", "features.7.cat": "fire5", "features.12.cat": "fire9", "flatten": "classifier"}
SEEDS = range(5)
MIXTURE = {"n_components": 50, "weight_concentration_prior": 0.1, "feature_range": (0.0, 10.0)}
MEASURES = (
    "clusters",
    "purity",
    "chance",
    "adjusted_rand",
    "mutual_information",
    "p_rand",
    "p_information",
    "kmeans_rand",
    "kmeans_information",
    "whole",
)


def run() -> list[dict[str, Any]]:
    """Return the record of each case on the images and weights in the folder that FASTCLUST_DATA names."""
    data = Path(os.environ["FASTCLUST_DATA"])
    records = {}
    for weights in ("learned", "random"):
        for layer, pool in POINTS:
            name = f"{layer} {pool or 'rows'} {weights}"
            case: dict[str, Any] = {"name": name, "model": MODEL, "size": SIZE, "layer": layer, "pool": pool}
            case |= {"weights": weights, "permutations": PERMUTATIONS, "seeds": [], "components": [], "variance": []}
            records[name] = case | {measure: [] for measure in MEASURES}
    with tempfile.TemporaryDirectory() as scratch:
        learned = _extracted(data, str(data / "weights" / f"{MODEL}.pth"), 0, Path(scratch) / "learned.h5")
        for seed in SEEDS:
            _measure(learned, "learned", seed, records)
        for seed in SEEDS:
            store = _extracted(data, "random", seed, Path(scratch) / "random.h5")
            _measure(store, "random", seed, records)
    return list(records.values())


def _extracted(data: Path, weights: str, seed: int, path: Path) -> Store:
    layers = list(dict.fromkeys(layer for layer, _ in POINTS))
    images = [data / "images" / "cifar10"]
    extract(images, out=path, model=MODEL, layers=layers, weights=weights, size=SIZE, seed=seed, overwrite=True)
    return open_store(path)


def _measure(store: Store, weights: str, seed: int, records: dict[str, dict[str, Any]]) -> None:
    """Add what one seed finds in each layer of a store."""
    labels = [store.images[index].label for index in store.finished]
    for layer, pool in POINTS:
        record = records[f"{layer} {pool or 'rows'} {weights}"]
        found = cluster_images(store, layer, pool, MIXTURE | {"random_state": seed})
        whole = cluster_images(store, layer, pool, MIXTURE | {"random_state": seed}, pca=0)
        compared = agreement(found.clusters, labels, seed=seed)
        used = compared.counts[compared.counts.any(axis=1)]
        chance = np.mean([tables.max(axis=2).sum(axis=1).mean() for tables in drawn(used, PERMUTATIONS, seed)])
        points = image_points(store, layer, pool)
        points = points if found.projection is None else found.projection(points)
        peer = KMeans(len(used), n_init=10, random_state=seed).fit_predict(points)
        record |= {"images": len(labels), "classes": len(compared.values), "features": store.layer(layer).n_features}
        record["seeds"].append(seed)
        record["components"].append(0 if found.projection is None else len(found.projection.components))
        record["variance"].append(1.0 if found.projection is None else short(found.projection.share))
        values = (
            len(used),
            short(compared.purity),
            short(float(chance) / len(labels)),
            short(compared.adjusted_rand),
            short(compared.mutual_information),
            compared.p_rand,
            compared.p_information,
            short(float(adjusted_rand_score(labels, peer))),
            short(float(normalized_mutual_info_score(labels, peer))),
            int(np.count_nonzero(whole.sizes)),
        )
        for measure, value in zip(MEASURES, values, strict=True):
            record[measure].append(value)
        print(f"{record['name']}, seed {seed}: {dict(zip(MEASURES, values, strict=True))}", flush=True)


def tables(record: dict[str, Any]) -> str:
    """Return the Markdown of the page's table."""
    first = record["cases"][0]
    about = (
        f"{first['images']} images of CIFAR-10, {first['classes']} classes, through {first['model']} at "
        f"{first['size']} pixels; {first['components'][0]} principal components, at most 50 clusters, alpha 0.1, diag. "
        f"Medians of {len(first['seeds'])} seeds, smallest and largest in brackets; p is the largest of the seeds', of "
        f"{first['permutations']:,} permutations. {record['machine']['cpu']}; commit "
        f"{(record['commit'] or 'unknown')[:12]}, {record['date']}."
    )
    header = ["layer", "pool", "weights", "variance", "clusters", "purity", "by chance", "adjusted Rand index", "p"]
    header += ["mutual information", "p", "k-means: Rand", "information", "clusters of all features"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(_row(case))} |" for case in record["cases"]]
    return f"{about}\n\n" + "\n".join(lines)


def _row(case: dict[str, Any]) -> Iterator[str]:
    yield from (SHOWN[case["layer"]], case["pool"] or "", case["weights"], f"{np.median(case['variance']):.0%}")
    yield _spread(case["clusters"], "g")
    yield _spread(case["purity"], ".2f")
    yield f"{np.median(case['chance']):.2f}"
    yield _spread(case["adjusted_rand"], ".3f")
    yield f"{max(case['p_rand']):.4f}"
    yield _spread(case["mutual_information"], ".2f")
    yield f"{max(case['p_information']):.4f}"
    yield _spread(case["kmeans_rand"], ".3f")
    yield _spread(case["kmeans_information"], ".2f")
    yield _spread(case["whole"], "g")


def _spread(values: list[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{np.median(values):{form}}" + ("" if low == high else f" ({low:{form}} to {high:{form}})")
