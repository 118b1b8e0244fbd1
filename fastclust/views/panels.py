"""What the report says of each layer and of each of its clusters, as plain values for a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclust import picture
from fastclust.arrays import host
from fastclust.console import printable
from fastclust.receptive import Field
from fastclust.views.portrait import Ranked, deviations, marks, nearest, overlapping
from fastclust.views.survey import Exemplar, Layer, Survey

BARS = 120  # images in a chart, at most
TOP = 3  # images that a cluster's chart names
WIDTH, HEIGHT = 100, 40  # units of a chart


def panel(
    found: Survey,
    i: int,
    seen: Field,
    names: Sequence[str],
    places: Sequence[int],
    patches: Mapping[tuple[str, Exemplar], str],
    boxes: Mapping[tuple[str, Exemplar], tuple[float, ...]],
    most: int,
) -> dict[str, Any]:
    """Return what the page says of layer i of a survey.

    seen: the layer's receptive fields in the first image. names: of all finished images. places: of those shown.
    patches: data URIs of exemplars by layer and exemplar. boxes: what they are cut from, (top, left, height, width) as
    parts of the image. most: exemplars of a cluster.
    """
    layer = found.layers[i]
    model, record = layer.model, layer.record
    totals = layer.counts.sum(axis=1)
    used = np.flatnonzero(totals)
    shares, table = totals / totals.sum(), deviations(model)
    around = neighbours(found, i)
    weights = np.asarray(host(model.weights_), dtype=np.float64)
    bounds = [float(bound) for bound in model.lower_bounds_]

    def exemplar(one: Exemplar) -> dict[str, Any]:
        shown = places.index(one.place) if one.place in places else None
        key = (record.name, one)
        return {"uri": patches[key], "name": names[one.place], "image": shown, "box": boxes[key], "at": one}

    clusters = [
        {
            "k": k,
            "share": float(shares[k]),
            "units": int(totals[k]),
            "images": int(np.count_nonzero(layer.counts[k])),
            "spread": _spread(layer, k, names),
            "exemplars": [exemplar(one) for one in layer.exemplars[k][:most]],
            "marks": marks(table, k),
            "nearest": nearest(table, k, used),
        }
        for k in sorted(map(int, used), key=lambda k: (-shares[k], k))
    ]
    return {
        "name": printable(record.name),
        "node": printable(record.node),
        "unit": "pixels" if record.kind == "conv" else "images",
        "units": int(totals.sum()),
        "features": record.n_features,
        "field": [f"{side:g}" for side in seen.size],
        "jump": [f"{side:g}" for side in seen.jump],
        "used": len(used),
        "components": len(totals),
        "passes": int(model.n_iter_),
        "converged": bool(model.converged_),
        "bound": float(model.lower_bound_),
        "weights": [(int(k), float(weights[k])) for k in np.argsort(-weights, kind="stable")],
        "bounds": bounds,
        "history": history(bounds),
        "colours": [
            f"#{r:02x}{g:02x}{b:02x}"
            for r, g, b in picture.palette(host(model.means_), host(model.counts_), host(model.covariances_))
        ],
        "shares": [float(share) for share in shares],
        "related": {int(k): {j: ranked[int(k)] for j, ranked in around.items()} for k in used},
        "clusters": clusters,
    }


def neighbours(found: Survey, i: int) -> dict[int, list[Ranked]]:
    """Return, for the layers before and after layer i, which of their components overlap each one of i's most."""
    around = {}
    if i > 0:
        around[i - 1] = [overlapping(row) for row in found.overlaps[i - 1].T]
    if i < len(found.overlaps):
        around[i + 1] = [overlapping(row) for row in found.overlaps[i]]
    return around


def _spread(layer: Layer, k: int, names: Sequence[str]) -> dict[str, Any]:
    """Return a cluster's part of each image: a chart, the images where it is largest, and how many are in the chart."""
    parts = layer.counts[k] / layer.counts.sum(axis=0)
    top = [(names[place], float(parts[place])) for place in np.argsort(-parts, kind="stable")[:TOP] if parts[place]]
    ranked = len(parts) > BARS
    charted = np.sort(parts)[::-1][np.linspace(0, len(parts) - 1, BARS).round().astype(int)] if ranked else parts
    return {"path": bars(charted), "top": top, "largest": float(parts.max()), "ranked": ranked}


def bars(values: NDArray[np.float64]) -> str:
    """Return the SVG path of a bar for each value, from 0 to the largest, in a box of WIDTH x HEIGHT."""
    step, largest = WIDTH / len(values), float(values.max()) or 1.0
    wide = step * (0.8 if len(values) <= BARS / 2 else 1)
    parts = []
    for place, value in enumerate(values):
        high = HEIGHT * float(value) / largest
        if high:
            parts.append(f"M{place * step:.2f} {HEIGHT}v{-high:.2f}h{wide:.2f}v{high:.2f}z")
    return "".join(parts)


def history(bounds: Sequence[float]) -> dict[str, Any]:
    """Return the curve of a fit's bounds in a box of WIDTH x HEIGHT, and what its edges stand for.

    The first twentieth of the passes, which rise most, may begin below the box: with them the rest would be one line.
    """
    if not bounds:
        return {"path": "", "low": 0.0, "high": 0.0, "below": 0}
    low, high = min(bounds[len(bounds) // 20 :]), max(bounds)
    scale = HEIGHT / (high - low) if high > low else 0.0
    step = WIDTH / max(len(bounds) - 1, 1)
    points = [f"{place * step:.2f} {HEIGHT - (bound - low) * scale:.2f}" for place, bound in enumerate(bounds)]
    return {"path": "M" + "L".join(points), "low": low, "high": high, "below": sum(bound < low for bound in bounds)}
