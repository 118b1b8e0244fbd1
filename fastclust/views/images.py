"""Cluster the images of a store, each one point, and write what the clusters are composed of.

Below a folder:

    model.h5                  the mixture (`fastclust.load`)
    projection.npz            mean (D,) and components (d, D): what the mixture sees is (point - mean) @ components.T
    clusters.csv              path, label, group, cluster and log-density, in nats, of each image
    composition.csv           a row a cluster: size, the nearest other one, purity, entropy, and images of each label
    composition.json          the same, and how clusters agree with labels and groups (`fastclust.views.composition`)
    cluster-KK.png            a cluster's images, the most probable first, with their labels
    contact.png               some images of every cluster, the largest first
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclust.atomic import write_json, written_aside
from fastclust.images import read_labels
from fastclust.labels import Progress, quiet
from fastclust.pipeline import new_folder
from fastclust.store import Store
from fastclust.views import contact
from fastclust.views.composition import OUTLIER_RULE, Agreement, agreement, outliers
from fastclust.views.points import Clustered, cluster_images
from fastclust.views.portrait import deviations, nearest

FILES = ("composition.json", "model.h5", "projection.npz", "clusters.csv", "composition.csv", "contact.png")
SHEET = re.compile(r"cluster-\d+\.png")
NAMED = 3  # labels that are named of a cluster


@dataclass(frozen=True)
class Composition:
    """A store's images in clusters, and how these agree with labels and groups; None where all have the same one.

    labels, groups: of each finished image. outliers: (K,) bool. near: by cluster, the nearest other one and its
    distance in deviations of the mixture, none where there is one cluster. unreadable: images that a sheet shows grey.
    remark: ", random weights (seed N)" where they are.
    """

    layer: str
    pool: str | None
    found: Clustered
    labels: list[str]
    groups: list[str]
    by_label: Agreement | None
    by_group: Agreement | None
    outliers: NDArray[np.bool_]
    near: dict[int, tuple[int, float]]
    unreadable: list[str]
    remark: str = ""

    @property
    def clusters(self) -> list[int]:
        """Clusters in use, the largest first."""
        sizes = self.found.sizes
        return [int(k) for k in np.argsort(-sizes, kind="stable") if sizes[k]]

    @property
    def agreements(self) -> dict[str, Agreement | None]:
        return {"label": self.by_label, "group": self.by_group}


def compose(
    store: Store,
    layer: str,
    out: Path,
    *,
    pool: str | None,
    parameters: dict[str, Any],
    pca: int | None = None,
    labels: Path | None = None,
    overwrite: bool = False,
    progress: Progress = quiet,
) -> Composition:
    """Cluster the finished images of a store and write what the module says below a folder.

    pool, parameters, pca: as of `fastclust.views.points.cluster_images`. labels: a CSV file, as of
    `fastclust.images.read_labels`, instead of the labels and groups in the store. Raises what these do, FileExistsError
    where results are in the way, unless they are to be replaced, and OSError.
    """
    check_free(out, overwrite)
    records = [store.images[index] for index in store.finished]
    pairs = [(record.label, record.group) for record in records]
    if labels is not None:
        pairs = read_labels([Path(record.path) for record in records], labels, [record.name for record in records])
    found = cluster_images(store, layer, pool, parameters, progress, pca=pca)
    named, grouped = [label for label, _ in pairs], [group for _, group in pairs]
    seed = int(parameters["random_state"])
    by_label = _compared(found, named, grouped, seed, "labels", progress)
    by_group = _compared(found, grouped, None, seed, "groups", progress)
    table, used = deviations(found.model), np.flatnonzero(found.sizes)
    near = {int(k): one for k in used for one in nearest(table, int(k), used, most=1)}
    with new_folder(out):
        shown = _ordered(found)
        images = contact.thumbnails(store, [place for places in shown.values() for place in places[: contact.MOST]])
        unreadable = [records[place].path for place, image in images.items() if image is None]
        seed = store.provenance["seed"]
        remark = f", random weights (seed {seed})" if store.provenance["weights"] == "random" else ""
        result = Composition(
            layer, pool, found, named, grouped, by_label, by_group, outliers(found.sizes), near, unreadable, remark
        )
        remove_results(out)
        found.model.save(out / "model.h5")
        _save_projection(found, out / "projection.npz")
        _write_rows(out / "clusters.csv", _cluster_rows(store, result))
        _write_rows(out / "composition.csv", _composition_rows(result))
        _draw(result, shown, images, out, progress)
        write_json(out / "composition.json", _about(store, result))
    return result


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder with results, unless they may be replaced, and a file in its place. Raises FileExistsError."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, and a folder is wanted there: name another with --out")
    there = [path.name for path in _results(out)]
    if there and not overwrite:
        raise FileExistsError(f"{out / there[0]} exists: --overwrite replaces it; or name another folder")


def remove_results(out: Path) -> None:
    """Remove what `compose` wrote, and no other file; composition.json, which is written last, first."""
    for path in _results(out):
        path.unlink()


def composed(agreement: Agreement, cluster: int) -> str:
    """Say what a cluster is composed of: the labels that most of its images have, with their shares."""
    counts = agreement.counts[cluster]
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    parts = [f"{agreement.values[i] or '(none)'} {counts[i] / counts.sum():.0%}" for i in order[:NAMED]]
    rest = f" and {len(order) - NAMED} more" if len(order) > NAMED else ""
    return ", ".join(parts) + rest


def _results(out: Path) -> list[Path]:
    if not out.is_dir():
        return []
    sheets = sorted(path for path in out.iterdir() if SHEET.fullmatch(path.name))
    return [path for path in (*(out / name for name in FILES), *sheets) if path.is_file()]


def _compared(
    found: Clustered, labels: list[str], groups: list[str] | None, seed: int, step: str, progress: Progress
) -> Agreement | None:
    """Return how clusters agree with labels; None where all have the same one, which tells nothing apart."""
    if len(set(labels)) < 2:
        return None
    several = groups if groups and len(set(groups)) > 1 else None

    def told(done: int, of: int) -> None:
        progress(f"permute {step}", done, of, "")

    progress(f"permute {step}", 0, None, "")
    return agreement(found.clusters, labels, groups=several, n_clusters=len(found.sizes), seed=seed, progress=told)


def _ordered(found: Clustered) -> dict[int, list[int]]:
    """Return the places of each cluster's images, the most probable first."""
    order = np.argsort(-found.log_own, kind="stable")
    return {int(k): [int(place) for place in order[found.clusters[order] == k]] for k in np.flatnonzero(found.sizes)}


def _draw(
    result: Composition,
    shown: dict[int, list[int]],
    images: dict[int, contact.Thumbnail],
    out: Path,
    progress: Progress,
) -> None:
    digits = max(2, len(str(len(result.found.sizes) - 1)))
    sections = {k: _section(result, k, shown[k]) for k in result.clusters}
    pages = {f"cluster-{k:0{digits}}.png": contact.sheet(section, images) for k, section in sections.items()}
    over = "" if result.pool is None else f", {result.pool} over places"
    title = f"{result.layer}{over}: {len(result.labels)} images in {len(sections)} clusters{result.remark}"
    pages["contact.png"] = contact.overview(title, list(sections.values()), images)
    for i, (name, page) in enumerate(pages.items()):
        progress("draw", i, len(pages), name)
        with written_aside(out / name, flush=False) as aside:
            page.save(aside, format="PNG")
    progress("draw", len(pages), len(pages), "")


def _section(result: Composition, k: int, places: Sequence[int]) -> contact.Section:
    remarks = [_images(len(places))]
    remarks += [f"{name}: {composed(one, k)}" for name, one in result.agreements.items() if one is not None]
    captions = []
    for place in places:
        parts = [
            values[place] or "(none)"
            for values, one in ((result.labels, result.by_label), (result.groups, result.by_group))
            if one is not None
        ]
        captions.append(" / ".join(parts))
    return contact.Section(f"cluster {k}", remarks, places, captions, "outlier cluster" if result.outliers[k] else "")


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n} images"


def _save_projection(found: Clustered, path: Path) -> None:
    if found.projection is not None:
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez(file, mean=found.projection.mean, components=found.projection.components)


def _write_rows(path: Path, rows: Iterator[list[Any]]) -> None:
    with (
        written_aside(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)


def _cluster_rows(store: Store, result: Composition) -> Iterator[list[Any]]:
    yield ["path", "label", "group", "cluster", "log_density"]
    columns = (store.finished, result.labels, result.groups, result.found.clusters, result.found.log_density)
    for index, label, group, cluster, density in zip(*columns, strict=True):
        yield [store.images[index].path, label, group, int(cluster), float(density)]


def _composition_rows(result: Composition) -> Iterator[list[Any]]:
    known = {name: one for name, one in result.agreements.items() if one is not None}
    header = ["cluster", "images", "outlier", "nearest", "distance"]
    for name, one in known.items():
        header += [f"{name} purity", f"{name} entropy", *(f"{name}={value}" for value in one.values)]
    yield header
    for k in result.clusters:
        cells: list[Any] = [k, int(result.found.sizes[k]), int(result.outliers[k]), *result.near.get(k, ("", ""))]
        for one in known.values():
            cells += [float(one.purities[k]), float(one.entropies[k]), *one.counts[k].tolist()]
        yield cells


def _about(store: Store, result: Composition) -> dict[str, Any]:
    """Return what composition.json holds."""
    model, record = result.found.model, store.layer(result.layer)
    provenance, seen = store.provenance, result.found.projection
    return {
        "model": provenance["model"],
        "weights": provenance["weights"],
        "weights_source": provenance["weights_source"],
        "layer": result.layer,
        "node": record.node,
        "pool": result.pool,
        "images": len(result.labels),
        "features": record.n_features,
        "principal_components": None if seen is None else {"kept": len(seen.components), "variance": seen.share},
        "mixture": {name: value for name, value in model.get_params().items() if name not in ("device", "backend")},
        "clusters_in_use": len(result.clusters),
        "passes": int(model.n_iter_),
        "converged": bool(model.converged_),
        "lower_bound_per_image": float(model.lower_bound_),
        "entropies": "nats",
        "outlier_rule": OUTLIER_RULE,
        **{name: None if one is None else one.about() for name, one in result.agreements.items()},
        "clusters": [
            {
                "cluster": k,
                "images": int(result.found.sizes[k]),
                "outlier": bool(result.outliers[k]),
                "nearest": dict(zip(("cluster", "distance"), result.near.get(k, ()), strict=False)) or None,
                **{name: _part(one, k) for name, one in result.agreements.items()},
            }
            for k in result.clusters
        ],
    }


def _part(one: Agreement | None, k: int) -> dict[str, Any] | None:
    if one is None:
        return None
    counts = {value: int(count) for value, count in zip(one.values, one.counts[k], strict=True) if count}
    return {"purity": float(one.purities[k]), "entropy": float(one.entropies[k]), "counts": counts}
