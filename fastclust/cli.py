"""The command line: it parses, calls, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastclust import __version__, options
from fastclust.console import complain, end, progress_bars, say
from fastclust.options import (
    Alpha,
    Backend,
    BatchSize,
    CheckpointFile,
    Components,
    Covariance,
    CovarianceType,
    Device,
    Dtype,
    Every,
    Images,
    LabelsFile,
    Layers,
    MaxIter,
    Model,
    NoStore,
    OneLayer,
    Overwrite,
    Precision,
    Products,
    Resume,
    Rows,
    Scale,
    Seed,
    Size,
    StartSeed,
    Stored,
    Tol,
    Weights,
    WeightsSeed,
    Workers,
)
from fastclust.views import commands as views
from fastclust.views.command_report import reported

app = typer.Typer(
    name="fastclust",
    help="See what a convnet has learned: cluster the pixels of its feature maps with a Dirichlet-process mixture.",
    epilog="`fastclust COMMAND --help` tells what each takes. FASTCLUST_TRACEBACK=1 shows where an error comes from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def run(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for all results.")],
    layer: Layers,
    model: Model = "vgg16",
    weights: Weights = "pretrained",
    size: Size = "224",
    dtype: Dtype = Stored.float16,
    batch_size: BatchSize = 8,
    labels: LabelsFile = None,
    components: Components = 50,
    alpha: Alpha = 0.2,
    covariance: CovarianceType = Covariance.diag,
    feature_range: Scale = None,
    tol: Tol = 1e-4,
    max_iter: MaxIter = 200,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Products = Precision.high,
    workers: Workers = None,
    no_store: NoStore = False,
    report: Annotated[bool, typer.Option("--report", help="Write OUT/report.html, too, as `report` does.")] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Extract, fit, label and draw: from images to a montage of what each layer tells apart.

    Writes OUT/montage.png, OUT/summary.json, OUT/features.h5, and for each layer OUT/LAYER/model.h5,
    OUT/LAYER/labels/IMAGE.png and OUT/LAYER/enlarged/IMAGE.png (OUT/LAYER/labels.csv for a dense layer). With
    --no-store there is no OUT/features.h5: the network runs again on every pass, with the same results.
    """
    _run(
        images,
        out,
        layer,
        options.extraction(model, weights, size, dtype, batch_size, labels, seed, device, workers),
        options.mixture(components, alpha, covariance, feature_range, tol, max_iter, seed, device, backend, precision),
        resume,
        overwrite,
        no_store,
        report,
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for all results; demo-out is replaced, others need --overwrite.")
    ] = Path("demo-out"),
    images: Annotated[
        list[Path] | None, typer.Option(help="Images, or a folder of them, instead of the samples; repeatable.")
    ] = None,
    model: Model = "vgg16",
    weights: Annotated[
        str | None,
        typer.Option(help="As of `run` [default: pretrained where they can be had, else random, and it says so]."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="As of `run` [default: relu1_2, relu2_2, relu4_3; 2, 4, 8 of models other than VGG].",
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Run on sample photographs that come with scikit-learn and scikit-image: no arguments, no network, no GPU."""
    from fastclust.demo import choose_weights, default_layers, sample_images

    if weights is None:
        weights, why = choose_weights(model)
        if why:
            complain(why, style="yellow")
            complain(
                f"going on with RANDOM weights (seed {seed}): the pictures show the architecture, not learned features",
                style="bold yellow",
            )
    _run(
        images or sample_images(),
        out,
        layer or default_layers(model),
        options.extraction(model, weights, "224", Stored.float16, 8, None, seed, "auto", None),
        options.mixture(50, 0.2, Covariance.diag, None, 1e-3, 120, seed, "auto", "auto", Precision.high),
        resume=False,
        overwrite=overwrite or out == Path("demo-out"),
    )


@app.command()
def extract(
    images: Images,
    out: Annotated[Path, typer.Option(help="The store to write, such as features.h5.")],
    layer: Layers,
    model: Model = "vgg16",
    weights: Weights = "pretrained",
    size: Size = "224",
    dtype: Dtype = Stored.float16,
    batch_size: BatchSize = 8,
    labels: LabelsFile = None,
    seed: WeightsSeed = 0,
    device: Device = "auto",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the features of images at one or more layers to a store, for `fit` and `label`.

    Under torchrun its processes share the images, and write to one store; or each to one of its own, where {rank}
    stands in --out for the number of the process: `fastclust merge` then makes one of them.
    """
    from fastclust.describe import check_replaceable
    from fastclust.extract import extract as extract_features
    from fastclust.extract import find_images
    from fastclust.group import ALONE, ranks, together
    from fastclust.launch import joined_group
    from fastclust.store import FORMAT

    with progress_bars() as progress, joined_group(device), together() as group:
        if "{rank}" in out.name:
            rank, size_of_group = ranks()
            images = find_images(images)[rank::size_of_group]
            out, group = out.with_name(out.name.replace("{rank}", str(rank))), ALONE
        if overwrite and group.rank == 0:
            check_replaceable(out, FORMAT)
        progress("extract", 0, None, "images")
        report = extract_features(
            images,
            out=out,
            layers=layer,
            resume=resume,
            overwrite=overwrite,
            progress=lambda done, total, rate: progress("extract", done, total, rate),
            group=group,
            **options.extraction(model, weights, size, dtype, batch_size, labels, seed, device, workers),
        )
    rates = report.rates
    say(
        f"{out}: {report.done} images, {', '.join(layer)}, in {report.seconds['total']:.1f} s "
        f"({rates['images_per_second']:.1f} images/s, {rates['megabytes_per_second']:.0f} MB/s)"
    )
    end(report.left_out)


@app.command()
def fit(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Stores that `extract` wrote; their images are fitted together.")],
    out: Annotated[Path, typer.Option(help="The model to write, such as model.h5.")],
    layer: OneLayer = None,
    rows: Rows = None,
    components: Components = 50,
    alpha: Alpha = 0.2,
    covariance: CovarianceType = Covariance.diag,
    feature_range: Scale = None,
    tol: Tol = 1e-4,
    max_iter: MaxIter = 200,
    seed: StartSeed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Products = Precision.high,
    checkpoint: CheckpointFile = None,
    every: Every = "5m",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a mixture to the rows of a layer, for `label`.

    Under `torchrun --nproc-per-node N -m fastclust fit ...` the rows are shared by N processes, on as many machines as
    torchrun is told, which all see the stores.
    """
    from fastclust.checkpoint import FORMAT as CHECKPOINT
    from fastclust.checkpoint import Checkpoint
    from fastclust.describe import check_replaceable, format_of
    from fastclust.group import ranks
    from fastclust.launch import joined_group
    from fastclust.layer_fit import check_mixture, fit_layer, is_fit_of
    from fastclust.model_file import FORMAT
    from fastclust.saved import load
    from fastclust.store import open_store

    context.obj["checkpoint"] = checkpoint
    if resume and checkpoint is None:
        raise ValueError("--resume goes on from a checkpoint: name its file with --checkpoint")
    if resume and overwrite:
        raise ValueError("--resume goes on, --overwrite starts anew: give one of them")
    if checkpoint is not None and checkpoint.resolve() == out.resolve():
        raise ValueError(f"{out} cannot be the model and the checkpoint: name another file with --checkpoint")
    stores = [open_store(file) for file in files]
    name = stores[0].only_layer(layer[0] if layer else None).name
    mixture = options.mixture(
        components, alpha, covariance, feature_range, tol, max_iter, seed, device, backend, precision
    )
    check_mixture(mixture)
    going_on = resume and checkpoint is not None and checkpoint.exists()
    if resume and not going_on and out.is_file() and format_of(out) == FORMAT:
        before = load(out)
        if is_fit_of(before, stores, name, mixture, rows):
            say(f"{out}: {name}: this fit has ended before: {_outcome(before)}")
            return
    _check_new(out, overwrite or going_on)
    check_replaceable(out, FORMAT)
    with progress_bars() as progress, joined_group(device):
        if checkpoint is not None and overwrite and ranks()[0] == 0:
            check_replaceable(checkpoint, CHECKPOINT)
            checkpoint.unlink(missing_ok=True)
        kept = None if checkpoint is None else Checkpoint(checkpoint, every=options.seconds(every), resume=resume)
        model, seconds = fit_layer(stores, name, mixture, progress, sample=rows, checkpoint=kept)
        if ranks()[0] == 0:
            model.save(out)
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
    rows_fitted = model.source_.get("sample", f"{round(model.counts_.sum())} rows")
    count = f"{rows_fitted} of {model.n_features_in_} from {_images(*stores)}"
    say(f"{out}: {name}, {count}: {_outcome(model)}; {seconds:.1f} s")


@app.command()
def label(
    file: Annotated[Path, typer.Argument(help="A store that `extract` wrote.")],
    model: Annotated[Path, typer.Option(help="A model that `fit` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for labels/IMAGE.png and enlarged/IMAGE.png, or labels.csv.")],
    layer: OneLayer = None,
    device: Device = "auto",
    backend: Backend = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Paint the most probable cluster of every pixel; of a dense layer, list that of every image.

    Pixel values of labels/IMAGE.png are the clusters' numbers (where there are at most 256 of them); enlarged/IMAGE.png
    is the same at the size of the network's input. Under torchrun the images are shared by its processes.
    """
    from fastclust.group import together
    from fastclust.labels import label_layer
    from fastclust.launch import joined_group
    from fastclust.layer_fit import check_device
    from fastclust.saved import load
    from fastclust.store import open_store

    if resume and overwrite:
        raise ValueError("--resume goes on, --overwrite starts anew: give one of them")
    store, mixture = open_store(file), load(model)
    name = store.only_layer(layer[0] if layer else None).name
    check_device(device, backend)
    mixture.set_params(device=device, backend=backend)
    with progress_bars() as progress, joined_group(device), together() as group:
        for part in ("labels", "enlarged", "labels.csv"):
            if group.rank == 0 and (out / part).exists() and not (resume or overwrite):
                raise FileExistsError(
                    f"{out / part} exists: --resume goes on with it, --overwrite replaces it; or name another folder"
                )
        labels = label_layer(store, name, mixture, out, progress, resume=resume, group=group)
    found = len(set().union(*labels.present))
    before = f" ({labels.resumed} from before)" if labels.resumed else ""
    say(f"{out}: {name}, {_images(store)}{before}, {found} clusters in them; {labels.seconds:.1f} s")


@app.command()
def verify(file: Annotated[Path, typer.Argument(help="A store that `extract` or `merge` wrote.")]) -> None:
    """Read all features of a store and hold them against their checksums; name the images that are damaged."""
    from fastclust.verify import verify as verify_store

    with progress_bars() as progress:
        found = verify_store(file, lambda done, total: progress("verify", done, total, "images"))
    for image, layers in found.damaged.items():
        say(f"damaged: {image}: {', '.join(layers)}")
    if found.damaged:
        raise ValueError(
            f"{file}: the rows of {len(found.damaged)} of {found.images} images are not as they were written: "
            "`fastclust extract --resume`, with all else as it was, computes them again"
        )
    say(
        f"{file}: {found.images} images as they were written ({found.pending} pending, {found.left_out} left out), "
        f"{found.n_bytes} bytes in {found.seconds:.1f} s"
    )


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Stores of one model and the same layers.")],
    out: Annotated[Path, typer.Option(help="The store to write, such as all.h5.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy stores into one, as if one `extract` had made it; images that are not extracted yet stay behind."""
    from fastclust.describe import check_replaceable
    from fastclust.merge import merge as merge_stores
    from fastclust.store import FORMAT

    if overwrite:
        check_replaceable(out, FORMAT)
    with progress_bars() as progress:
        merged = merge_stores(
            files, out, overwrite=overwrite, progress=lambda done, total: progress("merge", done, total, "images")
        )
    pending = f"; {merged.pending} that are not extracted yet stayed behind" if merged.pending else ""
    say(f"{out}: {merged.done} images and {merged.left_out} left out, of {len(files)} stores{pending}")


@app.command()
def layers(model: Annotated[str, typer.Argument(help="A torchvision classification model.")]) -> None:
    """List what can be asked for of a model: nodes, other names of them, kind, and shape at its usual input size."""
    from fastclust.extract import list_layers

    found = list_layers(model)
    width = max(len(one.node) for one in found)
    names = max(len(", ".join(one.names)) for one in found)
    for one in found:
        shape = " x ".join(str(side) for side in one.shape)
        say(f"{one.node:<{width}}  {', '.join(one.names):<{names}}  {one.kind:<5}  {shape}")


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A file that fastclust wrote.")]) -> None:
    """Describe a file: a store, a model, or a run's folder or summary."""
    from fastclust import describe

    for line in describe.describe(file):
        say(line)


@app.command()
def doctor(
    prove: Annotated[
        bool, typer.Option("--prove", help="Hold every kernel that can run here against float64.")
    ] = False,
) -> None:
    """Say what machine, devices, versions and backends there are, and why one cannot run."""
    from fastclust import doctor as checks

    if not prove:
        for line in checks.lines():
            say(line)
        return
    failed = 0
    for line, wrong in checks.proofs():
        say(line)
        failed += wrong
    if failed:
        complain(f"{failed} proofs failed: a fit with backend 'auto' on a GPU passes over these kernels")
        raise typer.Exit(1)


def _run(
    images: list[Path],
    out: Path,
    layer: list[str],
    extraction: dict[str, Any],
    mixture: dict[str, Any],
    resume: bool,
    overwrite: bool,
    no_store: bool = False,
    report: bool = False,
) -> None:
    from fastclust.describe import check_replaceable
    from fastclust.pipeline import run as run_all
    from fastclust.store import FORMAT

    if overwrite:
        check_replaceable(out / "features.h5", FORMAT)
    with progress_bars() as progress:
        summary = run_all(
            images,
            out=out,
            layers=layer,
            extraction=extraction,
            mixture=mixture,
            resume=resume,
            overwrite=overwrite,
            no_store=no_store,
            report=report,
            progress=progress,
        )
    for name, one in summary["layers"].items():
        state = "converged" if one["converged"] else "not converged (--max-iter)"
        say(
            f"{name}: {one['rows']} rows of {one['features']}, {one['clusters_in_use']} clusters in use, "
            f"{one['passes']} passes, {state}, bound {one['lower_bound_per_row']:.4f} nats a row"
        )
    if not summary["learned_features"]:
        say(f"weights: RANDOM (seed {extraction['seed']}): these are not learned features")
    if report:
        say(reported(out, summary["report"]))
    stored = "" if summary["stored"] else "; no features are stored"
    say(f"{summary['images']} images in {summary['seconds']['total']:.1f} s: {out / 'montage.png'}{stored}")
    end([(one["path"], one["reason"]) for one in summary["left_out"]])


def _check_new(out: Path, replace: bool) -> None:
    """Refuse a file that cannot be written, or that is there, unless it may be replaced."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is not a folder: create it first")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: name a file in it")
    if out.exists() and not replace:
        raise FileExistsError(f"{out} exists: --overwrite replaces it; or name another file")


def _images(*stores: Any) -> str:
    done = sum(len(store.finished) for store in stores)
    pending = sum(image.state == 0 for store in stores for image in store.images)
    return f"{done} images" + (f" ({pending} more are not extracted yet)" if pending else "")


def _outcome(model: Any) -> str:
    state = "converged" if model.converged_ else f"not converged (--max-iter {model.max_iter})"
    return (
        f"{model.n_active_} clusters in use, {model.n_iter_} passes, {state}, bound {model.lower_bound_:.4f} nats a row"
    )


def _version(value: bool) -> None:
    if value:
        say(f"fastclust {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(views.app)
