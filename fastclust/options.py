"""The options that commands share: their types, help and checks, and what the functions they call take instead."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Covariance(StrEnum):
    """Covariance types."""

    full = "full"
    tied = "tied"
    diag = "diag"
    spherical = "spherical"


class Stored(StrEnum):
    """Dtypes of a store."""

    float16 = "float16"
    float32 = "float32"


class Precision(StrEnum):
    """Arithmetics of products over rows."""

    high = "high"
    fast = "fast"
    mixed = "mixed"


class Pooling(StrEnum):
    """How an image's map of a layer becomes a point: of each channel, over all places."""

    mean = "mean"
    max = "max"


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"expected a number above 0, got {value:g}")
    return value


def not_negative(value: float) -> float:
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"expected 0 or a number above it, got {value:g}")
    return value


def _size(value: str) -> str:
    if value != "full" and not (value.isdecimal() and 1 <= int(value) <= 100_000):
        raise typer.BadParameter(f"expected a number of pixels, such as 224, or 'full', got {value!r}")
    return value


def _range(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is not None and not -math.inf < value[0] <= value[1] < math.inf:
        raise typer.BadParameter(f"expected two numbers, the second not below the first, got {value[0]:g} {value[1]:g}")
    return value


def _one_layer(value: list[str] | None) -> list[str] | None:
    if value and len(value) > 1:
        raise typer.BadParameter(f"expected one layer, got {', '.join(value)}: repeat the command for each")
    return value


def _seconds(value: str) -> str:
    seconds(value)
    return value


def seconds(value: str) -> float:
    """Return a time such as 90s, 5m, 1h or 20 in seconds. Raises typer.BadParameter."""
    number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "s")
    try:
        found = float(number) * UNITS[unit]
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise typer.BadParameter(f"expected a time such as 90s, 5m or 1h, got {value!r}")
    return found


UNITS = {"s": 1, "m": 60, "h": 3600}
SEEDS = 2**32 - 1  # NumPy's largest

Images = Annotated[list[Path], typer.Argument(help="Image files, and folders that are searched for images.")]
Model = Annotated[str, typer.Option(help="A torchvision classification model, such as vgg16, vgg19 or resnet18.")]
Weights = Annotated[
    str, typer.Option(help="pretrained, random, or a .pth or .safetensors file with the weights the layers need.")
]
Layers = Annotated[
    list[str],
    typer.Option(
        "--layer",
        help="A layer, repeatable: a node (features.3), a name (relu1_2), or n for the n-th weight layer after its "
        "activation; `fastclust layers MODEL` lists them.",
    ),
]
OneLayer = Annotated[
    list[str] | None,
    typer.Option("--layer", callback=_one_layer, help="The layer; not needed where the store has one."),
]
Size = Annotated[
    str,
    typer.Option(
        callback=_size, help="Pixels: resize, and crop the centre to a square; full: every image as large as it is."
    ),
]
Dtype = Annotated[Stored, typer.Option(help="Type of the stored features.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one forward pass.")]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        help="CSV of path,label[,group], or Grade.csv of the Warwick-QU (GlaS) images; without it a label is the name "
        "of the image's folder."
    ),
]
NoStore = Annotated[
    bool, typer.Option("--no-store", help="Store no features: compute them from the images again on every pass.")
]
Rows = Annotated[
    int | None,
    typer.Option(min=1, help="Fit to so many rows, drawn evenly over the images under the seed [default: all]."),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Write how far the fit is to this file as it goes on; --resume goes on from it."),
]
Every = Annotated[
    str, typer.Option(callback=_seconds, help="Time from one checkpoint to the next: 90s, 5m, 1h, or seconds.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")]
Components = Annotated[int, typer.Option(min=1, help="The most clusters that there can be.")]
Alpha = Annotated[
    float,
    typer.Option(callback=_positive, help="Concentration of the Dirichlet process: the larger, the more clusters."),
]
CovarianceType = Annotated[Covariance, typer.Option(help="Shape of a cluster.")]
Tol = Annotated[
    float, typer.Option(callback=not_negative, help="Stop when a pass changes the bound by less, in nats a row.")
]
MaxIter = Annotated[int, typer.Option(min=1, help="Most passes over the rows.")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS, help="Of the start, and of random weights.")]
StartSeed = Annotated[int, typer.Option(min=0, max=SEEDS, help="Of the start.")]
WeightsSeed = Annotated[int, typer.Option(min=0, max=SEEDS, help="Of random weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes that decode images; 0: threads [default: threads, and with a GPU a process a core]."
    ),
]
Backend = Annotated[str, typer.Option(help="auto, or one that `fastclust doctor` lists.")]
Products = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Of products over rows: high, as good as float32; fast, to a thousandth; mixed, fast before high.",
    ),
]
Scale = Annotated[
    tuple[float, float] | None,
    typer.Option(
        callback=_range, help="Map a layer's values to this range by one affine map [default: 0 10]; 0 0: do not."
    ),
]


def extraction(
    model: str,
    weights: str,
    size: str,
    dtype: Stored,
    batch_size: int,
    labels: Path | None,
    seed: int,
    device: str,
    workers: int | None,
) -> dict[str, Any]:
    """Return what `fastclust.extract.extract` takes."""
    return {
        "model": model,
        "weights": weights,
        "size": size if size == "full" else int(size),
        "dtype": dtype.value,
        "batch_size": batch_size,
        "labels": labels,
        "seed": seed,
        "device": device,
        "workers": workers,
    }


def mixture(
    components: int,
    alpha: float,
    covariance: Covariance,
    feature_range: tuple[float, float] | None,
    tol: float,
    max_iter: int,
    seed: int,
    device: str,
    backend: str,
    precision: Precision,
) -> dict[str, Any]:
    """Return what `fastclust.DPGMM` takes."""
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
        "precision": precision.value,
    }
