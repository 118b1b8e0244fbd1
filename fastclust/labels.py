"""Label images: the most probable cluster of every pixel of a layer, as pictures; of a dense layer, as a table.

Below a folder:

    labels/IMAGE.png       labels at the layer's resolution: pixel values are the labels, where there are at most 256
    enlarged/IMAGE.png     the same at the size of the network's input
    labels.csv             for a dense layer, which has one label an image, instead of the two
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastclust import picture
from fastclust.atomic import written_aside
from fastclust.fitted import FittedMixture
from fastclust.store import LayerRecord, Store

Progress = Callable[[str, int, int | None, str], None]
"""Called with a step's name, how much of it is done, of how much (None where that is not known), and a remark."""


@dataclass(frozen=True)
class Labels:
    """The label images of one layer; images: (h, w) integers, one for each finished image of the store, in order."""

    layer: LayerRecord
    model: FittedMixture
    colours: np.ndarray
    images: list[np.ndarray]
    seconds: float

    @property
    def present(self) -> list[set[int]]:
        """The components that each image's labels name."""
        return [set(np.unique(image).tolist()) for image in self.images]


def quiet(step: str, done: int, total: int | None, remark: str) -> None:
    """Report no progress."""


def label_layer(store: Store, layer: str, model: FittedMixture, out: Path, progress: Progress = quiet) -> Labels:
    """Label every finished image of a layer and write what the module says below a folder; earlier labels there go.

    A cluster has one colour in all images: it depends on the model alone.
    Raises ValueError, before anything is written, where the layer does not have the model's number of features or is
    not the one that it was fitted to, no image is finished, or a name in the store is not that of one file; and where a
    feature is NaN or infinite.
    """
    began = time.perf_counter()
    record = store.layer(layer)
    if record.n_features != model.n_features_in_:
        raise ValueError(
            f"{layer} has {record.n_features} features and the model was fitted to {model.n_features_in_}: "
            "name the layer that it was fitted to"
        )
    _check_source(store, record, model)
    check_finished(store)
    _check_names(store)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: name a folder")
    colours = picture.palette(model.means_, model.counts_, model.covariances_)
    images = []
    progress(f"label {layer}", 0, len(store.finished), "")
    for done, index in enumerate(store.finished):
        features, image = store.image_rows(layer, index), store.images[index]
        if not np.isfinite(features).all():
            raise ValueError(f"{store.path}: {layer} of image {image.path} has NaN or infinite features: extract anew")
        labels = model.predict(features.reshape(-1, record.n_features)).reshape(features.shape[:2])
        if done == 0:
            out.mkdir(parents=True, exist_ok=True)
            remove_labels(out)
        images.append(labels.astype(np.uint8 if model.n_components <= 256 else np.int32))
        if record.kind == "conv":
            for folder, shown in (
                ("labels", images[-1]),
                ("enlarged", picture.enlarge(images[-1], image.input_size)),
            ):
                (out / folder).mkdir(exist_ok=True)
                picture.label_png(out / folder / f"{image.name}.png", shown, colours)
        progress(f"label {layer}", done + 1, len(store.finished), "")
    if record.kind == "dense":
        _write_table(store, [int(image[0, 0]) for image in images], out / "labels.csv")
    return Labels(record, model, colours, images, time.perf_counter() - began)


def source_of(store: Store, record: LayerRecord) -> dict[str, str]:
    """Return what a model of a layer keeps of where its rows came from, as `source_`."""
    about = store.provenance
    weights = about["weights_sha256"] or about["weights_source"]
    return {"model": about["model"], "node": record.node, "weights": weights, "layer": record.name}


def _check_source(store: Store, record: LayerRecord, model: FittedMixture) -> None:
    """Refuse rows of another layer, network or weights than those that a model was fitted to, where it says."""
    fitted, here = getattr(model, "source_", None), source_of(store, record)
    if fitted is None or all(fitted[key] == here[key] for key in ("model", "node", "weights")):
        return
    weights = "" if fitted["weights"] == here["weights"] else ", of other weights"
    raise ValueError(
        f"the model was fitted to {fitted['layer']} ({fitted['node']}) of {fitted['model']}, and {store.path} has "
        f"{here['layer']} ({here['node']}) of {here['model']}{weights}: label the layer that it was fitted to"
    )


def check_finished(store: Store) -> None:
    """Raise ValueError where a store has no finished image."""
    if not len(store.finished):
        raise ValueError(
            f"{store.path}: none of its {len(store.images)} images is extracted yet: --resume of `fastclust extract` "
            "goes on"
        )


def remove_labels(folder: Path) -> None:
    """Remove what `label_layer` wrote below a folder, and no other file."""
    for name in ("labels", "enlarged"):
        for path in (folder / name).glob("*.png"):
            path.unlink()
        remove_empty(folder / name)
    (folder / "labels.csv").unlink(missing_ok=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder where it is there and empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_names(store: Store) -> None:
    """Refuse names that a store of ours never holds: with them a file could be written anywhere, or twice."""
    names = [store.images[index].name for index in store.finished]
    bad = [name for name in names if not name or name in (".", "..") or set(name) & set("/\\\0")]
    if bad or len(set(names)) < len(names):
        what = f"the image name {bad[0]!r} is not a file's" if bad else "two images have one name"
        raise ValueError(f"{store.path} is damaged: {what}; extract anew")


def _write_table(store: Store, clusters: list[int], path: Path) -> None:
    with (
        written_aside(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(["path", "label", "group", "cluster"])
        for index, cluster in zip(store.finished, clusters, strict=True):
            image = store.images[index]
            table.writerow([image.path, image.label, image.group, cluster])
