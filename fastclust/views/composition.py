"""What clusters are composed of, by a label of their members, and how far the two partitions agree beyond chance.

Of n images n_kl are in cluster k and have label l; n_k and n_l are sums over the other index.

    purity        of a cluster max_l n_kl / n_k, of all sum_k max_l n_kl / n
    entropy       of a cluster -sum_l (n_kl / n_k) ln (n_kl / n_k), in nats; of all, the mean over images
    indices       the adjusted Rand index (Hubert and Arabie 1985), and mutual information over the mean of the two
                  entropies; both are scikit-learn's
    p             (b + 1) / (m + 1), where b of m permutations of the labels over the images have an index that is no
                  smaller (Phipson and Smyth 2010)

Permuting labels over images draws the table n_kl from those with the same margins, so tables are drawn, not
permutations (Patefield 1981, as `scipy.stats.random_table`). That takes images for independent, which several of one
patient are not: where all images of a group have one label, labels are permuted over whole groups as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import entropy, random_table
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

PERMUTATIONS = 9_999
TABLES = 2**21  # entries of the tables that are in memory at a time
TIE = 1e-10  # indices that are no further apart are equal: sums of the same terms in another order are
SMALL, LESS = 0.02, 0.5
OUTLIER_RULE = (
    f"at most {SMALL:.0%} of the images (or one image), and less than half as many as a cluster has on average"
)

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How clusters agree with a label.

    values: the label's L values, in order. counts: (K, L) int64 images, a row a cluster. purities, entropies: (K,) of
    each cluster, NaN of one without images. p_rand, p_information: of the two indices. p_by_groups: the same where
    whole groups are permuted, (p of the adjusted Rand index, p of the information), or None.
    """

    values: list[str]
    counts: Counts
    purities: Floats
    entropies: Floats
    purity: float
    entropy: float
    adjusted_rand: float
    mutual_information: float
    p_rand: float
    p_information: float
    permutations: int
    p_by_groups: tuple[float, float] | None = None

    def about(self) -> dict[str, Any]:
        """Return what is of all clusters, as plain values for JSON."""
        names = ("values", "purity", "entropy", "adjusted_rand", "p_rand", "mutual_information", "p_information")
        by_groups = dict(zip(("p_rand", "p_information"), self.p_by_groups or (), strict=False))
        return {name: getattr(self, name) for name in names} | {
            "permutations": self.permutations,
            "permuting_whole_groups": by_groups or None,
        }


def agreement(
    clusters: Sequence[int] | NDArray[np.integer],
    labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    n_clusters: int | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare clusters (n,) from 0 to n_clusters - 1 with as many labels.

    groups: of which the images are no independent members, such as patients; used where each has one label. progress:
    called with how many permutations are done, and of how many: of tens of thousands of labels they take minutes.
    Raises ValueError where there are no images, or not as many labels or groups, or fewer than one permutation.
    """
    clusters = np.asarray(clusters)
    lengths = {len(clusters), len(labels), len(groups) if groups is not None else len(labels)}
    if lengths != {len(clusters)} or not len(clusters) or permutations < 1:
        raise ValueError(f"expected as many clusters as labels and groups, and some, got {sorted(lengths)} of them")
    values, counts = tabulate(clusters, labels, n_clusters)
    sizes = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        purities, entropies = counts.max(axis=1) / sizes, entropy(counts, axis=1)
    found = np.array([[adjusted_rand_score(labels, clusters), normalized_mutual_info_score(labels, clusters)]])
    used = counts[sizes > 0]
    grouped = groups is not None and len(set(zip(groups, labels, strict=True))) == len(set(groups)) > 1
    done, of = 0, permutations * (2 if grouped else 1)

    def told(tables: Iterator[Counts]) -> Iterator[Counts]:
        nonlocal done
        for part in tables:
            yield part
            done += len(part)
            if progress is not None:
                progress(done, of)

    p_rand, p_information = _p(found, told(drawn(used, permutations, seed)))
    by_groups = None
    if grouped and groups is not None:
        names, table = tabulate(clusters, groups)
        label_of = dict(zip(groups, labels, strict=True))
        kinds = np.array([values.index(label_of[name]) for name in names])
        by_groups = _p(found, told(drawn_by_groups(table, kinds, permutations, seed)))
    return Agreement(
        values,
        counts,
        purities,
        entropies,
        float(counts.max(axis=1).sum() / sizes.sum()),
        float(np.sum(entropies[sizes > 0] * sizes[sizes > 0]) / sizes.sum()),
        float(found[0, 0]),
        float(found[0, 1]),
        p_rand,
        p_information,
        permutations,
        by_groups,
    )


def tabulate(
    clusters: NDArray[np.integer], labels: Sequence[str], n_clusters: int | None = None
) -> tuple[list[str], Counts]:
    """Return the labels' values, numbers before words and in order, and a table (K, L) of how often they meet."""
    values = sorted(
        set(labels), key=lambda value: (not value.isdecimal(), int(value) if value.isdecimal() else 0, value)
    )
    place = {value: i for i, value in enumerate(values)}
    met = contingency_matrix(clusters, [place[label] for label in labels], dtype=np.int64)
    counts = np.zeros((n_clusters or int(clusters.max()) + 1, len(values)), dtype=np.int64)
    counts[np.unique(clusters)] = met
    return values, counts


def indices(tables: NDArray[np.integer]) -> Floats:
    """Return the adjusted Rand index and the normalised mutual information of each of m tables (m, K, L): (m, 2).

    As scikit-learn's functions define both, also where one of the partitions has one part, or none has two members.
    """
    counts: Floats = np.asarray(tables, dtype=np.float64)
    rows, columns = counts.sum(axis=2), counts.sum(axis=1)  # (m, K), (m, L)
    n = rows.sum(axis=1)  # (m,)
    together, in_rows, in_columns = (_pairs(counts).sum(axis=1), _pairs(rows), _pairs(columns))
    expected = in_rows * in_columns / np.maximum(n * (n - 1) / 2, 1)
    most = (in_rows + in_columns) / 2
    same = (in_rows == together) & (in_columns == together)
    rand = np.where(same, 1.0, (together - expected) / np.where(same, 1.0, most - expected))
    plain = _sum_xlogx(counts).sum(axis=1)
    of_rows, of_columns, of_all = _sum_xlogx(rows), _sum_xlogx(columns), xlogy(n, n)
    information = np.maximum(plain - of_rows - of_columns + of_all, 0)
    mean = ((of_all - of_rows) + (of_all - of_columns)) / 2
    single = mean <= TIE
    normal = np.where(single, 1.0, information / np.where(single, 1.0, mean))
    return np.stack([rand, normal], axis=1)


def drawn(counts: Counts, tables: int, seed: int) -> Iterator[Counts]:
    """Yield (m, K, L) tables with the margins of one (K, L), as permutations of labels over the images make them."""
    if 1 in counts.shape:  # the one table with its margins, of which SciPy 1.17 draws others, with negative counts
        yield from (np.broadcast_to(counts, (m, *counts.shape)) for m in _chunks(tables, counts.size))
        return
    random, margins = np.random.default_rng(seed), random_table(counts.sum(axis=1), counts.sum(axis=0))
    for m in _chunks(tables, counts.size):
        yield np.asarray(margins.rvs(m, random_state=random), dtype=np.int64).reshape(m, *counts.shape)


def drawn_by_groups(table: Counts, kinds: NDArray[np.integer], tables: int, seed: int) -> Iterator[Counts]:
    """Yield (m, K, L) tables of clusters and labels, where labels are permuted over whole groups.

    table: (K, G) images of each group in each cluster. kinds: (G,) the label of each group, from 0 to L - 1.
    """
    random, one_hot = np.random.default_rng(seed), np.eye(int(kinds.max()) + 1, dtype=np.int64)
    for m in _chunks(tables, len(table) * one_hot.shape[1] + one_hot.shape[1] * len(kinds)):
        order = random.permuted(np.broadcast_to(kinds, (m, len(kinds))), axis=1)  # (m, G)
        yield np.asarray(table @ one_hot[order])


def _chunks(total: int, size: int) -> Iterator[int]:
    step = max(1, TABLES // max(size, 1))
    for low in range(0, total, step):
        yield min(step, total - low)


def _p(found: Floats, tables: Iterator[Counts]) -> tuple[float, float]:
    """Return the p-values of the two indices (1, 2) among those of tables."""
    at_least, total = np.zeros(2, dtype=np.int64), 0
    for part in tables:
        at_least += (indices(part) >= found - TIE).sum(axis=0)
        total += len(part)
    first, second = ((at_least + 1) / (total + 1)).tolist()
    return first, second


def _pairs(counts: Floats) -> Floats:
    return np.asarray((counts * (counts - 1) / 2).sum(axis=-1))


def _sum_xlogx(counts: Floats) -> Floats:
    return np.asarray(xlogy(counts, counts).sum(axis=-1))


def outliers(sizes: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Say which clusters of these sizes (K,) are outlier clusters, by OUTLIER_RULE; one without images is none."""
    used = np.asarray(sizes) > 0
    n, average = int(np.sum(sizes)), np.sum(sizes) / max(1, int(used.sum()))
    return np.asarray(used & (sizes <= max(1, int(SMALL * n))) & (sizes < LESS * average))
