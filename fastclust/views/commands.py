"""The commands that show what a network has learned: pages, pictures, tables and plots of clusters."""

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

app = typer.Typer()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run (its --out).")],
    device: Device = "auto",
    backend: Backend = "auto",
) -> None:
    """Write DIR/report.html: a run's images, label images and clusters in one page, to look around in a browser.

    Pointing at a pixel names its cluster and lights it up in all images, and what overlaps it in the layers on either
    side. Of each cluster it has the share, examples, channels that mark it out and clusters that are near; of each
    layer the weights and the bound. The page needs nothing but itself, and keeps below 10 MB: of many images, and of
    large ones, it shows a part and says so.
    """
    from fastclust.layer_fit import check_device
    from fastclust.views.page import report_run

    check_device(device, backend)
    with progress_bars() as progress:
        found = report_run(folder, progress, device=device, backend=backend)
    say(reported(folder, found))


@app.command()
def plot(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model that `fit` or `run` wrote.")],
    bound: Annotated[Path | None, typer.Option(help="File for the lower bound after each pass.")] = None,
    weights: Annotated[Path | None, typer.Option(help="File for the components' weights, by size.")] = None,
) -> None:
    """Plot how a fit went and what it found, to .png, .svg or .pdf files."""
    from fastclust.saved import load
    from fastclust.views.plots import check_plot, plot_bound, plot_weights, save

    asked = {file: draw for file, draw in ((bound, plot_bound), (weights, plot_weights)) if file is not None}
    if not asked:
        raise ValueError("nothing to plot: name files with --bound and --weights")
    for file in asked:
        check_plot(file)
    mixture = load(model)
    for file, draw in asked.items():
        save(draw(mixture), file)
        say(f"{file}: {draw.__name__.removeprefix('plot_')} of {model}")


@app.command()
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


def reported(folder: Path, found: dict[str, int]) -> str:
    """Say what a report is of and how large it is; found: of `fastclust.views.page.write_report`."""
    shown = "1 image" if found["images"] == 1 else f"{found['images']} images"
    return f"{folder / 'report.html'}: {shown} shown, {found['bytes'] / 1e6:.1f} MB"
