"""Where clusters are in the input image: the centres of their connected regions, drawn and listed.

A region's centre is the mean of the centres of its units' receptive fields (`fastclust.receptive`), in pixels of the
network's input, where pixel i's centre is at i. In the pixels of the image's file, upright, the same place is

    (centre + offset + 1/2) original / resized - 1/2

with the sizes before and after resizing and the offset of what is cropped (`fastclust.reader.placement`).

Below a folder:

    centres/IMAGE.png      the input, a marker in the cluster's colour at each centre; small inputs are enlarged
    centres.csv            image, cluster, area in units, row and column in the input, and in the image's file
    centres.png            inputs, foreground clusters and centres of at most SHOWN images, side by side
    detection.json         where there are masks: centres held against them (`fastclust.views.detection`)

Which clusters are foreground is named by the user, or found by the rule of `fastclust.views.regions`.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastclust import picture
from fastclust.atomic import write_json, written_aside
from fastclust.extract import input_image
from fastclust.fitted import FittedMixture
from fastclust.labels import (
    SHOWN,
    Progress,
    check_finished,
    check_layer,
    check_names,
    even,
    label_image,
    quiet,
    remove_empty,
)
from fastclust.networks import Network
from fastclust.plan import network_size
from fastclust.reader import placement
from fastclust.receptive import Field, receptive_fields
from fastclust.saved import load, load_layer
from fastclust.store import ImageRecord, LayerRecord, Store, open_features
from fastclust.views.detection import Score, find_masks, input_mask, score, total
from fastclust.views.markers import Shown, marked, page, side_by_side
from fastclust.views.regions import Centre, centres, foreground, unit_area

MIN_AREA = 25.0  # pixels of the input
DISTANCE = 6.0  # pixels of the input: a nucleus's radius at half a micrometre a pixel, as in tiles of 40x at half size
JUDGED = 32  # images that the rule sees, at most, evenly spread
LEAST, MOST = 448, 4096  # pixels of a picture: its shorter side is enlarged to LEAST, but its longer not beyond MOST
FEW = 8  # clusters that the page names
WRITTEN = ("centres", "centres.csv", "centres.png", "detection.json")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """What was found: foreground clusters, whether the rule chose them, centres by image; and scores by image's name.

    left_out: images that could not be held against a mask, with the reason.
    """

    layer: LayerRecord
    clusters: list[int]
    chosen: bool
    centres: dict[int, list[Centre]]
    scores: dict[str, Score]
    left_out: list[tuple[str, str]]


def open_source(source: Path, model: Path | None, layer: str | None) -> tuple[Store, LayerRecord, FittedMixture]:
    """Open a store and a model of one of its layers, or, of a run's folder, what the run wrote.

    model: None stands for the run's own, layer: None for the only one.
    Raises FileNotFoundError, and ValueError where one of them has to be named or they do not belong together.
    """
    store = open_features(source)
    record = store.only_layer(layer)
    if model is None:
        if not source.is_dir():
            raise ValueError(f"{source} is a store: name a model that `fit` wrote with --model")
        mixture = load_layer(source, record.name)
    else:
        mixture = load(model)
    check_layer(store, record, mixture)
    return store, record, mixture


def find_centres(
    store: Store,
    record: LayerRecord,
    model: FittedMixture,
    out: Path,
    *,
    clusters: Sequence[int] | None = None,
    min_area: float = MIN_AREA,
    masks: Path | None = None,
    distance: float = DISTANCE,
    overwrite: bool = False,
    progress: Progress = quiet,
) -> Found:
    """Find the centres of a layer's foreground regions in every finished image, and write what the module says.

    clusters: that are foreground; None: those that the rule chooses. min_area: pixels of the input that a region covers
    at least. masks: a folder with masks of cells, found by the stems of the images' files; distance: of a centre and
    the cell that it finds, at most, in pixels of the input.
    Raises ValueError, FileExistsError, NotADirectoryError before anything is written where the input cannot work, also
    where no image has a mask; OSError and ValueError where an input cannot be read.
    """
    check_finished(store)
    check_names(store)
    fields = _fields(store, record)
    if clusters is not None:
        _check_clusters(clusters, len(model.counts_))
    places = {int(index): store.images[index] for index in store.finished}
    found_masks = {} if masks is None else find_masks(masks, places)
    _check_out(out, overwrite)
    judged = [int(store.finished[place]) for place in even(len(places), JUDGED)] if clusters is None else []
    seen = dict[int, Any]()
    for n, index in enumerate(judged):
        progress("judge clusters", n, len(judged), places[index].name)
        seen[index] = label_image(store, record, index, model)
    chosen = list(clusters) if clusters is not None else []
    if judged:
        units = [unit_area(fields(*places[index].input_size)) for index in judged]
        chosen = foreground(model, list(seen.values()), units, min_area)
        progress("judge clusters", len(judged), len(judged), "")
    colours = picture.palette(model.means_, model.counts_, model.covariances_)
    _make_folder(out)
    shown = {int(store.finished[place]) for place in even(len(places), SHOWN)}
    rows, drawn = dict[int, list[Centre]](), dict[str, Shown]()
    scores, left_out = dict[str, Score](), list[tuple[str, str]]()
    for n, (index, image) in enumerate(places.items()):
        progress("centres", n, len(places), image.name)
        labels = seen.pop(index) if index in seen else label_image(store, record, index, model)
        field = fields(*image.input_size)
        rows[index] = centres(labels, chosen, field, min_area)
        pixels = _read(image, store.provenance)
        short, long = sorted(pixels.shape[:2])
        enlarged = max(1, min(math.ceil(LEAST / short), MOST // long))
        _write_png(out / "centres" / f"{image.name}.png", marked(pixels, rows[index], colours, enlarged))
        if index in shown:
            drawn[image.name] = side_by_side(pixels, labels, chosen, rows[index], colours)
        if masks is not None:
            try:
                mask = input_mask(found_masks.get(index), image, store.provenance["transform"])
            except ValueError as error:
                left_out.append((image.path, str(error)))
            else:
                scores[image.name] = score(_points(rows[index]), mask, distance)
    progress("centres", len(places), len(places), "")
    found = Found(record, chosen, clusters is None, rows, scores, left_out)
    _write_table(store, rows, out / "centres.csv")
    counts = [len(rows[index]) for index in sorted(shown)]
    _write_png(out / "centres.png", page(drawn, record.name, counts, **_about(store, found)))
    if masks is not None:
        write_json(out / "detection.json", summary(found, min_area, distance))
    return found


def summary(found: Found, min_area: float, distance: float) -> dict[str, Any]:
    """Return what detection.json holds."""
    return {
        "layer": found.layer.name,
        "clusters": found.clusters,
        "clusters_chosen_by": "rule" if found.chosen else "name",
        "min_area": min_area,
        "distance": distance,
        "all": total(list(found.scores.values())).as_dict(),
        "images": [{"image": name} | one.as_dict() for name, one in found.scores.items()],
        "left_out": [{"path": path, "reason": reason} for path, reason in found.left_out],
    }


def original(centre: Centre, record: ImageRecord, transform: dict[str, Any]) -> tuple[float, float]:
    """Return a centre's row and column in the pixels of the image's file, upright; see the module."""
    resized, offset = placement(record.size, transform)
    row, column = (
        (at + cut + 0.5) * before / after - 0.5
        for at, cut, before, after in zip((centre.row, centre.column), offset, record.size, resized, strict=True)
    )
    return row, column


def clusters_in_words(clusters: Sequence[int]) -> str:
    """Name clusters in a few words."""
    if not clusters:
        return "no cluster"
    return f"{'cluster' if len(clusters) == 1 else 'clusters'} {', '.join(map(str, clusters))}"


def _about(store: Store, found: Found) -> dict[str, str]:
    """Return what stands above the page's images."""
    about, notes = store.provenance, []
    if about["weights"] == "random":
        notes.append(f"Random weights (seed {about['seed']}): these are not learned features.")
    if len(found.centres) > SHOWN:
        notes.append(f"{SHOWN} of {len(found.centres)} images are shown.")
    how = "chosen by the rule" if found.chosen else "named"
    few = len(found.clusters) <= FEW
    return {
        "title": f"{about['model']}: cluster centres in the picture",
        "note": " ".join(notes),
        "foreground": f"{clusters_in_words(found.clusters) if few else f'{len(found.clusters)} clusters'}, {how}",
    }


def _fields(store: Store, record: LayerRecord) -> Any:
    """Return what gives the layer's receptive fields for an input's (height, width). Raises ValueError."""
    if record.kind != "conv":
        raise ValueError(f"{record.name} is a dense layer, which has no places: choose a convolutional one")
    network = Network(store.provenance["model"], [record.name], network_size(store.provenance["size"]))

    @functools.cache
    def fields(height: int, width: int) -> Field:
        found = receptive_fields(network, height, width)[record.name]
        if not unit_area(found):
            raise ValueError(f"all units of {record.name} see the same pixels, so its regions have no centres")
        return found

    for index in store.finished:
        fields(*store.images[index].input_size)
    return fields


def _check_clusters(clusters: Sequence[int], components: int) -> None:
    wrong = [k for k in clusters if not 0 <= k < components]
    if wrong or not clusters:
        what = f"there is no cluster {wrong[0]}" if wrong else "no cluster is named"
        raise ValueError(f"{what}: the model's clusters are 0 to {components - 1}; `fastclust inspect` lists them")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: name a folder")
    for name in WRITTEN:
        if (out / name).exists() and not overwrite:
            raise FileExistsError(f"{out / name} exists: --overwrite replaces it; or name another folder")


def _make_folder(out: Path) -> None:
    """Make the folder, without what an earlier command left of the same names."""
    for path in (out / "centres").glob("*.png"):
        path.unlink()
    remove_empty(out / "centres")
    for name in WRITTEN[1:]:
        (out / name).unlink(missing_ok=True)
    (out / "centres").mkdir(parents=True, exist_ok=True)


def _read(record: ImageRecord, provenance: dict[str, Any]) -> Bytes:
    pixels = input_image(record, provenance)
    if pixels.shape[:2] != tuple(record.input_size):
        raise ValueError(f"{record.path} is no longer of the size that it was extracted at: extract anew")
    return pixels


def _points(found: Sequence[Centre]) -> NDArray[np.float64]:
    return np.array([(one.row, one.column) for one in found], dtype=np.float64).reshape(-1, 2)


def _write_png(path: Path, pixels: Bytes) -> None:
    with written_aside(path, flush=False) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def _write_table(store: Store, found: dict[int, list[Centre]], path: Path) -> None:
    with (
        written_aside(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(["image", "cluster", "area", "row", "column", "original_row", "original_column"])
        for index, some in found.items():
            image = store.images[index]
            for one in some:
                places = (one.row, one.column, *original(one, image, store.provenance["transform"]))
                table.writerow([image.name, one.cluster, one.area, *(f"{place:.3f}" for place in places)])
