"""What the demo runs on: photographs inside the scikit-learn and scikit-image packages, and what weights there are."""

from __future__ import annotations

import socket
from importlib.resources import files
from pathlib import Path

from fastclust.weights import pretrained_file

PATIENCE = 5.0  # seconds without an answer, after which there is no network
LAYERS = ("relu1_2", "relu2_2", "relu4_3")
SAMPLES = {
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
    "skimage.data": ("ihc.png", "astronaut.png", "coffee.png", "chelsea.png"),
}
BLOBS = {"skimage.data": ("ihc.png", "coins.png", "hubble_deep_field.jpg")}  # what has many small round things


def sample_images(samples: dict[str, tuple[str, ...]] = SAMPLES) -> list[Path]:
    """Return the sample photographs: two of scikit-learn's, four of scikit-image's; ihc.png is stained tissue.

    samples: files by package, instead of these.

    Raises FileNotFoundError where a package came without them.
    """
    found = [Path(str(files(package) / name)) for package, names in samples.items() for name in names]
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"scikit-learn or scikit-image came without {', '.join(missing)}: name photographs")
    return found


def default_layers(model: str) -> list[str]:
    """Return the layers of the demo: three depths, by name for VGG, by the number of the weight layer for others."""
    return list(LAYERS) if model.startswith("vgg1") else ["2", "4", "8"]


def choose_weights(model: str) -> tuple[str, str]:
    """Return "pretrained", or "random" and why, where those are not in torchvision's cache and cannot be downloaded.

    What else is wrong with the model or its file, a run with "pretrained" says.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        pretrained_file(model)
    except ConnectionError as error:
        return "random", str(error)
    except ValueError:
        return "pretrained", ""
    finally:
        socket.setdefaulttimeout(before)
    return "pretrained", ""
