"""The command `atlas`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from fastclust import options
from fastclust.console import end, progress_bars, say
from fastclust.options import (
    Alpha,
    Backend,
    BatchSize,
    Components,
    Covariance,
    CovarianceType,
    Device,
    Dtype,
    Images,
    LabelsFile,
    MaxIter,
    Model,
    Overwrite,
    Precision,
    Products,
    Resume,
    Rows,
    Scale,
    Seed,
    Size,
    Stored,
    Tol,
    Weights,
    Workers,
)


def atlas(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for all results.")],
    model: Model = "vgg16",
    weights: Weights = "pretrained",
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", help="As of `run` [default: every weight layer that the weights cover]."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each layer, from different starts.")] = 5,
    rows: Rows = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw clusters in use against depth to this file, too: .png, .svg or .pdf.")
    ] = None,
    size: Size = "224",
    dtype: Dtype = Stored.float16,
    batch_size: BatchSize = 8,
    labels: LabelsFile = None,
    components: Components = 50,
    alpha: Alpha = 0.2,
    covariance: CovarianceType = Covariance.diag,
    feature_range: Scale = None,
    tol: Tol = 1e-3,
    max_iter: MaxIter = 200,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Products = Precision.high,
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Cluster every weight layer in order, several times: a montage, and clusters in use against depth.

    One forward pass stores all layers in OUT/features.h5: of VGG-16 27 MB an image. Writes OUT/atlas.png,
    OUT/clusters_in_use.png and OUT/atlas.json, and of the first seed what `run` writes for each layer, so that
    `fastclust report OUT` works. Dense layers have one point an image, and alpha 0.1.
    """
    from fastclust.describe import check_replaceable
    from fastclust.store import FORMAT
    from fastclust.views.atlas import draw_atlas
    from fastclust.views.plots import check_plot, plot_clusters_in_use, save

    if plot is not None:
        check_plot(plot)
    if overwrite:
        check_replaceable(out / "features.h5", FORMAT)
    with progress_bars() as progress:
        found = draw_atlas(
            images,
            out=out,
            layers=layer,
            seeds=seeds,
            sample=rows,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            extraction=options.extraction(model, weights, size, dtype, batch_size, labels, seed, device, workers),
            mixture=options.mixture(
                components, alpha, covariance, feature_range, tol, max_iter, seed, device, backend, precision
            ),
        )
    if plot is not None:
        save(plot_clusters_in_use(found), plot)
    for one in found["layers"]:
        say(_clusters(one))
    if found["layers_of_one_row"]:
        say(f"passed over, since one row has no clusters: {', '.join(found['layers_of_one_row'])}")
    if found["layers_beyond_the_weights"]:
        names = found["layers_beyond_the_weights"]
        say(f"{len(names)} more weight layers, from {names[0]} on, are beyond what the weights file covers")
    if not found["learned_features"]:
        say(f"weights: RANDOM (seed {seed}): these are not learned features")
    say(
        f"{len(found['images'])} images in {found['seconds']:.1f} s: {out / 'atlas.png'}, {out / 'clusters_in_use.png'}"
    )
    end([(one["path"], one["reason"]) for one in found["left_out"]])


def _clusters(layer: dict[str, Any]) -> str:
    """Say how many clusters a layer of an atlas has, over all images and in one."""
    counts = [fit["clusters_in_use"] for fit in layer["fits"]]
    inside = [n for fit in layer["fits"] for n in fit["clusters_in_image"]]
    seeds = f"{min(counts)} to {max(counts)} over {len(counts)} seeds" if len(counts) > 1 else "1 seed"
    return (
        f"{layer['name']}: {median(counts):g} clusters in use of {layer['components']} ({seeds}), "
        f"{median(inside):g} in an image ({min(inside)} to {max(inside)})"
    )
