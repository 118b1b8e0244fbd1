"""The command line: it parses, calls, and prints.

Exit status: 0 where all was done; 1 for an error, named in one line; 2 for words that cannot be parsed; 3 where all was
done but for images that had to be left out, which are named; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

app = typer.Typer(
    name="fastclust",
    help="See what a convnet has learned: cluster the pixels of its feature maps with a Dirichlet-process mixture.",
    epilog="`fastclust COMMAND --help` tells what each takes. FASTCLUST_TRACEBACK=1 shows where an error comes from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Whether click is a package of its own or a part of Typer depends on the version of Typer.
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
out_console, err_console = (
    Console(soft_wrap=True, highlight=False),
    Console(stderr=True, soft_wrap=True, highlight=False),
)


class Covariance(StrEnum):
    """Covariance types."""

    full = "full"
    tied = "tied"
    diag = "diag"
    spherical = "spherical"


class Precision(StrEnum):
    """Dtypes of a store."""

    float16 = "float16"
    float32 = "float32"


Images = Annotated[list[Path], typer.Argument(help="Image files, and folders that are searched for images.")]
Model = Annotated[str, typer.Option(help="A torchvision classification model, such as vgg16, vgg19 or resnet18.")]
Weights = Annotated[
    str, typer.Option(help="pretrained, random, or a .pth or .safetensors file with the weights the layers need.")
]
Layers = Annotated[
    list[str],
    typer.Option("--layer", help="A layer, repeatable: a node (features.3), a name (relu1_2) or a number (2)."),
]
Size = Annotated[str, typer.Option(help="224: resize and centre crop, in pixels; full: every image as large as it is.")]
Dtype = Annotated[Precision, typer.Option(help="Type of the stored features.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one forward pass.")]
LabelsFile = Annotated[
    Path | None, typer.Option(help="CSV of path,label[,group]; without it a label is the name of the image's folder.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Components = Annotated[int, typer.Option(min=1, help="The most clusters that there can be.")]
Alpha = Annotated[float, typer.Option(min=0.0, help="Concentration of the Dirichlet process.")]
CovarianceType = Annotated[Covariance, typer.Option(help="Shape of a cluster.")]
Tol = Annotated[float, typer.Option(min=0.0, help="Stop when a pass changes the bound by less, in nats a row.")]
MaxIter = Annotated[int, typer.Option(min=1, help="Most passes over the rows.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the start, and of random weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Backend = Annotated[str, typer.Option(help="auto, or one that `fastclust doctor` lists.")]
Scale = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Map a layer's values to this range by one affine map [default: 0 10]; equal numbers: do not."),
]


@app.command()
def run(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for all results.")],
    layer: Layers,
    model: Model = "vgg16",
    weights: Weights = "pretrained",
    size: Size = "224",
    dtype: Dtype = Precision.float16,
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
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Extract, fit, label and draw: from images to a montage of what each layer tells apart.

    Writes OUT/montage.png, OUT/summary.json, OUT/features.h5, and for each layer OUT/LAYER/model.h5,
    OUT/LAYER/labels/IMAGE.png and OUT/LAYER/enlarged/IMAGE.png (OUT/LAYER/labels.csv for a dense layer).
    """
    _run(
        images,
        out,
        layer,
        _extraction(model, weights, size, dtype, batch_size, labels, seed, device),
        _mixture(components, alpha, covariance, feature_range, tol, max_iter, seed, device, backend),
        resume,
        overwrite,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results; an earlier demo's are replaced.")] = Path(
        "demo-out"
    ),
    images: Annotated[list[Path] | None, typer.Option(help="Other images than the sample photographs.")] = None,
    model: Model = "vgg16",
    weights: Annotated[
        str | None,
        typer.Option(help="As of `run` [default: pretrained where they can be had, else random, and it says so]."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="As of `run` [default: relu1_2, relu2_2, relu4_3; of other "
            "models than VGG the weight layers 2, 4 and 8].",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Run on sample photographs that come with scikit-learn and scikit-image: no arguments, no network, no GPU."""
    from fastclust.demo import default_layers, sample_images

    chosen = weights or "pretrained"
    arguments: dict[str, Any] = {
        "images": images or sample_images(),
        "out": out,
        "layer": layer or default_layers(model),
        "mixture": _mixture(50, 0.2, Covariance.diag, None, 1e-3, 60, seed, "auto", "auto"),
        "resume": False,
        "overwrite": True,
    }

    def go(which: str) -> None:
        extraction = _extraction(model, which, "224", Precision.float16, 8, None, seed, "auto")
        _run(extraction=extraction, **arguments)

    try:
        go(chosen)
    except ConnectionError as error:
        if weights is not None:
            raise
        err_console.print(f"{error}", markup=False, style="yellow")
        err_console.print(
            f"going on with RANDOM weights (seed {seed}): the pictures show the architecture, not learned features",
            markup=False,
            style="bold yellow",
        )
        go("random")


@app.command()
def extract(
    images: Images,
    out: Annotated[Path, typer.Option(help="The store to write, such as features.h5.")],
    layer: Layers,
    model: Model = "vgg16",
    weights: Weights = "pretrained",
    size: Size = "224",
    dtype: Dtype = Precision.float16,
    batch_size: BatchSize = 8,
    labels: LabelsFile = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the features of images at one or more layers to a store."""
    from fastclust.extract import extract as extract_features

    with _progress() as progress:
        report = extract_features(
            images,
            out=out,
            layers=layer,
            resume=resume,
            overwrite=overwrite,
            progress=lambda done, total: progress("extract", done, total, "images"),
            **_extraction(model, weights, size, dtype, batch_size, labels, seed, device),
        )
    _say(f"{out}: {report.done} images, {', '.join(layer)}, in {report.seconds['total']:.1f} s")
    _end(report.left_out)


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="A store that `extract` wrote.")],
    out: Annotated[Path, typer.Option(help="The model to write, such as model.h5.")],
    layer: Annotated[str | None, typer.Option(help="The layer; not needed where the store has one.")] = None,
    components: Components = 50,
    alpha: Alpha = 0.2,
    covariance: CovarianceType = Covariance.diag,
    feature_range: Scale = None,
    tol: Tol = 1e-4,
    max_iter: MaxIter = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the start.")] = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Fit a mixture to the rows of a layer."""
    from fastclust.pipeline import fit_layer
    from fastclust.store import open_store

    store = open_store(file)
    name = _layer(store.layers, layer, file)
    _free(out, overwrite)
    mixture = _mixture(components, alpha, covariance, feature_range, tol, max_iter, seed, device, backend)
    with _progress() as progress:
        model, seconds = fit_layer(store, name, mixture, progress)
    model.save(out)
    _say(
        f"{out}: {name}, {int(model.counts_.sum())} rows of {model.n_features_in_}: {_outcome(model)}; {seconds:.1f} s"
    )


@app.command()
def label(
    file: Annotated[Path, typer.Argument(help="A store that `extract` wrote.")],
    model: Annotated[Path, typer.Option(help="A model that `fit` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for labels/IMAGE.png and enlarged/IMAGE.png, or labels.csv.")],
    layer: Annotated[str | None, typer.Option(help="The layer; not needed where the store has one.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Paint the most probable cluster of every pixel."""
    from fastclust.estimator import load
    from fastclust.pipeline import label_layer
    from fastclust.store import open_store

    store, mixture = open_store(file), load(model)
    name = _layer(store.layers, layer, file)
    for part in ("labels", "enlarged", "labels.csv"):
        _free(out / part, overwrite)
    with _progress() as progress:
        labels = label_layer(store, name, mixture, out, progress)
    _say(f"{out}: {len(labels.images)} images of {name} in {labels.seconds:.1f} s")


@app.command()
def layers(model: Annotated[str, typer.Argument(help="A torchvision classification model.")]) -> None:
    """List what can be asked for of a model: nodes, other names of them, kind, and shape at its usual input size."""
    from fastclust.extract import list_layers

    found = list_layers(model)
    width = max(len(one.node) for one in found)
    names = max(len(", ".join(one.names)) for one in found)
    for one in found:
        shape = " x ".join(str(side) for side in one.shape)
        _say(f"{one.node:<{width}}  {', '.join(one.names):<{names}}  {one.kind:<5}  {shape}")


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A file that fastclust wrote.")]) -> None:
    """Describe a file: a store, a model, or a run's folder or summary."""
    from fastclust import describe

    for line in describe.describe(file):
        _say(line)


@app.command()
def doctor() -> None:
    """Say what machine, devices, versions and backends there are, and why one cannot run."""
    import torch

    from fastclust import kernels, machine

    about = machine.describe()
    for key in ("platform", "cpu", "cores", "memory_bytes", "torch_threads", "python", "cuda", "commit"):
        value = f"{about[key] / 2**30:.1f} GiB" if key == "memory_bytes" and about[key] else about[key]
        _say(f"{key.removesuffix('_bytes'):<14}{value}")
    for name, number in about["versions"].items():
        _say(f"{name:<14}{number or 'not installed'}")
    for device in about["devices"]:
        size = device["memory_bytes"] / 2**30
        _say(f"{'device':<14}{device['name']}, {size:.0f} GiB, compute capability {device['capability']}")
    if not about["devices"]:
        _say(f"{'device':<14}no CUDA device: the CPU computes")
    for where in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        chosen, _, _ = kernels.select("auto", torch.device(where))
        for name, reason in kernels.available(torch.device(where)).items():
            state = f"cannot run: {reason}" if reason else "chosen by auto" if name == chosen else "can run"
            _say(f"{'backend':<14}{name} on {where}: {state}")


def main() -> None:
    """Run the command line and exit."""
    logging.basicConfig(level=logging.WARNING, format="fastclust: %(message)s")
    status = 0
    try:
        status = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if isinstance(error, USAGE_ERROR):
            error.show()
            sys.exit(2)
        if not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)):
            raise
        if os.environ.get("FASTCLUST_TRACEBACK"):
            raise
        text = _printable(" ".join(str(error).split())) or type(error).__name__
        err_console.print(f"fastclust: {text}", markup=False)
        status = 1
    if status == 130:
        err_console.print("stopped; finished images are kept: `extract` and `run` go on with --resume", markup=False)
    sys.exit(status)


def _run(
    images: list[Path],
    out: Path,
    layer: list[str],
    extraction: dict[str, Any],
    mixture: dict[str, Any],
    resume: bool,
    overwrite: bool,
) -> None:
    from fastclust import pipeline

    with _progress() as progress:
        summary = pipeline.run(
            images,
            out=out,
            layers=layer,
            extraction=extraction,
            mixture=mixture,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    for name, one in summary["layers"].items():
        state = "converged" if one["converged"] else "not converged (--max-iter)"
        _say(
            f"{name}: {one['rows']} rows of {one['features']}, {one['clusters_in_use']} clusters in use, "
            f"{one['passes']} passes, {state}, bound {one['lower_bound_per_row']:.4f} nats a row"
        )
    if not summary["learned_features"]:
        _say(f"weights: RANDOM (seed {extraction['seed']}): these are not learned features")
    _say(f"{summary['images']} images in {summary['seconds']['total']:.1f} s: {out / 'montage.png'}")
    _end([(one["path"], one["reason"]) for one in summary["left_out"]])


def _extraction(
    model: str,
    weights: str,
    size: str,
    dtype: Precision,
    batch_size: int,
    labels: Path | None,
    seed: int,
    device: str,
) -> dict[str, Any]:
    if size != "full" and not size.isdigit():
        raise typer.BadParameter(f"--size takes a number of pixels or 'full', and got {size!r}")
    return {
        "model": model,
        "weights": weights,
        "size": size if size == "full" else int(size),
        "dtype": dtype.value,
        "batch_size": batch_size,
        "labels": labels,
        "seed": seed,
        "device": device,
    }


def _mixture(
    components: int,
    alpha: float,
    covariance: Covariance,
    feature_range: tuple[float, float] | None,
    tol: float,
    max_iter: int,
    seed: int,
    device: str,
    backend: str,
) -> dict[str, Any]:
    low, high = feature_range or (0.0, 10.0)
    return {
        "n_components": components,
        "weight_concentration_prior": alpha,
        "covariance_type": covariance.value,
        "feature_range": None if low == high else (low, high),
        "tol": tol,
        "max_iter": max_iter,
        "random_state": seed,
        "device": device,
        "backend": backend,
    }


def _layer(known: dict[str, Any], asked: str | None, file: Path) -> str:
    if asked is not None:
        return asked
    if len(known) != 1:
        raise ValueError(f"{file} has {len(known)} layers: choose one with --layer, of {', '.join(known)}")
    return next(iter(known))


def _free(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is, unless it may be overwritten; and one whose folder is not there."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: --overwrite replaces it")


def _outcome(model: Any) -> str:
    state = "converged" if model.converged_ else f"not converged (--max-iter {model.max_iter})"
    return (
        f"{model.n_active_} clusters in use, {model.n_iter_} passes, {state}, bound {model.lower_bound_:.4f} nats a row"
    )


def _end(left_out: list[tuple[str, str]]) -> None:
    """Name the images that were left out, and exit with 3 where there are any."""
    for path, reason in left_out:
        err_console.print(f"left out: {_printable(path)}: {reason}", markup=False)
    if left_out:
        raise typer.Exit(3)


def _say(line: str) -> None:
    out_console.print(line, markup=False)


def _printable(text: str) -> str:
    """Return text with what would move a terminal's cursor written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield a callback that draws bars with rates and time left on a terminal, and nothing elsewhere."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=err_console, disable=not err_console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int | None, remark: str) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, remark=remark, rate="")
            task = next(one for one in bars.tasks if one.id == tasks[step])
            rate = f"{task.speed:.1f}/s" if task.speed else ""
            bars.update(tasks[step], completed=done, total=total, remark=remark, rate=rate)

        yield report


def _version(value: bool) -> None:
    if value:
        _say(f"fastclust {version('fastclust')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass
