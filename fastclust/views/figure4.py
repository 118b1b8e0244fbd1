"""Images as points, as in Figure 4 of Malmgren-Hansen, Nielsen and Engholm 2017: what is drawn, and from what.

Where FASTCLUST_DATA names a folder of data, images/cifar10 in it, a folder a class, goes through its squeezenet1_0;
without it square crops of photographs inside the scikit-learn and scikit-image packages do, with the weights that there
are: a crop's label is what kind of picture it is of, and its group the photograph.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from PIL import Image

from fastclust.demo import choose_weights

MODEL = "squeezenet1_0"
LAYERS: dict[str, str | None] = {"features.12.cat": "mean", "flatten": None}
"""The last feature maps, pooled, and the classifier's scores: layers, and how they become points."""

ACROSS = 5  # crops along a photograph's shorter side
PHOTOGRAPHS = {
    "animal or plant": ("skimage.data/chelsea.png", "sklearn.datasets.images/flower.jpg"),
    "medicine": ("skimage.data/ihc.png", "skimage.data/retina.jpg"),
    "scene": ("skimage.data/astronaut.png", "sklearn.datasets.images/china.jpg", "skimage.data/coffee.png"),
    "space": ("skimage.data/hubble_deep_field.jpg", "skimage.data/moon.png"),
    "texture": ("skimage.data/brick.png", "skimage.data/grass.png", "skimage.data/gravel.png"),
}


@dataclass(frozen=True)
class Source:
    """What the figure is of: images, a table of their labels (None: their folders'), weights, and why random ones."""

    images: Path
    labels: Path | None
    weights: str
    why_random: str = ""


def find_source(out: Path, data: str | None, weights: str | None = None) -> Source:
    """Return what there is to draw; crops are written below `out`, where there is no folder of data.

    weights: instead of those that there are.

    Raises FileNotFoundError where a package came without its photographs, or the data without theirs.
    """
    if data:
        own = str(Path(data) / "weights" / f"{MODEL}.pth")
        found = Source(Path(data) / "images" / "cifar10", None, weights or own)
        for path in (found.images, *([] if weights else [Path(own)])):
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist: unset FASTCLUST_DATA to draw sample photographs")
        return found
    chosen, why = (weights, "") if weights else choose_weights(MODEL)
    return Source(out / "crops", cut_crops(out / "crops"), chosen, why)


def cut_crops(folder: Path) -> Path:
    """Cut the sample photographs into square crops FOLDER/PHOTOGRAPH-ROW-COLUMN.png, and return a table of them.

    Raises FileNotFoundError where a package came without them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["path", "label", "group"]]
    for kind, names in PHOTOGRAPHS.items():
        for package, _, name in (whole.partition("/") for whole in names):
            path = Path(str(files(package) / name))
            if not path.is_file():
                raise FileNotFoundError(f"scikit-learn or scikit-image came without {name}: install it anew")
            with Image.open(path) as image:
                photograph = image.convert("RGB")
            side = min(photograph.size) // ACROSS
            for row in range(ACROSS):
                for column in range(ACROSS):  # of a square in the middle
                    left = (photograph.width - ACROSS * side) // 2 + column * side
                    top = (photograph.height - ACROSS * side) // 2 + row * side
                    crop = folder / f"{path.stem}-{row}-{column}.png"
                    photograph.crop((left, top, left + side, top + side)).save(crop)
                    rows.append([crop.name, kind, path.stem])
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return table
