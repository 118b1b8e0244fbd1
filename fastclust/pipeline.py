"""From images to pictures of a layer's clusters: extraction, a mixture a layer, label images, montage, summary.

A run leaves

    DIR/features.h5                     the features (`fastclust.store`)
    DIR/LAYER/model.h5                  the mixture (`fastclust.load`)
    DIR/LAYER/labels/IMAGE.png ...      the label images (`fastclust.labels`)
    DIR/montage.png                     inputs, and a column a layer
    DIR/summary.json                    what was done, with what, how long it took
    DIR/report.html                     where it is asked for, a page to look around in (`fastclust.views.page`)

Without a store the features are computed from the images on every pass (`fastclust.live`), and all else is the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fastclust.atomic import write_json
from fastclust.extract import ExtractReport, extract, find_images
from fastclust.labels import Progress, label_layer, quiet, remove_empty, remove_labels
from fastclust.layer_fit import check_mixture, check_rows, fit_layer
from fastclust.live import open_live
from fastclust.report import draw_montage, summarise, summarise_layer
from fastclust.store import LayerRecord, Store, open_store
from fastclust.views.page import write_report

DRAWN = ("summary.json", "montage.png", "report.html", "atlas.json", "atlas.png", "clusters_in_use.png")
"""What tells of a whole run, or of a whole atlas (`fastclust.views.atlas`)."""


def run(
    images: Sequence[str | Path],
    *,
    out: Path,
    layers: Sequence[str],
    extraction: dict[str, Any],
    mixture: dict[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    no_store: bool = False,
    report: bool = False,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Do it all, and return the summary that is written to out/summary.json.

    images: files and folders; what lies below `out` is none of them. layers: names. extraction: of
    `fastclust.extract.extract`; mixture: of DPGMM. resume: go on with out/features.h5, and fit and label again.
    overwrite: replace what an earlier run left. no_store: compute features on every pass, and store none. report: write
    out/report.html, too, and say in the summary's "report" how large it is.
    Raises ValueError for `resume` with `no_store`, FileExistsError where an earlier run's results are in the way, and
    what the steps raise; nothing that is there is changed before all input is found good.
    """
    began = time.perf_counter()
    if resume and no_store:
        raise ValueError("--resume goes on with a store, and --no-store keeps none: give one of them")
    check_mixture(mixture)
    found = outside(find_images(images), out)
    check_free(out, layers, resume or overwrite)
    before = layers_of(out)

    def check(planned: Sequence[LayerRecord]) -> None:
        for record in planned:
            check_rows(record, record.n_rows, mixture["n_components"])

    with ExitStack() as opened:
        store: Store
        if no_store:
            progress("read", 0, None, "images")
            with new_folder(out):
                live = open_live(found, layers=layers, progress=_told(progress, "read"), check=check, **extraction)
            store, done = opened.enter_context(live), live.report
            forget_run(out, before)
            (out / "features.h5").unlink(missing_ok=True)
        else:
            done = extract_anew(found, out, before, check, progress, layers, resume, overwrite, extraction)
            store = open_store(out / "features.h5")
        seconds = {"extract": done.seconds["total"]}
        labelled, per_layer = [], {}
        for layer in layers:
            model, fitting = fit_layer([store], layer, mixture, progress)
            (out / layer).mkdir(exist_ok=True)
            model.save(out / layer / "model.h5")
            labelled.append(label_layer(store, layer, model, out / layer, progress))
            per_layer[layer] = summarise_layer(labelled[-1], fitting)
        seconds["fit"] = sum(layer["seconds"]["fit"] for layer in per_layer.values())
        seconds["label"] = sum(layer["seconds"]["label"] for layer in per_layer.values())
        reported: dict[str, Any] = {}

        def write_summary() -> dict[str, Any]:
            seconds["total"] = time.perf_counter() - began
            summary = summarise(store, done, labelled, per_layer, seconds, stored=not no_store) | reported
            write_json(out / "summary.json", summary)
            return summary

        write_summary()  # before the pictures, of which none is worth the numbers
        if report:
            reporting = time.perf_counter()
            models = {labels.layer.name: labels.model for labels in labelled}
            reported["report"] = write_report(store, models, out / "report.html", progress)
            seconds["report"] = time.perf_counter() - reporting
    drawing = time.perf_counter()
    progress("montage", 0, 1, "")
    draw_montage(store, labelled, out / "montage.png")
    progress("montage", 1, 1, "")
    seconds["montage"] = time.perf_counter() - drawing
    return write_summary()


def extract_anew(
    images: Sequence[Path],
    out: Path,
    before: Sequence[str],
    check: Callable[[Sequence[LayerRecord]], None],
    progress: Progress,
    layers: Sequence[str],
    resume: bool,
    overwrite: bool,
    extraction: dict[str, Any],
) -> ExtractReport:
    """Extract to out/features.h5; what came from the features before goes first, once nothing stands in the way.

    check: refuses layers. before: layers of the earlier run. All else, and what is raised, as of `run`.
    """
    progress("extract", 0, None, "images")
    with new_folder(out):
        return extract(
            images,
            out=out / "features.h5",
            layers=layers,
            resume=resume,
            overwrite=overwrite,
            progress=_told(progress, "extract"),
            check=check,
            begin=lambda: forget_run(out, before),
            **extraction,
        )


def _told(progress: Progress, step: str) -> Callable[[int, int, str], None]:
    return lambda done, total, remark: progress(step, done, total, remark)


def forget_run(out: Path, before: Sequence[str]) -> None:
    """Remove what an earlier run or atlas left but for its features: what tells of it, and the results of its layers.

    It goes before the features do: a command that is killed leaves no model beside features of other images.
    """
    for name in DRAWN:
        (out / name).unlink(missing_ok=True)
    for layer in before:
        remove_results(out / layer)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder with those above it; where the body fails, remove what was made and is empty."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in missing:
            remove_empty(one)
        raise


def outside(images: Sequence[Path], folder: Path) -> list[Path]:
    """The images that do not lie below a folder: an earlier run's label images are no input."""
    own = os.path.abspath(folder)  # noqa: PTH100 (resolve would follow links)
    kept = [image for image in images if not Path(os.path.abspath(image)).is_relative_to(own)]  # noqa: PTH100
    if not kept:
        raise ValueError(f"all images lie in {folder}, the folder for the results: name another folder with --out")
    return kept


def check_free(out: Path, layers: Sequence[str], replace: bool) -> None:
    """Refuse where results are, unless they may be replaced, and where a file is in the way of a folder."""
    folders = [out / layer for layer in layers if Path(layer).name == layer]  # others are no layers
    for folder in (out, *folders):
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file, and a folder is wanted there: name another with --out")
    if replace:
        return
    for path in (out / "summary.json", out / "features.h5", *folders):
        if path.exists():
            raise FileExistsError(
                f"{out} has results of an earlier run ({path.name}): --resume goes on with them, --overwrite replaces "
                "them; or name another folder"
            )


def layers_of(out: Path) -> list[str]:
    """The layers of an earlier run, by its store or its summary, where one can be read; results of others stay."""
    names: list[str] = []
    try:
        names = list(open_store(out / "features.h5").layers)
    except (OSError, ValueError):
        with suppress(OSError, ValueError, LookupError, TypeError):
            names = list(json.loads((out / "summary.json").read_text(encoding="utf-8"))["layers"])
    return [name for name in names if Path(name).name == name and name != ".."]


def remove_results(folder: Path) -> None:
    """Remove what a run wrote for a layer, and no other file."""
    remove_labels(folder)
    (folder / "model.h5").unlink(missing_ok=True)
    remove_empty(folder)
