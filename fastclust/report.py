"""What a run leaves for people: the montage of its label images, and the summary of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclust import machine, picture
from fastclust.atomic import written_aside
from fastclust.extract import ExtractReport, shown_image
from fastclust.labels import SHOWN, Labels, even
from fastclust.store import Store


def shown_inputs(store: Store, places: Sequence[int]) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return the inputs (H, W, 3) at these places among the finished images, and notes on those that are grey."""
    records = [store.images[store.finished[place]] for place in places]
    read = [shown_image(record, store.provenance) for record in records]
    grey = [record.name for record, (_, readable) in zip(records, read, strict=True) if not readable]
    return [pixels for pixels, _ in read], [unreadable_note(grey)] if grey else []


def unreadable_note(names: Sequence[str]) -> str:
    """Say which inputs a picture shows grey."""
    some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    what = "1 input" if len(names) == 1 else f"{len(names)} inputs"
    return f"{what} cannot be read any more, and shown grey: {some}"


def draw_montage(store: Store, layers: Sequence[Labels], path: Path) -> None:
    """Write the montage: inputs first, then a column a layer, clusters in use above it and below each image."""
    shown = even(len(store.finished), SHOWN)
    inputs, unreadable = shown_inputs(store, shown)
    columns = [
        picture.Column(
            name=labels.layer.name,
            images=[picture.paint(labels.shown[place], labels.colours) for place in shown],
            caption=f"{labels.model.n_active_} clusters in use",
            notes=[f"{len(labels.present[place])} here" for place in shown],
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
        inputs,
        columns,
        title=f"{provenance['model']}: clusters of feature-map pixels",
        note=" ".join(notes + unreadable) or None,
        row_names=[store.images[store.finished[place]].name for place in shown],
    )
    with written_aside(path) as aside:
        page.save(aside, format="PNG")


def summarise_layer(labels: Labels, fitting: float) -> dict[str, Any]:
    """Return what the summary says of a layer; fitting: seconds."""
    model, record = labels.model, labels.layer
    return {
        "node": record.node,
        "kind": record.kind,
        "rows": round(model.counts_.sum()),
        "features": record.n_features,
        "clusters_in_use": model.n_active_,
        "clusters_in_use_per_image": [len(present) for present in labels.present],
        "passes": model.n_iter_,
        "converged": model.converged_,
        "lower_bound_per_row": model.lower_bound_,
        "seconds": {"fit": fitting, "label": labels.seconds},
    }


def summarise(
    store: Store,
    report: ExtractReport,
    layers: Sequence[Labels],
    per_layer: dict[str, Any],
    seconds: dict[str, float],
    stored: bool,
) -> dict[str, Any]:
    """Return what summary.json holds; stored: whether the features are.

    seconds_of_extraction, rates_of_extraction and shares_of_extraction are those of `ExtractReport`; where nothing is
    stored, of all passes over the images together.
    """
    provenance, model = store.provenance, layers[0].model
    return {
        "model": provenance["model"],
        "weights": provenance["weights"],
        "weights_source": provenance["weights_source"],
        "weights_sha256": provenance["weights_sha256"],
        "learned_features": provenance["weights"] != "random",
        "size": provenance["size"],
        "dtype": provenance["dtype"],
        "arithmetic": provenance["arithmetic"],
        "stored": stored,
        "seed": model.random_state,
        "mixture": {name: value for name, value in model.get_params().items() if name not in ("device", "backend")},
        "backend": model.backend_,
        "device": model.device_,
        "images": report.done,
        "left_out": [{"path": path, "reason": reason} for path, reason in report.left_out],
        "layers": per_layer,
        "seconds": seconds,
        "seconds_of_extraction": report.seconds,
        "rates_of_extraction": report.rates,
        "shares_of_extraction": report.shares,
        "peak_memory_bytes": machine.peak_memory(),
        "machine": machine.describe(),
    }
