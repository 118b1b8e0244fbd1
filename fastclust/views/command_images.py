"""The commands `images` and `figure4`, which clusters images as points."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastclust import options
from fastclust.console import complain, progress_bars, say
from fastclust.options import (
    Alpha,
    Backend,
    Covariance,
    CovarianceType,
    Device,
    MaxIter,
    OneLayer,
    Overwrite,
    Pooling,
    Precision,
    Products,
    Scale,
    Seed,
    StartSeed,
    Stored,
    Tol,
)

if TYPE_CHECKING:
    from fastclust.views.images import Composition


def images(
    store: Annotated[Path, typer.Argument(help="A store that `extract` wrote, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for all results.")],
    layer: OneLayer = None,
    pool: Annotated[
        Pooling | None,
        typer.Option(help="Of a convolutional layer: the mean, or the largest value, of each channel over all places."),
    ] = None,
    pca: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Principal components of the points that the mixture sees [default: the root of a 25th of the number "
            "of images]; 0: all features, as they are.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV of path,label[,group], or Grade.csv of the Warwick-QU (GlaS) images, instead of the labels in "
            "the store."
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(min=1, help="The most clusters that there can be [default: 50, or as many as there are images]."),
    ] = None,
    alpha: Alpha = 0.1,
    covariance: CovarianceType = Covariance.diag,
    feature_range: Scale = None,
    tol: Tol = 1e-4,
    max_iter: MaxIter = 200,
    seed: StartSeed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Products = Precision.high,
    plot: Annotated[Path | None, typer.Option(help="Draw the composition by label, too: PNG, SVG or PDF.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cluster images, each one point, and say how the clusters are composed by label and by group (such as patients).

    A point is an image's row of a dense layer, or its map of a convolutional layer pooled over its places; of many
    features, the mixture sees the first principal components, since hundreds of images cannot tell clusters apart in
    thousands of dimensions. Writes OUT/model.h5, OUT/projection.npz, OUT/clusters.csv, OUT/composition.csv,
    OUT/composition.json, and contact sheets: OUT/cluster-KK.png a cluster, and OUT/contact.png of all. Purity, adjusted
    Rand index and normalised mutual information say how clusters agree with labels and groups, p-values by permutation
    how often chance alone would do as well.
    """
    from fastclust.describe import check_replaceable
    from fastclust.layer_fit import check_mixture
    from fastclust.model_file import FORMAT
    from fastclust.store import open_features
    from fastclust.views.images import check_free, compose
    from fastclust.views.plots import check_plot

    mixture = options.mixture(
        components or 50, alpha, covariance, feature_range, tol, max_iter, seed, device, backend, precision
    )
    check_mixture(mixture)
    if plot is not None:
        check_plot(Path(plot.name) if plot.parent == out else plot)
    opened = open_features(store)
    name = opened.only_layer(layer[0] if layer else None).name
    check_free(out, overwrite)
    check_replaceable(out / "model.h5", FORMAT)
    with progress_bars() as progress:
        result = compose(
            opened,
            name,
            out,
            pool=pool.value if pool else None,
            parameters=mixture | {"n_components": components},
            pca=pca,
            labels=labels,
            overwrite=overwrite,
            progress=progress,
        )
    _tell(result, out)
    if plot is not None:
        _plot_composition(result, plot)


def figure4(
    out: Annotated[Path, typer.Argument(help="Folder for all results; figure4-out is replaced.")] = Path("figure4-out"),
    weights: Annotated[
        str | None,
        typer.Option(help="pretrained, random or a file [default: pretrained where they can be had, else random]."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw images as points: what `images` finds at a deep layer and at the classifier of squeezenet1_0.

    Of CIFAR-10's images, where FASTCLUST_DATA names a folder that has images/cifar10 and weights/squeezenet1_0.pth;
    else of crops of photographs that come with scikit-learn and scikit-image. Writes OUT/features.h5, and what `images`
    writes, with a plot, OUT/LAYER/composition.png, to OUT/LAYER.
    """
    from fastclust.describe import check_replaceable
    from fastclust.extract import extract
    from fastclust.store import FORMAT, open_store
    from fastclust.views.figure4 import LAYERS, MODEL, find_source
    from fastclust.views.images import check_free, compose

    overwrite = overwrite or out == Path("figure4-out")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, and a folder is wanted there: name another")
    if (out / "features.h5").exists() and not overwrite:
        raise FileExistsError(f"{out / 'features.h5'} exists: --overwrite replaces it; or name another folder")
    check_replaceable(out / "features.h5", FORMAT)
    for layer in LAYERS:
        check_free(out / layer, overwrite)
    source = find_source(out, os.environ.get("FASTCLUST_DATA"), weights)
    out.mkdir(parents=True, exist_ok=True)
    if source.why_random:
        complain(source.why_random, style="yellow")
        complain(
            f"going on with RANDOM weights (seed {seed}): the clusters show the architecture, not learned features",
            style="bold yellow",
        )
    extraction = options.extraction(MODEL, source.weights, "224", Stored.float16, 8, source.labels, seed, device, None)
    mixture = options.mixture(50, 0.1, Covariance.diag, None, 1e-4, 200, seed, device, "auto", Precision.high) | {
        "n_components": None
    }
    with progress_bars() as progress:
        extract(
            [source.images],
            out=out / "features.h5",
            layers=list(LAYERS),
            overwrite=overwrite,
            progress=lambda done, total, rate: progress("extract", done, total, rate),
            **extraction,
        )
    for layer, pool in LAYERS.items():
        with progress_bars() as progress:
            result = compose(
                open_store(out / "features.h5"),
                layer,
                out / layer,
                pool=pool,
                parameters=mixture,
                overwrite=overwrite,
                progress=progress,
            )
        _tell(result, out / layer)
        _plot_composition(result, out / layer / "composition.png")


def _tell(result: Composition, out: Path) -> None:
    from fastclust.views.composition import OUTLIER_RULE
    from fastclust.views.images import composed

    model, sizes = result.found.model, result.found.sizes
    known = {name: one for name, one in result.agreements.items() if one is not None}
    for k in result.clusters:
        parts = "; ".join(f"{name} {composed(one, k)}" for name, one in known.items())
        say(f"cluster {k:>4} {sizes[k]:>6} images  {parts}".rstrip())
    for name, one in result.agreements.items():
        if one is None:
            say(f"{name}: the same of all images: nothing to compare with (--labels)")
            continue
        say(
            f"{name}: purity {one.purity:.3f}, entropy {one.entropy:.3f} nats, "
            f"adjusted Rand index {one.adjusted_rand:.3f} (p {one.p_rand:.4f}), "
            f"normalised mutual information {one.mutual_information:.3f} (p {one.p_information:.4f}); "
            f"{one.permutations} permutations"
        )
        if one.p_by_groups is not None:
            rand, information = one.p_by_groups
            say(f"{name}, permuted over whole groups: p {rand:.4f} and {information:.4f}")
    outliers = [
        f"{k} ({'1 image' if sizes[k] == 1 else f'{sizes[k]} images'})" for k in result.clusters if result.outliers[k]
    ]
    say(f"outlier clusters, of {OUTLIER_RULE}: {', '.join(outliers) or 'none'}")
    state = "converged" if model.converged_ else f"not converged (--max-iter {model.max_iter})"
    over = "" if result.pool is None else f", {result.pool} over places"
    seen = result.found.projection
    if seen is not None:
        over += f", {len(seen.components)} principal components with {seen.share:.0%} of the variance"
    say(
        f"{out}: {result.layer}{over}, {len(result.labels)} images: {len(result.clusters)} "
        f"clusters in use of {model.n_components}, {model.n_iter_} passes, {state}, bound {model.lower_bound_:.4f} "
        f"nats an image; {out / 'contact.png'}"
    )
    if result.remark:
        say(f"{out}{result.remark}: these are not learned features")
    if result.unreadable:
        some = ", ".join(result.unreadable[:3]) + (" ..." if len(result.unreadable) > 3 else "")
        complain(f"{len(result.unreadable)} images cannot be read any more, and are shown grey: {some}")


def _plot_composition(result: Composition, path: Path) -> None:
    from fastclust.views.composition import tabulate
    from fastclust.views.plots import plot_composition, save

    values, counts = tabulate(result.found.clusters, result.labels)
    ax = plot_composition(counts, values)
    ax.set_title(f"{result.layer}: composition of the clusters{result.remark}")
    save(ax, path)
    say(f"{path}: the composition by label")
