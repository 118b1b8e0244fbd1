"""Label images: the most probable cluster of every pixel of a layer, as pictures; of a dense layer, as a table.

Below a folder:

    labels/IMAGE.png       labels at the layer's resolution: pixel values are the labels, where there are at most 256
    enlarged/IMAGE.png     the same at the size of the network's input
    labels.csv             for a dense layer, which has one label an image, instead of the two
    labels.json            what the labels are of: hashes of the model and of where the features came from

Each picture is written whole or not at all, so a labelling that was stopped goes on with those that are not there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastclust import picture
from fastclust.arrays import host
from fastclust.atomic import remove_leftovers, write_json, written_aside
from fastclust.fitted import FittedMixture
from fastclust.group import ALONE, Group
from fastclust.parts import let_go
from fastclust.store import LayerRecord, Store

Progress = Callable[[str, int, int | None, str], None]
"""Called with a step's name, how much of it is done, of how much (None where that is not known), and a remark."""


@dataclass(frozen=True)
class Labels:
    """What a labelling of one layer found, in order of the store's finished images.

    present: the components that each image's labels name. shown: label images (h, w) of at most SHOWN of them, evenly
    spread, by their place. resumed: how many were there already.
    """

    layer: LayerRecord
    model: FittedMixture
    colours: np.ndarray
    present: list[set[int]]
    shown: dict[int, np.ndarray]
    resumed: int
    seconds: float


SHOWN = 16  # label images that are kept for a montage


def quiet(step: str, done: int, total: int | None, remark: str) -> None:
    """Report no progress."""


def label_layer(
    store: Store,
    layer: str,
    model: FittedMixture,
    out: Path,
    progress: Progress = quiet,
    *,
    resume: bool = False,
    group: Group = ALONE,
) -> Labels:
    """Label every finished image of a layer and write what the module says below a folder; earlier labels there go.

    A cluster has one colour in all images: it depends on the model alone.
    resume: keep the pictures that are there, of the same model and features. group: processes that share the images,
    each of which gets the whole answer, but for `shown`.
    Raises ValueError, before anything is written, where the layer does not have the model's number of features or is
    not the one that it was fitted to, no image is finished, a name in the store is not that of one file, or what is to
    be resumed was labelled by another model or from other features; and where a feature is NaN or infinite.
    """
    began = time.perf_counter()
    record = store.layer(layer)
    check_layer(store, record, model)
    check_finished(store)
    check_names(store)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: name a folder")
    colours = picture.palette(model.means_, model.counts_, model.covariances_)
    names = json.dumps([store.images[index].name for index in store.finished])
    about = {
        "model": _hash(model),
        "features": source_of(store, record) | {"rows": store.fingerprint(layer)},
        "images": hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest(),
    }
    resume = resume and _check_resumable(out, about)
    places = range(group.rank, len(store.finished), group.size)
    own, shown, resumed = dict[int, set[int]](), dict[int, np.ndarray](), 0

    def prepare() -> None:
        if group.rank == 0:
            _make_folders(out, about, resume, record.kind == "conv")
        group.wait()

    progress(f"label {layer}", 0, len(store.finished), "")
    for place in places:
        group.check()
        index = store.finished[place]
        paths = [out / folder / f"{store.images[index].name}.png" for folder in ("labels", "enlarged")]
        before = _written(paths) if resume and record.kind == "conv" and len(colours) <= 256 else None
        labels = label_image(store, record, index, model) if before is None else before
        if place == group.rank:  # and not before the first is known to be good
            prepare()
        if before is not None:
            resumed += 1
        elif record.kind == "conv":
            for path, image in zip(
                paths, (labels, picture.enlarge(labels, store.images[index].input_size)), strict=True
            ):
                picture.label_png(path, image, colours)
        own[place] = set(np.unique(labels).tolist())
        if place in even(len(store.finished), SHOWN):
            shown[place] = labels
        progress(f"label {layer}", min(place + group.size, len(store.finished)), len(store.finished), "")
    if not places:
        prepare()
    parts = group.objects(own)
    present = [parts[place % group.size][place] for place in range(len(store.finished))]
    resumed = int(sum(n for (n,) in group.numbers(resumed)))
    if record.kind == "dense" and group.rank == 0:
        _write_table(store, [next(iter(labels)) for labels in present], out / "labels.csv")
    return Labels(record, model, colours, present, shown, resumed, time.perf_counter() - began)


def even(n: int, most: int) -> list[int]:
    """Return at most `most` of the first n places, evenly spread."""
    return list(range(n)) if n <= most else [int(place) for place in np.linspace(0, n - 1, most).round()]


def label_image(store: Store, record: LayerRecord, index: int, model: FittedMixture) -> np.ndarray:
    """Return an image's labels (h, w)."""
    features = store.image_rows(record.name, index)
    rows = features.reshape(-1, record.n_features)
    if not np.isfinite(features).all():
        path = store.images[index].path
        raise ValueError(f"{store.path}: {record.name} of image {path} has NaN or infinite features: extract anew")
    labels = model.predict(rows).reshape(features.shape[:2])
    let_go(rows, 0, len(rows))
    return np.asarray(labels, dtype=np.uint8 if model.n_components <= 256 else np.int32)


def _written(paths: list[Path]) -> np.ndarray | None:
    """Return the labels (h, w) of an image whose pictures are there and can be read."""
    try:
        for path in paths:
            with Image.open(path) as image:
                image.verify()
        with Image.open(paths[0]) as image:
            return np.asarray(image) if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError):
        return None


def _check_resumable(out: Path, about: dict[str, Any]) -> bool:
    """Say whether there are labels to go on with; refuse those that are of something else."""
    said, before = out / "labels.json", None
    if not said.exists() and not any((out / "labels").glob("*.png")):
        return False
    with suppress(OSError, ValueError):
        before = json.loads(said.read_text(encoding="utf-8"))
    if before != about:
        raise ValueError(f"{out} has labels of another model or of other features: --overwrite replaces them")
    return True


def _make_folders(out: Path, about: dict[str, Any], keep: bool, conv: bool) -> None:
    """Make the folders, without earlier labels but for those that are to be kept, and say what the labels are of."""
    if not keep:
        remove_labels(out)
    for folder in ("labels", "enlarged"):
        remove_leftovers(out / folder)
    for folder in ("labels", "enlarged") if conv else ("",):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_json(out / "labels.json", about)


def _hash(model: FittedMixture) -> str:
    """Return what tells a model's labels from another's."""
    found = hashlib.sha1(usedforsecurity=False)
    for name in ("means_", "covariances_", "weights_", "mean_precision_", "degrees_of_freedom_"):
        found.update(np.ascontiguousarray(host(getattr(model, name))).tobytes())
    return found.hexdigest()


def source_of(store: Store, record: LayerRecord) -> dict[str, str]:
    """Return what a model of a layer keeps of where its rows came from, as `source_`."""
    about = store.provenance
    weights = about["weights_sha256"] or about["weights_source"]
    return {"model": about["model"], "node": record.node, "weights": weights, "layer": record.name}


def check_layer(store: Store, record: LayerRecord, model: FittedMixture) -> None:
    """Refuse rows of another width, layer, network or weights than those that a model was fitted to, where it says.

    Raises ValueError.
    """
    if record.n_features != model.n_features_in_:
        raise ValueError(
            f"{record.name} has {record.n_features} features and the model was fitted to {model.n_features_in_}: "
            "name the layer that it was fitted to"
        )
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
    for name in ("labels.csv", "labels.json"):
        (folder / name).unlink(missing_ok=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder where it is there and empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_names(store: Store) -> None:
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
