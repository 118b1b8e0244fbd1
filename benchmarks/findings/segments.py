"""Segmentations held against people's: regions of label images, covering, variation of information, boundaries.

A segmentation is an (h, w) array of integers, a number a region. Measures are of Arbelaez, Maire, Fowlkes and Malik
2011 (Contour Detection and Hierarchical Image Segmentation):

    covering of a truth S by regions S'    sum over R in S of |R| / N times the largest |R and R'| / |R or R'|
    variation of information               H(S|S') + H(S'|S), here in bits
    boundary F                             2 P R / (P + R), P and R of boundary pixels matched within a distance

A boundary pixel is one that differs from the pixel right of it or below it. In Arbelaez et al. boundaries are matched
one to one at the least cost. Here are two ways, of which the first is an approximation:

    `near`       a pixel is matched where any boundary pixel of the other side is within the distance, so that many may
                 be matched to one: an upper limit of both P and R, and generous where boundaries are dense
    `one_to_one` the largest number of pairs, each pixel in one at most (maximum bipartite matching): without costs, so
                 pairs may cross, which changes which pixels are matched and not how many can be
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from scipy.stats import entropy
from skimage.filters.rank import majority
from skimage.measure import label

from fastclust.picture import enlarge

Segmentation = NDArray[np.integer]
Mask = NDArray[np.bool_]
TOLERANCE = 0.0075  # of an image's diagonal


@dataclass(frozen=True)
class Counts:
    """Boundary pixels, which add up over images: of those found, matched to any truth; of all truths, matched."""

    found_matched: int = 0
    found: int = 0
    truth_matched: int = 0
    truth: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.found_matched + other.found_matched,
            self.found + other.found,
            self.truth_matched + other.truth_matched,
            self.truth + other.truth,
        )

    @property
    def precision(self) -> float:
        return self.found_matched / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.truth_matched / self.truth if self.truth else 0.0

    @property
    def f(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def read_truths(path: Path, size: tuple[int, int]) -> list[Segmentation]:
    """Read the annotators' segmentations of a file of BSDS500, at size (h, w) by nearest neighbour."""
    people = loadmat(path)["groundTruth"]
    return [enlarge(people[0, one]["Segmentation"][0, 0].astype(np.int32), size) for one in range(people.shape[1])]


def regions(labels: NDArray[np.uint8], side: int) -> Segmentation:
    """Return the 4-connected regions of one label, after a majority filter of side x side pixels (1: none)."""
    smooth = labels if side == 1 else majority(labels, np.ones((side, side), dtype=np.uint8))  # type: ignore[no-untyped-call]
    found: Segmentation = label(smooth, background=-1, connectivity=1)  # type: ignore[no-untyped-call]
    return found


def overlaps(truth: Segmentation, found: Segmentation) -> NDArray[np.int64]:
    """Count the pixels of each pair of regions (n, m), numbered from 0 on; numbers that no pixel has count none."""
    shape = int(truth.max()) + 1, int(found.max()) + 1
    pairs = truth.astype(np.int64).ravel() * shape[1] + found.ravel()
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def covering(common: NDArray[np.int64]) -> float:
    """Return the covering of a truth by regions, from 0 to 1; common: their overlaps (truth, regions)."""
    sizes = common.sum(axis=1)
    union = sizes[:, None] + common.sum(axis=0) - common
    best = (common / np.maximum(union, 1)).max(axis=1)
    return float((sizes * best).sum() / sizes.sum())


def variation(common: NDArray[np.int64]) -> float:
    """Return the variation of information of two segmentations, in bits; common: their overlaps."""
    joint = entropy(common.ravel(), base=2)
    return float(max(0.0, 2 * joint - entropy(common.sum(axis=0), base=2) - entropy(common.sum(axis=1), base=2)))


def boundary(segmentation: Segmentation) -> Mask:
    """Return where a pixel differs from the one right of it or the one below it."""
    edge = np.zeros(segmentation.shape, dtype=bool)
    edge[:, :-1] |= segmentation[:, :-1] != segmentation[:, 1:]
    edge[:-1] |= segmentation[:-1] != segmentation[1:]
    return edge


def reach(edge: Mask, distance: float) -> Mask:
    """Return the pixels within a distance of any of a mask's."""
    return distance_transform_edt(~edge) <= distance if edge.any() else np.zeros_like(edge)


def near(found: Mask, truths: Sequence[Mask], reached: Sequence[Mask], distance: float) -> Counts:
    """Count boundary pixels that are near those of the other side; reached: of each truth, as `reach` returns it."""
    by_found = reach(found, distance)
    return Counts(
        int((found & np.logical_or.reduce(reached)).sum()),
        int(found.sum()),
        sum(int((truth & by_found).sum()) for truth in truths),
        sum(int(truth.sum()) for truth in truths),
    )


def one_to_one(found: Mask, truths: Sequence[Mask], distance: float) -> Counts:
    """Count boundary pixels in the largest one-to-one matching with each truth."""
    places = np.argwhere(found)
    any_truth, matched, total = np.zeros(len(places), dtype=bool), 0, 0
    for truth in truths:
        theirs = np.argwhere(truth)
        total += len(theirs)
        if not len(places) or not len(theirs):
            continue
        pairs = cKDTree(places).sparse_distance_matrix(cKDTree(theirs), distance, output_type="coo_matrix")
        graph = coo_array((np.ones(pairs.nnz, dtype=np.int8), (pairs.row, pairs.col)), shape=pairs.shape).tocsr()
        partner = maximum_bipartite_matching(graph, perm_type="column")
        any_truth |= partner >= 0
        matched += int((partner >= 0).sum())
    return Counts(int(any_truth.sum()), len(places), matched, total)
