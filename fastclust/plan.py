"""What an extraction will do, checked before it does any of it: options, device, weights, transform, images, shapes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import models

from fastclust import __version__
from fastclust.forward import Forward, arithmetic
from fastclust.glas import without_annotations
from fastclust.images import find_images, read_labels, safe_names
from fastclust.networks import Network, random_state
from fastclust.reader import UNREADABLE, image_size, one_line
from fastclust.store import LEFT_OUT, PENDING, ImageRecord, LayerRecord, Store
from fastclust.weights import file_sha256, pretrained_file, read_weights

# What two extractions must share for one to continue the other.
IDENTITY = (
    "model",
    "weights",
    "weights_sha256",
    "seed",
    "layers",
    "size",
    "transform",
    "dtype",
    "batch_size",
    "arithmetic",
)


@dataclass
class Plan:
    """An extraction whose input is found good, but for the images: none has been opened."""

    network: Network
    device: torch.device
    provenance: dict[str, Any]
    records: list[ImageRecord]  # of all images, sizes unknown
    state: dict[str, Tensor]  # the weights

    def load(self, network: Network | None = None) -> Forward:
        """Load the weights into the network, once, or into another. Raises ValueError where they do not fit."""
        about, network = self.provenance, network or self.network
        network.load(self.state, about["weights_source"], self.device)
        return Forward(network, about["transform"], about["dtype"], self.device)


def make_plan(
    images: Sequence[str | Path],
    model: str,
    layers: Sequence[str],
    weights: str | Path,
    size: int | str,
    dtype: str,
    batch_size: int,
    labels: str | Path | None,
    device: str,
    seed: int,
) -> Plan:
    """Find images, network, device and weights. Parameters, and what is raised, as of `fastclust.extract.extract`."""
    check_features(layers, size, dtype, batch_size)
    found = without_annotations(find_images(images), labels)
    network = Network(model, layers, network_size(size))
    where = open_device(device)
    state, source, weights_sha256 = open_weights(model, weights, seed, size)
    provenance = {
        "model": model,
        "weights": str(weights) if weights in ("pretrained", "random") else "file",
        "weights_source": source,
        "weights_sha256": weights_sha256,
        "seed": seed,
        "layers": list(layers),
        "size": size,
        "transform": make_transform(model, size),
        "dtype": dtype,
        "batch_size": batch_size,
        "arithmetic": arithmetic(where, dtype),
        "device": where.type,
        "versions": {"fastclust": __version__}
        | {name: version(name) for name in ("torch", "torchvision", "pillow", "h5py", "numpy")},
    }
    records = [
        ImageRecord(os.path.abspath(image), name, label, group, (0, 0), (0, 0))  # noqa: PTH100
        for image, name, (label, group) in zip(found, safe_names(found), read_labels(found, labels), strict=True)
    ]
    return Plan(network, where, provenance, records, state)


def check_file(path: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a store that cannot be written. Raises ValueError, OSError."""
    if resume and overwrite:
        raise ValueError("--resume continues a store, --overwrite replaces it: give one of them")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if path.exists() and not (resume or overwrite):
        raise FileExistsError(f"{path} exists: --resume continues it, --overwrite replaces it; or name another file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")


def check_features(layers: Sequence[str], size: int | str, dtype: str, batch_size: int) -> None:
    """Refuse options that mean nothing. Raises ValueError."""
    if isinstance(layers, str) or not layers:
        raise ValueError(f"expected a list of at least one layer, got {layers!r}")
    if size != "full" and not (isinstance(size, int) and size >= 1):
        raise ValueError(f"size {size!r}: expected a number of pixels, or full")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype {dtype!r}: expected float16 or float32")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}: expected at least 1")


def open_device(name: str) -> torch.device:
    """Find a device that works here: "auto" is cuda where available, else cpu. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().split("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here ({why}): expected auto, cpu or cuda") from error
    return device


def network_size(size: int | str) -> int:
    """The input that a network of fixed input size is built for: 224 where images keep their own sizes."""
    return size if isinstance(size, int) else 224


def open_weights(model: str, weights: str | Path, seed: int, size: int | str) -> tuple[dict[str, Tensor], str, str]:
    """Read or make the weights: the state dict, where it came from, its file's SHA-256 ("" where random)."""
    if weights == "random":
        return random_state(model, seed, network_size(size)), f"random (seed {seed})", ""
    if weights == "pretrained":
        file, name = pretrained_file(model)
        return read_weights(file), name, file_sha256(file)
    if isinstance(weights, str) and not Path(weights).suffix and not Path(weights).exists():
        raise FileNotFoundError(
            f"weights are 'pretrained', 'random', or a .pth or .safetensors file; no file {weights!r}"
        )
    state = read_weights(weights)
    return state, str(weights), file_sha256(weights)


def make_transform(model: str, size: int | str) -> dict[str, Any]:
    """The default weights' own transform, its resizing in proportion to another crop."""
    own = models.get_model_weights(model).DEFAULT.transforms()
    full = not isinstance(size, int)
    return {
        "resize": None if full else round(size * own.resize_size[0] / own.crop_size[0]),
        "crop": None if full else size,
        "interpolation": own.interpolation.value,
        "antialias": own.antialias,
        "mean": list(own.mean),
        "std": list(own.std),
    }


def plan_images(
    records: list[ImageRecord], network: Network, size: int | str
) -> tuple[list[ImageRecord], list[LayerRecord]]:
    """Read each image's size and work out its shape at every layer. Raises ValueError where no image can be used."""
    if isinstance(size, int):
        network.shapes(size, size)
    planned, shapes = [], []
    for record in records:
        own = inside = (0, 0)
        state, reason, shape = PENDING, "", dict[str, tuple[int, ...]]()
        try:
            own = image_size(record.path)
            inside = (size, size) if isinstance(size, int) else own
            shape = network.shapes(*inside)
        except UNREADABLE as error:
            state, reason, inside = LEFT_OUT, one_line(error, record.path), (0, 0)
        shapes.append(shape)
        planned.append(ImageRecord(record.path, record.name, record.label, record.group, own, inside, state, reason))
    usable = next((shape for shape in shapes if shape), None)
    if usable is None:
        raise ValueError(f"none of the {len(records)} images can be used; {planned[0].path}: {planned[0].reason}")
    layers = []
    for name, known in usable.items():
        kind = "conv" if len(known) == 3 else "dense"
        sides = [(shape[name][:2] if kind == "conv" else (1, 1)) if shape else (0, 0) for shape in shapes]
        layers.append(LayerRecord(name, network.nodes[name], kind, known[-1], np.array(sides, dtype=np.int64)))
    return planned, layers


def check_same(store: Store, provenance: dict[str, Any], records: list[ImageRecord]) -> None:
    """Refuse to resume a store that another extraction made. Raises ValueError that names what differs."""
    for key in IDENTITY:
        if store.provenance.get(key) != provenance[key]:
            raise ValueError(
                f"{store.path} cannot be resumed: its {key} is {store.provenance.get(key)!r}, now {provenance[key]!r}; "
                "ask for the same, or start anew with --overwrite"
            )
    before = [(image.path, image.name, image.label, image.group) for image in store.images]
    now = [(image.path, image.name, image.label, image.group) for image in records]
    if before != now:
        other = next((pair for pair in zip(before, now, strict=False) if pair[0] != pair[1]), None)
        what = f"{other[0]} is now {other[1]}" if other else f"{len(before)} images are now {len(now)}"
        raise ValueError(f"{store.path} cannot be resumed: its images or labels differ: {what}")
