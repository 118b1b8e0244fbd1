"""Label images as segmentations, against people: the 40 validation images of BSDS500 and their annotators.

Images are halved to 241 x 161 pixels and go through the network as large as they are; annotations are brought to that
size by nearest neighbour, and so are label images. One model of a layer labels all images. A label image is smoothed by
a majority filter of several sides and cut into connected regions (`benchmarks.findings.segments`). All sides are
recorded, and the one that is best over the data set (as an "optimal data set scale": chosen on these same images).

Methods, on the same rows, drawn evenly over the images, and the same seeds:

    fastclust       DPGMM, at most COMPONENTS clusters, of the features
    k-means         scikit-learn's KMeans with as many clusters as fastclust's fit has in use
    scikit-learn    BayesianGaussianMixture with the parameters and the mapped rows of fastclust's fit
    random          DPGMM of the features of the same network with random weights, another for each seed

The layer "input" is the pixels' colours, without a network.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from benchmarks.findings import segments
from benchmarks.findings.segments import Counts
from benchmarks.timing import short, spread
from fastclust import DPGMM
from fastclust.extract import extract
from fastclust.picture import enlarge
from fastclust.store import open_store

MODEL, WEIGHTS = "vgg19", "vgg19_conv1_1-conv3_1.pth"
LAYERS = ("relu1_2", "relu2_2", "relu3_1")
INPUT = "input"
SEEDS = range(5)
SIDES = (1, 7, 31, 61)  # of the majority filter, pixels
ROWS, COMPONENTS, ALPHA, TOL, MAX_ITER = 20_000, 50, 0.2, 1e-3, 200
METHODS = ("fastclust", "k-means", "scikit-learn", "random")
MEASURES = {"covering": max, "variation": min, "f_near": max}  # and which of two sides is better

Features = list[NDArray[Any]]
Predict = Callable[[NDArray[Any]], NDArray[Any]]


def run() -> list[dict[str, Any]]:
    """Return a case for each layer and method, for people among themselves, and for an image as one region."""
    data = Path(os.environ["FASTCLUST_DATA"])
    folder = data / "images" / "bsds500"
    with tempfile.TemporaryDirectory() as scratch:
        images, truths = halved(sorted((folder / "val").iterdir()), folder / "ground_truth", Path(scratch) / "images")
        cases = [people(truths), one_region(truths)]
        for case in cases:
            print(line(case), flush=True)
        learned = features(images, data / "weights" / WEIGHTS, 0, Path(scratch) / "learned.h5")
        learned |= {INPUT: [np.asarray(Image.open(path), dtype=np.float32) for path in images]}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for seed in SEEDS:
            untrained = features(images, "random", seed, Path(scratch) / f"random-{seed}.h5")
            for layer in (INPUT, *LAYERS):
                for method, one in seeds_runs(learned[layer], untrained.get(layer), truths, seed):
                    found.setdefault((layer, method), []).append(one)
                    print(layer, method, seed, one["clusters"], one["best"], flush=True)
        for (layer, method), runs in found.items():
            cases.append(summarised(layer, method, runs, len(images)))
            print(line(cases[-1]), flush=True)
    return cases


def halved(photographs: Sequence[Path], ground_truth: Path, out: Path) -> tuple[list[Path], list[list[Any]]]:
    """Write photographs at half their size, and read the annotations of each at that size."""
    out.mkdir(parents=True)
    images, truths = [], []
    for path in photographs:
        with Image.open(path) as image:
            small = image.convert("RGB").resize(
                ((image.width + 1) // 2, (image.height + 1) // 2), Image.Resampling.LANCZOS
            )
        small.save(out / f"{path.stem}.png")
        images.append(out / f"{path.stem}.png")
        truths.append(segments.read_truths(ground_truth / f"{path.stem}.mat", (small.height, small.width)))
    return images, truths


def features(images: Sequence[Path], weights: str | Path, seed: int, out: Path) -> dict[str, Features]:
    """Extract all layers; return each image's features (h, w, D), by layer."""
    extract(images, out=out, model=MODEL, layers=LAYERS, weights=weights, size="full", seed=seed, workers=0)
    store = open_store(out)
    return {layer: [store.image_rows(layer, int(index)) for index in store.finished] for layer in LAYERS}


def seeds_runs(
    learned: Features, untrained: Features | None, truths: Sequence[Any], seed: int
) -> list[tuple[str, dict[str, Any]]]:
    """Fit each method to one layer under a seed, and measure its label images; untrained: None where there are none."""
    rows = draw(learned, seed)
    model, predict = fit(rows, seed)
    clusters = int(model.n_active_)
    found = [("fastclust", measured(learned, predict, clusters, truths))]
    mapped = ((rows - model.feature_offset_) * model.feature_scale_).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = KMeans(clusters, n_init=1, random_state=seed).fit(mapped)
        found.append(("k-means", measured(learned, mapping(model, theirs.predict), clusters, truths)))
        if untrained is None:
            return found
        bayes = BayesianGaussianMixture(
            n_components=min(COMPONENTS, len(rows)),
            covariance_type="diag",
            weight_concentration_prior=ALPHA,
            tol=TOL * len(rows),  # its bound is a sum over rows
            max_iter=MAX_ITER,
            random_state=seed,
        ).fit(mapped)
    used = len(np.unique(bayes.predict(mapped)))
    found.append(("scikit-learn", measured(learned, mapping(model, bayes.predict), used, truths)))
    model, predict = fit(draw(untrained, seed), seed)
    found.append(("random", measured(untrained, predict, int(model.n_active_), truths)))
    return found


def draw(images: Features, seed: int) -> NDArray[np.float32]:
    """Draw ROWS rows (n, D), or all where there are fewer, evenly over the images."""
    random = np.random.default_rng(seed)
    each = -(-ROWS // len(images))
    parts = []
    for image in images:
        rows = image.reshape(-1, image.shape[2])
        chosen = np.sort(random.choice(len(rows), min(each, len(rows)), replace=False))
        parts.append(rows[chosen].astype(np.float32))
    return np.concatenate(parts)


def fit(rows: NDArray[np.float32], seed: int) -> tuple[DPGMM, Predict]:
    """Fit ours; return the model, and what labels unmapped rows."""
    model = DPGMM(
        n_components=min(COMPONENTS, len(rows)),
        weight_concentration_prior=ALPHA,
        feature_range=(0, 10),
        tol=TOL,
        max_iter=MAX_ITER,
        random_state=seed,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    return model, model.predict


def mapping(model: DPGMM, predict: Predict) -> Predict:
    """Return what labels unmapped rows by a model of mapped ones."""
    offset, scale = np.float32(model.feature_offset_), np.float32(model.feature_scale_)
    return lambda rows: predict((rows.astype(np.float32) - offset) * scale)


def measured(images: Features, predict: Predict, clusters: int, truths: Sequence[Any]) -> dict[str, Any]:
    """Label all images and hold them against all annotators, at every side of the filter.

    Returns the number of clusters, by measure the mean over images at each side, and at the best side for boundaries
    the one-to-one F.
    """
    coverings, variations = np.zeros((len(SIDES), len(images))), np.zeros((len(SIDES), len(images)))
    counts, numbers = [Counts() for _ in SIDES], np.zeros(len(SIDES))
    edges = list[list[Any]]([[] for _ in SIDES])
    theirs = [[segments.boundary(truth) for truth in people] for people in truths]
    for place, (image, people) in enumerate(zip(images, truths, strict=True)):
        size = people[0].shape
        small = np.asarray(predict(image.reshape(-1, image.shape[2]))).reshape(image.shape[:2])
        labels = enlarge(small.astype(np.uint8), size).astype(np.uint8)
        distance = segments.TOLERANCE * float(np.hypot(*size))
        reached = [segments.reach(edge, distance) for edge in theirs[place]]
        for at, side in enumerate(SIDES):
            found = segments.regions(labels, side)
            numbers[at] += found.max() / len(images)
            coverings[at, place], variations[at, place] = against(people, found)
            edge = segments.boundary(found)
            counts[at] += segments.near(edge, theirs[place], reached, distance)
            edges[at].append(edge)
    sides: dict[str, Any] = {
        "covering": coverings.mean(axis=1).tolist(),
        "variation": variations.mean(axis=1).tolist(),
        "f_near": [count.f for count in counts],
        "regions": numbers.tolist(),
    }
    best = {name: SIDES[sides[name].index(better(sides[name]))] for name, better in MEASURES.items()}
    exact = Counts()
    for edge, truth in zip(edges[SIDES.index(best["f_near"])], theirs, strict=True):
        exact += segments.one_to_one(edge, truth, segments.TOLERANCE * float(np.hypot(*edge.shape)))
    near = counts[SIDES.index(best["f_near"])]
    return {
        "clusters": clusters,
        "sides": sides,
        "best": {name: better(sides[name]) for name, better in MEASURES.items()} | {"f_one_to_one": exact.f},
        "best_side": best,
        "precision_recall_near": [near.precision, near.recall],
        "precision_recall_one_to_one": [exact.precision, exact.recall],
    }


def summarised(layer: str, method: str, runs: Sequence[dict[str, Any]], images: int) -> dict[str, Any]:
    """Return the case of a layer and a method: medians and ranges over seeds, of the best side and of every side."""
    return {
        "name": f"{layer} {method}",
        "kind": "method",
        "layer": layer,
        "method": method,
        "images": images,
        "seeds": len(runs),
        "clusters": spread([one["clusters"] for one in runs]),
        "best": {name: spread([one["best"][name] for one in runs]) for name in runs[0]["best"]},
        "best_side": {name: [one["best_side"][name] for one in runs] for name in MEASURES},
        "sides": {
            name: [spread([one["sides"][name][at] for one in runs]) for at in range(len(SIDES))]
            for name in runs[0]["sides"]
        },
        "filter_sides": list(SIDES),
    }


def people(truths: Sequence[Any]) -> dict[str, Any]:
    """Hold each annotator against the others of the same image; images with one annotator are left out."""
    pairs, near, exact = list[tuple[float, float]](), Counts(), Counts()
    for those in truths:
        if len(those) < 2:
            continue
        distance = segments.TOLERANCE * float(np.hypot(*those[0].shape))
        edges = [segments.boundary(truth) for truth in those]
        reached = [segments.reach(edge, distance) for edge in edges]
        for one, edge in enumerate(edges):
            others = [other for other in range(len(those)) if other != one]
            pairs.append(against([those[other] for other in others], those[one]))
            rest = [edges[other] for other in others]
            near += segments.near(edge, rest, [reached[other] for other in others], distance)
            exact += segments.one_to_one(edge, rest, distance)
    return _reference("people, one against the others", pairs, near, exact)


def one_region(truths: Sequence[Any]) -> dict[str, Any]:
    """Hold every image as a single region against its annotators."""
    pairs = [against(those, np.zeros_like(those[0])) for those in truths]
    return _reference("an image as one region", pairs, Counts(), Counts())


def against(truths: Sequence[Any], found: Any) -> tuple[float, float]:
    """Return covering and variation of information of a segmentation, the means over an image's annotators."""
    tables = [segments.overlaps(truth, found) for truth in truths]
    return float(np.mean([*map(segments.covering, tables)])), float(np.mean([*map(segments.variation, tables)]))


def _reference(name: str, pairs: list[tuple[float, float]], near: Counts, exact: Counts) -> dict[str, Any]:
    covering, variation = np.mean(pairs, axis=0)
    best = {"covering": covering, "variation": variation, "f_near": near.f, "f_one_to_one": exact.f}
    return {"name": name, "kind": "reference", "best": {key: short(float(value)) for key, value in best.items()}}


def line(case: dict[str, Any]) -> str:
    """Return a case in one line."""
    best = ((name, value if case["kind"] == "reference" else value["median"]) for name, value in case["best"].items())
    return f"{case['name']:32} " + ", ".join(f"{name} {value:.3f}" for name, value in best)


def tables(record: dict[str, Any]) -> str:
    """Return the tables of the page: the best side of each method, then covering at every side."""
    from benchmarks.table import _machine, _table, _versions

    methods = [case for case in record["cases"] if case["kind"] == "method"]
    first = methods[0]
    about = (
        f"{first['images']} images of BSDS500 (val) at half size, {MODEL}; {ROWS:,} rows a fit, at most {COMPONENTS} "
        f"components, tol {TOL:g}; medians of {first['seeds']} seeds, the smallest and largest in brackets. "
        f"{_machine(record)}. {_versions(record)}"
    )
    header = ["layer", "method", "clusters", "covering", "variation, bits", "F, near", "F, one to one"]
    names = ("covering", "variation", "f_near", "f_one_to_one")
    rows = [
        [case["name"], "", "", *(f"{case['best'][name]:.3f}" if case["best"][name] else "0" for name in names)]
        for case in record["cases"]
        if case["kind"] == "reference"
    ]
    rows += [
        [case["layer"], case["method"], _whole(case["clusters"]), *(_three(case["best"][name]) for name in names)]
        for case in methods
    ]
    sides = []
    for case in methods:
        for name, what in (
            ("covering", "covering"),
            ("variation", "variation"),
            ("f_near", "F, near"),
            ("regions", "regions"),
        ):
            digits = ".0f" if name == "regions" else ".3f"
            medians = (f"{value['median']:{digits}}" for value in case["sides"][name])
            sides.append([case["layer"], case["method"], what, *medians])
    every = _table(["layer", "method", "measure", *(f"{side}" for side in first["filter_sides"])], sides)
    return (
        f"{about}\n\nAt the best side of the filter for each measure:\n\n{_table(header, rows)}\n\n"
        f"At every side of the filter, in pixels; medians of seeds:\n\n{every}"
    )


def _three(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"


def _whole(value: dict[str, float]) -> str:
    return f"{value['median']:.0f} ({value['min']:.0f} to {value['max']:.0f})"
