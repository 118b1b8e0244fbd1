"""Two stores compared at every layer that both have: which layers, by which mixtures, as a table or as JSON.

What is compared, and what far, new and separation mean, stands in `fastclust.views.transfer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastclust.fitted import FittedMixture
from fastclust.labels import Progress, check_finished, quiet, source_of
from fastclust.saved import load
from fastclust.store import Store
from fastclust.views.transfer import QUANTILE, Transfer, fit_reference, given_reference, stops_at, transfer


def compare(
    a: Store,
    b: Store,
    mixture: dict[str, Any],
    *,
    layers: Sequence[str] = (),
    models: Path | None = None,
    held_out: float = 0.5,
    sample: int | None = None,
    progress: Progress = quiet,
) -> list[Transfer]:
    """Compare B with A at layers that both have, in A's order; all of them where none is named.

    mixture: of `fastclust.DPGMM`; its random_state is that of the splits, too. held_out: share of A's images that is
    held out, at least one and not all. sample: rows to fit to instead of all. models: a folder with LAYER/model.h5, as
    `fastclust run` leaves it, of mixtures to take instead of fitting: then all of A's images count as held out.

    Raises ValueError where A has fewer than two finished images, or B none, there is no common layer, the two are of
    different networks or weights, a model is not of its layer or was fitted to A's rows, which it says, or else
    to as many; FileNotFoundError where a model is not there; and as `fastclust.pipeline.fit_layer`.
    """
    names = common_layers(a, b, layers)
    check_finished(b)
    found, n_images = [], len(b.finished)
    for name in names:
        if models is None:
            reference = fit_reference(a, name, mixture, held_out=held_out, sample=sample, progress=progress)
        else:
            reference = given_reference(a, name, _load(models / name / "model.h5", a, name, mixture), progress)
        progress(f"compare {name}", 0, n_images, "")
        found.append(transfer(reference, b, mixture, sample=sample, progress=progress))
        progress(f"compare {name}", n_images, n_images, f"{found[-1].far:.1%} far")
    return found


def common_layers(a: Store, b: Store, asked: Sequence[str] = ()) -> list[str]:
    """Return the layers that two stores have, in A's order, or those that are asked for. Raises ValueError."""
    for store in (a, b):
        for name in asked:
            store.layer(name)
    names = [name for name in a.layers if name in b.layers and (not asked or name in asked)]
    if not names:
        raise ValueError(
            f"{a.path} and {b.path} have no layer in common: the first has {', '.join(a.layers)}, the second "
            f"{', '.join(b.layers)}; extract the same layers"
        )
    for name in names:
        if source_of(a, a.layers[name]) != source_of(b, b.layers[name]):
            raise ValueError(
                f"{name} of {a.path} and of {b.path} are of different networks or weights: extract both with the same"
            )
    return names


def _load(path: Path, a: Store, layer: str, mixture: dict[str, Any]) -> FittedMixture:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected LAYER/model.h5 below the folder of models")
    model = load(path)
    rows, source = sum(len(part) for part in a.rows(layer)), getattr(model, "source_", {})
    if a.fingerprint(layer) in source["rows"].split() if "rows" in source else round(model.counts_.sum()) == rows:
        raise ValueError(
            f"{path} was fitted to the {rows} rows of {a.path}, or to as many, or to a sample of them: of images that "
            "a model was fitted to, none is held out; give a model of other images, or none"
        )
    model.set_params(device=mixture.get("device", "auto"), backend=mixture.get("backend", "auto"))
    return model


def lines(found: Sequence[Transfer]) -> list[str]:
    """Return a table, in lines: above it what its columns are, then a layer a line, the columns aligned."""
    cells = [("layer", "clusters", "A", "B", "A", "B", "A's", "new", "neither", "separation", "usage")]
    for one in found:
        parts = ("-", "-") if one.new is None else (_percent(one.new), _percent(one.far - one.new))
        cells.append(
            (
                one.layer,
                str(one.clusters),
                f"{one.log_density_a:.2f}",
                f"{one.log_density_b:.2f}",
                _range(one.far_a),
                _range(one.far_b),
                _percent(1 - one.far),
                *parts,
                f"{one.separation:.3f}",
                f"{one.usage:.3f}",
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    groups = (("", 0, 2), ("ln p, nats a row", 2, 4), ("far rows of an image", 4, 6), ("B's rows, by cluster", 6, 9))
    above = []
    for name, low, high in groups:
        widths[high - 1] += max(0, len(name) - sum(widths[low:high]) - 2 * (high - low - 1))
        above.append(name.rjust(sum(widths[low:high]) + 2 * (high - low - 1)))
    table = [
        "  ".join((cell.ljust if at == 0 else cell.rjust)(widths[at]) for at, cell in enumerate(row)) for row in cells
    ]
    return ["  ".join(above), *table]


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _range(shares: Sequence[float]) -> str:
    """Return the median of images, and the smallest and the largest."""
    return f"{np.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def as_json(a: Store, b: Store, found: Sequence[Transfer], mixture: Mapping[str, Any]) -> dict[str, Any]:
    """Return what compare.json holds: the two stores, the definition of far, the mixture, and every layer's numbers."""
    return {
        "a": {"path": str(a.path), "images": len(a.finished), "size": a.provenance["size"]},
        "b": {"path": str(b.path), "images": len(b.finished), "size": b.provenance["size"]},
        "model": a.provenance["model"],
        "weights": a.provenance["weights"],
        "far": f"ln density below the {QUANTILE:.0%} quantile of the rows of held-out images of A",
        "mixture": {name: value for name, value in mixture.items() if name not in ("device", "backend")},
        "stops_looking_like_a_at": stops_at(found),
        "layers": [asdict(one) for one in found],
    }
