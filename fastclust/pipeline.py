"""From images to pictures of a layer's clusters: extraction, a mixture a layer, label images, montage, summary.

A run leaves

    DIR/features.h5                     the features (`fastclust.store`)
    DIR/LAYER/model.h5                  the mixture (`fastclust.load`)
    DIR/LAYER/labels/IMAGE.png          labels at the layer's resolution: pixel values are the labels, up to 256
    DIR/LAYER/enlarged/IMAGE.png        the same at the size of the network's input
    DIR/LAYER/labels.csv                for a dense layer, which has one label an image, instead of the two
    DIR/montage.png                     inputs, and a column a layer
    DIR/summary.json                    what was done, with what, how long it took
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastclust import machine, picture
from fastclust.estimator import DPGMM
from fastclust.extract import ExtractReport, extract, input_image
from fastclust.store import LayerRecord, Store, open_store

FEATURE_RANGE = (0.0, 10.0)
MONTAGE_IMAGES = 16
SHAPES = {"conv": "pixels", "dense": "images"}

Progress = Callable[[str, int, int | None, str], None]
"""Called with a step's name, how much of it is done, of how much (None where that is not known), and a remark."""


@dataclass(frozen=True)
class Labels:
    """The label images of one layer; images: (h, w) integers, one for each finished image of the store, in order."""

    layer: LayerRecord
    model: DPGMM
    colours: np.ndarray
    images: list[np.ndarray]
    seconds: float

    @property
    def in_use(self) -> list[int]:
        """The number of components that each image's labels name."""
        return [len(np.unique(image)) for image in self.images]


def quiet(step: str, done: int, total: int | None, remark: str) -> None:
    """Report no progress."""


def fit_layer(store: Store, layer: str, parameters: dict[str, Any], progress: Progress = quiet) -> tuple[DPGMM, float]:
    """Fit a mixture to every finished row of a layer; return it, and the seconds that took.

    parameters: of DPGMM; feature_range=(0, 10) is added where it is not among them.
    Raises ValueError where the store has no such layer, or too few rows for the components.
    """
    began = time.perf_counter()
    rows = store.rows(layer)
    n_rows = sum(len(part) for part in rows)
    kind = store.layer(layer).kind
    model = DPGMM(**{"feature_range": FEATURE_RANGE, **parameters})
    if n_rows < model.n_components:
        raise ValueError(
            f"{layer} has {n_rows} rows ({SHAPES[kind]}) and the mixture {model.n_components} components: "
            "use fewer components (--components) or more images"
        )

    def on_pass(n_pass: int, bound: float, change: float) -> None:
        progress(f"fit {layer}", n_pass, model.max_iter, f"bound {bound:.4f} ({change:+.1e}) nats a row")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # converged_ says so, and so does the summary
        model.fit(rows, on_pass=on_pass)
    progress(f"fit {layer}", model.n_iter_, model.n_iter_, f"{model.n_active_} clusters in use")
    return model, time.perf_counter() - began


def label_layer(store: Store, layer: str, model: DPGMM, out: Path, progress: Progress = quiet) -> Labels:
    """Label every finished image of a layer and write the label images, or the CSV of a dense layer, below a folder.

    A cluster has one colour in all images: it depends on the model alone.
    Raises ValueError where the layer does not have the model's number of features.
    """
    began = time.perf_counter()
    record = store.layer(layer)
    if record.n_features != model.n_features_in_:
        raise ValueError(
            f"{layer} has {record.n_features} features and the model was fitted to {model.n_features_in_}: "
            "name the layer that it was fitted to"
        )
    colours = picture.palette(model.means_, model.counts_, model.covariances_)
    images = []
    for done, index in enumerate(store.finished):
        features = store.image_rows(layer, index)
        labels = model.predict(features.reshape(-1, record.n_features)).reshape(features.shape[:2])
        images.append(labels.astype(np.uint8 if model.n_components <= 256 else np.int32))
        if record.kind == "conv":
            name = store.images[index].name
            for folder, shown in (
                ("labels", images[-1]),
                ("enlarged", picture.enlarge(images[-1], store.images[index].input_size)),
            ):
                (out / folder).mkdir(parents=True, exist_ok=True)
                picture.label_png(out / folder / f"{name}.png", shown, colours)
        progress(f"label {layer}", done + 1, len(store.finished), "")
    if record.kind == "dense":
        out.mkdir(parents=True, exist_ok=True)
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "group", "cluster"])
            for index, one in zip(store.finished, images, strict=True):
                image = store.images[index]
                table.writerow([image.path, image.label, image.group, int(one[0, 0])])
    return Labels(record, model, colours, images, time.perf_counter() - began)


def draw_montage(store: Store, layers: Sequence[Labels], path: Path) -> None:
    """Write the montage: inputs first, then a column a layer, clusters in use above it and below each image."""
    shown = _even(len(store.finished), MONTAGE_IMAGES)
    records = [store.images[store.finished[place]] for place in shown]
    columns = [
        picture.Column(
            name=labels.layer.name,
            images=[picture.paint(labels.images[place], labels.colours) for place in shown],
            caption=f"{labels.model.n_active_} clusters in use",
            notes=[f"{labels.in_use[place]} here" for place in shown],
        )
        for labels in layers
    ]
    provenance = store.provenance
    notes = []
    if provenance["weights"] == "random":
        notes.append(f"Random weights (seed {provenance['seed']}): these are not learned features.")
    if len(shown) < len(store.finished):
        notes.append(f"{len(shown)} of {len(store.finished)} images are shown.")
    page = picture.montage(
        [input_image(record, provenance) for record in records],
        columns,
        title=f"{provenance['model']}: clusters of feature-map pixels",
        note=" ".join(notes) or None,
        row_names=[record.name for record in records],
    )
    aside = path.with_name(f".{path.name}.part")
    page.save(aside, format="PNG")
    aside.replace(path)


def run(
    images: Sequence[str | Path],
    *,
    out: Path,
    layers: Sequence[str],
    extraction: dict[str, Any],
    mixture: dict[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Do it all, and return the summary that is written to out/summary.json.

    images: files and folders. layers: names. extraction: of `fastclust.extract.extract`; mixture: of DPGMM.
    resume: go on with out/features.h5, and fit and label again. overwrite: replace what an earlier run left.
    Raises FileExistsError where an earlier run's results are in the way, and what the steps raise.
    """
    began = time.perf_counter()
    summary_path = out / "summary.json"
    if summary_path.exists() and not (resume or overwrite):
        raise FileExistsError(f"{out} has the results of an earlier run: --overwrite replaces them, --resume goes on")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: name a folder")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    features = out / "features.h5"
    try:
        report = extract(
            images,
            out=features,
            layers=layers,
            resume=resume,
            overwrite=overwrite,
            progress=lambda done, total: progress("extract", done, total, "images"),
            **extraction,
        )
    except BaseException:
        if new and not any(out.iterdir()):
            out.rmdir()
        raise
    summary_path.unlink(missing_ok=True)  # what it says is no longer so
    store = open_store(features)
    labelled, per_layer, seconds = [], {}, {"extract": report.seconds["total"]}
    for layer in layers:
        folder = out / layer
        model, fitting = fit_layer(store, layer, mixture, progress)
        folder.mkdir(exist_ok=True)
        model.save(folder / "model.h5")
        for stale in ("labels", "enlarged"):  # of an earlier run, of other images maybe
            shutil.rmtree(folder / stale, ignore_errors=True)
        labels = label_layer(store, layer, model, folder, progress)
        labelled.append(labels)
        per_layer[layer] = {**_layer_summary(labels), "seconds": {"fit": fitting, "label": labels.seconds}}
    drawing = time.perf_counter()
    progress("montage", 0, 1, "")
    draw_montage(store, labelled, out / "montage.png")
    progress("montage", 1, 1, "")
    seconds["fit"] = sum(layer["seconds"]["fit"] for layer in per_layer.values())
    seconds["label"] = sum(layer["seconds"]["label"] for layer in per_layer.values())
    seconds["montage"] = time.perf_counter() - drawing
    seconds["total"] = time.perf_counter() - began
    summary = _summary(store, report, per_layer, seconds, mixture, labelled[0].model)
    write_json(summary_path, summary)
    return summary


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def _layer_summary(labels: Labels) -> dict[str, Any]:
    model, record = labels.model, labels.layer
    return {
        "node": record.node,
        "rows": int(model.counts_.sum()),
        "features": record.n_features,
        "clusters_in_use": model.n_active_,
        "clusters_in_use_per_image": labels.in_use,
        "passes": model.n_iter_,
        "converged": model.converged_,
        "lower_bound_per_row": model.lower_bound_,
    }


def _summary(
    store: Store,
    report: ExtractReport,
    layers: dict[str, Any],
    seconds: dict[str, float],
    mixture: dict[str, Any],
    model: DPGMM,
) -> dict[str, Any]:
    provenance = store.provenance
    return {
        "model": provenance["model"],
        "weights": provenance["weights"],
        "weights_source": provenance["weights_source"],
        "weights_sha256": provenance["weights_sha256"],
        "learned_features": provenance["weights"] != "random",
        "size": provenance["size"],
        "seed": mixture.get("random_state"),
        "mixture": {name: value for name, value in model.get_params().items() if name not in ("device", "backend")},
        "backend": model.backend_,
        "device": model.device_,
        "images": report.done,
        "left_out": [{"path": path, "reason": reason} for path, reason in report.left_out],
        "layers": layers,
        "seconds": seconds,
        "seconds_of_extraction": report.seconds,
        "peak_memory_bytes": machine.peak_memory(),
        "machine": machine.describe(),
    }


def _even(n: int, most: int) -> list[int]:
    """Return at most `most` of the first n places, evenly spread."""
    return list(range(n)) if n <= most else [int(place) for place in np.linspace(0, n - 1, most).round()]
