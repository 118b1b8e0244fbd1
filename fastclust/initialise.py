"""Where coordinate ascent starts: the statistics of the first responsibilities, through the kernels of every pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import reduce
from operator import add

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus

from fastclust.kernels import Coefficients, CovarianceType, Statistics
from fastclust.rows import Rows

log = logging.getLogger("fastclust")

SEED_ROWS = 20_000  # rows that k-means++ chooses from, or 20 a component
KMEANS_ROWS = 200_000  # rows that k-means runs on
KMEANS_PASSES = 30
KMEANS_TOL = 1e-4  # of the mean variance of a column: scikit-learn's KMeans stops there too
CHUNK = 1 << 14  # rows whose responsibilities are held at a time


def kmeans(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of the k-means partition: k-means++ seeds, then Lloyd's passes.

    Where there are more rows than KMEANS_ROWS, seeds and centres come from an even sample of the rows; the partition
    itself is always of all rows. Source: Arthur and Vassilvitskii 2007; Lloyd 1982.
    """
    seed_rows = max(SEED_ROWS, 20 * n_components)
    if rows.blocks.n_rows > seed_rows:
        log.info("k-means++ seeds come from %d of %d rows", seed_rows, rows.blocks.n_rows)
    if rows.blocks.n_rows > KMEANS_ROWS:
        log.info("k-means runs on %d of %d rows, then labels all", KMEANS_ROWS, rows.blocks.n_rows)
    sample = rows.read(rows.blocks.sample(KMEANS_ROWS, random))
    few = sample[torch.from_numpy(random.permutation(len(sample))[:seed_rows]).to(sample.device)]
    seeds, _ = kmeans_plusplus(few.cpu().numpy(), n_components, random_state=random)
    centres = torch.from_numpy(seeds).to(sample.device, torch.float64)  # (K, D)
    enough = KMEANS_TOL * float(sample.double().var(0, correction=0).mean())
    plain = rows.in_own_frame()
    for _ in range(KMEANS_PASSES):
        found = reduce(add, (_hard(plain, part, centres, "tied") for part in torch.split(sample, CHUNK)))
        moved = torch.where(found.nk[:, None] > 0, found.sx / found.nk[:, None].clamp(min=1), centres)
        step = float((moved - centres).square().sum())
        centres = moved
        if step <= enough:
            break
    return reduce(add, (_hard(rows, part, centres, kind) for part in _chunks(rows)))


def random(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of uniform random responsibilities, row by row as scikit-learn draws them."""
    about = _about(rows, n_components)

    def drawn(part: torch.Tensor) -> Statistics:
        r = random.uniform(size=(len(part), n_components))
        r /= r.sum(axis=1, keepdims=True)
        return _moments(rows, part, torch.from_numpy(r).to(part.device), about, kind)

    return reduce(add, (drawn(part) for part in _chunks(rows)))


def random_from_data(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of K rows, drawn as scikit-learn draws them, that belong to a component each."""
    index = random.choice(rows.blocks.n_rows, size=n_components, replace=False)
    order = np.argsort(index)
    picked = rows.blocks.take(index[order])[torch.from_numpy(np.argsort(order)).to(rows.blocks.device)]
    one_each = torch.eye(n_components, dtype=torch.float64, device=picked.device)
    return _moments(rows, picked, one_each, rows.read(picked).double(), kind)


def _hard(rows: Rows, part: torch.Tensor, centres: torch.Tensor, kind: CovarianceType) -> Statistics:
    """Return the statistics of rows that belong to their nearest centre whole."""
    n_components = len(centres)
    # Any precision gives the same nearest centre; this one keeps the numbers small.
    scale = centres.square().sum(1).max().clamp(min=1e-30).reciprocal()
    zeros = torch.zeros(n_components, dtype=torch.float64, device=centres.device)
    nearest = Coefficients("spherical", zeros, centres, zeros + scale)
    labels, _ = rows.backend.assign(part, nearest, rows.frame, rows.dtype, rows.block_rows)
    r = torch.nn.functional.one_hot(labels.long(), n_components).to(rows.dtype)
    return _moments(rows, part, r, centres, kind)


def _moments(rows: Rows, part: torch.Tensor, r: torch.Tensor, about: torch.Tensor, kind: CovarianceType) -> Statistics:
    return rows.backend.moments(part, r, kind, about, rows.frame, rows.dtype)


def _about(rows: Rows, n_components: int) -> torch.Tensor:
    return torch.zeros(n_components, rows.blocks.n_features, dtype=torch.float64, device=rows.blocks.device)


def _chunks(rows: Rows) -> Iterator[torch.Tensor]:
    for block in rows.blocks:
        yield from torch.split(block, CHUNK)
