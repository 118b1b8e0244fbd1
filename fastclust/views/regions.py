"""Connected regions of clusters in label images, and the rule that tells which clusters are objects.

A region is a set of units that are neighbours along rows and columns (not diagonals) and whose clusters are all among
those that count as foreground. With n units of variances v_r and v_c along rows and columns, each unit a square of
sides 1, its roundness (Zunic, Hirota and Rosin 2010)

    C = n / (2 pi (v_r + v_c + 1/6))

is 1 for a disc, 0.95 for a square, 0.75 for an ellipse that is 2.2 times as long as wide, and the less the longer, the
more hollow or the more branched a region is.

Foreground. The rule sees label images and the mixture, and nothing else. Clusters that win a unit are merged into a
tree (Ward's linkage of their means, in deviations as `fastclust.views.portrait` has them). Each node of the tree, from
a single cluster to all of them, is a group G that might be the objects. A region of it is an object where C >= 3/4 and
it covers at least `min_area` pixels of the input and at most a twentieth of the image. With

    A = area of G's objects        |G| = area of all of G's units

the group of the largest A^2 / |G| is the foreground, all other clusters are background: A is how much of the images is
objects, and A / |G| how much of the group is. So a background that is one large region, a texture of specks and a net
of thin lines all count for nothing. Where no group has an object, nothing is foreground.

The rule and its numbers were fixed on three photographs of scikit-image (stained tissue, coins, stars), by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from skimage.measure import label

from fastclust.fitted import FittedMixture
from fastclust.receptive import Field
from fastclust.views.portrait import deviations

LARGEST = 1 / 20  # of the image, that an object covers at most
ROUND = 3 / 4  # roundness of an object, at least

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Centre:
    """A region's cluster (of several, the one of most of its units), number of units, and centre in input pixels."""

    cluster: int
    area: int
    row: float
    column: float


def foreground(
    model: FittedMixture, images: Sequence[Labels], unit_areas: Sequence[float], min_area: float
) -> list[int]:
    """Return the clusters that the rule takes for objects, ascending; none where no region can be an object.

    images: label images (h, w). unit_areas: pixels of the input that a unit of each of them stands for.
    """
    best, chosen = 0.0, list[int]()
    for group in groups(model, images):
        area = of_objects = 0.0
        for labels, unit in zip(images, unit_areas, strict=True):
            regions = numbered(labels, group)
            units, rounds = roundness(regions)
            objects = (rounds >= ROUND) & (units * unit >= min_area) & (units <= LARGEST * labels.size)
            area += unit * float(units.sum())
            of_objects += unit * float(units[objects].sum())
        if of_objects**2 / area > best:
            best, chosen = of_objects**2 / area, group
    return chosen


def groups(model: FittedMixture, images: Sequence[Labels]) -> list[list[int]]:
    """Return every node of the rule's tree, as its clusters, ascending; those of one cluster come first."""
    counts = np.sum([np.bincount(labels.ravel(), minlength=len(model.counts_)) for labels in images], axis=0)
    used = np.flatnonzero(counts)
    nodes = [[int(k)] for k in used]
    if len(used) > 1:
        for one, other, *_ in linkage(deviations(model)[used], method="ward"):
            nodes.append(sorted(nodes[int(one)] + nodes[int(other)]))
    return nodes


def numbered(labels: Labels, clusters: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of the region that each unit is in, (h, w) from 1 on, and 0 where it is background."""
    chosen = np.zeros(max([int(labels.max()), *clusters]) + 1, dtype=bool)
    chosen[clusters] = True
    regions = label(chosen[labels], connectivity=1)  # type: ignore[no-untyped-call]
    return np.asarray(regions, dtype=np.int64)


def roundness(regions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the units and the roundness of each region, (n,) each, of an image of their numbers (h, w) from 1 on."""
    at = np.nonzero(regions)
    which = regions[at] - 1
    units = np.bincount(which)
    variance = np.full(len(units), 1 / 6)
    for place in at:
        mean = np.bincount(which, place) / units
        variance += np.bincount(which, (place - mean[which]) ** 2) / units
    return units, units / (2 * np.pi * variance)


def centres(labels: Labels, clusters: Sequence[int], seen: Field, min_area: float) -> list[Centre]:
    """Return the centre of every region of some clusters that covers at least `min_area` pixels of the input.

    A region's centre is the mean of the centres of its units' receptive fields. labels: (h, w). seen: their fields.
    """
    regions = numbered(labels, clusters)
    at = np.nonzero(regions)
    which, cluster = regions[at] - 1, labels[at].astype(np.int64)
    units = np.bincount(which)
    rows, columns = (
        np.bincount(which, axis.centres()[place]) / units
        for axis, place in zip((seen.rows, seen.columns), at, strict=True)
    )
    width = int(labels.max()) + 1
    most = np.bincount(which * width + cluster, minlength=len(units) * width).reshape(-1, width).argmax(axis=1)
    return [
        Centre(int(most[i]), int(units[i]), float(rows[i]), float(columns[i]))
        for i in np.flatnonzero(units * unit_area(seen) >= min_area)
    ]


def unit_area(seen: Field) -> float:
    """Return how many pixels of the input a unit stands for: the product of the steps from one to the next."""
    return seen.jump[0] * seen.jump[1]
