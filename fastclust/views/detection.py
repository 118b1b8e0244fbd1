"""Centres of regions as a detector of cells: held against masks of single cells, one to one.

A mask has a number for each cell and 0 for the background. It is resized by nearest neighbour, and cropped, as its
image was, so that only what the network saw is counted; a cell is at the centroid of what is left of it.

Centres and cells not further apart than a distance are matched one to one: as many pairs as there can be, and among
all such matchings one of the least sum of distances (`scipy.optimize.linear_sum_assignment`, where a pair that is too
far apart costs more than all that are near enough). With m pairs,

    precision = m / centres        recall = m / cells        F1 = 2 m / (centres + cells)

and `inside` is the share of the centres whose pixel is in some cell. Of nothing no share is known: None.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.measure import regionprops_table

from fastclust.reader import UNREADABLE, fit, one_line
from fastclust.store import ImageRecord

SUFFIXES = ("_mask.png", "_mask.txt.gz", ".png", ".txt.gz")
MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")  # of Pillow, that hold one integer a pixel

SHARES = {"precision": "precision", "recall": "recall", "F1": "f1", "inside a cell": "inside"}  # in words, in as_dict

Mask = NDArray[np.int64]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What centres found: how many there were, of how many cells, matched pairs, and centres inside of a cell."""

    centres: int
    cells: int
    matches: int
    inside: int

    def __add__(self, other: Score) -> Score:
        pairs = zip(self._counts(), other._counts(), strict=True)
        return Score(*(one + another for one, another in pairs))

    def _counts(self) -> tuple[int, int, int, int]:
        return self.centres, self.cells, self.matches, self.inside

    def as_dict(self) -> dict[str, Any]:
        """Return counts and shares, for JSON."""
        return {
            "centres": self.centres,
            "cells": self.cells,
            "matches": self.matches,
            "precision": _share(self.matches, self.centres),
            "recall": _share(self.matches, self.cells),
            "f1": _share(2 * self.matches, self.centres + self.cells),
            "inside": _share(self.inside, self.centres),
        }

    def in_words(self) -> str:
        """Return the score in a line."""
        about = self.as_dict()
        shares = {name: "-" if about[key] is None else f"{about[key]:.2f}" for name, key in SHARES.items()}
        words = ", ".join(f"{name} {share}" for name, share in shares.items())
        return f"{self.centres} centres, {self.cells} cells, {self.matches} matched: {words}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def find_mask(folder: Path, record: ImageRecord) -> Path | None:
    """Return an image's mask: STEM_mask.png, STEM_mask.txt.gz, STEM.png or STEM.txt.gz, the first that is there.

    STEM is that of the image's file, which is not a mask of its own.
    """
    image = Path(record.path)
    for suffix in SUFFIXES:
        path = folder / f"{image.stem}{suffix}"
        if path.is_file() and not (image.exists() and path.samefile(image)):
            return path
    return None


def find_masks(folder: Path, images: Mapping[int, ImageRecord]) -> dict[int, Path]:
    """Find the masks of images, by index, of those that have one.

    Raises FileNotFoundError, NotADirectoryError, and ValueError where there is none at all, or one of two images.
    """
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"{folder} is not a folder: expected one of masks, named as the images are")
    found, users = dict[int, Path](), dict[Path, str]()
    for index, image in images.items():
        path = find_mask(folder, image)
        if path is None:
            continue
        if path in users:
            raise ValueError(f"{path} would be the mask of {users[path]} and of {image.path}: rename one of them")
        found[index], users[path] = path, image.path
    if not found:
        stem = Path(next(iter(images.values())).path).stem
        names = ", ".join(f"{stem}{suffix}" for suffix in SUFFIXES)
        raise ValueError(f"{folder} has no mask of any image: expected {names} and so on")
    return found


def input_mask(path: Path | None, record: ImageRecord, transform: Mapping[str, Any]) -> Mask:
    """Read a mask as `mask_as_input` returns it. Raises ValueError as that and `read_mask` do, and for None."""
    if path is None:
        raise ValueError("it has no mask")
    return mask_as_input(read_mask(path), record, transform)


def read_mask(path: Path) -> Mask:
    """Read a mask (H, W): a PNG of one integer a pixel, or gzipped text of width, height and H W integers, by rows.

    Raises ValueError where it is neither, or is broken.
    """
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rt", encoding="ascii") as file:
                width, height, *numbers = np.array(file.read().split(), dtype=np.int64).tolist()
            if width < 1 or height < 1 or len(numbers) != width * height:
                raise ValueError(f"{width} x {height} numbers expected, and {len(numbers)} found")
            mask = np.array(numbers, dtype=np.int64).reshape(height, width)
        else:
            with Image.open(path) as image:
                if image.mode not in MODES:
                    raise ValueError(f"pixels of mode {image.mode}, and one integer a pixel is expected")
                mask = np.array(image).astype(np.int64)
    except (*UNREADABLE, zlib.error) as error:
        raise ValueError(f"{path} is not a mask that can be read ({one_line(error, str(path))})") from None
    if mask.min() < 0:
        raise ValueError(f"{path} is not a mask that can be read (the number {mask.min()}: expected 0 or more)")
    return mask


def mask_as_input(mask: Mask, record: ImageRecord, transform: Mapping[str, Any]) -> Mask:
    """Return a mask resized and cropped as the network's input was: (H, W) of the input, cells numbered from 1.

    Raises ValueError where it is not as large as the image.
    """
    if mask.shape != tuple(record.size):
        sizes = " and the image ".join(f"{width} x {height}" for height, width in (mask.shape, record.size))
        raise ValueError(f"its mask is {sizes}: expected one as large as the image")
    ids, numbers = np.unique(mask, return_inverse=True)  # ids may be large: a table of all below them is none here
    numbers = (numbers.reshape(mask.shape) + (ids[0] > 0)).astype(np.int32)
    return np.asarray(fit(Image.fromarray(numbers), transform, "nearest"), dtype=np.int64)


def centroids(mask: Mask) -> Points:
    """Return the centroid of each cell of a mask: (m, 2) rows and columns."""
    table = regionprops_table(mask, properties=("label", "centroid"))  # type: ignore[no-untyped-call]
    return np.stack([table["centroid-0"], table["centroid-1"]], axis=1).astype(np.float64)


def match(one: Points, other: Points, distance: float) -> NDArray[np.intp]:
    """Match points (n, 2) to others (m, 2) no further away than a distance: pairs of indices (p, 2), ascending.

    There are as many pairs as there can be, and the sum of their distances is the least of all so many.
    """
    apart = cdist(one, other)
    near = apart <= distance
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    apart, near = apart[np.ix_(rows, columns)], near[np.ix_(rows, columns)]
    far = distance * min(apart.shape) + 1
    i, j = linear_sum_assignment(np.where(near, apart, far))
    kept = near[i, j]
    return np.stack([rows[i[kept]], columns[j[kept]]], axis=1)


def score(found: Points, mask: Mask, distance: float, cells: Points | None = None) -> Score:
    """Hold centres (n, 2), rows and columns of the input, against a mask of the input (H, W).

    cells: the mask's centroids, where they are known.
    """
    cells = centroids(mask) if cells is None else cells
    at = np.rint(found).astype(np.int64)
    there = ((at >= 0) & (at < mask.shape)).all(axis=1)
    inside = int((mask[tuple(at[there].T)] > 0).sum())
    return Score(len(found), len(cells), len(match(found, cells, distance)), inside)


def total(scores: Sequence[Score]) -> Score:
    """Return the score of all images together: counts are added, and shares are of these."""
    return sum(scores, Score(0, 0, 0, 0))
