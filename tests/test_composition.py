"""What clusters are composed of: tables by brute force, indices as scikit-learn's, p-values as every permutation's."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fastclust.views import composition
from fastclust.views.composition import agreement, drawn, drawn_by_groups, indices, outliers, tabulate


def partitions(seed, n=40, k=5, n_labels=4):
    """Two partitions of n things that have something to do with each other."""
    random = np.random.default_rng(seed)
    clusters = random.integers(k, size=n)
    labels = np.where(random.random(n) < 0.5, clusters % n_labels, random.integers(n_labels, size=n))
    return clusters, [f"label {label}" for label in labels]


def rand_by_pairs(clusters, labels):
    """The adjusted Rand index, from its definition: over all pairs, against the mean under fixed margins."""
    pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
    same_cluster = sum(clusters[i] == clusters[j] for i, j in pairs)
    same_label = sum(labels[i] == labels[j] for i, j in pairs)
    both = sum(clusters[i] == clusters[j] and labels[i] == labels[j] for i, j in pairs)
    expected = same_cluster * same_label / len(pairs)
    return (both - expected) / ((same_cluster + same_label) / 2 - expected)


@pytest.mark.parametrize("seed", range(4))
def test_tables_and_measures_are_those_of_a_count(seed):
    clusters, labels = partitions(seed)
    clusters[clusters == 2] = 6  # numbers without images, between and after
    found = agreement(clusters, labels, n_clusters=9, permutations=9)
    assert found.values == sorted(set(labels))
    assert found.counts.shape == (9, len(set(labels)))
    for k in range(9):
        here = Counter(label for label, cluster in zip(labels, clusters, strict=True) if cluster == k)
        assert dict(zip(found.values, found.counts[k].tolist(), strict=True)) == {
            label: here[label] for label in found.values
        }
        if not here:
            assert np.isnan(found.purities[k])
            assert np.isnan(found.entropies[k])
            continue
        shares = np.array(list(here.values())) / sum(here.values())
        assert found.purities[k] == pytest.approx(max(shares))
        assert found.entropies[k] == pytest.approx(-sum(shares * np.log(shares)))
    sizes = found.counts.sum(axis=1)
    used = sizes > 0
    assert found.purity == pytest.approx(np.average(found.purities[used], weights=sizes[used]))
    assert found.entropy == pytest.approx(np.average(found.entropies[used], weights=sizes[used]))
    assert found.adjusted_rand == pytest.approx(rand_by_pairs(clusters, labels))
    assert found.mutual_information == pytest.approx(normalized_mutual_info_score(labels, clusters))


def test_values_are_in_the_order_of_numbers_and_then_of_words():
    values, counts = tabulate(np.array([0, 0, 2, 2, 2]), ["10", "9", "", "ä", "9"])
    assert values == ["9", "10", "", "ä"]
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]]


@pytest.mark.parametrize(
    ("clusters", "labels"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 1, 2, 0]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 0, 0, 0]),
        ([0, 1, 2, 3], [0, 0, 1, 1]),
        ([0, 0, 1, 1], [1, 1, 0, 0]),
        ([0, 0, 1, 1], [0, 1, 0, 1]),
        ([0], [0]),
        *((partitions(seed)[0].tolist(), partitions(seed)[1]) for seed in range(6)),
    ],
)
def test_indices_of_tables_are_scikit_learns(clusters, labels):
    names = sorted(set(labels))
    table = np.zeros((max(clusters) + 1, len(names)), dtype=np.int64)
    for cluster, label in zip(clusters, labels, strict=True):
        table[cluster, names.index(label)] += 1
    other = table[::-1]
    ((rand, information), reversed_) = indices(np.stack([table, other]))
    assert rand == pytest.approx(adjusted_rand_score(labels, clusters), abs=1e-12)
    assert information == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-12)
    assert reversed_ == pytest.approx([rand, information], abs=1e-12)


def every_p(clusters, labels):
    """The shares of all permutations whose indices are no smaller than those observed."""
    found = adjusted_rand_score(labels, clusters), normalized_mutual_info_score(labels, clusters)
    drawn = [
        (adjusted_rand_score(order, clusters), normalized_mutual_info_score(order, clusters))
        for order in set(permutations(labels))  # each of them as often as any other
    ]
    return np.mean(np.array(drawn) >= np.array(found) - 1e-9, axis=0)


@pytest.mark.parametrize(
    ("clusters", "labels"),
    [([0, 0, 0, 1, 1, 2], list("aabbbb")), ([0, 0, 1, 1, 2, 2], list("abcabc")), ([0, 1, 1, 1, 1, 1], list("abbbbb"))],
)
def test_p_values_are_those_of_all_permutations(clusters, labels):
    exact = every_p(clusters, labels)
    found = agreement(clusters, labels, permutations=4000, seed=1)
    error = 4 * np.sqrt(exact * (1 - exact) / 4000) + 1 / 4000
    assert abs(found.p_rand - exact[0]) <= error[0]
    assert abs(found.p_information - exact[1]) <= error[1]
    again = agreement(clusters, labels, permutations=4000, seed=1)
    assert (again.p_rand, again.p_information) == (found.p_rand, found.p_information)


def test_p_values_are_uniform_where_labels_are_independent_of_clusters_and_small_where_not():
    random, values = np.random.default_rng(0), []
    for seed in range(150):
        clusters, labels = random.integers(6, size=150), random.integers(9, size=150)
        found = agreement(clusters, [str(label) for label in labels], permutations=199, seed=seed)
        values.append((found.p_rand, found.p_information))
    for column in np.array(values).T:
        assert kstest(column, "uniform").pvalue > 0.001
        assert abs(np.mean(column <= 0.05) - 0.05) < 0.06
    clusters, labels = partitions(0, n=150)
    assert agreement(clusters, labels, permutations=199).p_rand == 1 / 200


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1), (2, 6), (5, 4)])
def test_drawn_tables_have_the_margins_and_no_negative_count(shape):
    counts = np.random.default_rng(0).integers(1, 20, shape)
    tables = np.concatenate(list(drawn(counts, 50, 0)))
    assert tables.shape == (50, *shape)
    assert (tables >= 0).all()
    assert (tables.sum(axis=1) == counts.sum(axis=0)).all()
    assert (tables.sum(axis=2) == counts.sum(axis=1)).all()


def test_one_cluster_is_no_more_than_chance():
    found = agreement([3] * 60, ["a", "b", "c"] * 20, n_clusters=5, permutations=99)
    assert (found.p_rand, found.p_information) == (1.0, 1.0)
    assert (found.purity, found.adjusted_rand) == (pytest.approx(1 / 3), pytest.approx(0))
    assert found.entropy == pytest.approx(np.log(3))


def test_chunks_of_tables_draw_as_many(monkeypatch):
    counts = np.random.default_rng(0).integers(1, 20, (4, 3))
    monkeypatch.setattr(composition, "TABLES", 30)
    parts = list(drawn(counts, 7, 0))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    table = np.random.default_rng(0).integers(0, 5, (4, 10))
    by_groups = list(drawn_by_groups(table, np.arange(10) % 3, 7, 0))
    assert sum(len(part) for part in by_groups) == 7
    assert all((part.sum(axis=(1, 2)) == table.sum()).all() for part in by_groups)


def test_permutations_are_told_as_they_are_drawn(monkeypatch):
    monkeypatch.setattr(composition, "TABLES", 200)
    clusters, told = np.arange(12) % 3, []
    labels, groups = [f"label {n % 4}" for n in range(12)], [str(n) for n in range(12)]
    agreement(clusters, labels, permutations=25, progress=lambda done, of: told.append((done, of)))
    assert told == [(16, 25), (25, 25)]
    told.clear()
    agreement(clusters, labels, groups=groups, permutations=25, progress=lambda done, of: told.append((done, of)))
    assert told[:2] == [(16, 50), (25, 50)]
    assert told[-1] == (50, 50)


def test_groups_that_are_clusters_of_their_own_do_not_prove_their_label():
    """Every patient's images are one cluster: by images that is no chance, by patients it says nothing of grades."""
    groups = [str(group) for group in np.repeat(np.arange(8), 20)]
    clusters = np.repeat(np.arange(8), 20)
    labels = ["benign" if int(group) < 4 else "malignant" for group in groups]
    found = agreement(clusters, labels, groups=groups, permutations=499)
    assert found.p_rand == 1 / 500
    assert found.p_by_groups == (1.0, 1.0), "which half of the patients is benign changes no index"
    clusters = np.repeat([0, 0, 0, 0, 1, 1, 1, 1], 20)
    found = agreement(clusters, labels, groups=groups, permutations=4999)
    exact = 2 / 70  # of the ways to choose 4 of 8 patients, those that are the clusters
    assert found.p_by_groups is not None
    assert found.p_by_groups[0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 5000))
    assert found.p_by_groups[1] == pytest.approx(exact, abs=4 * np.sqrt(exact / 5000))
    assert agreement(clusters, labels).p_by_groups is None
    mixed = ["malignant", *labels[1:]]
    assert agreement(clusters, mixed, groups=groups, permutations=9).p_by_groups is None, "a patient of two grades"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, 1, 1, 1], []),
        ([99, 1], [1]),
        ([100, 96, 4, 0], [2]),
        ([100, 95, 5], []),
        ([20, 20, 1, 2], [2]),
        ([0, 7], []),
        ([2] * 100 + [1], []),
        ([4] * 100 + [1], [100]),
    ],
)
def test_outlier_clusters_follow_the_rule(sizes, expected):
    assert np.flatnonzero(outliers(np.array(sizes))).tolist() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"clusters": [], "labels": []},
        {"clusters": [0, 1], "labels": ["a"]},
        {"clusters": [0, 1], "labels": ["a", "b"], "groups": ["x"]},
        {"clusters": [0, 1], "labels": ["a", "b"], "permutations": 0},
    ],
)
def test_what_cannot_be_compared_is_refused(wrong):
    with pytest.raises(ValueError, match="expected as many clusters as labels and groups, and some"):
        agreement(**wrong)
