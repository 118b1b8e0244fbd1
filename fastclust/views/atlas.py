"""Layers in order: how many clusters every weight layer tells apart, with the spread over images and seeds.

One forward pass stores the features of all layers; each layer is then fitted once a seed. A cluster is in use where it
is the most probable one of a pixel (of a dense layer, of an image). Where a layer has fewer rows than the mixture has
components, its mixture has as many components as rows; a layer of one row, which has no clusters, is passed over.

The folder of an atlas holds what a run's does for the first seed (`fastclust.pipeline`), so that `fastclust report`
reads it, and

    DIR/atlas.png               inputs and the first seed's label images, layer by layer
    DIR/clusters_in_use.png     clusters in use against depth
    DIR/atlas.json              the numbers
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastclust import picture
from fastclust.atomic import write_json, written_aside
from fastclust.extract import find_images, list_layers
from fastclust.labels import Labels, Progress, even, label_image, label_layer, quiet
from fastclust.layer_fit import check_mixture, fit_layer
from fastclust.networks import Network
from fastclust.pipeline import check_free, extract_anew, layers_of, outside
from fastclust.plan import network_size, open_weights
from fastclust.report import shown_inputs
from fastclust.store import LayerRecord, Store, open_store
from fastclust.views.plots import plot_clusters_in_use, save
from fastclust.weights import missing

DENSE_ALPHA = 0.1  # the paper's concentration for dense layers
ROWS, ACROSS = 4, 9  # images in the montage, layers in a band of it


def weight_layers(model: str) -> list[str]:
    """Return every weight layer of a model, after its activation: the field's name of it for VGG, else the node's."""
    numbered: dict[int, str] = {}
    for layer in list_layers(model):
        numbers = [int(name) for name in layer.names if name.isdecimal()]
        others = [name for name in layer.names if not name.isdecimal()]
        numbered |= dict.fromkeys(numbers, others[0] if others else layer.node)
    return [numbered[number] for number in sorted(numbered)]


def covered(model: str, names: Sequence[str], weights: str | Path, seed: int, size: int | str) -> list[str]:
    """Return the first of these layers, in order of execution, up to the last whose parameters the weights all have.

    Raises as `fastclust.plan.open_weights`, and ValueError where that is none of them.
    """
    state, source, _ = open_weights(model, weights, seed, size)
    low, high = 0, len(names)
    while low < high:  # the first `low` are covered; more layers never need less
        middle = (low + high + 1) // 2
        if missing(state, Network(model, names[:middle], network_size(size)).needed):
            high = middle - 1
        else:
            low = middle
    if not low:
        absent = ", ".join(missing(state, Network(model, names[:1], network_size(size)).needed)[:3])
        raise ValueError(f"{source} covers no weight layer of {model}: it misses {absent}")
    return list(names[:low])


def draw_atlas(
    images: Sequence[str | Path],
    *,
    out: Path,
    extraction: dict[str, Any],
    mixture: dict[str, Any],
    layers: Sequence[str] | None = None,
    seeds: int = 5,
    sample: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Extract, fit and count; write what the module says below a folder, and return what atlas.json holds.

    images, extraction, mixture, resume, overwrite: as of `fastclust.pipeline.run`; dense layers take a concentration
    of DENSE_ALPHA. layers: names, in order; without them, every weight layer that the weights cover. seeds: fits a
    layer, under mixture["random_state"] and the numbers after it. sample: rows that each fit takes, of all images.
    Raises as `fastclust.pipeline.run`, ValueError also for fewer than one seed, and where a layer that was named, or
    every layer, has one row.
    """
    began = time.perf_counter()
    if seeds < 1:
        raise ValueError(f"seeds {seeds}: expected at least 1")
    check_mixture(mixture)
    found = outside(find_images(images), out)
    model = extraction["model"]
    every = list(layers or weight_layers(model))
    given = covered(model, every, extraction["weights"], extraction["seed"], extraction["size"])
    beyond = [] if layers else every[len(given) :]
    names = list(layers or given)
    check_free(out, names, resume or overwrite)
    before = layers_of(out)

    def check(planned: Sequence[LayerRecord]) -> None:
        _check_rows({record.name: min(record.n_rows, sample or record.n_rows) for record in planned}, bool(layers))

    report = extract_anew(found, out, before, check, progress, names, resume, overwrite, extraction)
    store = open_store(out / "features.h5")
    labelled, records = list[Labels](), list[dict[str, Any]]()
    n_rows = {name: sum(len(part) for part in store.rows(name)) for name in names}
    _check_rows(n_rows, False)  # of images that could not be read there are none
    single = [name for name in names if n_rows[name] < 2]
    for name in (name for name in names if n_rows[name] > 1):
        record = store.layer(name)
        own = _mixture_of(record, min(n_rows[name], sample or n_rows[name]), mixture)
        fits: list[dict[str, Any]] = []
        for seed in range(mixture["random_state"], mixture["random_state"] + seeds):
            fitted, seconds = fit_layer([store], name, own | {"random_state": seed}, progress, sample=sample)
            if not fits:
                (out / name).mkdir(exist_ok=True)
                fitted.save(out / name / "model.h5")
                labelled.append(label_layer(store, name, fitted, out / name, progress))
                present = labelled[-1].present
            else:
                present = [set(np.unique(label_image(store, record, int(i), fitted)).tolist()) for i in store.finished]
            fits.append(
                {
                    "seed": seed,
                    "clusters_in_use": len(set().union(*present)),
                    "clusters_in_image": [len(some) for some in present],
                    "passes": fitted.n_iter_,
                    "converged": fitted.converged_,
                    "lower_bound_per_row": fitted.lower_bound_,
                    "seconds": seconds,
                }
            )
        shape = [int(side) for side in record.shapes[store.finished[0]]]
        records.append(
            {"name": name, "node": record.node, "kind": record.kind, "shape_of_first_image": shape}
            | {"features": record.n_features, "components": own["n_components"], "fits": fits}
        )
    progress("draw", 0, 1, "")
    about = {key: store.provenance[key] for key in ("model", "weights", "weights_source", "weights_sha256", "size")}
    atlas = about | {
        "learned_features": about["weights"] != "random",
        "images": [store.images[index].path for index in store.finished],
        "left_out": [{"path": path, "reason": reason} for path, reason in report.left_out],
        "mixture": {key: value for key, value in mixture.items() if key not in ("device", "backend", "random_state")},
        "alpha_of_dense_layers": DENSE_ALPHA,
        "rows_fitted_at_most": sample,
        "layers": records,
        "layers_of_one_row": single,
        "layers_beyond_the_weights": beyond,
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "atlas.json", atlas)  # before the pictures, of which none is worth the numbers
    with written_aside(out / "atlas.png") as aside:
        _montage(store, labelled, records).save(aside, format="PNG")
    save(plot_clusters_in_use(atlas), out / "clusters_in_use.png")
    progress("draw", 1, 1, "")
    return atlas


def _check_rows(n_rows: Mapping[str, int], all_needed: bool) -> None:
    """Refuse where all layers, or any of them where all are needed, have one row. Raises ValueError."""
    single = [name for name, n in n_rows.items() if n < 2]
    if single and (all_needed or len(single) == len(n_rows)):
        raise ValueError(f"one row has no clusters, and there is no more of {', '.join(single)}: give more images")


def _mixture_of(record: LayerRecord, n_rows: int, mixture: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a layer's mixture: no more components than rows, and the concentration of its kind."""
    own = mixture | {"n_components": min(mixture["n_components"], n_rows)}
    return own | ({"weight_concentration_prior": DENSE_ALPHA} if record.kind == "dense" else {})


def _montage(store: Store, layers: Sequence[Labels], records: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw inputs and label images, so many layers in a band, one band below the other."""
    places = [place for place in even(len(store.finished), ROWS) if place in layers[0].shown]
    names = [store.images[store.finished[place]].name for place in places]
    inputs, unreadable = shown_inputs(store, places)
    columns = []
    for labels, record in zip(layers, records, strict=True):
        shown = [picture.paint(labels.shown[place], labels.colours) for place in places]
        notes = [f"{len(labels.present[place])} here" for place in places]
        columns.append(picture.Column(labels.layer.name, shown, _said(record), notes))
    bands = []
    for low in range(0, len(columns), ACROSS):
        title, note = (_title(store), _note(store, len(places), unreadable)) if not low else (None, None)
        bands.append(picture.montage(inputs, columns[low : low + ACROSS], title=title, note=note, row_names=names))
    page = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), picture.PAPER)
    top = 0
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    return page


def _said(record: Mapping[str, Any]) -> str:
    """Say in a line how many clusters a layer has in use."""
    counts = [fit["clusters_in_use"] for fit in record["fits"]]
    others = f" ({min(counts)} to {max(counts)})" if len(counts) > 1 else ""
    return f"{counts[0]} clusters{others}"


def _title(store: Store) -> str:
    return f"{store.provenance['model']}: clusters of every weight layer"


def _note(store: Store, shown: int, unreadable: Sequence[str]) -> str | None:
    notes = []
    if store.provenance["weights"] == "random":
        notes.append(f"Random weights (seed {store.provenance['seed']}): these are not learned features.")
    if shown < len(store.finished):
        notes.append(f"{shown} of {len(store.finished)} images are shown.")
    return " ".join([*notes, *unreadable]) or None
