"""The report of a run: one HTML file with its images, label images and clusters, which needs nothing but itself.

A policy in the page lets it load nothing, and run no script but its own; every text is escaped by the template.

The file keeps below BUDGET bytes: it shows at most IMAGES inputs, evenly spread, of at most SIDE pixels a side, and
EXEMPLARS of a cluster; where that is too much, half as many of both, and so on down to one of each, which is written
whatever its size. Its numbers are of all images.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastclust import __version__
from fastclust.atomic import written_aside
from fastclust.console import printable
from fastclust.fitted import FittedMixture
from fastclust.labels import Progress, even, quiet
from fastclust.networks import Network
from fastclust.plan import network_size
from fastclust.receptive import receptive_fields
from fastclust.report import unreadable_note
from fastclust.saved import load_layer
from fastclust.store import Store, open_store
from fastclust.views.embed import packed, pictures
from fastclust.views.panels import panel
from fastclust.views.survey import Exemplar, Fields, Survey, survey

BUDGET = 10_000_000  # bytes
IMAGES, SIDE, EXEMPLARS = 20, 448, 6
FEWER = (1, 2, 4, 8, 16)


def report_run(
    folder: Path, progress: Progress = quiet, *, device: str = "auto", backend: str = "auto"
) -> dict[str, int]:
    """Write FOLDER/report.html of what `fastclust.pipeline.run` left in a folder; return and raise as `write_report`.

    A layer of one row that has no model, as an atlas passes one over, is passed over here, too.
    Raises FileNotFoundError where the features or a layer's model are not there.
    """
    if not (folder / "features.h5").is_file():
        raise FileNotFoundError(
            f"{folder} has no features.h5: expected the folder of a `fastclust run` (its --out); with --no-store, ask "
            "for the report in the run, with --report"
        )
    store, models = open_store(folder / "features.h5"), dict[str, FittedMixture]()
    for name in store.layers:
        if sum(map(len, store.rows(name))) == 1 and not (folder / name / "model.h5").exists():
            continue
        models[name] = load_layer(folder, name)
        models[name].set_params(device=device, backend=backend)
    return write_report(store, models, folder / "report.html", progress)


def write_report(
    store: Store, models: Mapping[str, FittedMixture], path: Path, progress: Progress = quiet
) -> dict[str, int]:
    """Write the report of a store's finished images under the mixtures of its layers, by layer, in order.

    An input that cannot be read any more is shown grey, and the page names it.
    Returns the file's "bytes", and how many "images" it shows.
    Raises ValueError as `fastclust.views.survey.survey`, OSError where the file cannot be written.
    """
    network = Network(store.provenance["model"], list(models), network_size(store.provenance["size"]))
    fields: Fields = functools.cache(functools.partial(receptive_fields, network))
    shown = even(len(store.finished), IMAGES)
    found = survey(store, models, fields, shown, most=EXEMPLARS, side=SIDE, progress=progress)
    for fewer in FEWER:
        places = [shown[place] for place in even(len(shown), max(1, len(shown) // fewer))]
        page = _page(store, found, fields, places, max(1, EXEMPLARS // fewer)).encode()
        if len(page) <= BUDGET:
            break
    with written_aside(path) as aside:
        aside.write_bytes(page)
    return {"bytes": len(page), "images": len(places)}


def _page(store: Store, found: Survey, fields: Fields, places: Sequence[int], most: int) -> str:
    """Return the page with some of the images, and at most so many exemplars of a cluster."""
    environment = Environment(
        loader=PackageLoader("fastclust.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = environment.loader.get_source  # type: ignore[union-attr]
    style, script = (source(environment, name)[0] for name in ("report.css", "report.js"))
    names, boxes = _names(store), _boxes(store, found, fields)
    inputs, patches, unreadable = pictures(store, found.layers, fields, places, most, SIDE)
    first = fields(*store.images[store.finished[0]].input_size)
    layers = [
        panel(found, i, first[layer.record.name], names, places, patches, boxes, most)
        for i, layer in enumerate(found.layers)
    ]
    images = []
    for place in places:
        record = store.images[store.finished[place]]
        images.append({"name": names[place], "size": record.input_size, "uri": inputs[place]})
    data = {
        "images": [
            {
                "name": names[place],
                "labels": [packed(layer.shown[place], len(layer.counts)) for layer in found.layers],
                "shapes": [layer.shown[place].shape for layer in found.layers],
            }
            for place in places
        ],
        "layers": [{key: layer[key] for key in ("name", "unit", "colours", "shares", "related")} for layer in layers],
    }
    return environment.get_template("report.html").render(
        style=Markup(style),  # these two are files of ours, and no user's text
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        about=_about(store),
        layers=layers,
        images=images,
        data=data,
        notes=_notes(store, found, places, most, [names[place] for place in unreadable]),
        n_images=len(store.finished),
    )


def _about(store: Store) -> dict[str, str]:
    weights, seed = store.provenance["weights"], store.provenance["seed"]
    source = os.path.basename(str(store.provenance["weights_source"]))  # noqa: PTH119 (a name, which may be no path)
    return {
        "model": printable(str(store.provenance["model"])),
        "weights": f"random weights (seed {seed})" if weights == "random" else f"weights {printable(source)}",
        "size": printable(str(store.provenance["size"])),
        "version": __version__,
    }


def _names(store: Store) -> list[str]:
    """Name the finished images by their files; where these are alike, with their folders."""
    paths = [Path(store.images[index].path) for index in store.finished]
    files = Counter(path.name for path in paths)
    return [printable(path.name if files[path.name] == 1 else f"{path.parent.name}/{path.name}") for path in paths]


def _boxes(store: Store, found: Survey, fields: Fields) -> dict[tuple[str, Exemplar], tuple[float, ...]]:
    """Return what each exemplar sees, (top, left, height, width) as parts of its image."""
    boxes = {}
    for layer in found.layers:
        for one in (one for kept in layer.exemplars for one in kept):
            height, width = store.images[store.finished[one.place]].input_size
            top, left, bottom, right = fields(height, width)[layer.record.name].box(one.row, one.column)
            box = (top / height, left / width, (bottom - top) / height, (right - left) / width)
            boxes[layer.record.name, one] = tuple(round(part, 5) for part in box)
    return boxes


def _notes(store: Store, found: Survey, places: Sequence[int], most: int, unreadable: Sequence[str]) -> list[str]:
    """Say what of the run the page does not show, or shows otherwise than it is."""
    notes, total = [], len(store.finished)
    if store.provenance["weights"] == "random":
        notes.append("The weights are random: these are not learned features.")
    if len(places) < total:
        notes.append(f"{len(places)} of {total} images are shown, evenly spread; all numbers are of all {total}.")
    if len(store.images) > total:
        notes.append(f"{len(store.images) - total} images are not in the run: left out, or not extracted yet.")
    single = [name for name in store.layers if name not in {layer.record.name for layer in found.layers}]
    if single:
        notes.append(f"Not shown, since one point has no clusters: {', '.join(map(printable, single))}.")
    if any(max(store.images[store.finished[place]].input_size) > SIDE for place in places):
        notes.append(f"Inputs of more than {SIDE} pixels a side are shown reduced to that.")
    if any(set(layer.reduced) & set(places) for layer in found.layers):
        notes.append(f"Label images of more than {SIDE} pixels a side are shown reduced to that, by nearest neighbour.")
    if most < EXEMPLARS:
        notes.append(f"At most {most} exemplars of a cluster are shown, to keep the file below {BUDGET // 10**6} MB.")
    if unreadable:
        notes.append(unreadable_note(unreadable))
    return notes
