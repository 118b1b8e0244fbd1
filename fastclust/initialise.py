"""Where coordinate ascent starts: the statistics of the first responsibilities, through the kernels of every pass.

Random numbers are drawn as scikit-learn draws them, so that the same seed gives the same start. A row that counts w
times has w times its responsibilities, and is w times as likely to be drawn; one that does not count is as if absent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus

from fastclust.kernels import Coefficients, CovarianceType, Plan, Statistics
from fastclust.kernels.memory import share_of_free
from fastclust.kernels.threads import over_parts
from fastclust.rows import Rows
from fastclust.seeding import plus_plus

log = logging.getLogger("fastclust")

SEED_ROWS = 20_000  # rows that k-means++ chooses from, or 20 a component
KMEANS_ROWS = 200_000  # rows that k-means runs on
KMEANS_PASSES = 30
KMEANS_TOL = 1e-4  # of the mean variance of a column: scikit-learn's KMeans stops there too
SORTED = 2048  # rows that are sorted by label at a time: they are read again from the second-level cache
CHUNK = 1 << 14  # rows whose responsibilities are held at a time on the CPU
CHUNK_BYTES = 1 << 30  # of responsibilities and moments of a chunk on an accelerator; less where less is free
LEAST_CHUNK = 1024  # rows


def kmeans(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of the k-means partition: k-means++ seeds, then Lloyd's passes.

    Where there are more rows than KMEANS_ROWS, seeds and centres come from an even sample of the rows; the partition
    itself is always of all rows. Source: Arthur and Vassilvitskii 2007; Lloyd 1982.
    """
    seeds, sample, weights = _seeds(rows, n_components, random)
    centres = seeds.double()  # (K, D)
    share = torch.ones(len(sample), dtype=torch.float64, device=sample.device) if weights is None else weights
    mean = (share @ sample.double()) / share.sum()
    enough = KMEANS_TOL * float((share @ (sample.double() - mean).square()).mean() / share.sum())
    plain = rows.in_own_frame()
    size = _chunk_rows(rows, n_components)
    for _ in range(KMEANS_PASSES):
        parts = zip(torch.split(sample, size), torch.split(share, size), strict=True)
        plan = _nearest(plain, centres)
        found = reduce(add, (_hard(plain, plan, part, w, centres, "tied") for part, w in parts))
        moved = torch.where(found.nk[:, None] > 0, found.sx / found.nk[:, None].clamp(min=1e-300), centres)
        step = float((moved - centres).square().sum())
        centres = moved
        if step <= enough:
            break
    plan, chunks = _nearest(rows, centres), _chunks(rows, n_components)
    return rows.everywhere(reduce(add, (_hard(rows, plan, part, w, centres, kind) for part, w in chunks)))


def seeds(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of K rows, the k-means++ seeds, that belong to a component each."""
    found, _, _ = _seeds(rows, n_components, random)
    return _one_each(rows.in_own_frame(), found, kind)


def kmeans_on_host(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of the partition that scikit-learn's KMeans makes of all rows, which are on the host."""
    X, weights = _on_host(rows)
    model = _LeanKMeans(n_clusters=n_components, n_init=1, random_state=random).fit(X, sample_weight=weights)
    labels = np.zeros(rows.blocks.n_rows, dtype=np.int64)
    labels[slice(None) if rows.blocks.present is None else rows.blocks.present] = model.labels_
    device = rows.blocks.device
    centres = rows.read(torch.from_numpy(model.cluster_centers_).to(device)).double()
    on_device = torch.from_numpy(labels).to(device)
    found, low = [], 0
    for part, w in _chunks(rows, n_components):
        r = _one_hot(on_device[low : low + len(part)], n_components)
        found.append(_moments(rows, part, r, w, centres, kind))
        low += len(part)
    return reduce(add, found)


def seeds_on_host(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of the seeds that scikit-learn's k-means++ chooses from all rows, which are on the host."""
    X, weights = _on_host(rows)
    _, index = kmeans_plusplus(X, n_components, sample_weight=weights, random_state=random)
    present = rows.blocks.present
    return _one_each(rows, _take(rows, index if present is None else present[index]), kind)


def random(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of uniform random responsibilities, row by row as scikit-learn draws them."""
    about = torch.zeros(n_components, rows.blocks.n_features, dtype=torch.float64, device=rows.blocks.device)
    present = rows.blocks.present
    counts = rows.blocks.group.objects(rows.blocks.n_rows if present is None else len(present))

    def drawn(part: torch.Tensor, w: torch.Tensor | None) -> Statistics:
        counted = np.ones(len(part), dtype=bool) if w is None else (w > 0).cpu().numpy()
        r = np.zeros((len(part), n_components))
        r[counted] = random.uniform(size=(int(counted.sum()), n_components))
        r[counted] /= r[counted].sum(axis=1, keepdims=True)
        return _moments(rows, part, torch.from_numpy(r).to(part.device), w, about, kind)

    for others in counts[: rows.blocks.group.rank]:
        _pass_over(random, others * n_components)
    found = reduce(add, (drawn(part, w) for part, w in _chunks(rows, n_components)))
    for others in counts[rows.blocks.group.rank + 1 :]:
        _pass_over(random, others * n_components)
    return rows.everywhere(found)


def random_from_data(rows: Rows, n_components: int, kind: CovarianceType, random: np.random.RandomState) -> Statistics:
    """Return the statistics of K rows, drawn as scikit-learn draws them, that belong to a component each."""
    blocks, chances = rows.blocks, None
    present = blocks.present
    if blocks.weights is not None:
        weights = blocks.group.joined(blocks.weights.cpu()[slice(None) if present is None else present]).numpy()
        if (weights != weights[0]).any():
            chances = weights / weights.sum()
    index = random.choice(blocks.n_present, size=n_components, replace=False, p=chances)
    here, own = blocks.own(index)
    mine = torch.zeros(n_components, blocks.n_features, dtype=torch.float64, device=blocks.device)
    mine[torch.from_numpy(here).to(blocks.device)] = _take(rows, own).double()
    return _one_each(rows, blocks.group.sum(mine), kind)


Start = Callable[[Rows, int, CovarianceType, np.random.RandomState], Statistics]
STARTS: dict[str, Start] = {
    "kmeans": kmeans,
    "k-means++": seeds,
    "random": random,
    "random_from_data": random_from_data,
}
# On the rows that scikit-learn sees, its own functions find what it finds.
STARTS_ON_HOST = STARTS | {"kmeans": kmeans_on_host, "k-means++": seeds_on_host}


class _LeanKMeans(KMeans):  # type: ignore[misc]
    """scikit-learn's KMeans, which takes the variance of the rows, for its tolerance, in pieces.

    numpy.var makes a copy of all rows, beside the one that KMeans moves to the mean.
    """

    def _check_params_vs_input(self, X: np.ndarray) -> None:
        tol = self.tol
        self.set_params(tol=0)  # for which it takes no variance
        super()._check_params_vs_input(X)
        self.set_params(tol=tol)
        columns = np.array_split(X, max(1, X.shape[1] // 4), axis=1)
        self._tol = tol * np.mean(np.concatenate([part.var(axis=0) for part in columns]))


def _seeds(
    rows: Rows, n_components: int, random: np.random.RandomState
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return k-means++ seeds (K, D), the sample of rows (n, D) that they are from, and its weights (n,) or None.

    Seeds and sample are in the passes' coordinates. Only SEED_ROWS of the rows can become seeds.
    """
    seed_rows = max(SEED_ROWS, 20 * n_components)
    if rows.blocks.n_present > seed_rows:
        log.info("k-means++ seeds come from %d of %d rows", seed_rows, rows.blocks.n_present)
    if rows.blocks.n_present > KMEANS_ROWS:
        log.info("k-means runs on %d of %d rows, then labels all", KMEANS_ROWS, rows.blocks.n_present)
    index, group = rows.blocks.sample(KMEANS_ROWS, random), rows.blocks.group
    sample, weights = group.joined(rows.read(rows.blocks.take(index))), rows.blocks.weights_of(index)
    weights = None if weights is None else group.joined(weights)
    few = torch.from_numpy(random.permutation(len(sample))[:seed_rows]).to(sample.device)
    some, w = sample[few], None if weights is None else weights[few]
    if some.device.type != "cpu":
        return some[plus_plus(some, n_components, w, random)], sample, weights
    on_host = None if w is None else w.numpy()
    found, _ = kmeans_plusplus(some.numpy(), n_components, sample_weight=on_host, random_state=random)
    return torch.from_numpy(found), sample, weights


def _on_host(rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows that count (n, D), in the dtype that scikit-learn's mixture takes, and their weights (n,)."""
    (X,), present = rows.blocks.parts, rows.blocks.present
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)  # k-means++ squares them in their own
    weights = None if rows.blocks.weights is None else rows.blocks.weights.cpu().numpy()
    if present is not None and weights is not None:
        return X[present], weights[present]
    return X, weights


def _nearest(rows: Rows, centres: torch.Tensor) -> Plan:
    """Return the plan of an E-step whose most probable component of a row is its nearest centre; centres: (K, D)."""
    # Any precision gives the same nearest centre. This one keeps the numbers small, and being a power of four it rounds
    # none of them, nor does its root: rows as far from one centre as from another stay so.
    scale = centres.square().sum(1).max().clamp(min=1e-30).reciprocal().log2().div(2).floor().mul(2).exp2()
    zeros = torch.zeros(len(centres), dtype=torch.float64, device=centres.device)
    return rows.plan(Coefficients("spherical", zeros, centres, zeros + scale))


def _hard(
    rows: Rows, plan: Plan, part: torch.Tensor, w: torch.Tensor | None, centres: torch.Tensor, kind: CovarianceType
) -> Statistics:
    """Return the statistics of rows that belong to their nearest centre, as a plan finds it, whole."""
    labels, _ = plan.assign(part)
    if part.device.type == "cpu" and kind != "full":
        return _moments_by_label(rows, part, labels, w, len(centres), kind)
    return _moments(rows, part, _one_hot(labels, len(centres)), w, centres, kind)


def _moments_by_label(
    rows: Rows,
    part: torch.Tensor,
    labels: torch.Tensor,
    w: torch.Tensor | None,
    n_components: int,
    kind: CovarianceType,
) -> Statistics:
    """Return what `_moments` returns for rows that belong to a component whole: sums over rows sorted by label.

    Measured: a sixth of the time of products with the responsibilities, nearly all of which are zero.
    """

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((2, n_components, part.shape[1]))  # of y and of its square
        nk = np.zeros(n_components)
        room = torch.empty(min(SORTED, stop - start), part.shape[1], dtype=torch.float64)
        for low in range(start, stop, SORTED):
            some = slice(low, min(low + SORTED, stop))
            label = labels[some].numpy()
            order = np.argsort(label, kind="stable")
            y = rows.frame.read(part[some], room[: len(order)]).numpy()[order]
            weight = None if w is None else w[some].numpy()[order]
            counts = np.bincount(label, minlength=n_components)
            there = np.flatnonzero(counts)
            firsts = np.cumsum(counts)[there] - counts[there]
            for total, term in zip(sums, (y, None if kind == "tied" else y * y), strict=True):
                if term is not None:
                    total[there] += np.add.reduceat(term if weight is None else term * weight[:, None], firsts, axis=0)
            nk += counts if weight is None else np.bincount(label[order], weight, minlength=n_components)
        return nk, sums

    found = over_parts(len(part), part.device, work)
    nk, (sx, sxx) = (torch.from_numpy(sum(each[1:], each[0])) for each in zip(*found, strict=True))
    squares = {"diag": sxx, "spherical": sxx.sum(1), "tied": None}[kind]
    zero = torch.zeros((), dtype=torch.float64)
    return Statistics(nk, sx, squares, zero, zero, torch.zeros_like(sx))


def _one_hot(labels: torch.Tensor, n_components: int) -> torch.Tensor:
    return (labels[:, None] == torch.arange(n_components, device=labels.device)).double()


def _one_each(rows: Rows, picked: torch.Tensor, kind: CovarianceType) -> Statistics:
    """Return the statistics of picked rows (K, D), of which each belongs to a component, and of no other rows."""
    one_each = torch.eye(len(picked), dtype=torch.float64, device=picked.device)
    return _moments(rows, picked, one_each, None, rows.read(picked).double(), kind)


def _pass_over(random: np.random.RandomState, n_numbers: int) -> None:
    """Draw numbers that are other processes' to use."""
    for low in range(0, n_numbers, 1 << 20):
        random.uniform(size=min(1 << 20, n_numbers - low))


def _take(rows: Rows, index: np.ndarray) -> torch.Tensor:
    """Return the rows of an index (n,) in any order."""
    order = np.argsort(index)
    return rows.blocks.take(index[order])[torch.from_numpy(np.argsort(order)).to(rows.blocks.device)]


def _moments(
    rows: Rows,
    part: torch.Tensor,
    r: torch.Tensor,
    w: torch.Tensor | None,
    about: torch.Tensor,
    kind: CovarianceType,
) -> Statistics:
    r = r if w is None else r * w[:, None].to(r.dtype)
    return rows.backend.moments(part, r, kind, about, rows.frame, rows.dtype)


def _chunk_rows(rows: Rows, n_components: int) -> int:
    """Return how many rows' responsibilities are held at a time; a power of two, so that few sums depend on memory."""
    device = rows.blocks.device
    if device.type == "cpu":
        return CHUNK
    # One-hot responsibilities, as bool and float64, and with weights; a row and its square in float64.
    row_bytes = 17 * n_components + 16 * rows.blocks.n_features
    return int(max(LEAST_CHUNK, 1 << max(share_of_free(device, CHUNK_BYTES) // row_bytes, 1).bit_length() - 1))


def _chunks(rows: Rows, n_components: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    size = _chunk_rows(rows, n_components)
    for block, weights in rows.blocks.weighted():
        for low in range(0, len(block), size):
            yield block[low : low + size], None if weights is None else weights[low : low + size]
